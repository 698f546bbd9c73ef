"""Checks of arguments that several rooms share: each returns what was checked, or raises with the way out."""

from numbers import Real


def check_density(density: object, where: str = "", argument: str = "density") -> float:
    """Return `density` as a float, or raise if it is not a number in (0, 1]."""
    if isinstance(density, bool) or not isinstance(density, Real):
        raise TypeError(f"{argument} must be a number in (0, 1], got {density!r}{where}.")
    density = float(density)
    if not 0 < density <= 1:
        hint = f" For {density:g}% sparsity pass {argument}={(100 - density) / 100:g}." if 1 < density < 100 else ""
        raise ValueError(f"{argument} must be in (0, 1], got {density:g}{where}.{hint}")
    return density
