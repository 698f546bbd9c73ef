"""Finds the batch norms that directly follow a layer, by tracing the model with torch.fx."""

import copy
import inspect
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from typing import Any

from torch import fx, nn

from sparsify._src.layers.attention import SparseMultiheadAttention
from sparsify._src.layers.folding import DIMS, is_norm, why_not
from sparsify._src.torch_private import has_forward_hooks

Pair = tuple[str, str]
"""The names of a layer and of the batch norm that follows it."""


class _Tracer(fx.Tracer):
    """Keeps layers and norms whole, and modules that cannot be traced where no norm is in them.

    Attributes:
        opaque: kinds of which one was found to be such.
        failing: in which module tracing has failed, the innermost.
    """

    def __init__(self, opaque: set[type[nn.Module]]) -> None:
        super().__init__()
        self.opaque = opaque
        self.failing: nn.Module | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, (*DIMS, SparseMultiheadAttention)) or is_norm(m):
            return True
        return _is_opaque(m, self.opaque) or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failing = self.failing or m
            raise


def _is_opaque(module: nn.Module, opaque: set[type[nn.Module]]) -> bool:
    return type(module) in opaque and not any(map(is_norm, module.modules()))


def following(model: nn.Module) -> list[Pair]:
    """Where a batch norm takes the output of a layer, nothing else does, and each of the two is called once.

    Args:
        model: a copy of it is traced, in evaluation. A forward with optional arguments is traced with their defaults,
            and once more with values that are not known, where it can be.
    Raises:
        ValueError: it cannot be traced.
    """
    if not any(map(is_norm, model.modules())):
        return []
    twin = copy.deepcopy(model).eval()
    for module in twin.modules():  # hooks would see what torch.fx traces with
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    try:
        if "forward" in model.__dict__:
            raise TypeError("a forward that has been replaced")
        parameters = inspect.signature(twin.forward).parameters.values()
        defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
        pairs = list(_pairs(twin, _traced(twin, defaults)))
    except Exception as error:
        said = f"{type(error).__name__}: {error}".partition("\n")[0]
        found = _neighbours(model)
        given = repr(found) if found else "[('conv1', 'bn1'), ...]"
        sure = ", where nothing else uses what is between these neighbours in an nn.Sequential" if found else ""
        raise ValueError(
            f"model must be one that torch.fx can trace, got {said}. Name the layers and the batch norms that directly "
            f"follow them yourself: pairs={given}{sure}."
        ) from error
    if defaults:
        with suppress(Exception):  # then it asks for the values: it is what it is without them that counts
            others = set(_pairs(twin, _traced(twin, {})))
            pairs = [pair for pair in pairs if pair in others]
    return [pair for pair in pairs if not _is_watched(model, *pair) and not why_not(*map(model.get_submodule, pair))]


def checked(model: nn.Module, pairs: Iterable[Pair]) -> list[Pair]:
    """The pairs that a user names.

    Raises:
        ValueError: one is no layer and a norm that can be folded into it, or a module is named twice.
    """
    given = [(layer, norm) for layer, norm in pairs]
    modules = dict(model.named_modules(remove_duplicate=False))
    seen: set[nn.Module] = set()
    for pair in given:
        for name in pair:
            if name not in modules:
                raise ValueError(f"pairs must name modules of the model, got {name!r}.")
            if modules[name] in seen:
                raise ValueError(f"pairs must name each module once, got {name!r} again.")
            seen.add(modules[name])
        if reason := why_not(*(modules[name] for name in pair)):
            raise ValueError(f"pairs must name batch norms that can be folded, got {pair!r}: {reason}.")
    return given


def _traced(model: nn.Module, known: Mapping[str, Any]) -> fx.Graph:
    opaque: set[type[nn.Module]] = set()
    while True:
        tracer = _Tracer(opaque)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that the graph is one of these arguments alone
                return tracer.trace(model, dict(known) or None)
        except Exception:
            failing = tracer.failing
            if failing is None or type(failing) in opaque or any(map(is_norm, failing.modules())):
                raise
            opaque.add(type(failing))


def _pairs(model: nn.Module, graph: fx.Graph) -> Iterator[Pair]:
    """The pairs in a graph of the model."""
    modules = dict(model.named_modules(remove_duplicate=False))
    uses: Counter[nn.Module] = Counter()
    for node in graph.nodes:
        if node.op == "call_module":
            uses.update(modules[node.target].modules())
        elif node.op == "get_attr":  # a parameter or a buffer is read, or a module
            name = str(node.target)
            uses.update(modules[name if name in modules else name.rpartition(".")[0]].modules())
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or node.kwargs or len(node.args) > 1:
            continue
        name, follows = str(before.target), str(node.target)
        layer, norm = modules[name], modules[follows]
        if is_norm(norm) and len(before.users) == uses[layer] == uses[norm] == 1:
            yield name, follows


def _is_watched(model: nn.Module, layer: str, norm: str) -> bool:
    """Whether a hook of a module that holds one of the two sees what is between them."""
    around = [{name[:at] for at, letter in enumerate(name) if letter == "."} for name in (layer, norm)]
    return any(has_forward_hooks(model.get_submodule(name)) for name in around[0] ^ around[1])


def _neighbours(model: nn.Module) -> list[Pair]:
    """Layers and norms that stand one after another in an nn.Sequential."""
    names = {module: name for name, module in model.named_modules()}
    found = []
    for module in model.modules():
        if isinstance(module, nn.Sequential):
            children = list(module)
            for layer, norm in pairwise(children):
                if why_not(layer, norm) is None:
                    found.append((names[layer], names[norm]))
    return found
