"""What `sparsify` says where no layer would become sparse: the one reason, if there is one, and the way out."""

from collections import Counter
from collections.abc import Callable, Mapping

from torch import nn

from sparsify._src.conversion.eligibility import Kind, Reason

OF_OPTIMIZER = "Make it of model.parameters(), of the model that is passed here."

SINGLE = {
    Kind.FROZEN: "model must have linear layers that train, got {all} frozen. Call model.requires_grad_(True) first.",
    Kind.SKIPPED: "skip must leave a linear layer to become sparse, got globs that name {all}. Name fewer.",
    Kind.NOT_NAMED: "density must name a linear layer, got none. density=0.1 is for all.",
    Kind.NOT_HELD: (
        "optimizer must hold the weight of a linear layer, got one that holds parameters of model, but of {all} no "
        f"weight. {OF_OPTIMIZER}"
    ),
    Kind.SPLIT: (
        "optimizer must hold all parameters of the attention modules, got one that holds a part. Name all optimizers "
        "in one call: sparsify(model, (one, other), ...)."
    ),
}
"""What is said where a reason is that of all linear layers."""

WAYS = {
    "its weight is tied": "Untie it, or give the module a weight of its own.",
    "its weight has gradient hooks": "Remove them before sparsify(), and register them on layer.values afterwards.",
    "its dtype is": "Convert the model first: model.float().",
    "its weight is computed": "Remove the parametrization first: torch.nn.utils.parametrize.remove_parametrizations.",
    "it has a forward": "Make it an nn.Linear, and do in a module around it what its own forward does.",
    "its class": "Make it an nn.Linear, and put into a module around it what its class adds.",
    "it is an adapter": "Merge the adapters first, or call sparsify() before they are added.",
    "an adapter": "Merge the adapters first, or call sparsify() before they are added.",
}
"""The beginning of a reason's words -> the way out, where the words do not say it."""


def why_nothing(model: nn.Module, reasons: Mapping[str, Reason], by_zeros: bool, table: Callable[[], object]) -> str:
    """The message of the error.

    Args:
        reasons: of every linear map of `model`.
        by_zeros: whether the weights that are not zero would be the connections.
        table: gives one of what stays dense, and why.
    """
    if any(reason.kind is Kind.OTHER_MODEL for reason in reasons.values()):
        return f"optimizer must hold the parameters of model, got one that holds none of them. {OF_OPTIMIZER}"
    what = "with weights that are zero" if by_zeros else "that can be sparse"
    if not reasons:
        kinds = sorted({type(module).__name__ for module in model.modules() if [*module.parameters(recurse=False)]})
        there = f"a model whose parameters are in {', '.join(kinds[:5])}" if kinds else "a model without parameters"
        return (
            f"model must hold an nn.Linear {what}, got none: {there}. Linear layers, Conv1D of Transformers and "
            "nn.MultiheadAttention can be."
        )
    words, count = Counter(reason.words for reason in reasons.values()), len(reasons)
    every = f"all of its {count} linear layers" if count > 1 else f"its one linear layer, {next(iter(reasons))!r},"
    kinds_of_reasons = {reason.kind for reason in reasons.values()}
    [*_, kind] = kinds_of_reasons
    if len(kinds_of_reasons) == 1 and kind in SINGLE:
        return SINGLE[kind].format(all=every.removesuffix(","))
    if by_zeros and kinds_of_reasons == {Kind.FULL}:
        return (
            f"model must hold an nn.Linear {what}, got none: {every} are dense. Prune first, or keep the largest "
            'weights of a density: sparsify(..., density=0.1, start="magnitude").'
        )
    if len(words) == 1:
        [(reason, _)] = words.items()
        way = next((way for begin, way in WAYS.items() if reason.startswith(begin)), "")
        return f"model must hold an nn.Linear {what}, got none: of {every} the reason is: {reason}. {way}".rstrip()
    found = "; ".join(f"{number} because {reason}" for reason, number in words.most_common(3))
    more = f"; {len(words) - 3} other reasons" if len(words) > 3 else ""
    return f"model must hold an nn.Linear {what}, got none of {count}: {found}{more}.\n{table()}"
