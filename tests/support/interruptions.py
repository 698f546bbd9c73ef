"""Interrupts evolution, `trim` and loading wherever an exception can come, and judges what is left.

At each such place the process forks. The child fails there and is judged; the parent goes on to the next place. So one
run of an operation tries them all, each from the very same memory, and a crash ends no more than a child.

The child is judged by using it, see `interrupted_runs`:

    before    it is as if the operation had not begun
    stepped   step() alone: the weights have stepped, the topology has not evolved, and that is still due
    after     it is as if nothing had happened
    refused   loading alone: every use raises a RuntimeError of sparsify's, and loading again heals
    torch's   not judged: it came inside torch's own update of the weights, or in no call of sparsify's
    BROKEN    anything else

"undisturbed" counts these states themselves: BROKEN is what is wrong without an interruption. "storm" counts runs that
Ctrl-C meets many times, "accidents" layers that the user has damaged.

    python -m tests.support.interruptions --help
"""

import argparse
import contextlib
import ctypes
import fnmatch
import gc
import itertools
import os
import pickle
import random
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.interrupted_runs import (
    ACCIDENTS,
    ALGORITHMS,
    OPERATIONS,
    OPTIMIZERS,
    SPARSIFY,
    USES,
    References,
    Run,
    Scenario,
    check_against_dense_twin,
    difference,
    frames_of,
    judge,
    judge_accident,
    observe,
    step_only,
    step_with_failing_rule,
)

PATIENCE = 120
"""Seconds after which a child is taken to hang."""

Verdict = tuple[str, str]
"""The verdict, and the reason where it is BROKEN."""


# What undisturbed runs show.


def references(scenario: Scenario, uses: Iterable[str], tally: "Tally") -> References:
    """What undisturbed runs show; notes what is already wrong with them."""
    run, other = scenario.set_up()
    states: dict[str, Callable[[Run, Run], Any]] = {"before": lambda *_: None, "after": scenario.operate}
    if scenario.operation == "step":
        states |= {"stepped": step_only, "stepped, counted": step_with_failing_rule}

    def reach(state: str, then: Callable[[], Any]) -> Any:
        def work() -> Any:
            states[state](run, other)
            return then()

        return in_child(work)

    def seen(state: str, use: str) -> dict[str, Any]:
        found = reach(state, lambda: observe(use, run, other))
        return found if isinstance(found, dict) else {"raised": found}

    expected = {use: {state: seen(state, use) for state in states} for use in uses}
    for state in states:
        wrong: dict[str, list[str]] = {}
        if (twin := reach(state, lambda: check_against_dense_twin(run))) is not None:
            wrong[twin] = ["dense twin"]
        for use in expected:
            if words := expected[use][state].get("raised"):
                wrong.setdefault(words, []).append(use)
        for words, where in wrong.items():
            tally.add(scenario, "undisturbed", state, ("BROKEN", f"{', '.join(where)}: {words}"))
        if not wrong:
            tally.add(scenario, "undisturbed", state, (state.split(",")[0], ""))
    if scenario.operation == "step":
        weights = [expected["look"][s].get("state", {}) | {"optimizer": {}} for s in ("stepped", "stepped, counted")]
        if weights[0] != weights[1]:
            tally.add(scenario, "undisturbed", "a failing rule", ("BROKEN", difference(*weights)))
    return expected


# Children.


def fork() -> tuple[Callable[[Any], None] | None, Any]:
    """In the child: what reports and ends it, and None. In the parent, when it has ended: None and the report."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.close(read)
        gc.disable()  # it would touch, and so copy, all that the child shares with its parent
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        signal.alarm(PATIENCE)

        def report(what: Any) -> None:
            with os.fdopen(write, "wb") as file:
                pickle.dump(what, file)
            os._exit(0)

        return report, None
    os.close(write)
    with os.fdopen(read, "rb") as file:
        data = file.read()
    _, status = os.waitpid(child, 0)
    if not data:
        number = os.WTERMSIG(status)
        return None, f"crash: {signal.Signals(number).name if number else 'no report'}"
    return None, pickle.loads(data)


def in_child(work: Callable[[], Any]) -> Any:
    """What `work` returns, in a forked child; the words of its error; or "crash: ..."."""
    report, result = fork()
    if report is None:
        return result
    try:
        result = work()
    except BaseException as error:
        result = f"{type(error).__name__}: {error}"
    report(result)
    return None


# Where it is interrupted.


def is_ours(frames: Iterable[FrameType]) -> bool:
    """Whether something within these frames, innermost first, happens within sparsify, not in torch's own update."""
    for frame in frames:
        path = frame.f_code.co_filename
        if path.startswith(SPARSIFY):
            return True
        if "/torch/optim/" in path and not path.endswith("/optimizer.py"):
            return False
    return False


def callers() -> Iterator[FrameType]:
    frame = sys._getframe(2)
    while frame is not None:
        yield frame
        frame = frame.f_back


def innermost_of_ours(frames: Iterable[FrameType]) -> FrameType:
    return next(frame for frame in frames if frame.f_code.co_filename.startswith(SPARSIFY))


def site(frame: FrameType) -> str:
    return f"{frame.f_code.co_filename.removeprefix(SPARSIFY + '/')}:{frame.f_lineno} {frame.f_code.co_name}"


class Places:
    """Forks at places that the operation passes, and fails there in the child.

    Args:
        errors: what is raised, and whether again at each later place until the operation has ended. With `every` of 1
            each error has its turn at each place, else they take turns.
        every: fail at every so many-th place.
        new: and the first time that each place is passed.
        uses: the first uses of what is left, in turn.
    """

    def __init__(
        self, errors: Iterable[tuple[type[BaseException], bool]], every: int, new: bool, uses: Iterable[str]
    ) -> None:
        self.errors, self.every, self.new, self.uses = list(errors), every, new, itertools.cycle(uses)
        self.turns = itertools.cycle(self.errors)
        self.passed: Counter[str] = Counter()
        self.report: Callable[[Any], None] | None = None
        self.failing: type[BaseException] | None = None
        self.verdicts: list[tuple[str, Any]] = []

    def __call__(self, where: str) -> None:
        if self.report is not None:  # the child, later
            if self.failing is not None:
                raise self.failing("injected")
            return
        self.passed[where] += 1
        if self.passed.total() % self.every and not (self.new and self.passed[where] == 1):
            return
        for error, lasting in self.errors if self.every == 1 else [next(self.turns)]:
            self.use = next(self.uses)
            self.report, verdict = fork()
            if self.report is not None:
                self.failing = error if lasting else None
                raise error("injected")
            self.verdicts.append((where, verdict))


@contextlib.contextmanager
def lines(place: Places) -> Iterator[None]:
    """Each line of sparsify's, and each return from its functions."""

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(SPARSIFY):
            return None
        if event in ("line", "return"):
            place(f"{site(frame)} {event if event == 'return' else ''}".strip())
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)


class Operators(TorchDispatchMode):
    """Each operator of torch's that sparsify calls."""

    def __init__(self, place: Places) -> None:
        super().__init__()
        self.place = place

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if is_ours(callers()):
            self.place(f"{site(innermost_of_ours(callers()))} {func}")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def allocations(place: Places) -> Iterator[None]:
    """Each vector that sparsify or NumPy allocates for it, and each call of the compiled library."""

    def failing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_ours(callers()):
                place(f"{site(sys._getframe(1))} {function.__name__}")
            return function(*args, **kwargs)

        return call

    modules = [module for name, module in sys.modules.items() if name.split(".")[0] == "sparsify"]
    with contextlib.ExitStack() as undo:
        for module, names in [*((module, ("empty", "call")) for module in modules), (np, NUMPY)]:
            for name in names:
                if callable(found := vars(module).get(name)):
                    undo.enter_context(mock.patch.object(module, name, failing(found)))
        yield


NUMPY = ("empty", "sort", "concatenate", "partition", "append")
KINDS: dict[str, tuple[Callable[[Places], Any], list[tuple[type[BaseException], bool]]]] = {
    "lines": (lines, [(KeyboardInterrupt, False), (MemoryError, False)]),
    "operators": (Operators, [(KeyboardInterrupt, False), (MemoryError, True)]),
    "allocations": (allocations, [(MemoryError, False), (MemoryError, True)]),
}
"""kind -> how places are found, and the errors raised there: once, or from there on until the operation has ended."""


@contextlib.contextmanager
def signals(number: int, steps: int, duration: float) -> Iterator[None]:
    """Ctrl-C at a random moment."""
    active = True

    def interrupt(*_: Any) -> None:
        if active:
            raise KeyboardInterrupt

    signal.signal(signal.SIGVTALRM, interrupt)
    signal.setitimer(signal.ITIMER_VIRTUAL, max(1e-6, random.Random(number).uniform(0, duration)))
    try:
        yield
    finally:
        active = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


@contextlib.contextmanager
def limits(number: int, steps: int, duration: float) -> Iterator[None]:
    """No more memory than is held and `number` parts of `MOST`."""
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + MOST * number // steps, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


MOST = 6 << 20
REAL: dict[str, Callable[[int, int, float], Any]] = {"signals": signals, "limits": limits}


OTHER = ("storm", "accidents")


# Examination.


class Tally:
    """How the interrupted runs ended, and what is broken."""

    def __init__(self) -> None:
        self.verdicts: Counter[tuple[str, str]] = Counter()
        self.broken: Counter[str] = Counter()

    def add(self, scenario: Scenario, kind: str, where: str, verdict: Verdict | str) -> None:
        """`verdict` is a string where the child crashed."""
        name, reason = ("BROKEN", verdict) if isinstance(verdict, str) else verdict
        name = name.split(",")[0]
        self.verdicts[kind, name] += 1
        if name == "BROKEN":
            self.broken[f"BROKEN {scenario} {kind} {where}  {reason}".replace("\n", " ")[:300]] += 1

    def table(self, examples: int) -> str:
        columns = ["before", "stepped", "after", "refused", "torch's", "BROKEN"]
        rows = [f"{'':12}{'tried':>8}" + "".join(f"{column:>9}" for column in columns)]
        for kind in dict.fromkeys(kind for kind, _ in self.verdicts):
            counts = [self.verdicts[kind, column] for column in columns]
            rows.append(f"{kind:12}{sum(counts):8}" + "".join(f"{count:9}" for count in counts))
        rows += [f"{words}  ({count})" for words, count in self.broken.most_common(examples)]
        return "\n".join(rows)


def examine(scenario: Scenario, kinds: Mapping[str, int], new: bool, uses: Iterable[str], tally: Tally) -> None:
    """Interrupt one scenario.

    Args:
        kinds: kind -> every how many places to fail; of "signals", "limits" and "storm", how many to try.
        new: also wherever it has not failed before.
        uses: the first uses, in turn.
    """
    uses = list(uses)
    expected = references(scenario, dict.fromkeys([*uses, "look", "load"]), tally)
    for kind, number in kinds.items():
        if kind in KINDS:
            fail_at_places(scenario, kind, Places(KINDS[kind][1], number, new, uses), expected, tally)
        elif kind in REAL:
            fail_in_earnest(scenario, kind, number, uses, expected, tally)
        elif kind == "storm":
            tally.add(scenario, kind, f"{number} signals", in_child(lambda n=number: storm(scenario, n)))
        else:
            suffer_accidents(scenario, tally)


def fail_at_places(scenario: Scenario, kind: str, place: Places, expected: References, tally: Tally) -> None:
    run, other = scenario.set_up()
    try:
        with KINDS[kind][0](place):
            scenario.operate(run, other)
    except BaseException:
        if place.report is None:
            raise
    if place.report is not None:
        place.report(judge(scenario, run, other, place.use, expected))
    for where, verdict in place.verdicts:
        tally.add(scenario, kind, where, verdict)


def fail_in_earnest(
    scenario: Scenario, kind: str, times: int, uses: list[str], expected: References, tally: Tally
) -> None:
    run, other = scenario.set_up()
    duration = in_child(lambda: seconds(lambda: scenario.operate(run, other)))

    def work(number: int) -> tuple[str, Verdict]:
        where = "nowhere"
        try:
            with REAL[kind](number, times, duration):
                scenario.operate(run, other)
        except BaseException as error:
            frames = list(frames_of(error.__traceback__))[::-1]
            if not is_ours(frames):
                return site(frames[-1]), ("torch's", "")
            where = site(innermost_of_ours(frames))
        return where, judge(scenario, run, other, uses[number % len(uses)], expected)

    for number in range(times):
        result = in_child(lambda number=number: work(number))
        tally.add(scenario, kind, *(("somewhere", result) if isinstance(result, str) else result))


def storm(scenario: Scenario, times: int) -> Verdict:
    """A run that is interrupted again and again; it must stay whole."""
    run, _ = scenario.set_up()
    duration = seconds(lambda: run.train(0))
    for number in range(times):
        with contextlib.suppress(KeyboardInterrupt), signals(number, times, duration):
            run.train(number)
        check_against_dense_twin(run)
    return "after", ""


def suffer_accidents(scenario: Scenario, tally: Tally) -> None:
    run, _ = scenario.set_up()
    for accident, use in ((accident, use) for accident, (_, uses) in ACCIDENTS.items() for use in uses):
        verdict = in_child(lambda accident=accident, use=use: judge_accident(run, accident, use))
        tally.add(scenario, "accidents", f"{accident}, then {use}", verdict)


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def every_scenario() -> list[Scenario]:
    """All small ones, and one optimizer's with layers large enough for a limit of memory to be felt."""
    names = [name for name in OPERATIONS if name != "load_by_halves"]
    small = [Scenario(*which) for which in itertools.product(ALGORITHMS, OPTIMIZERS, names, (False, True))]
    large = [Scenario(a, "sgd", name, width=8_000) for a, name in itertools.product(ALGORITHMS, names)]
    return [*small, *large, Scenario("SET", "sgd", "load_by_halves")]


def main() -> int:
    parser = argparse.ArgumentParser(description="Interrupt evolution, trim and loading, and judge what is left.")
    parser.add_argument("scenarios", nargs="*", default=["*"], help='globs of "algorithm/optimizer/operation/model"')
    parser.add_argument("--lines", type=int, default=0, help="fail at every so many lines (0: at none)")
    parser.add_argument("--operators", type=int, default=0, help="at every so many operators")
    parser.add_argument("--allocations", type=int, default=0, help="at every so many allocations")
    parser.add_argument("--signals", type=int, default=0, help="so many times Ctrl-C")
    parser.add_argument("--limits", type=int, default=0, help="so many memory limits")
    parser.add_argument("--storm", type=int, default=0, help="so many times Ctrl-C in one run")
    parser.add_argument("--accidents", type=int, default=0, help="1: damage layers as a user may")
    parser.add_argument("--new", action="store_true", help="and at each of these the first time that it is passed")
    parser.add_argument("--uses", type=int, default=len(USES), help="so many first uses a scenario, in turn")
    parser.add_argument("--part", default="0/1", help='"3/8": the fourth of every eight scenarios')
    parser.add_argument("--examples", type=int, default=20, help="of broken places to show")
    parser.add_argument("--list", action="store_true", help="list the scenarios, and end")
    options = parser.parse_args()
    kinds = {kind: getattr(options, kind) for kind in (*KINDS, *REAL, *OTHER) if getattr(options, kind)}
    chosen = [s for s in every_scenario() if any(fnmatch.fnmatch(str(s), pattern) for pattern in options.scenarios)]
    first, step = map(int, options.part.split("/"))
    chosen = chosen[first::step]
    if options.list or not chosen:
        print("\n".join(map(str, chosen)) or "no such scenario")
        return not chosen
    torch.set_num_threads(1)  # a child has none but its own
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: what was freed goes back, so that limits are felt
    gc.freeze()
    tally = Tally()
    turning = itertools.cycle(USES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of state that starts afresh
        for scenario in chosen:
            examine(scenario, kinds, options.new, itertools.islice(turning, options.uses), tally)
    print(f"{len(chosen)} scenarios\n{tally.table(options.examples)}")
    return bool(tally.broken)


if __name__ == "__main__":
    sys.exit(main())
