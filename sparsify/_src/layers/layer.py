"""`SparseLayer`: a sparse matrix that is a module of a model: it is copied, converted, saved and loaded."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsify._src import vectors
from sparsify._src.layers import copies, counting, loading, registry
from sparsify._src.layers.checkpoint import SPARSE
from sparsify._src.layers.matrix import SparseMatrix
from sparsify._src.swap import settle
from sparsify._src.topology import Indices, Shape


class SparseLayer(SparseMatrix):
    """A `SparseMatrix` whose copies are known, and whose state dict is checked before anything of it is taken over.

    Args:
        shape, flat, values: as for `SparseMatrix`.
    """

    def __init__(self, shape: Shape, flat: Tensor, values: Tensor) -> None:
        super().__init__(shape, flat, values)
        registry.made(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseLayer":
        new = memo[id(self)] = type(self).__new__(type(self))
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        if self.is_checked():
            new._trust(self.digest)
        copies.copied(self, new)
        return new

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        registry.made(self)

    def consistently(self, product: Callable[[Indices], Tensor]) -> Tensor:
        """`product` of values and indices that belong together: again, where another thread changes them meanwhile."""
        if torch.compiler.is_compiling():
            return product(self._held())
        if self.to_count and torch.is_grad_enabled():
            counting.begin(self)
        if self.observer is not None or self.remarks is not None:
            self._tell(self.training and torch.is_grad_enabled())
        while True:
            indices = self.indices()
            try:
                result = product(indices)
            except Exception:
                if self._still_has(indices):
                    raise
            else:
                if self._still_has(indices):
                    return result

    def _tell(self, trains: bool) -> None:
        """Tell those who watch the layer that it is used."""
        if self.observer is not None and not trains:
            self.observer.look(self)
        if self.remarks is not None:
            self.remarks.trained() if trains else self.remarks.evaluated()

    def _still_has(self, indices: Indices) -> bool:
        checked = self._checked
        if checked is not None and checked.indices is indices:
            return self.swap is None or not self.is_changing()
        return not vectors.holds_numbers(self.values)  # where there is nothing to check, and nothing that changes

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SparseLayer":
        """Convert all tensors, as `.to()` and `.half()` ask."""
        settle(self)
        digest = self.digest if self.is_checked() else None
        with copies.converted(self):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if digest is not None:
            self._trust(digest)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        self.indices()
        if self.remarks is not None:
            self.remarks.saved()
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
        rest, missing = loading.load(self, state_dict, prefix, error_msgs)
        also_missing: list[str] = []
        super()._load_from_state_dict(rest, prefix, local_metadata, strict, also_missing, unexpected_keys, error_msgs)
        missing_keys += [prefix + name for name in missing]
        missing_keys += [key for key in also_missing if key.removeprefix(prefix) not in SPARSE]
