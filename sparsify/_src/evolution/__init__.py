"""Evolution: algorithms, the rules and schedules they are made of, and the pure core."""

from sparsify._src.evolution.algorithms import GMP, SET, GraNet, RigL, Static
from sparsify._src.evolution.drop import magnitude, saliency, sparing_units
from sparsify._src.evolution.evolution import Evolution
from sparsify._src.evolution.growth import by_gradient, by_gradient_among, feeding_units, mixed, uniformly
from sparsify._src.evolution.layer_view import LayerView, needing_gradient
from sparsify._src.evolution.schedules import coin, constant, cosine, cubic, ramp
from sparsify._src.evolution.scopes import across_layers, per_layer, per_sign

__all__ = [
    "GMP",
    "SET",
    "Evolution",
    "GraNet",
    "LayerView",
    "RigL",
    "Static",
    "across_layers",
    "by_gradient",
    "by_gradient_among",
    "coin",
    "constant",
    "cosine",
    "cubic",
    "feeding_units",
    "magnitude",
    "mixed",
    "needing_gradient",
    "per_layer",
    "per_sign",
    "ramp",
    "saliency",
    "sparing_units",
    "uniformly",
]
