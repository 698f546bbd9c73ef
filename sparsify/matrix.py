"""`SparseMatrix`: a module that holds a sparse matrix, its values as a parameter and its topology in buffers."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsify import averaging, checkpoint, topology
from sparsify.topology import Indices, Shape

DERIVED = ("ccol", "csc_row", "csc_order")
"""Index buffers that follow from `crow` and `col`: held for speed, never saved."""


class SparseMatrix(nn.Module):
    """Holds a matrix (out_features, in_features) of connections, and nothing for the places between them.

    Args:
        shape: (out_features, in_features).
        flat: the topology as sorted, unique flat indices `row * in_features + col`, (nnz,) int64.
        values: of the connections in the same order, (nnz,).
    """

    in_features: int
    out_features: int
    values: nn.Parameter
    crow: Tensor
    col: Tensor
    ccol: Tensor
    csc_row: Tensor
    csc_order: Tensor
    transposed: bool = False

    def __init__(self, shape: Shape, flat: Tensor, values: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.topology_version = 0
        self._indices_version = 0
        self.values = nn.Parameter(values)
        for name in Indices._fields:
            self.register_buffer(name, torch.empty(0, dtype=torch.int32), persistent=name not in DERIVED)
        self._set_topology(flat)

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseMatrix":
        new = memo[id(self)] = type(self).__new__(type(self))
        new.__setstate__(copy.deepcopy(self.__dict__, memo))  # type: ignore[no-untyped-call]
        new._indices_version = _version(new._held_indices())
        averaging.copied(self, new)
        return new

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
        """The index buffers; checked, where something else has written to them (DDP, model averages).

        Raises:
            ValueError: they are no topology of this layer.
        """
        indices = self._held_indices()
        if not torch.compiler.is_compiling() and _version(indices) != self._indices_version:
            try:
                topology.check(indices, self.nnz, self.shape)
            except ValueError as error:
                raise ValueError(f"indices must be a topology, got what something else has written: {error}") from None
            self._indices_version = _version(indices)
        return indices

    def indices_are_ours(self) -> bool:
        """Whether nothing else has written to the index buffers since they were checked."""
        return _version(self._held_indices()) == self._indices_version

    def take_indices(self, other: "SparseMatrix") -> bool:
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

    def to_dense(self) -> Tensor:
        """The weight as a dense tensor (out_features, in_features); attached to autograd."""
        dense = self.values.new_zeros(self.out_features * self.in_features)
        return dense.index_put((self.flat(),), self.values).view(self.out_features, self.in_features)

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SparseMatrix":
        """What `.to()`, `.half()` and the like do: nothing else writes here."""
        ours = self.indices_are_ours()
        with averaging.converted(self):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if ours:
            self._indices_version = _version(self._held_indices())
        return self

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


def _version(indices: Indices) -> int:
    """Rises with every write to the buffers; not in inference mode."""
    try:
        return sum(index._version for index in indices)
    except RuntimeError:  # tensors that were made there have no version
        return -1
