"""What `interruptions` interrupts, how what is left is used, and how it is judged.

A run is judged by using it: what it shows, from its first use through further steps and evolutions, must be to the last
bit what an undisturbed run shows that stands before the operation, or after it.
"""

import contextlib
import copy
import inspect
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim import SGD, Adam
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import sparsify as package
from sparsify import GMP, SET, Evolution, GraNet, RigL, SparseLinear, densify, sparsify, trim, uniform
from sparsify.evolution import across_layers

SPARSIFY = str(Path(package.__file__).parent)
INTERVAL = 2

ALGORITHMS: dict[str, Callable[[], Evolution]] = {
    "SET": lambda: SET(interval=INTERVAL),
    "RigL": lambda: RigL(interval=INTERVAL, drop_fraction=0.3),
    "GMP": lambda: GMP(until=9, interval=INTERVAL, start_density=0.6),
    "GraNet": lambda: GraNet(until=9, prune_until=7, interval=INTERVAL, drop_fraction=0.3, start_density=0.6),
    "across": lambda: Evolution(interval=INTERVAL, drop_fraction=0.3, scope=across_layers),
}
OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: SGD(p, 0.1, momentum=0.9),
    "sgd-fused": lambda p: SGD(p, 0.1, momentum=0.9, fused=True),
    "adam": lambda p: Adam(p, 0.01, amsgrad=True),
    "adam-fused": lambda p: Adam(p, 0.01, fused=True),
}


class Net(nn.Module):
    """Two linear layers of `width`, with attention between them or not."""

    def __init__(self, width: int, attention: bool) -> None:
        super().__init__()
        self.first = nn.Linear(16, width)
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True) if attention else None
        self.last = nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).tanh()
        return self.last(x if self.attention is None else x + self.attention(x, x, x, need_weights=False)[0])


@dataclass
class Run:
    """A model in training, its optimizer, and an average that follows or None."""

    model: nn.Module
    optimizer: Any
    average: AveragedModel | None
    parameters: list[nn.Parameter] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.parameters = list(self.model.parameters())

    def backward(self, number: int) -> dict[str, Any]:
        x = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(number), dtype=torch.float64)
        x.requires_grad_()
        self.optimizer.zero_grad()
        output = self.model(x)
        (output - x.detach()).square().mean().backward()
        grads = {name: p.grad for name, p in self.model.named_parameters()}
        return plain({"output": output, "grads": grads, "grad of input": x.grad})

    def train(self, number: int) -> dict[str, Any]:
        seen = self.backward(number)
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return seen

    def look(self) -> dict[str, Any]:
        parameters = list(self.model.parameters())
        numbers = {id(p): number for number, p in enumerate(parameters)}
        groups = self.optimizer.param_groups
        return {
            "model": plain(self.model.state_dict()),
            "optimizer": plain(self.optimizer.state_dict()),
            "average": None if self.average is None else plain(self.average.state_dict()),
            "dense": {name: plain(layer.to_dense()) for name, layer in sparse_layers(self.model)},
            "identity": [one is other for one, other in zip(parameters, self.parameters, strict=True)],
            "held": [numbers.get(id(p)) for group in groups for p in group["params"]],
        }

    def load(self, other: "Run") -> None:
        self.model.load_state_dict(other.model.state_dict())
        if self.average is not None:
            self.average.load_state_dict(other.average.state_dict())
        self.optimizer.load_state_dict(other.optimizer.state_dict())
        if self.average is not None:  # loaded it is a snapshot, written to an average again
            self.average.update_parameters(self.model)


def sparse_layers(model: nn.Module) -> list[tuple[str, SparseLinear]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, SparseLinear)]


@dataclass(frozen=True)
class Scenario:
    """What is set up, and the operation on it."""

    algorithm: str
    optimizer: str
    operation: str
    attention: bool = False
    width: int = 24

    def __str__(self) -> str:
        model = "attention" if self.attention else {24: "small", 8_000: "large"}[self.width]
        return f"{self.algorithm}/{self.optimizer}/{self.operation}/{model}"

    @property
    def loads(self) -> bool:
        return self.operation.startswith("load")

    def fresh(self, seed: int = 1, density: float = 0.25) -> Run:
        """Trained to just before the step that evolves for the second time."""
        torch.manual_seed(seed)
        model = Net(self.width, self.attention).double()
        options = {"evolution": ALGORITHMS[self.algorithm](), "distribution": uniform, "seed": seed}
        model, optimizer = sparsify(model, OPTIMIZERS[self.optimizer](model.parameters()), density, **options)
        assert len(sparse_layers(model)) == 2 + 4 * self.attention
        run = Run(
            model, optimizer, None if self.loads else AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        )
        for number in range(2 * INTERVAL - 1):
            run.train(number)
        run.backward(number + 1)
        return run

    def set_up(self) -> tuple[Run, Run]:
        """The run to disturb, and another one whose state is good to load."""
        run, other = self.fresh(), self.fresh(seed=2)
        if self.operation == "load_optimizer":
            run.model.load_state_dict(other.model.state_dict())
        return run, other

    def operate(self, run: Run, other: Run) -> None:
        OPERATIONS[self.operation](self, run, other)


def load_other_count(scenario: Scenario, run: Run, other: Run) -> None:
    run.model.load_state_dict(OTHER_COUNTS[scenario])


def load_by_halves(scenario: Scenario, run: Run, other: Run) -> None:
    """Not whole by design: what the harness must find."""
    run.model.first.load_state_dict(other.model.first.state_dict())
    run.model.last.load_state_dict(other.model.last.state_dict())


OPERATIONS: dict[str, Callable[[Scenario, Run, Run], Any]] = {
    "step": lambda scenario, run, other: run.optimizer.step(),
    "evolve": lambda scenario, run, other: run.optimizer.evolve(),
    "trim": lambda scenario, run, other: trim(run.model, 0.3),
    "trim_with_optimizer": lambda scenario, run, other: trim(run.model, 0.3, optimizer=run.optimizer),
    "load_same_count": lambda scenario, run, other: run.model.load_state_dict(other.model.state_dict()),
    "load_other_count": load_other_count,
    "load_optimizer": lambda scenario, run, other: run.optimizer.load_state_dict(other.optimizer.state_dict()),
    "load_by_halves": load_by_halves,
}
if "optimizer" not in inspect.signature(trim).parameters:
    del OPERATIONS["trim_with_optimizer"]


class OtherCounts(dict[Scenario, dict[str, Any]]):
    """The state of a model with more connections."""

    def __missing__(self, scenario: Scenario) -> dict[str, Any]:
        self[scenario] = copy.deepcopy(scenario.fresh(seed=4, density=0.35).model.state_dict())
        return self[scenario]


OTHER_COUNTS = OtherCounts()


# How what is left is used: the first use differs, then training goes on.


Seen = Iterator[tuple[str, Any]]
"""What is seen one after the other, so that what came before an error counts too."""


def first_look(run: Run, other: Run) -> Seen:
    yield from go_on(run)


def first_forward(run: Run, other: Run) -> Seen:
    yield "forward", plain(run.model(torch.ones(1, 3, 16, dtype=torch.float64)))
    yield from go_on(run)


def first_step(run: Run, other: Run) -> Seen:
    run.optimizer.step()
    yield from go_on(run)


def first_evolve(run: Run, other: Run) -> Seen:
    yield "first evolve", evolve(run)
    yield from go_on(run)


def first_trim(run: Run, other: Run) -> Seen:
    trim(run.model, 0.2)
    yield from go_on(run)


def first_load(run: Run, other: Run) -> Seen:
    run.load(other)
    yield from go_on(run)


def first_deepcopy(run: Run, other: Run) -> Seen:
    yield "copy", dict(go_on(Run(*copy.deepcopy((run.model, run.optimizer)), None)))
    yield from go_on(run)


def first_pickle(run: Run, other: Run) -> Seen:
    file = io.BytesIO()
    torch.save((run.model, run.optimizer), file)
    file.seek(0)
    yield "copy", dict(go_on(Run(*torch.load(file, weights_only=False), None)))
    yield from go_on(run)


def first_average(run: Run, other: Run) -> Seen:
    model = run.model if run.average is None else run.average
    yield "average", plain([model.state_dict(), model(torch.ones(1, 3, 16, dtype=torch.float64))])
    yield from go_on(run)


_USES = (first_look, first_forward, first_step, first_evolve, first_trim)
_USES += (first_load, first_deepcopy, first_pickle, first_average)
USES: dict[str, Callable[[Run, Run], Seen]] = {use.__name__.removeprefix("first_"): use for use in _USES}


def go_on(run: Run) -> Seen:
    """All that is to be seen, now and while training goes on: an evolution that is due, one by hand."""
    yield "state", run.look()
    for number in range(INTERVAL):
        yield f"step {number}", run.train(50 + number)
    yield "evolve", evolve(run)
    yield "end", run.look()
    yield "last", run.train(60)


def evolve(run: Run) -> Any:
    try:
        return plain(run.optimizer.evolve())
    except ValueError as error:  # a rule without its gradient
        return str(error)


def observe(use: str, run: Run, other: Run) -> dict[str, Any]:
    """What is seen of a run that is used so; of an error its words, and whether sparsify refuses by them."""
    seen: dict[str, Any] = {}
    try:
        for name, what in USES[use](run, other):
            seen[name] = what
    except BaseException as error:
        seen["raised"] = f"{type(error).__name__}: {error}"
        seen["refused"] = is_refusal(error)
    return seen


def is_refusal(error: BaseException) -> bool:
    frames = list(frames_of(error.__traceback__))
    return type(error) is RuntimeError and frames[-1].f_code.co_filename.startswith(SPARSIFY)


def plain(nested: Any) -> Any:
    """In numbers, bytes, lists and dicts, which compare and pickle."""
    if isinstance(nested, Tensor) and nested.untyped_storage().size() < nested.nbytes:
        return "freed"
    if isinstance(nested, Tensor):
        tensor = nested.detach().contiguous()
        return str(tensor.dtype), tuple(tensor.shape), tensor.numpy().tobytes()
    if isinstance(nested, Mapping):
        return {key: plain(value) for key, value in nested.items()}
    return [plain(value) for value in nested] if isinstance(nested, (list, tuple)) else nested


def difference(one: Any, other: Any) -> str:
    """Where two observations that differ do so first."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [key for key in (*one, *other) if key not in one or key not in other or one[key] != other[key]]
        return f"{keys[0]}.{difference(one.get(keys[0]), other.get(keys[0]))}".rstrip(".")
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return difference(dict(enumerate(one)), dict(enumerate(other)))
    return ""


def check_against_dense_twin(run: Run) -> None:
    """Raise AssertionError unless the model computes what its dense twin does, and after a step all buffers fit."""
    for name, layer in sparse_layers(run.model):
        state = layer.state_dict()
        values, crow, col = state["values"], state["crow"].long(), state["col"].long()
        assert crow[-1] == len(values) == len(col), name
        row = torch.repeat_interleave(torch.diff(crow))
        by_hand = torch.zeros(layer.shape, dtype=values.dtype).index_put((row, col), values)
        assert torch.equal(by_hand, layer.to_dense()), name
    x = torch.randn(4, 3, 16, dtype=torch.float64, requires_grad=True)
    results = []
    for model in run.model, densify(run.model):
        output = model(x)
        inputs = [x, model.first.bias, model.last.bias]
        results.append((output, *torch.autograd.grad(output.square().mean(), inputs)))
    for sparse, right in zip(*results, strict=True):
        torch.testing.assert_close(sparse, right)
    run.train(70)
    for name, layer in sparse_layers(run.model):
        for key, buffer in run.optimizer.state[layer.values].items():
            assert buffer.dim() == 0 or buffer.shape == layer.values.shape, (name, key)


def step_only(run: Run, other: Run) -> None:
    """The wrapped optimizer's step, and nothing of sparsify's after it."""
    hooks = run.optimizer._optimizer_step_post_hooks
    held = dict(hooks)
    hooks.clear()
    run.optimizer.step()
    hooks.update(held)


def step_with_failing_rule(run: Run, other: Run) -> None:
    """A step whose evolution fails by the user's fault: sparsify's own idea of "stepped"."""
    with (
        mock.patch.object(Evolution, "fraction", side_effect=KeyboardInterrupt),
        contextlib.suppress(KeyboardInterrupt),
    ):
        run.optimizer.step()


# Verdicts.


References = dict[str, dict[str, Any]]
"""use -> state -> what an undisturbed run shows when it stands in that state and is used so."""


def frames_of(traceback: TracebackType | None) -> Iterator[FrameType]:
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def judge(scenario: Scenario, run: Run, other: Run, use: str, expected: References) -> tuple[str, str]:
    """The verdict, and its reason where it is BROKEN."""
    seen = observe(use, run, other)
    for state, right in expected[use].items():
        if seen == right:
            return state.split(",")[0], ""
    if seen.get("refused") and scenario.loads:
        return _judge_refusal(run, other, expected)
    if "raised" in seen:
        return "BROKEN", f"{use}: {seen['raised']}"
    places = [f"not {state}: {difference(seen, right)}" for state, right in expected[use].items()]
    return "BROKEN", f"{use}: {'; '.join(places)}"


def _judge_refusal(run: Run, other: Run, expected: References) -> tuple[str, str]:
    """It must stand, whatever is tried, until loading heals."""
    uses = {"training": lambda: run.train(50), "saving": run.look, "step()": run.optimizer.step}
    for name, use in [*uses.items(), ("evolve()", run.optimizer.evolve), *uses.items()]:
        try:
            use()
        except BaseException as error:
            if is_refusal(error):
                continue
        return "BROKEN", f"refused, but {name} was not"
    seen = observe("load", run, other)
    if seen in expected["load"].values():
        return "refused", ""
    return "BROKEN", f"refused, and loading did not heal: {seen.get('raised', 'other state')}"


# Accidents: what a user may do to a layer.


def take_from_param_groups(run: Run) -> None:
    for group in run.optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not run.model.last.values]


def prune_by_torch(run: Run) -> None:
    prune.l1_unstructured(run.model.last, "values", 0.3)


def lengthen_values(run: Run) -> None:
    run.model.last.values = nn.Parameter(torch.cat([run.model.last.values.detach(), torch.ones(3).double()]))


def shorten_bias(run: Run) -> None:
    run.model.last.bias = nn.Parameter(run.model.last.bias.detach()[:5].clone())


def free_values(run: Run) -> None:
    run.model.last.values.untyped_storage().resize_(0)


ACCIDENTS: dict[str, tuple[Callable[[Run], None], dict[str, bool]]] = {
    "parameter taken from param_groups": (take_from_param_groups, {"forward": False, "step": False, "evolve": False}),
    "values pruned by torch": (prune_by_torch, {"forward": False, "step": False, "evolve": False}),
    "values of another length": (lengthen_values, {"forward": True, "step": False, "evolve": True}),
    "bias of another length": (shorten_bias, {"forward": True, "step": False, "evolve": False}),
    "freed values": (free_values, {"forward": True, "evolve": True}),  # torch's own optimizers crash on it in step()
}
"""accident -> what does it; and for each use whether it must refuse, or may go on if what it does is right."""


def judge_accident(run: Run, accident: str, use: str) -> tuple[str, str]:
    """It is refused with nothing changed, or what is done is right."""
    damage, must_refuse = ACCIDENTS[accident]
    damage(run)
    x = torch.ones(1, 3, 16, dtype=torch.float64)
    before = held(run, weights=use != "step")  # step() may have stepped the weights before it refuses to evolve
    try:
        {"forward": lambda: run.model(x), "step": run.optimizer.step, "evolve": run.optimizer.evolve}[use]()
    except (RuntimeError, ValueError, TypeError) as error:
        if not list(frames_of(error.__traceback__))[-1].f_code.co_filename.startswith(SPARSIFY):
            return "BROKEN", f"{type(error).__name__}: {error}"
        after = held(run, weights=use != "step")
        return ("refused", "") if after == before else ("BROKEN", f"refused, changed {difference(before, after)}")
    if must_refuse[use]:
        return "BROKEN", "not refused"
    last = run.model.last
    assert last.crow[-1] == len(last.values) == len(last.col)
    if use == "forward":
        y = run.model.first(x).tanh()
        torch.testing.assert_close(last(y), y @ last.to_dense().T + last.bias)
    return "after", ""


def held(run: Run, weights: bool) -> dict[str, Any]:
    """All tensors, without any call of sparsify's; or topologies alone."""
    found: dict[str, Any] = dict(run.model.named_buffers())
    if weights:
        state = {name: run.optimizer.state.get(p, {}) for name, p in run.model.named_parameters()}
        found |= {"weights": dict(run.model.named_parameters()), "state": state}
    return plain(found)
