"""Scopes: over what the drop fraction is counted - each sign of a layer, a layer, the whole model."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparsify.evolution.view import LayerView
from sparsify.topology import lowest, positions

Choice = tuple[Tensor, int]
"""Positions of the connections that a layer loses, and how many it grows."""

Scope = Callable[[Sequence[LayerView], Sequence[Tensor], Sequence[int], float], Sequence[Choice]]
"""(layers, scores, surplus of each layer, drop fraction) -> the choice for each layer.

The surplus is how many connections more than its schedule says a layer has, negative where it has fewer: so many more
are dropped than grow. The fraction is of the rest."""


def per_layer(
    layers: Sequence[LayerView], scores: Sequence[Tensor], surplus: Sequence[int], fraction: float
) -> list[Choice]:
    """Each layer loses floor(fraction * nnz) of its lowest scores and grows as many."""
    choices = []
    for layer, score, more in zip(layers, scores, surplus, strict=True):
        extra = max(0, more)
        grown = min(_share(fraction, len(score) - extra), layer.free)
        choices.append((lowest(score, extra + grown), grown))
    return choices


def per_sign(
    layers: Sequence[LayerView], scores: Sequence[Tensor], surplus: Sequence[int], fraction: float
) -> list[Choice]:
    """Each layer loses the lowest scores among its positive values, and among its negative ones: SET's rule.

    Counts are floor(fraction * n) for each sign, and for the exact zeros; together they are the budget. Zeros go first:
    where there are more of them than their own share, each takes the place of a nonzero value, from both signs in
    proportion. Where fewer places are free, the lowest of these go, whatever their sign; so does the surplus. Among
    equal scores the first positions go first.

    Source: Mocanu et al. 2018, algorithm 1.
    """
    choices = []
    for layer, score, more in zip(layers, scores, surplus, strict=True):
        if more > 0:
            pruned = lowest(score, more)
            rest = torch.ones(len(score), dtype=torch.bool, device=score.device)
            rest[pruned] = False
            left = positions(rest)
            dropped = left[lowest_of_each_sign(layer.values[left], score[left], fraction)]
        else:
            pruned, dropped = score.new_empty(0, dtype=torch.int64), lowest_of_each_sign(layer.values, score, fraction)
        if len(dropped) > layer.free:
            dropped = dropped[lowest(score[dropped], layer.free)]
        choices.append((torch.cat([pruned, dropped]), len(dropped)))
    return choices


def across_layers(
    layers: Sequence[LayerView], scores: Sequence[Tensor], surplus: Sequence[int], fraction: float
) -> list[Choice]:
    """The model loses floor(fraction * nnz) of its lowest scores, wherever they are, and what grows is shared anew.

    Layers grow in proportion to what survives in them: the budget moves to where connections are worth most. No layer
    loses its last connection.

    Source: Mostafa and Wang 2019 (DSR, arXiv:1902.05967).
    """
    home = scores[0].device
    kept_back = [score.index_fill(0, score.argmax(), torch.inf) for score in scores]
    pooled = torch.cat([score.to(home) for score in kept_back])
    extra = max(0, sum(surplus))
    grown = min(_share(fraction, len(pooled) - extra), sum(layer.free for layer in layers))
    gone = torch.zeros(len(pooled), dtype=torch.bool, device=home)
    gone[lowest(pooled, extra + grown)] = True
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


def lowest_of_each_sign(values: Tensor, score: Tensor, fraction: float) -> Tensor:
    """Positions of the lowest scores: the share `fraction` of the positive values, and of the negative."""
    zero, positive, negative = map(positions, (values == 0, values > 0, values < 0))
    own_share, drop_positive, drop_negative = (_share(fraction, len(sign)) for sign in (zero, positive, negative))
    drop_zero = min(len(zero), own_share + drop_positive + drop_negative)
    spared = drop_zero - own_share
    if spared:
        spared_positive = round(spared * drop_positive / (drop_positive + drop_negative))
        drop_positive -= spared_positive
        drop_negative -= spared - spared_positive
    counts = (zero, drop_zero), (positive, drop_positive), (negative, drop_negative)
    return torch.cat([sign[lowest(score[sign], count)] for sign, count in counts])


def _share(fraction: float, count: int) -> int:
    return int(fraction * count + 1e-9)  # 0.29 * 100 is 28.999999999999996
