"""What `sparsify` says where no layer would become sparse: the one reason, if there is one, and the way out."""

from collections import Counter
from collections.abc import Callable, Mapping

from torch import nn

from sparsify._src.conversion.eligibility import Kind, Reason
from sparsify._src.conversion.linear_maps import CONVOLUTIONS, DEFAULT, KINDS, Kinds

OF_OPTIMIZER = "Make it of model.parameters(), of the model that is passed here."

SINGLE = {
    Kind.FROZEN: "model must have {noun}s that train, got {all} frozen. Call model.requires_grad_(True) first.",
    Kind.SKIPPED: "skip must leave a {noun} to become sparse, got globs that name {all}. Name fewer.",
    Kind.NOT_NAMED: "density must name a {noun}, got none. density=0.1 is for all.",
    Kind.NOT_HELD: (
        "optimizer must hold the weight of a {noun}, got one that holds parameters of model, but of {all} no "
        f"weight. {OF_OPTIMIZER}"
    ),
    Kind.SPLIT: (
        "optimizer must hold all parameters of the attention modules, got one that holds a part. Name all optimizers "
        "in one call: sparsify(model, (one, other), ...)."
    ),
}
"""What is said where a reason is that of all layers of the kinds that are asked for."""

WAYS = {
    "its weight is tied": "Untie it, or give the module a weight of its own.",
    "its weight has gradient hooks": "Remove them before sparsify(), and register them on layer.values afterwards.",
    "its dtype is": "Convert the model first: model.float().",
    "its weight is computed": "Remove the parametrization first: torch.nn.utils.parametrize.remove_parametrizations.",
    "it has a forward": "Make it {one}, and do in a module around it what its own forward does.",
    "its class": "Make it {one}, and put into a module around it what its class adds.",
    "it is an adapter": "Merge the adapters first, or call sparsify() before they are added.",
    "an adapter": "Merge the adapters first, or call sparsify() before they are added.",
}
"""The beginning of a reason's words -> the way out, where the words do not say it."""


def why_nothing(
    model: nn.Module, reasons: Mapping[str, Reason], by_zeros: bool, table: Callable[[], object], kinds: Kinds
) -> str:
    """The message of the error.

    Args:
        reasons: of every linear map of `model`.
        by_zeros: whether the weights that are not zero would be the connections.
        table: gives one of what stays dense, and why.
        kinds: that are asked for.
    """
    one, noun = "an " + " or ".join(f"nn.{kind.__name__}" for kind in kinds), _noun(kinds)
    if any(reason.kind is Kind.OTHER_MODEL for reason in reasons.values()):
        return f"optimizer must hold the parameters of model, got one that holds none of them. {OF_OPTIMIZER}"
    what = "with weights that are zero" if by_zeros else "that can be sparse"
    if not reasons:
        names = sorted({type(module).__name__ for module in model.modules() if [*module.parameters(recurse=False)]})
        there = f"a model whose parameters are in {', '.join(names[:5])}" if names else "a model without parameters"
        return f"model must hold {one} {what}, got none: {there}. {_others(model, kinds)}"
    words, count = Counter(reason.words for reason in reasons.values()), len(reasons)
    every = f"all of its {count} {noun}s" if count > 1 else f"its one {noun}, {next(iter(reasons))!r},"
    kinds_of_reasons = {reason.kind for reason in reasons.values()}
    [*_, kind] = kinds_of_reasons
    if len(kinds_of_reasons) == 1 and kind in SINGLE:
        return SINGLE[kind].format(all=every.removesuffix(","), noun=noun)
    if by_zeros and kinds_of_reasons == {Kind.FULL}:
        return (
            f"model must hold {one} {what}, got none: {every} are dense. Prune first, or keep the largest "
            'weights of a density: sparsify(..., density=0.1, start="magnitude").'
        )
    if len(words) == 1:
        [(reason, _)] = words.items()
        way = next((way for begin, way in WAYS.items() if reason.startswith(begin)), "")
        way = way.format(one=one)
        return f"model must hold {one} {what}, got none: of {every} the reason is: {reason}. {way}".rstrip()
    found = "; ".join(f"{number} because {reason}" for reason, number in words.most_common(3))
    more = f"; {len(words) - 3} other reasons" if len(words) > 3 else ""
    return f"model must hold {one} {what}, got none of {count}: {found}{more}.\n{table()}"


def _noun(kinds: Kinds) -> str:
    """What layers of these kinds are called."""
    if set(kinds) == set(DEFAULT):
        return "linear layer"
    return "convolution" if set(kinds) <= set(CONVOLUTIONS) else "layer"


def _others(model: nn.Module, kinds: Kinds) -> str:
    """What can become sparse, where there is nothing of these kinds in `model`."""
    there = [kind.__name__ for kind in KINDS if any(isinstance(module, kind) for module in model.modules())]
    if there:  # it is of none of `kinds`
        return f"kinds=({', '.join(f'nn.{name}' for name in there)},) makes these sparse."
    if set(kinds) <= set(CONVOLUTIONS):
        return "Convolutions that are not transposed can be."
    return "Linear layers, Conv1D of Transformers and nn.MultiheadAttention can be."
