"""Many runs in several processes: what is finished is kept, Ctrl-C ends all at once, and a second call goes on."""

import json
import signal
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from typing import Any

from tqdm import tqdm


class Kept:
    """Results of runs, by what tells them from others, in a file of JSON lines.

    Args:
        path: of the file; it, and its folder, are made where they are missing.
        key: the entry of a result, or a function of it, that tells it from others.
    """

    def __init__(self, path: Path, key: Any) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.key = path, key if callable(key) else lambda result: result[key]
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith("\n"):  # it was killed while it wrote
            lines.pop()
            path.write_text("".join(lines))
        self.results = {self.key(result): result for result in map(json.loads, lines)}

    def add(self, result: dict) -> None:
        """Keep one more."""
        with self.path.open("a") as file:
            file.write(json.dumps(result) + "\n")
        self.results[self.key(result)] = result


def run(function: Any, calls: Iterable[tuple], kept: Kept, jobs: int) -> None:
    """Keep what `function` gives for each of these arguments; progress is shown.

    Args:
        jobs: runs at a time, each in a process.
    """
    calls = list(calls)
    with _processes(jobs, kept) as pool, tqdm(total=len(calls), unit="run") as progress:
        for future in as_completed([pool.submit(function, *arguments) for arguments in calls]):
            kept.add(future.result())
            progress.update()


@contextmanager
def _processes(jobs: int, kept: Kept) -> Iterator[ProcessPoolExecutor]:
    """Processes that Ctrl-C ends, and then this one with a line that says how to go on."""
    pool = ProcessPoolExecutor(jobs, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN))
    try:
        yield pool
    except BaseException as error:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in active_children():
            process.terminate()
        pool.shutdown()
        if not isinstance(error, KeyboardInterrupt):
            raise
        print(
            f"\nstopped: {len(kept.results)} finished runs are in {kept.path}. The same command goes on from there.",
            file=sys.stderr,
        )
        sys.exit(128 + signal.SIGINT)
    pool.shutdown()
