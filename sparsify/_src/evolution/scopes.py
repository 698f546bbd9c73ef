"""Scopes: over what the drop fraction is counted - each sign of a layer, a layer, the whole model."""

import math
from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from torch import Tensor

from sparsify._src.checks import described, fault_of_vector
from sparsify._src.evolution.layer_view import LayerView, seen_by
from sparsify._src.vectors import lowest, positions
from sparsify._src.written import written

Choice = tuple[Tensor, int]
"""Positions of the connections that a layer loses, and how many it grows."""

Scope = Callable[[Sequence[LayerView], Sequence[Tensor], Sequence[int], float], Sequence[Choice]]
"""(layers, scores, excess of each layer, drop fraction) -> the choice for each layer.

The excess is how many connections a layer has beyond its schedule, negative where it has fewer: so many more
are dropped than grow. The fraction is of the rest. What `layer.spared` marks never goes; where it leaves fewer than
excess and fraction ask for, all the others go, the excess first."""


def per_layer(
    layers: Sequence[LayerView], scores: Sequence[Tensor], excess: Sequence[int], fraction: float
) -> list[Choice]:
    """Each layer loses floor(fraction * nnz) of its lowest scores and grows as many.

    Example:
        >>> values, alive = torch.tensor([3.0, -1.0, 2.0, 4.0]), torch.ones(4, dtype=torch.bool)
        >>> layer = LayerView("fc", (4, 4), torch.arange(4), values, alive, torch.Generator())
        >>> per_layer([layer], [magnitude(layer)], [0], 0.5)
        [(tensor([1, 2]), 2)]
    """
    choices = []
    for layer, score, more in zip(layers, scores, excess, strict=True):
        extra = min(max(0, more), layer.droppable)
        grown = min(_share(fraction, len(score) - extra), layer.free, layer.droppable - extra)
        choices.append((lowest_unspared(score, extra + grown, layer.spared), grown))
    return choices


def per_sign(
    layers: Sequence[LayerView], scores: Sequence[Tensor], excess: Sequence[int], fraction: float
) -> list[Choice]:
    """Each layer loses the lowest scores among its positive values, and among its negative ones: SET's rule.

    Counts are floor(fraction * n) for each sign, and for the exact zeros; together they are the budget. Zeros go first:
    where there are more of them than their own share, each takes the place of a nonzero value, from both signs in
    proportion. Where fewer places are free, the lowest of these go, whatever their sign; so does the excess. Among
    equal scores the first positions go first. A sign whose other connections are spared loses fewer.

    Example:
        >>> values, alive = torch.tensor([3.0, -1.0, 2.0, -4.0]), torch.ones(4, dtype=torch.bool)
        >>> layer = LayerView("fc", (4, 4), torch.arange(4), values, alive, torch.Generator())
        >>> per_sign([layer], [magnitude(layer)], [0], 0.5)  # 2.0 of the positive, -1.0 of the negative
        [(tensor([2, 1]), 2)]

    Source: Mocanu et al. 2018, algorithm 1.
    """
    choices = []
    for layer, score, more in zip(layers, scores, excess, strict=True):
        pruned = lowest_unspared(score, max(0, more), layer.spared)
        if len(pruned):
            rest = torch.ones(len(score), dtype=torch.bool, device=score.device)
            rest[pruned] = False
            left = positions(rest)
            spared = None if layer.spared is None else layer.spared[left]
            dropped = left[lowest_of_each_sign(layer.values[left], score[left], fraction, spared)]
        else:
            dropped = lowest_of_each_sign(layer.values, score, fraction, layer.spared)
        if len(dropped) > layer.free:
            dropped = dropped[lowest(score[dropped], layer.free)]
        choices.append((torch.cat([pruned, dropped]), len(dropped)))
    return choices


def across_layers(
    layers: Sequence[LayerView], scores: Sequence[Tensor], excess: Sequence[int], fraction: float
) -> list[Choice]:
    """The model loses floor(fraction * nnz) of its lowest scores, wherever they are, and what grows is shared anew.

    Layers grow in proportion to what survives in them: the budget moves to where connections are worth most. No layer
    loses its last connection: where none is spared, its best stays.

    Example:
        >>> model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
        >>> adam = torch.optim.Adam(model.parameters())
        >>> model, adam = sparsify(model, adam, density=0.2, evolution=Evolution(interval=None, scope=across_layers))
        >>> record = adam.evolve()
        >>> sum(record.dropped.values()), sum(record.grown.values())
        (48, 48)

    Source: Mostafa and Wang 2019 (DSR, arXiv:1902.05967).
    """
    home = scores[0].device
    pooled = torch.cat([score.to(home) for score in scores])
    spared = torch.cat([_spared_or_best(*pair).to(home) for pair in zip(layers, scores, strict=True)])
    droppable = len(spared) - int(spared.sum())
    extra = min(max(0, sum(excess)), droppable)
    grown = min(_share(fraction, len(pooled) - extra), sum(layer.free for layer in layers), droppable - extra)
    gone = torch.zeros_like(spared)
    gone[lowest_unspared(pooled, extra + grown, spared)] = True
    parts = torch.split(gone, [len(score) for score in scores])
    lost = [positions(part).to(score.device) for part, score in zip(parts, scores, strict=True)]
    survivors = [len(score) - len(dropped) for score, dropped in zip(scores, lost, strict=True)]
    return list(zip(lost, share_out(grown, survivors, [layer.free for layer in layers]), strict=True))


def share_out(total: int, weights: Sequence[float], most: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to `weights`, each at most `most`, whose sum is `total` (largest remainder).

    Raises:
        ValueError: total is more than all may take together.
    """
    if total > sum(most):
        raise ValueError(f"total must be at most {sum(most)}, got {total}.")
    shares = [0] * len(weights)
    while left := total - sum(shares):
        open_ = [i for i in range(len(weights)) if shares[i] < most[i]]
        scale = left / (sum(weights[i] for i in open_) or 1)
        wanted = {i: scale * weights[i] for i in open_}
        for i in open_:
            shares[i] = min(most[i], shares[i] + math.floor(wanted[i]))
        left = total - sum(shares)
        if all(shares[i] < most[i] for i in open_):  # only the remainders are left
            for i in sorted(open_, key=lambda i: math.floor(wanted[i]) - wanted[i])[:left]:
                shares[i] += 1
    return shares


def lowest_unspared(score: Tensor, count: int, spared: Tensor | None) -> Tensor:
    """Positions of the `count` lowest scores that are not spared; of all of these where they are fewer."""
    if spared is None:
        return lowest(score, min(count, len(score)))
    others = positions(~spared)
    return others[lowest(score[others], min(count, len(others)))]


def lowest_of_each_sign(values: Tensor, score: Tensor, fraction: float, spared: Tensor | None = None) -> Tensor:
    """Positions of the lowest scores: the share `fraction` of the positive values, and of the negative."""
    signs = [positions(sign) for sign in (values == 0, values > 0, values < 0)]
    own_share, drop_positive, drop_negative = (_share(fraction, len(sign)) for sign in signs)
    if spared is not None:
        signs = [sign[~spared[sign]] for sign in signs]
    drop_zero = min(len(signs[0]), own_share + drop_positive + drop_negative)
    displaced = max(0, drop_zero - own_share)
    if displaced:
        displaced_positive = round(displaced * drop_positive / (drop_positive + drop_negative))
        drop_positive -= displaced_positive
        drop_negative -= displaced - displaced_positive
    counts = zip(signs, (drop_zero, drop_positive, drop_negative), strict=True)
    return torch.cat([sign[lowest(score[sign], min(count, len(sign)))] for sign, count in counts])


def checked_choices(
    scope: Scope, layers: Sequence[LayerView], scores: Sequence[Tensor], excess: Sequence[int], fraction: float
) -> list[Choice]:
    """The choices that a scope makes.

    Raises:
        ValueError: it drops what is not there, spared or dropped already, grows more than there is room for, or drops
            another number than grow and the excess.
    """
    choices: object = scope([seen_by(scope, layer) for layer in layers], scores, excess, fraction)
    if not isinstance(choices, Sequence) or len(choices) != len(layers):
        raise ValueError(
            f"a scope must give a pair (positions, count) for each of {len(layers)} layers, got {described(choices)} "
            f"from {written(scope)}."
        )
    checked = [_checked_choice(scope, layer, choice) for layer, choice in zip(layers, choices, strict=True)]
    lost = sum(len(dropped) - grown for dropped, grown in checked)
    most = sum(max(0, more) for more in excess)  # layer by layer; where layers share, one may have what another lacks
    bounds = [(more, layer.droppable, len(layer.flat) - 1) for layer, more in zip(layers, excess, strict=True)]
    least = min(max(0, sum(excess)), sum(max(0, min(bound)) for bound in bounds))
    if not least <= lost <= most:
        raise ValueError(
            f"a scope must drop as many as grow and the excess, {most}, got {lost} more than grow from "
            f"{written(scope)}. Fewer of the excess may go only where the others are spared."
        )
    return checked


def _checked_choice(scope: Scope, layer: LayerView, choice: object) -> Choice:
    """A choice that a scope made for a layer; ValueError where it cannot be carried out."""
    nnz, device = len(layer.flat), layer.flat.device
    where = f"from {written(scope)} in layer {layer.name!r}."
    if not isinstance(choice, Sequence) or len(choice) != 2:
        raise ValueError(f"a scope must give a pair (positions, count) for each layer, got {described(choice)} {where}")
    dropped, grown = choice
    if (way := fault_of_vector(dropped, None, device)) or dropped.dtype != torch.int64:
        way = way or "Turn a boolean vector into positions with .nonzero().squeeze(1), other numbers with .long()."
        raise ValueError(
            f"a scope must give positions as a vector of int64 on {device}, got {described(dropped)} {where} {way}"
        )
    dropped = dropped.resolve_neg()
    if len(dropped) and not 0 <= int(dropped.min()) <= int(dropped.max()) < nnz:
        got = f"{int(dropped.min())} to {int(dropped.max())}"
        raise ValueError(f"a scope must give positions of range({nnz}), got {got} {where}")
    gone = torch.zeros(nnz, dtype=torch.bool, device=device)
    gone[dropped] = True
    if int(gone.sum()) != len(dropped):
        again = int(dropped.bincount().argmax())
        raise ValueError(f"a scope must give each position once, got {again} more than once {where}")
    if layer.spared is not None and (gone & layer.spared).any():
        first = int(positions(gone & layer.spared)[0])
        raise ValueError(
            f"a scope must leave what is spared, got position {first} {where} Choose among positions where "
            "layer.spared is False."
        )
    if isinstance(grown, bool) or not isinstance(grown, Integral) or not 0 <= int(grown) <= layer.free:
        raise ValueError(
            f"a scope must give a whole number of range({layer.free + 1}) as count, got {described(grown)} {where} As "
            "many places are free."
        )
    return dropped, int(grown)


def _spared_or_best(layer: LayerView, score: Tensor) -> Tensor:
    """What a layer is left with at least, (nnz,) bool: the spared connections, or the best where none is."""
    if layer.spared is not None and layer.spared.any():
        return layer.spared
    best = torch.zeros_like(score, dtype=torch.bool)
    if len(score):
        best[score.argmax()] = True
    return best


def _share(fraction: float, count: int) -> int:
    return int(fraction * count + 1e-9)  # 0.29 * 100 is 28.999999999999996
