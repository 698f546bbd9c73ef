"""`SparseMatrix`: a module that holds a sparse matrix, its values as a parameter and its topology in buffers."""

from typing import Any, Protocol
from weakref import ReferenceType

import torch
from torch import Tensor, nn

from sparsify._src import topology, vectors
from sparsify._src.kernels.operands import is_traced
from sparsify._src.kernels.window import Window
from sparsify._src.layers import overwriting
from sparsify._src.layers.checked import Checked
from sparsify._src.layers.new_topology import NewTopology
from sparsify._src.layers.remarks import Remarks
from sparsify._src.swap import LOCK, Swap, settle
from sparsify._src.topology import Digest, Indices, Shape
from sparsify._src.torch_private import writes

DERIVED = ("ccol", "csc_row", "csc_order")
"""Index buffers that follow from `crow` and `col`: held for speed, never saved."""

FLEETING = ("swap", "was_copied", "observer", "remarks", "gradients", "to_count", "_counted", "_checked")
"""Attributes that a copy does not take along."""


class Observer(Protocol):
    """Is told by a matrix of each product without gradients, before it."""

    def look(self, matrix: "SparseMatrix") -> None:
        """See whether something has written to the matrix."""


class SparseMatrix(nn.Module):
    """Holds a matrix (out_features, in_features) of connections, and nothing for the places between them.

    Args:
        shape: (out_features, in_features).
        flat: the topology as sorted, unique flat indices `row * in_features + col`, (nnz,) int64.
        values: of the connections in the same order, (nnz,).

    Raises:
        ValueError: flat is not such a topology, or values is not one number for each connection.
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
    window: Window | None = None
    resets: int = 0
    was_copied: bool = False
    observer: Observer | None = None
    remarks: Remarks | None = None
    gradients: int = 0
    to_count: bool = False
    _counted: ReferenceType[Tensor] | None = None
    swap: Swap | None = None
    _checked: Checked | None = None

    def __init__(self, shape: Shape, flat: Tensor, values: Tensor) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        indices = topology.index(flat, shape)
        overwriting.check_values(values, len(flat))
        self.values = nn.Parameter(values)
        for name, index in indices._asdict().items():
            self.register_buffer(name, index, persistent=name not in DERIVED)
        self._trust(topology.digest(flat))

    def __getstate__(self) -> dict[str, Any]:
        settle(self)
        return {name: value for name, value in self.__dict__.items() if name not in FLEETING}

    @property
    def shape(self) -> Shape:
        """(out_features, in_features)."""
        return self.out_features, self.in_features

    @property
    def shape_by_taps(self) -> tuple[int, ...]:
        """The same, or of a convolution (out_channels, in_channels / groups, *kernel_size)."""
        return self.shape if self.window is None else self.window.weight_shape(self.shape)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """That of the dense layer's weight."""
        return self.shape[::-1] if self.transposed else self.shape_by_taps

    @property
    def nnz(self) -> int:
        """Number of connections."""
        settle(self)
        return self.values.shape[0]

    @property
    def density(self) -> float:
        """Share of all places that are connections."""
        return self.nnz / (self.out_features * self.in_features)

    @property
    def digest(self) -> Digest:
        """What tells this topology from others."""
        if not self.is_checked():
            self.indices()
        return self.last_digest

    @property
    def last_digest(self) -> Digest:
        """That of the topology which was last checked, or put in place."""
        return self._checked.digest  # type: ignore[union-attr]  # there is one from the beginning

    @property
    def was_checked(self) -> bool:
        """Whether `last_digest` is there: not where the layer was unpickled and not used yet."""
        return self._checked is not None

    def flat(self) -> Tensor:
        """The topology as sorted flat indices `row * in_features + col`, (nnz,) int64."""
        indices = self.indices()
        return topology.from_csr(indices.crow, indices.col, self.shape)

    def indices(self) -> Indices:
        """The index buffers, which are a topology of as many connections as there are values.

        Where other code has written to them (averages of buffers, broadcasts, loading in place), `crow` and `col` are
        checked and the others made anew.

        Raises:
            ValueError: they are no topology of this layer.
        """
        if torch.compiler.is_compiling():
            return self._held()
        if not self.is_checked():
            if not vectors.holds_numbers(self.values):
                return self._held()
            self._examine()
        return self._checked.indices  # type: ignore[union-attr]  # _examine() has seen to it

    def is_checked(self) -> bool:
        """Whether values and index buffers are those that were checked, and nothing else has written to the latter."""
        checked, held, values = self._checked, self._buffers, self._parameters.get("values")
        if checked is None or (self.swap is not None and self.is_changing()):
            return False
        crow, col, ccol, csc_row, csc_order = checked.indices
        return (
            held["crow"] is crow
            and held["col"] is col
            and held["ccol"] is ccol
            and held["csc_row"] is csc_row
            and held["csc_order"] is csc_order
            and writes(*checked.indices) == checked.writes
            and (is_traced() or (self.values if values is None else values).numel() == col.numel())
        )

    def is_whole(self) -> bool:
        """Whether values and topology can be read, as those of another model need not be."""
        if not all(map(vectors.has_numbers, (self.values, *self._held()))):
            return False
        try:
            self.indices()
        except ValueError:  # something has written to them
            return False
        return True

    def is_changing(self) -> bool:
        """Whether another thread is at work on values and topology, or an interruption has left this half done."""
        return (swap := self.swap) is not None and swap.under_way

    def _examine(self) -> None:
        with LOCK:  # another thread may be changing all this
            settle(self)
            if self.is_checked():
                return
            held = self._held()
            try:
                if self.values.dim() != 1:
                    raise ValueError(f"values must be a vector, got {tuple(self.values.shape)}.")
                topology.check_csr(held.crow, held.col, len(self.values), self.shape)
            except ValueError as error:
                raise ValueError(f"indices must be a topology, got what something else has written: {error}") from None
            flat = topology.from_csr(held.crow, held.col, self.shape)
            overwriting.put_indices(self._buffers, topology.index(flat, self.shape))
            self._trust(topology.digest(flat))

    def _held(self) -> Indices:
        return Indices(*[self._buffers[name] for name in Indices._fields])  # type: ignore[arg-type]

    def _trust(self, digest: Digest) -> None:
        indices = topology.located(self._held())
        self._checked = Checked(indices, writes(*indices), digest)

    def to_dense(self) -> Tensor:
        """The weight as a dense tensor (out_features, in_features); attached to autograd.

        That of a convolution is (out_channels, in_channels / groups * taps).
        """
        dense = self.values.new_zeros(self.out_features * self.in_features)
        return dense.index_put((self.flat(),), self.values).view(self.out_features, self.in_features)

    def set_topology(self, flat: Tensor, values: Tensor, grad: Tensor | None = None) -> None:
        """Take over another topology with the values that belong to it, in place where nnz stays.

        Optimizer state of the values does not follow: an optimizer that `sparsify()` wrapped starts it afresh.

        Args:
            flat: sorted, unique flat indices, (nnz,) int64.
            values: (nnz,); grad: the same, or None.
        Raises:
            ValueError: flat is not a topology, or a length is wrong. Nothing is changed.
        """
        Swap([self.prepare_topology(flat, values, grad)], [self]).commit()

    @torch.no_grad()
    def prepare_topology(self, flat: Tensor, values: Tensor, grad: Tensor | None) -> NewTopology:
        """Prepare what `set_topology` does; nothing is changed before the answer is called.

        Raises:
            ValueError: as `set_topology`; or the values are no parameter of this layer any more.
        """
        settle(self)  # or what an interruption has left would be carried out after this
        parameter = self._parameters.get("values")
        if parameter is None:
            raise ValueError(
                "values must be the layer's own parameter, got them computed from others. Undo what has replaced them "
                "(pruning, parametrization) before the topology changes."
            )
        vectors.check_vector("flat", flat, (torch.int64,))
        indices, digest = topology.index(flat.to(parameter.device), self.shape), topology.digest(flat)
        for vector in (values,) if grad is None else (values, grad):
            overwriting.check_values(vector, len(flat))
        values = values.detach().to(parameter).contiguous()
        return NewTopology(self, parameter, indices, digest, values, grad)
