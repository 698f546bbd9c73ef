"""`SparseMap`: what all sparse layers with a bias have, whatever they map."""

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from typing_extensions import Self

from sparsify._src import lazy, topology, vectors
from sparsify._src.checks import check_density
from sparsify._src.layers.adoption import adopt
from sparsify._src.layers.from_dense import choose_connections, matrix_shape, take_values
from sparsify._src.layers.initialization import drawn, drawn_generator
from sparsify._src.layers.layer import SparseLayer
from sparsify._src.layers.resetting import prepare_reset
from sparsify._src.layers.tracing import as_leaf
from sparsify._src.swap import Change, Swap
from sparsify._src.topology import Indices, Shape

if TYPE_CHECKING:
    from torch_sparse import SparseTensor

Start = Literal["random", "magnitude", "nonzero"]


class SparseMap(SparseLayer):
    """A sparse layer that maps its input by its weight and adds a bias: a linear layer, a convolution.

    Attributes:
        bias: Parameter (out_features,) or None.
        zero_bias: whether a new bias is zero, as that of a projection of attention, and not uniform.
    """

    bias: nn.Parameter | None
    zero_bias: bool = False

    def _draw(
        self,
        shape: Shape,
        density: float,
        bias: bool,
        generator: torch.Generator | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        """Make it a new layer, with a random topology and initial values: see `SparseLinear`."""
        device = torch.get_default_device() if device is None else torch.device(device)
        if device.type == "meta":
            raise ValueError(
                "device must have memory, got meta: a sparse layer is its connections. Make it on another device, or "
                "make a dense model on meta and call sparsify(model, ...)."
            )
        nnz = topology.connection_count(check_density(density), shape)
        flat, numbers, offset = drawn(shape, nnz, bias, generator or drawn_generator())
        values = torch.empty(nnz, device=device, dtype=dtype).copy_(numbers)
        offsets = None if offset is None else nn.Parameter(offset.to(values))
        self._assemble(shape, flat.to(device), values, offsets)

    def _assemble(self, shape: Shape, flat: Tensor, values: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__(shape, flat, values)
        self.register_parameter("bias", bias)

    def to_module(self) -> nn.Module:
        """The dense module that computes the same; its parameters are copies."""
        raise NotImplementedError

    def _map(self, input: Tensor, indices: Indices) -> Tensor:
        """What the layer computes, by these indices."""
        raise NotImplementedError

    @classmethod
    def _from_dense(
        cls, dense: nn.Module, density: float | None, start: Start, generator: torch.Generator | None
    ) -> Self:
        """See `SparseLinear.from_linear`."""
        weight = dense.get_parameter("weight")
        if start not in ("random", "magnitude", "nonzero"):
            raise ValueError(f'start must be "random" or "magnitude", or "nonzero" without a density, got {start!r}.')
        if start == "nonzero":
            if weight.is_meta:
                raise ValueError(
                    'start must be "random" for a layer on the meta device, got "nonzero": it has no values.'
                )
            if density is not None:
                raise ValueError(f'density must not be given where start is "nonzero", got {density!r}.')
            return cls.replacing(dense, vectors.positions((weight.detach() != 0).flatten()))
        if density is None:
            raise TypeError('density must be given, unless start is "nonzero".')
        nnz = topology.connection_count(check_density(density), matrix_shape(dense))
        return cls.replacing(dense, nnz, start=start, generator=generator)

    @classmethod
    def replacing(
        cls,
        dense: nn.Module,
        connections: int | Tensor,
        *,
        start: Literal["random", "magnitude"] = "random",
        generator: torch.Generator | None = None,
    ) -> Self:
        """The sparse layer that takes the place of `dense`: see `SparseLinear.from_linear`.

        Args:
            connections: so many, or these: sorted, unique flat indices (nnz,) int64.
        """
        scale, weight = 1.0, dense.get_parameter("weight")
        if isinstance(connections, int):
            connections, scale = choose_connections(dense, connections, start, generator)
        values, bias = take_values(dense, connections, scale, generator)
        layer = cls.__new__(cls)
        layer._assemble(matrix_shape(dense), connections.to(values.device), values, bias)
        layer.values.requires_grad_(weight.requires_grad)
        if weight.grad is not None:
            layer.values.grad = weight.grad.flatten()[connections.to(values.device)]
        adopt(layer, dense)
        return layer

    def with_numbers(self, values: Tensor, bias: nn.Parameter | None) -> Self:
        """A new layer of the same connections with other values (nnz,) and another bias; it shares no tensor."""
        layer = type(self).__new__(type(self))
        layer._assemble(self.shape, self.flat(), values, bias)
        layer.values.requires_grad_(self.values.requires_grad)
        layer.transposed, layer.zero_bias = self.transposed, self.zero_bias
        adopt(layer, self)
        return layer

    def reset_parameters(self) -> None:
        """Start anew: as many connections as now at other random places, with values and bias as of a new layer.

        What is random follows torch's global generator. Gradients become None. The optimizer that trains the layer
        starts the state of `values` and `bias` afresh when it next steps, and evolution goes on where its schedule is.

        Raises:
            ValueError: values or bias is no parameter of the layer's own. Nothing is changed.
        """
        Swap(self.prepare_reset(), [self]).commit()

    def prepare_reset(self) -> list[Change]:
        """Prepare what `reset_parameters` does: see `resetting`."""
        return prepare_reset(self, self.zero_bias)

    def __dir__(self) -> Iterable[str]:
        """Without `weight` where torch-sparse is missing: torch.jit.trace, for one, reads all that is named here."""
        return [name for name in super().__dir__() if name != "weight" or lazy.is_importable()]  # type: ignore[no-untyped-call]

    @property
    def weight(self) -> "SparseTensor":
        """The weight as a `torch_sparse.SparseTensor` (out_features, in_features), attached to autograd.

        Raises:
            ImportError: torch-sparse and torch-scatter are not both installed, or not built for this torch.
        """
        return lazy.sparse_tensor(self.values, self.indices(), self.shape)

    @weight.setter
    def weight(self, weight: "SparseTensor") -> None:
        """Accept the layer's own weight, as PEFT sets it when it unwraps a layer, and nothing else."""
        if not lazy.is_sparse_tensor(weight) or weight.storage.value() is not self.values:
            raise AttributeError(
                f"weight must be the layer's own, got another {type(weight).__name__}. Write into `values`, or load a "
                "state dict for another topology."
            )

    def forward(self, input: Tensor) -> Tensor:
        """Map the input as the dense layer does."""
        if isinstance(input, Proxy):
            traced: Tensor = as_leaf(self, input)
            return traced
        return self.consistently(partial(self._map, input))
