"""Records as curves in TensorBoard."""

import os
from typing import Any

from sparsify._src.checks import shown
from sparsify._src.distributed import is_first
from sparsify._src.telemetry.rows import missing, scalars
from sparsify._src.training.record import Record


class TensorBoard:
    """Writes the `scalars` of each evolution to TensorBoard: `sparsify(..., on_evolve=TensorBoard(folder))`.

    The tags are `sparsify/density` and so on for all layers together, `sparsify/<layer>/turnover` and so on for each.
    In distributed training rank 0 alone writes.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`, or anything with its `add_scalar(tag, value, step)`, which
            stays the caller's to close; or a folder, for which a SummaryWriter is made at the first evolution. Where a
            training resumes in the folder, TensorBoard hides what is there of this step and later ones.
    Raises:
        TypeError: writer is neither.
        ModuleNotFoundError: at the first evolution, where a folder is given and tensorboard is not installed.
    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 10))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     board = telemetry.TensorBoard(folder)
        ...     sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     model, sgd = sparsify(model, sgd, 0.5, on_evolve=board)
        ...     record = sgd.evolve()
        ...     board.close()
        ...     [file.name.startswith("events.out.tfevents") for file in Path(folder).iterdir()]
        [True]
    """

    def __init__(self, writer: Any) -> None:
        is_folder = isinstance(writer, (str, os.PathLike))
        if not is_folder and not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(f"writer must be a SummaryWriter or a folder, got {shown(writer)}.")
        self.folder = os.fspath(writer) if is_folder else None
        self._writer = None if is_folder else writer

    def __call__(self, record: Record) -> None:
        """Write the scalars of one evolution."""
        if not is_first():
            return
        if self._writer is None:
            self._writer = _writer(self.folder, record.step)
        for tag, number in scalars(record).items():
            self._writer.add_scalar(tag, number, record.step)
        if self.folder is not None:
            self._writer.flush()

    def close(self) -> None:
        """Close what was made for a folder; the next evolution opens it again."""
        if self.folder is not None and self._writer is not None:
            self._writer.close()
            self._writer = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) if self.folder is None else {"folder": self.folder, "_writer": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> "TensorBoard":
        return TensorBoard(self._writer if self.folder is None else self.folder)  # a writer has threads


def _writer(folder: str | None, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise missing("tensorboard", "TensorBoard(folder)", error) from error
    return SummaryWriter(folder, purge_step=step)
