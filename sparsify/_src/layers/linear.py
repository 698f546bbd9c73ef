"""`SparseLinear`: an nn.Linear that holds its connections only."""

import copy
from typing import Literal

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from sparsify._src import kernels
from sparsify._src.layers.adoption import adopt
from sparsify._src.layers.inputs import checked_input
from sparsify._src.layers.map import SparseMap
from sparsify._src.topology import Indices, Shape


class SparseLinear(SparseMap):
    """A linear layer whose weight is a `torch_sparse.SparseTensor`: y = x W^T + b, over its connections alone.

    The topology lives in the buffers `crow` and `col` (row-major, sorted, unique), so `.to()`, `state_dict()` and
    `load_state_dict()` carry it. A new layer has a random topology of exactly round(density * in * out) connections,
    and the initial values of nn.Linear scaled to the sparse fan-in.

    Args:
        in_features: size of each input.
        out_features: size of each output.
        density: share of all in * out places that are connections, in (0, 1].
        bias: whether to learn an additive bias.
        generator: on the CPU, of the topology and the initial values; None seeds one from torch's global generator.
        device, dtype: of the parameters, as in nn.Linear.

    Attributes:
        values: Parameter (nnz,), the weights of the connections in row-major order. Always the same object.
        bias: Parameter (out_features,) or None.
        transposed: whether a dense checkpoint has the weight as (in_features, out_features), as that of Hugging Face's
            Conv1D, in whose place the layer is then.
        zero_bias: whether a new bias is zero, as that of a projection of attention, and not uniform.
        resets: how often `reset_parameters` was called.

    Shape:
        input (*, in_features) -> output (*, out_features)

    Raises:
        ValueError: a size is below 1 or density outside (0, 1].
    Example:
        >>> layer = SparseLinear(784, 300, density=0.1)
        >>> layer
        SparseLinear(in_features=784, out_features=300, nnz=23520, density=0.1, bias=True)
        >>> layer(torch.randn(32, 784)).shape, layer.values.shape
        (torch.Size([32, 300]), torch.Size([23520]))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        density: float,
        bias: bool = True,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, size in ("in_features", in_features), ("out_features", out_features):
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        self._draw((out_features, in_features), density, bias, generator, device, dtype)

    @classmethod
    def from_topology(
        cls, shape: Shape, flat: Tensor, values: Tensor, bias: nn.Parameter | None = None
    ) -> "SparseLinear":
        """Make a layer of these very connections; nothing is copied.

        Args:
            shape: (out_features, in_features).
            flat: the topology as sorted, unique flat indices `row * in_features + col`, (nnz,) int64.
            values: of the connections in the same order, (nnz,).
            bias: (out_features,) or None.
        Raises:
            ValueError: flat is not such a topology, or values or bias has another length.
        """
        if bias is not None and tuple(bias.shape) != shape[:1]:
            raise ValueError(f"bias must be ({shape[0]},), got {tuple(bias.shape)}.")
        layer = cls.__new__(cls)
        layer._assemble(shape, flat, values, bias)
        return layer

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        density: float | None = None,
        *,
        start: Literal["random", "magnitude", "nonzero"] = "random",
        generator: torch.Generator | None = None,
    ) -> "SparseLinear":
        """Make the sparse layer that takes the place of `linear`.

        Hooks, train/eval flag, dtype, device, the weight's gradient and attributes of the user's survive; the bias
        is shared with `linear`, which is left as it was. A `linear` on the meta device has no values to take over: the
        layer is a new one, on torch's default device.

        Args:
            linear: the dense layer.
            density: share of its weights to keep, in (0, 1]; None where start is "nonzero".
            start: "random" samples the topology uniformly and scales the dense values to the sparse fan-in;
                "magnitude" keeps the largest weights as they are, "nonzero" those that are not zero.
            generator: on the CPU, of the random topology; None seeds one from torch's global generator.
        Raises:
            ValueError: density is outside (0, 1], or given with "nonzero"; start is none of these names, or another
                than "random" on the meta device.
            TypeError: density is not a number, with another start.
        Source: Mocanu et al. 2018 (random Erdős-Rényi start).
        """
        return cls._from_dense(linear, density, start, generator)

    def _map(self, input: Tensor, indices: Indices) -> Tensor:
        parameters = self._parameters  # to ask nn.Module for these takes half a microsecond each
        values: Tensor = parameters.get("values")  # type: ignore[assignment]
        values = self.values if values is None else values
        bias = parameters["bias"] if "bias" in parameters else self.bias  # noqa: SIM401  (it need not be asked)
        if not is_compiling() and kernels.is_simple(input, values, bias) and input.shape[1] == self.in_features:
            return kernels.direct(input, values, bias, indices)
        input = checked_input(input, values, self.in_features)
        return kernels.sparse_linear(input, values, bias, indices)

    def to_linear(self) -> nn.Linear:
        """A dense nn.Linear that computes the same; its parameters are copies."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta", dtype=self.values.dtype)
        linear.weight = nn.Parameter(self.to_dense().detach(), requires_grad=self.values.requires_grad)
        linear.register_parameter("bias", copy.deepcopy(self.bias))
        adopt(linear, self)
        return linear

    def to_module(self) -> nn.Module:
        """`to_linear`, or the Conv1D of Hugging Face's in whose place the layer is."""
        linear = self.to_linear()
        if not self.transposed:
            return linear
        from transformers.pytorch_utils import Conv1D

        dense: nn.Module = Conv1D(self.out_features, self.in_features)  # type: ignore[no-untyped-call]
        dense.weight = nn.Parameter(linear.weight.detach().t().contiguous(), linear.weight.requires_grad)
        dense.bias = linear.bias
        adopt(dense, self)
        return dense

    def extra_repr(self) -> str:
        """What repr() shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, nnz={self.nnz}, "
            f"density={self.density:.3g}, bias={self.bias is not None}"
        )
