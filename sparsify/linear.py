"""`SparseLinear`: an nn.Linear that holds its connections only."""

import copy
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch_sparse import SparseStorage, SparseTensor

from sparsify import averaging, checkpoint, kernels, meta, topology
from sparsify.distributions import check_density
from sparsify.initialization import drawn_generator, fan_in_uniform
from sparsify.topology import Indices, Shape

OWN = {
    *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
    *("topology_version", "_indices_version", "transposed"),
}
"""Attributes of a module that do not pass to the one that takes its place."""

DERIVED = ("ccol", "csc_row", "csc_order")
"""Index buffers that follow from `crow` and `col`: held for speed, never saved."""


class SparseLinear(nn.Module):
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

    Shape:
        input (*, in_features) -> output (*, out_features)

    Raises:
        ValueError: a size is below 1 or density outside (0, 1].
    """

    in_features: int
    out_features: int
    values: nn.Parameter
    bias: nn.Parameter | None
    crow: Tensor
    col: Tensor
    ccol: Tensor
    csc_row: Tensor
    csc_order: Tensor
    transposed: bool = False

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
        generator = generator or drawn_generator()
        flat = topology.sample(out_features * in_features, nnz, generator).to(device or torch.get_default_device())
        values = torch.empty(nnz, device=device, dtype=dtype)
        values.copy_(fan_in_uniform(nnz, shape, nnz, generator))
        offsets = None
        if bias:
            bound = 1 / math.sqrt(in_features)
            drawn = torch.empty(out_features, device="cpu").uniform_(-bound, bound, generator=generator)
            offsets = nn.Parameter(drawn.to(values))
        self._assemble(shape, flat, values, offsets)

    def _assemble(self, shape: Shape, flat: Tensor, values: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.topology_version = 0
        self._indices_version = 0
        self.values = nn.Parameter(values)
        self.register_parameter("bias", bias)
        for name in Indices._fields:
            self.register_buffer(name, torch.empty(0, dtype=torch.int32), persistent=name not in DERIVED)
        self._set_topology(flat)

    @classmethod
    def from_topology(
        cls, shape: Shape, flat: Tensor, values: Tensor, bias: nn.Parameter | None = None
    ) -> "SparseLinear":
        """Make a layer of these very connections; nothing is checked or copied.

        Args:
            shape: (out_features, in_features).
            flat: the topology as sorted, unique flat indices `row * in_features + col`, (nnz,) int64.
            values: of the connections in the same order, (nnz,).
            bias: (out_features,) or None.
        """
        layer = cls.__new__(cls)
        layer._assemble(shape, flat, values, bias)
        return layer

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        density: float,
        *,
        start: Literal["random", "magnitude"] = "random",
        generator: torch.Generator | None = None,
    ) -> "SparseLinear":
        """Make the sparse layer that takes the place of `linear`.

        Hooks, train/eval flag, dtype, device, the weight's gradient and attributes of the user's survive; the bias
        is shared with `linear`, which is left as it was. A `linear` on the meta device has no values to take over: the
        layer is a new one, on torch's default device.

        Args:
            linear: the dense layer.
            density: share of its weights to keep, in (0, 1].
            start: "random" samples the topology uniformly and scales the dense values to the sparse fan-in;
                "magnitude" keeps the largest weights as they are.
            generator: on the CPU, of the random topology; None seeds one from torch's global generator.
        Raises:
            ValueError: density is outside (0, 1], start is neither name, or "magnitude" on the meta device.
        Source: Mocanu et al. 2018 (random Erdős-Rényi start).
        """
        shape = (linear.out_features, linear.in_features)
        if linear.weight.is_meta:
            return cls._from_meta(linear, density, start, generator)
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
            raise ValueError(f'start must be "random" or "magnitude", got {start!r}.')
        layer = cls.from_topology(shape, flat, weight.flatten()[flat] * scale, linear.bias)
        if linear.weight.grad is not None:
            layer.values.grad = linear.weight.grad.flatten()[flat]
        adopt(layer, linear)
        return layer

    @classmethod
    def _from_meta(
        cls, linear: nn.Linear, density: float, start: str, generator: torch.Generator | None
    ) -> "SparseLinear":
        if start != "random":
            raise ValueError(f'start must be "random" for a layer on the meta device, got {start!r}: it has no values.')
        bias, dtype = linear.bias is not None, linear.weight.dtype
        sizes = linear.in_features, linear.out_features
        layer = cls(*sizes, density, bias, generator=generator, device=meta.device(), dtype=dtype)
        if layer.bias is not None:
            layer.bias.requires_grad_(linear.bias.requires_grad)
        adopt(layer, linear)
        return layer

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseLinear":
        new = memo[id(self)] = type(self).__new__(type(self))
        new.__setstate__(copy.deepcopy(self.__dict__, memo))  # type: ignore[no-untyped-call]
        new._indices_version = _version(new._held_indices())
        averaging.copied(self, new)
        return new

    @property
    def weight(self) -> SparseTensor:
        """The weight as a `torch_sparse.SparseTensor` (out_features, in_features), attached to autograd."""
        indices = self.indices()
        storage = SparseStorage(
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
        return SparseTensor.from_storage(storage)

    @property
    def shape(self) -> Shape:
        """(out_features, in_features)."""
        return self.out_features, self.in_features

    @property
    def nnz(self) -> int:
        """Number of connections."""
        return len(self.values)

    @property
    def density(self) -> float:
        """Share of all places that are connections."""
        return self.nnz / (self.out_features * self.in_features)

    def flat(self) -> Tensor:
        """The topology as sorted flat indices `row * in_features + col`, (nnz,) int64."""
        indices = self.indices()
        return topology.from_csr(indices.crow, indices.col, self.shape)

    def indices(self) -> Indices:
        """The index buffers; checked, where something else has written to them (DDP, `.to()`, model averages).

        Raises:
            ValueError: they are no topology of this layer.
        """
        indices = self._held_indices()
        if not torch.compiler.is_compiling() and not self.indices_are_ours():
            try:
                topology.check(indices, self.nnz, self.shape)
            except ValueError as error:
                raise ValueError(f"indices must be a topology, got what something else has written: {error}") from None
            self._indices_version = _version(indices)
        return indices

    def indices_are_ours(self) -> bool:
        """Whether nothing else has written to the index buffers since they were checked."""
        return _version(self._held_indices()) == self._indices_version

    def take_indices(self, other: "SparseLinear") -> bool:
        """Accept the index buffers as they are, if they are those of `other`; says whether."""
        mine = self._held_indices()
        same = all(
            torch.equal(index, right.to(index.device)) for index, right in zip(mine, other.indices(), strict=True)
        )
        if same:
            self._indices_version = _version(mine)
        return same

    def _held_indices(self) -> Indices:
        return Indices(*[self._buffers[name] for name in Indices._fields])  # type: ignore[arg-type]

    def forward(self, input: Tensor) -> Tensor:
        """Map (*, in_features) to (*, out_features)."""
        values, device = self.values, input.device
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise ValueError(f"input must be (*, {self.in_features}), got {tuple(input.shape)}.")
        if device != values.device:
            raise ValueError(f"input must be on the layer's device {values.device}, got {device}.")
        both = input.dtype, values.dtype  # autocast takes neither float64 nor what is not floating-point
        if torch.is_autocast_enabled(device.type) and input.is_floating_point() and torch.float64 not in both:
            input = input.to(torch.get_autocast_dtype(device.type))
        elif input.dtype != values.dtype:
            raise TypeError(f"input must have the layer's dtype {values.dtype}, got {input.dtype}.")
        return kernels.linear(input, values, self.bias, self.indices())

    def to_dense(self) -> Tensor:
        """The weight as a dense tensor (out_features, in_features); attached to autograd."""
        dense = self.values.new_zeros(self.out_features * self.in_features)
        return dense.index_put((self.flat(),), self.values).view(self.out_features, self.in_features)

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

    @torch.no_grad()
    def rewire(self, flat: Tensor, values: Tensor, grad: Tensor | None) -> None:
        """Take over another topology with the values that belong to it, in place where nnz stays.

        Whoever calls this moves the optimizer's buffers too: see `evolution.rewire`.
        """
        if grad is not None and self.values.grad is not None and grad.shape == self.values.grad.shape:
            grad = self.values.grad.copy_(grad)  # DDP may hold it as a view of the bucket that it sends
        self.values.grad = None
        if values.shape == self.values.shape:
            self.values.copy_(values)
        else:
            # A graph that is still alive, such as the last loss's, holds a gradient accumulator of the old length. Only
            # another dtype makes autograd forget it.
            self.values.data = values.new_empty(0, dtype=torch.float16 if values.itemsize > 2 else torch.float32)
            self.values.data = values
        self.values.grad = grad
        self._set_topology(flat)

    def _set_topology(self, flat: Tensor) -> None:
        for name, index in topology.index(flat, self.shape)._asdict().items():
            buffer = getattr(self, name)
            if buffer.shape == index.shape and buffer.dtype == index.dtype:
                buffer.copy_(index)
            else:
                setattr(self, name, index)
        self.topology_version += 1
        self._indices_version = _version(self._held_indices())

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.indices()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Load a sparse checkpoint of any topology, or a dense one (`weight`) at this layer's own topology."""
        rest, missing = checkpoint.load(self, state_dict, prefix, error_msgs)
        also_missing: list[str] = []
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, also_missing, unexpected_keys, error_msgs)
        missing_keys += [prefix + name for name in missing]
        missing_keys += [key for key in also_missing if key.removeprefix(prefix) not in checkpoint.SPARSE]


def adopt(new: nn.Module, old: nn.Module) -> None:
    """Give `new` what hangs on `old` beside its tensors: hooks, train/eval flag, attributes of the user's."""
    new.__dict__.update({name: copy.copy(value) for name, value in old.__dict__.items() if name not in OWN})


def _version(indices: Indices) -> int:
    """Rises with every write to the buffers; not in inference mode."""
    try:
        return sum(index._version for index in indices)
    except RuntimeError:  # tensors that were made there have no version
        return -1
