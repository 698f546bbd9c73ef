"""Records as lines of JSON: written at once, or as training goes on."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sparsify._src.checks import shown
from sparsify._src.distributed import is_first
from sparsify._src.telemetry.rows import History, rows, rows_of
from sparsify._src.training.record import Record


def write_lines(history: History, path: str | os.PathLike[str]) -> None:
    """Write the `rows` of a history to a file, one JSON object a line; what the file held is gone.

    Args:
        history: as for `rows`.
        path: of the file. NaN and infinity, which JSON has not, become null.
    Raises:
        OSError: the file cannot be written; it is as it was then.
        TypeError: `history` is anything else.
    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 10))
        >>> model, sgd = sparsify(model, torch.optim.SGD(model.parameters(), lr=0.1), 0.5)
        >>> record = sgd.evolve()
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     telemetry.write_lines(sgd, f"{folder}/evolutions.jsonl")
        ...     [json.loads(line)["layer"] for line in Path(folder, "evolutions.jsonl").read_text().splitlines()]
        ['0', '2']
    """
    _replace(Path(path), map(_line, rows(history)))


class Lines:
    """Appends the `rows` of each evolution to a file as training goes on: `sparsify(..., on_evolve=Lines(path))`.

    A training that resumes from a checkpoint repeats the steps since: before it writes first, a `Lines` takes out of
    the file what is there of this step and later ones, so that no evolution is there twice. So give each training a
    file of its own. In distributed training rank 0 alone writes.

    Args:
        path: of the file; it, and its folder, are made where they are missing.
    Raises:
        TypeError: path is none.
        ValueError: at the first evolution, where the file holds anything else than such lines. It stays as it is.
    Example:
        >>> import json, tempfile
        >>> from pathlib import Path
        >>> model = nn.Sequential(nn.Linear(20, 10), nn.ReLU(), nn.Linear(10, 10))
        >>> sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = telemetry.Lines(f"{folder}/evolutions.jsonl")
        ...     model, sgd = sparsify(model, sgd, 0.5, evolution=SET(interval=2), on_evolve=log)
        ...     for _ in range(4):
        ...         model(torch.randn(8, 20)).square().mean().backward()
        ...         sgd.step()
        ...     [json.loads(line)["step"] for line in Path(folder, "evolutions.jsonl").read_text().splitlines()]
        [2, 2, 4, 4]
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path must be that of a file, got {shown(path)}.")
        self.path = Path(path)
        self._begun = False

    def __call__(self, record: Record) -> None:
        """Append the rows of one evolution."""
        if not is_first():
            return
        if not self._begun:
            self._begin(record.step)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(map(_line, rows_of(record))))

    def _begin(self, step: int) -> None:
        """Have nothing of `step` and later in the file."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            text = self.path.read_text(encoding="utf-8")
            lines = text.splitlines(keepends=True)
            cut_off = len(lines) - 1 if lines and not text.endswith("\n") else None  # a training was killed in it
            earlier = [
                line
                for number, line in enumerate(lines)
                if number != cut_off and _step_of(line, number, self.path) < step
            ]
            if len(earlier) < len(lines):
                _replace(self.path, earlier)
        self._begun = True

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_begun": False}

    def __repr__(self) -> str:
        return f"Lines({str(self.path)!r})"


def _step_of(line: str, number: int, path: Path) -> float:
    try:
        step = json.loads(line)["step"]
        if type(step) is int:
            return step
    except (ValueError, TypeError, KeyError):
        pass
    raise ValueError(
        f"path must be a new file, or one that Lines has written, got {str(path)!r}, whose line {number + 1} is "
        f"{shown(line.rstrip())}. Give another path."
    )


def _line(row: Mapping[str, Any]) -> str:
    plain = {
        name: None if isinstance(entry, float) and not math.isfinite(entry) else entry for name, entry in row.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"


def _replace(path: Path, lines: Iterable[str]) -> None:
    """Write a file in one go: it is as it was, or holds these lines."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(lines)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
