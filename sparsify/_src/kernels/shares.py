"""Tells which of several gradients another one is made of."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

CLOSE = 0.05
"""How far a gradient may be from a sum of others and still be made of them, though something was added to it."""

FAR = 0.9
"""The same for another sum than the usual: what was made by hand may have been clipped or noised as well."""

CHUNK = 1 << 16
"""Elements that are looked at together."""


def are_near(one: Tensor, other: Tensor) -> bool:
    """Whether two gradients have the same direction, but for the rounding of the second's dtype."""
    return _Products([one], other).distance(torch.ones(1, dtype=torch.float64)) <= _rounding(other)


def shares(parts: Sequence[Tensor], usual: Tensor, gradient: Tensor) -> list[float] | None:
    """How much of each of `parts` is in `gradient`, the largest share being 1; 0 where it has no part in it.

    Args:
        parts: gradients, (nnz,).
        usual: a sum of some of them, which `gradient` is taken for where no other sum is much nearer; 0 for none.
        gradient: (nnz,).
    Returns:
        one number for each part; None where `usual` is as good an answer.
    """
    products, rounding, is_sum = _Products(parts, gradient), _rounding(gradient), bool(usual.any())
    exact = products.solve(rounding)
    if products.distance(exact) <= rounding and (_is_told(exact, gradient) or not is_sum):
        return _snapped(exact, rounding)
    away = _Products([usual], gradient).distance(torch.ones(1, dtype=torch.float64))
    if away < CLOSE:
        return None
    found = products.solve(CLOSE)
    left = products.distance(found)
    if left < CLOSE and (_is_told(found, gradient) or not is_sum):
        return _snapped(found, CLOSE)
    if left**2 >= (FAR * away) ** 2 * _left_of_noise(len(parts), len(gradient)):
        return None
    large = products.solve(max(CLOSE, left / 3))  # what is smaller may be there by chance
    return _snapped(large if large.any() else found, CLOSE)


class _Products:
    """The inner products of gradients with each other and with a target, in float64."""

    def __init__(self, parts: Sequence[Tensor], target: Tensor) -> None:
        total = torch.zeros(len(parts) + 1, len(parts) + 1, dtype=torch.float64, device=target.device)
        for chunk in zip(*(torch.split(vector, CHUNK) for vector in (*parts, target)), strict=True):
            rows = torch.stack([piece.double() for piece in chunk])
            total += rows @ rows.t()
        total = total.cpu()
        self.among, self.along, self.square = total[:-1, :-1], total[:-1, -1], total[-1, -1]

    def distance(self, weights: Tensor) -> float:
        """The sine of the angle between the weighted sum and the target: a factor, as of clipping, is none."""
        along, square = weights @ self.along, weights @ self.among @ weights
        cosine = along / (square * self.square).sqrt()
        return float((1 - cosine.square()).clamp(min=0).sqrt()) if cosine > 0 else 1.0

    def solve(self, least: float) -> Tensor:
        """The weights of the sum that is nearest to the target, of parts that are no smaller in it than `least`."""
        sizes = self.among.diagonal().sqrt()
        chosen = torch.nonzero(sizes > 0).flatten()
        while len(chosen) and bool(torch.isfinite(self.among).all() & torch.isfinite(self.along).all()):
            scale = sizes[chosen]
            among, along = self.among[chosen][:, chosen] / scale / scale[:, None], self.along[chosen] / scale
            found = torch.linalg.lstsq(among, along[:, None], rcond=1e-10, driver="gelsd").solution[:, 0]
            large = found.abs() >= least * self.square.sqrt()
            if large.all():
                return torch.zeros_like(sizes).index_put((chosen,), found / scale)
            chosen = chosen[large]
        return torch.zeros_like(sizes)


def _is_told(weights: Tensor, gradient: Tensor) -> bool:
    """Whether there are fewer weights than numbers: as many would make anything."""
    return int(weights.count_nonzero()) < len(gradient)


def _left_of_noise(count: int, length: int) -> float:
    """How much of the square of mere noise (length,) a sum of `count` parts leaves at least, but for a few percent."""
    mean = max(0.0, 1 - count / length)
    return max(0.0, mean - 2 * math.sqrt(mean * (1 - mean) / (length / 2 + 1)))


def _rounding(gradient: Tensor) -> float:
    return max(1e-3, 4 * torch.finfo(gradient.dtype).eps)


def _snapped(weights: Tensor, near: float) -> list[float]:
    largest = weights.abs().max()
    weights = weights / largest
    weights[(weights - 1).abs() < near] = 1
    found: list[float] = weights.tolist()
    return found
