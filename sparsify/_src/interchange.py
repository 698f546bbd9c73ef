"""To and from other forms: dense models, PyTorch's CSR tensors, SciPy's sparse arrays."""

import copy
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sparsify._src import kernels, topology
from sparsify._src.kernels.aten import csr_tensor
from sparsify._src.layers import folding, norms
from sparsify._src.layers.attention import SparseMultiheadAttention
from sparsify._src.layers.linear import SparseLinear
from sparsify._src.layers.map import SparseMap

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def densify(model: nn.Module) -> nn.Module:
    """Make a dense copy of a sparse model: ordinary layers and state-dict keys, the same function.

    Args:
        model: left as it is, so that training can go on.
    Returns:
        a deep copy of the model, its sparse layers dense. One that is still being pruned is warned of.
    Example:
        >>> model, _ = sparsify(nn.Sequential(nn.Linear(20, 10)), None, density=0.2)
        >>> dense = densify(model)
        >>> dense[0], int(dense[0].weight.count_nonzero())
        (Linear(in_features=20, out_features=10, bias=True), 40)
    """
    dense: dict[int, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, SparseMap) and module.remarks is not None:
            module.remarks.saved("made dense")
        if isinstance(module, SparseMultiheadAttention):
            dense[id(module)] = module.to_attention()
        elif isinstance(module, SparseMap):
            dense[id(module)] = module.to_module()
    return copy.deepcopy(model, dense)


def fuse(model: nn.Module, pairs: Iterable[tuple[str, str]] | None = None) -> nn.Module:
    """Make a copy for inference whose batch norms are folded into the layers before them: the same function, less work.

    A BatchNorm1d, 2d or 3d, a SyncBatchNorm or timm's BatchNormAct2d that directly follows a linear layer or a
    convolution, sparse or dense, becomes a factor of each row of its weight and a bias; where it was there is an
    nn.Identity, or what timm's has besides: dropping and an activation. What else would see what is between the two
    (another layer, hooks), and norms or layers that are called more than once, stay as they are.

    Args:
        model: left as it is, in whatever mode. One that holds batch norms is traced by torch.fx in evaluation, with the
            defaults of its optional arguments.
        pairs: the names of layers and of the batch norms that directly follow them, as in [("conv1", "bn1")], where it
            cannot be traced, or only these are to be folded; nothing tells then whether they follow each other.
    Returns:
        a deep copy in evaluation mode, to stay in it: there is no norm to train any more. Its connections are those of
        the model, but no evolution follows. One that is still being pruned is warned of.
    Raises:
        ValueError: the model cannot be traced, and `pairs` does not say it; `pairs` names what is no such pair, or a
            module twice.
    Example:
        >>> model, _ = sparsify(nn.Sequential(nn.Linear(20, 10, bias=False), nn.BatchNorm1d(10), nn.ReLU()), None, 0.2)
        >>> fuse(model)
        Sequential(
          (0): SparseLinear(in_features=20, out_features=10, nnz=40, density=0.2, bias=True)
          (1): Folded(dims=2)
          (2): ReLU()
        )
    """
    given = norms.following(model) if pairs is None else norms.checked(model, pairs)
    memo: dict[int, Any] = {}
    for name, norm_name in given:
        layer, norm = model.get_submodule(name), model.get_submodule(norm_name)
        memo |= {id(layer): folding.folded(layer, norm), id(norm): folding.rest(layer, norm, memo)}
    for module in model.modules():
        if isinstance(module, SparseMap) and module.remarks is not None:
            module.remarks.saved("fused")
    return copy.deepcopy(model, memo).eval()


def to_csr(layer: SparseMap) -> Tensor:
    """The weight as a `torch.sparse_csr` tensor.

    Returns:
        (out_features, in_features), with `layer.nnz` elements; a detached copy, on the layer's device.
    Example:
        >>> from sparsify._src.interchange import to_csr
        >>> matrix = to_csr(SparseLinear(20, 10, density=0.2))
        >>> matrix.layout, matrix.shape, matrix.values().shape
        (torch.sparse_csr, torch.Size([10, 20]), torch.Size([40]))
    """
    return csr_tensor(layer.crow.clone(), layer.col.clone(), layer.values.detach().clone(), layer.shape)


def to_scipy(layer: SparseMap) -> "csr_array":
    """The weight as a `scipy.sparse.csr_array`.

    Returns:
        (out_features, in_features), with `layer.nnz` elements; a copy. Values in half precision, which SciPy does not
        have, come in float32.
    Example:
        >>> from sparsify._src.interchange import to_scipy
        >>> matrix = to_scipy(SparseLinear(20, 10, density=0.2))
        >>> matrix.format, matrix.shape, matrix.nnz
        ('csr', (10, 20), 40)
    """
    from scipy.sparse import csr_array

    values = layer.values.detach()
    values = values if values.dtype in (torch.float32, torch.float64) else values.float()
    data, col, crow = (part.cpu().numpy() for part in (values, layer.col, layer.crow))
    return csr_array((data, col, crow), layer.shape, copy=True)


def from_csr(matrix: Tensor, bias: Tensor | None = None) -> SparseLinear:
    """Make a layer whose weight is `matrix`; its explicit zeros are connections.

    Args:
        matrix: a `torch.sparse_csr` tensor (out_features, in_features); copied, with its dtype and device.
        bias: (out_features,), copied, in the dtype of the matrix; None for a layer without.
    Raises:
        TypeError: matrix is not a `torch.sparse_csr` tensor of floating-point numbers.
        ValueError: matrix is not two-dimensional, has no element, or its indices are not sorted and unique; bias has
            another shape.
    Example:
        >>> from sparsify._src.interchange import from_csr, to_csr
        >>> from_csr(to_csr(SparseLinear(20, 10, density=0.2)), bias=torch.zeros(10))
        SparseLinear(in_features=20, out_features=10, nnz=40, density=0.2, bias=True)
    """
    if not isinstance(matrix, Tensor) or matrix.layout != torch.sparse_csr:
        kind = matrix.layout if isinstance(matrix, Tensor) else type(matrix).__name__
        raise TypeError(f"matrix must be a torch.sparse_csr tensor, got {kind}. Use matrix.to_sparse_csr().")
    return _from_parts(matrix.crow_indices(), matrix.col_indices(), matrix.values(), tuple(matrix.shape), bias)


def from_scipy(matrix: Any, bias: Any = None) -> SparseLinear:
    """Make a layer whose weight is `matrix`; its explicit zeros are connections, and elements of one place are summed.

    Args:
        matrix: a SciPy sparse array or matrix of any format, (out_features, in_features), float32 or float64; copied.
        bias: (out_features,), copied, in the dtype of the matrix; None for a layer without.
    Raises:
        TypeError: matrix is not sparse, or not of float32 or float64.
        ValueError: matrix is not two-dimensional, has no element, or its indices are corrupt; bias has another shape.
    Example:
        >>> from scipy.sparse import eye_array
        >>> from sparsify._src.interchange import from_scipy
        >>> from_scipy(eye_array(3, 4, dtype="float32"))
        SparseLinear(in_features=4, out_features=3, nnz=3, density=0.25, bias=False)
    """
    from scipy.sparse import issparse

    if not issparse(matrix):
        raise TypeError(f"matrix must be a SciPy sparse array, got {type(matrix).__name__}.")
    if matrix.dtype.name not in ("float32", "float64"):
        raise TypeError(f'matrix must be of float32 or float64, got {matrix.dtype}. Use matrix.astype("float32").')
    csr = matrix.copy()
    if hasattr(csr, "check_format"):  # its own code would follow corrupt indices out of the arrays
        csr.check_format()
    csr = csr.tocsr()
    csr.sum_duplicates()
    crow, col, values = (torch.from_numpy(part) for part in (csr.indptr, csr.indices, csr.data))
    return _from_parts(crow, col, values, csr.shape, bias)


def _from_parts(crow: Tensor, col: Tensor, values: Tensor, shape: tuple[int, ...], bias: Any) -> SparseLinear:
    if len(shape) != 2:
        raise ValueError(f"matrix must be (out_features, in_features), got {shape}.")
    if values.dtype not in kernels.SUPPORTED:
        raise TypeError(f"matrix must be of {', '.join(map(str, kernels.SUPPORTED))}, got {values.dtype}.")
    if not len(values):
        raise ValueError(f"matrix must have at least one element, got none in {shape}.")
    outs, ins = shape
    topology.check_csr(crow, col, len(values), (outs, ins))
    offsets = None
    if bias is not None:
        offsets = nn.Parameter(torch.as_tensor(bias).detach().to(values, copy=True))
        if offsets.shape != (outs,):
            raise ValueError(f"bias must be ({outs},), got {tuple(offsets.shape)}.")
    flat = topology.from_csr(crow, col, (outs, ins))
    return SparseLinear.from_topology((outs, ins), flat, values.detach().clone(), offsets)
