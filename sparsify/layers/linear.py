"""`SparseLinear`: an nn.Linear that holds its connections only."""

import copy
import math
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from sparsify import kernels, lazy, topology
from sparsify.checks import check_density
from sparsify.kernels.operands import is_traced
from sparsify.layers import averaging, copies
from sparsify.layers.initialization import drawn, drawn_generator, real_device
from sparsify.layers.layer import SparseLayer
from sparsify.layers.tracing import as_leaf
from sparsify.swap import Change, Swap
from sparsify.topology import Indices, Shape

if TYPE_CHECKING:
    from torch_sparse import SparseTensor

OWN = {
    *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
    *("swap", "was_copied", "observer", "_checked", "transposed", "zero_bias", "resets"),
}
"""Attributes of a module that do not pass to the one that takes its place."""


class SparseLinear(SparseLayer):
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

    bias: nn.Parameter | None
    zero_bias: bool = False

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
        shape = (out_features, in_features)
        nnz = topology.connection_count(check_density(density), shape)
        flat, numbers, offset = drawn(shape, nnz, bias, generator or drawn_generator())
        values = torch.empty(nnz, device=device, dtype=dtype).copy_(numbers)
        offsets = None if offset is None else nn.Parameter(offset.to(values))
        self._assemble(shape, flat.to(device or torch.get_default_device()), values, offsets)

    def _assemble(self, shape: Shape, flat: Tensor, values: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__(shape, flat, values)
        self.register_parameter("bias", bias)

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
        shape = (linear.out_features, linear.in_features)
        if linear.weight.is_meta and start != "random":
            raise ValueError(f'start must be "random" for a layer on the meta device, got {start!r}: it has no values.')
        if start == "nonzero":
            if density is not None:
                raise ValueError(f'density must not be given where start is "nonzero", got {density!r}.')
            return cls.at(linear, topology.positions((linear.weight.detach() != 0).flatten()))
        if density is None:
            raise TypeError('density must be given, unless start is "nonzero".')
        if linear.weight.is_meta:
            return cls._from_meta(linear, density, generator)
        total = shape[0] * shape[1]
        nnz = topology.connection_count(check_density(density), shape)
        weight = linear.weight.detach()
        if start == "random":
            generator = generator or drawn_generator()
            flat = topology.sample(total, nnz, generator).to(weight.device)
            scale = math.sqrt(total / nnz)
        elif start == "magnitude":
            flat = topology.lowest(-weight.abs().flatten(), nnz)
            scale = 1.0
        else:
            raise ValueError(f'start must be "random" or "magnitude", or "nonzero" without a density, got {start!r}.')
        return cls.at(linear, flat, scale)

    @classmethod
    def at(cls, linear: nn.Linear, flat: Tensor, scale: float = 1.0) -> "SparseLinear":
        """Make the sparse layer that takes the place of `linear`, at these connections; otherwise as `from_linear`.

        Args:
            linear: the dense layer. On the meta device it has no values to take over: they are zero.
            flat: the topology as sorted, unique flat indices, (nnz,) int64.
            scale: of the dense values.
        """
        shape, weight, bias = (linear.out_features, linear.in_features), linear.weight.detach(), linear.bias
        if weight.is_meta:
            flat = flat.to(real_device())
            values = torch.zeros(len(flat), dtype=weight.dtype, device=flat.device)
            if bias is not None:
                bias = nn.Parameter(torch.zeros_like(bias, device=flat.device), bias.requires_grad)
        else:
            flat = flat.to(weight.device)
            values = weight.flatten()[flat] * scale
        layer = cls.from_topology(shape, flat, values, bias)
        layer.values.requires_grad_(linear.weight.requires_grad)
        if linear.weight.grad is not None:
            layer.values.grad = linear.weight.grad.flatten()[flat]
        adopt(layer, linear)
        return layer

    @classmethod
    def _from_meta(cls, linear: nn.Linear, density: float, generator: torch.Generator | None) -> "SparseLinear":
        bias, dtype = linear.bias is not None, linear.weight.dtype
        sizes = linear.in_features, linear.out_features
        layer = cls(*sizes, density, bias, generator=generator, device=real_device(), dtype=dtype)
        if layer.bias is not None:
            layer.bias.requires_grad_(linear.bias.requires_grad)
        adopt(layer, linear)
        return layer

    def reset_parameters(self) -> None:
        """Start anew: as many connections as now at other random places, with values and bias as of a new layer.

        What is random follows torch's global generator. Gradients become None. The optimizer that trains the layer
        starts the state of `values` and `bias` afresh when it next steps, and evolution goes on where its schedule is.

        Raises:
            ValueError: values or bias is no parameter of the layer's own. Nothing is changed.
        """
        Swap(self.prepare_reset(), [self]).commit()

    @torch.no_grad()
    def prepare_reset(self) -> list[Change]:
        """Prepare what `reset_parameters` does; there is nothing to do for a layer on the meta device.

        Raises:
            ValueError: values or bias is no parameter of the layer's own.
        """
        if not topology.holds_numbers(self.values):
            return []
        if "bias" not in self._parameters:
            raise ValueError(
                "bias must be the layer's own parameter, got it computed from others. Undo what has replaced it "
                "(pruning, parametrization) before the layer is reset."
            )
        bias = self._parameters["bias"]
        flat, values, offsets = drawn(self.shape, self.nnz, bias is not None, drawn_generator())
        counting = partial(setattr, self, "resets", self.resets + 1)
        changes: list[Change] = [counting, self.prepare_topology(flat, values, None)]
        if bias is not None and offsets is not None:
            changes.append(partial(_start, bias, torch.zeros_like(offsets) if self.zero_bias else offsets))
        return [*changes, averaging.prepare_copies(self, []), partial(copies.loaded, self)]

    @property
    def weight(self) -> "SparseTensor":
        """The weight as a `torch_sparse.SparseTensor` (out_features, in_features), attached to autograd."""
        indices = self.indices()
        sparse = lazy.torch_sparse()
        storage = sparse.SparseStorage(
            row=topology.rows(indices.crow, self.nnz),
            rowptr=indices.crow.long(),
            col=indices.col.long(),
            value=self.values,
            sparse_sizes=(self.out_features, self.in_features),
            rowcount=None,
            colptr=self.ccol.long(),
            colcount=None,
            csr2csc=self.csc_order.long(),
            csc2csr=None,
            is_sorted=True,
            trust_data=True,
        )
        return sparse.SparseTensor.from_storage(storage)

    @weight.setter
    def weight(self, weight: "SparseTensor") -> None:
        """Take its own weight, and nothing else: who unwraps a layer may hand it over (PEFT)."""
        if not isinstance(weight, lazy.torch_sparse().SparseTensor) or weight.storage.value() is not self.values:
            raise AttributeError(
                f"weight must be the layer's own, got another {type(weight).__name__}. Write into `values`, or load a "
                "state dict for another topology."
            )

    def forward(self, input: Tensor) -> Tensor:
        """Map (*, in_features) to (*, out_features)."""
        if isinstance(input, Proxy):
            return as_leaf(self, input)
        return self.consistently(partial(self._map, input))

    def _map(self, input: Tensor, indices: Indices) -> Tensor:
        parameters = self._parameters  # to ask nn.Module for these takes half a microsecond each
        values: Tensor = parameters.get("values")  # type: ignore[assignment]
        values = self.values if values is None else values
        bias = parameters["bias"] if "bias" in parameters else self.bias  # noqa: SIM401  (it need not be asked)
        device = input.device
        if input.layout is not torch.strided or input.is_nested:
            kind = "a nested one" if input.is_nested else input.layout
            raise TypeError(f"input must be a dense tensor, got {kind}. Use to_dense() or nested.to_padded_tensor().")
        if values.is_complex():
            raise TypeError(f"the layer's dtype must be one of {kernels.SUPPORTED}, got {values.dtype}. Convert it.")
        # What torch.jit traces is compared by the operator, when it runs.
        if input.dim() == 0 or (not is_traced() and input.shape[-1] != self.in_features):
            raise ValueError(f"input must be (*, {self.in_features}), got {tuple(input.shape)}.")
        if device != values.device:
            raise ValueError(f"input must be on the layer's device {values.device}, got {device}.")
        both = input.dtype, values.dtype  # autocast takes neither float64 nor what is not floating-point
        cast = not input.is_meta and torch.is_autocast_enabled(device.type)
        if cast and input.is_floating_point() and torch.float64 not in both:
            input = input.to(torch.get_autocast_dtype(device.type))
        elif input.dtype != values.dtype:
            raise TypeError(f"input must have the layer's dtype {values.dtype}, got {input.dtype}.")
        return kernels.linear(input, values, bias, indices)

    def to_linear(self) -> nn.Linear:
        """A dense nn.Linear that computes the same; its parameters are copies."""
        linear = nn.Linear(self.in_features, self.out_features, device="meta", dtype=self.values.dtype)
        linear.weight = nn.Parameter(self.to_dense().detach(), requires_grad=self.values.requires_grad)
        linear.register_parameter("bias", copy.deepcopy(self.bias))
        adopt(linear, self)
        return linear

    def extra_repr(self) -> str:
        """What repr() shows."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, nnz={self.nnz}, "
            f"density={self.density:.3g}, bias={self.bias is not None}"
        )


def _start(parameter: nn.Parameter, numbers: Tensor) -> None:
    with torch.inference_mode(parameter.is_inference()), torch.no_grad():
        parameter.copy_(numbers)
        parameter.grad = None


def adopt(new: nn.Module, old: nn.Module) -> None:
    """Give `new` what hangs on `old` beside its tensors: hooks, train/eval flag, attributes of the user's."""
    new.__dict__.update({name: copy.copy(value) for name, value in old.__dict__.items() if name not in OWN})
