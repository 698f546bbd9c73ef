"""How a global density is shared among layers: functions (shapes, density) -> density of each layer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod

from sparsify._src.checks import check_density, check_number
from sparsify._src.written import as_typed

Sizes = tuple[int, ...]
"""Of a weight: (out_features, in_features), or of a convolution (out_channels, in_channels / groups, *kernel_size)."""

Distribution = Callable[[Mapping[str, Sizes], float], dict[str, float]]


def uniform(shapes: Mapping[str, Sizes], density: float) -> dict[str, float]:
    """Give every layer the same density.

    Args:
        shapes: layer name -> (out_features, in_features), or of a convolution as in `erdos_renyi`.
        density: share of all weights kept, in (0, 1].
    Returns:
        layer name -> density in (0, 1].
    Raises:
        ValueError: density is outside (0, 1].
    Example:
        >>> uniform({"fc1": (300, 784), "fc2": (100, 300)}, 0.1)
        {'fc1': 0.1, 'fc2': 0.1}
    """
    check_density(density)
    return dict.fromkeys(shapes, density)


def erdos_renyi(shapes: Mapping[str, Sizes], density: float) -> dict[str, float]:
    """Share a global density among layers in proportion to (out + in) / (out * in).

    Layers whose share would pass 1 stay dense; the rest are solved again, so the global budget holds. For convolutions
    it is the Erdős-Rényi kernel: the sizes of the window are added in the numerator, and multiply the denominator.
    Those with few input channels, as the first layer of a network, come out dense by it.

    Args:
        shapes: layer name -> (out_features, in_features), or (out_channels, in_channels / groups, *kernel_size).
        density: share of all weights kept, in (0, 1].
    Returns:
        layer name -> density in (0, 1].
    Raises:
        ValueError: density is outside (0, 1].
    Example:
        >>> lenet = {"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}
        >>> {name: round(density, 4) for name, density in erdos_renyi(lenet, 0.1).items()}
        {'fc1': 0.0796, 'fc2': 0.2302, 'fc3': 1.0}

    Source: Mocanu et al. 2018; Evci et al. 2020 (arXiv:1911.11134).
    """
    return in_proportion({name: sum(shape) / prod(shape) for name, shape in shapes.items()}, shapes, density)


def in_proportion(ratios: Mapping[str, float], shapes: Mapping[str, Sizes], density: float) -> dict[str, float]:
    """Share a global density among layers in proportion to `ratios`.

    Layers whose share would pass 1 stay dense; the rest are solved again, so the global budget holds.

    Args:
        ratios: layer name -> a positive number.
        shapes: layer name -> (out_features, in_features), or of a convolution as in `erdos_renyi`.
        density: share of all weights kept, in (0, 1].
    Returns:
        layer name -> density in (0, 1].
    Raises:
        ValueError: density is outside (0, 1].
    """
    check_density(density)
    places = {name: prod(shape) for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        rest = [name for name in shapes if name not in dense]
        budget = density * sum(places.values()) - sum(places[name] for name in dense)
        scale = budget / sum(ratios[name] * places[name] for name in rest) if rest else 0.0
        full = {name for name in rest if scale * ratios[name] >= 1}
        if not full:
            return {name: 1.0 if name in dense else scale * ratios[name] for name in shapes}
        dense |= full


@dataclass(frozen=True, repr=False)
class epsilon:  # written like the functions beside it
    """The paper's ε: a layer gets about `value` connections for each of its units, whatever its size.

    Args:
        value: ε > 0; density of a layer is ε * (out + in) / (out * in), at most 1.
    Returns:
        a callable (out_features, in_features) -> density in (0, 1], for `sparsify(..., density=epsilon(20))`.
    Raises:
        ValueError: value is not positive.
    Example:
        >>> round(epsilon(20)((1000, 784)), 4)
        0.0455

    Source: Mocanu et al. 2018, equation 1.
    """

    value: float
    __repr__ = as_typed

    def __post_init__(self) -> None:
        check_number("epsilon", self.value)
        if not self.value > 0:
            raise ValueError(f"epsilon must be positive, got {self.value}. The paper uses 20.")

    def __call__(self, shape: Sizes) -> float:
        """The density of a layer of this shape."""
        return min(1.0, self.value * sum(shape) / prod(shape))
