"""Drop rules: which connections an evolution drops."""

from collections.abc import Callable

import torch
from torch import Tensor

from sparsify.topology import lowest, positions

DropRule = Callable[[Tensor, float, int], Tensor]
"""(values (nnz,), drop fraction, most) -> positions of the at most `most` connections to drop."""


def weakest_per_sign(values: Tensor, drop_fraction: float, most: int) -> Tensor:
    """Drop the share `drop_fraction` of the positive values nearest to zero, and of the negative ones: SET's rule.

    Counts are floor(drop_fraction * n) for each sign, and for the exact zeros; together they are the budget. Zeros
    go first: where there are more of them than their own share, each takes the place of a nonzero value, from both
    signs in proportion. Among equal magnitudes the first positions go first.

    Args:
        values: of a layer's connections, (nnz,).
        drop_fraction: in [0, 1].
        most: how many may be dropped at most; where the rule says more, the weakest of these go, whatever their sign.
    Returns:
        positions of the dropped, int64, in no particular order.
    Source: Mocanu et al. 2018, algorithm 1.
    """
    magnitude = values.abs()
    zero, positive, negative = (positions(sign) for sign in (values == 0, values > 0, values < 0))
    own_share, drop_positive, drop_negative = (_share(drop_fraction, len(sign)) for sign in (zero, positive, negative))
    drop_zero = min(len(zero), own_share + drop_positive + drop_negative)
    spared = drop_zero - own_share
    if spared:
        spared_positive = round(spared * drop_positive / (drop_positive + drop_negative))
        drop_positive -= spared_positive
        drop_negative -= spared - spared_positive
    dropped = torch.cat(
        [
            zero[:drop_zero],
            positive[lowest(magnitude[positive], drop_positive)],
            negative[lowest(magnitude[negative], drop_negative)],
        ]
    )
    return dropped if len(dropped) <= most else dropped[lowest(magnitude[dropped], most)]


def _share(fraction: float, count: int) -> int:
    return int(fraction * count + 1e-9)  # 0.29 * 100 is 28.999999999999996
