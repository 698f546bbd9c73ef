"""How long a layer takes, sparse and dense: a small model fitted to measurements, for `plan`.

    milliseconds, sparse = call + feature * (in_features + out_features) + connection * nnz
    milliseconds, dense  = call + weight * in_features * out_features

forward and backward with all gradients, batch 128, float32, two cores of an AMD EPYC (Zen 4), torch 2.13.0. The
coefficients are what `python examples/benchmark.py --fit` printed there. Other machines and batches differ; the ratio
of the two differs much less than either.
"""

from sparsify._src.kernels import native
from sparsify._src.kernels.dispatch import available
from sparsify._src.topology import Shape

SPARSE = {
    "AVX-512": (0.0853, 1.56e-4, 1.2e-5),
    "AVX2": (0.0907, 1.75e-4, 1.97e-5),
    "baseline": (0.103, 2.45e-4, 3.94e-5),
    "aten": (0.101, 8.07e-4, 3.98e-5),
    "torch_sparse": (0.0, 1.34e-3, 3.68e-4),
}
"""Milliseconds a call, a feature and a connection, by the kernels that compute."""

DENSE = (0.00659, 6.97e-6)
"""Milliseconds a call and a weight of nn.Linear."""


def speed_up(shape: Shape, nnz: int) -> float:
    """How many times faster than nn.Linear a layer of `shape` with `nnz` connections is expected to be on this CPU."""
    best = available()[0]
    form = ("baseline", "AVX2", "AVX-512")[native.LEVEL] if best == "native" else best
    call, feature, connection = SPARSE[form]
    sparse = call + feature * (shape[0] + shape[1]) + connection * nnz
    return (DENSE[0] + DENSE[1] * shape[0] * shape[1]) / sparse
