"""How long a layer takes, sparse and dense: a small model fitted to measurements, for `plan`.

    milliseconds, sparse = call + feature * (in_features + out_features) + connection * nnz
    milliseconds, dense  = call + weight * in_features * out_features

forward and backward with all gradients, batch 128, float32, two cores of an AMD EPYC (Zen 4), torch 2.13.0. The
coefficients are what `python examples/benchmark.py --fit` printed there. Other machines differ; the ratio of the two
differs much less than either, and yet: on an Intel Xeon speed-ups were 0.65 to 0.95 of what is said here.

At another batch the call costs the same and what is done for a feature grows with the batch. Each connection costs no
less than at batch 40 (its index and value are read whatever the batch, and vectors of samples are filled up), and each
dense weight costs as if there were 20 samples more (the matrix is read, and its gradient written, once). The same
command, run on one core of that Xeon (OMP_NUM_THREADS=1), gave both, from layers of 256, 1024 and 4096 at density 0.01,
0.1 and 0.3: from batch 8 to 512 a speed-up changes as is said here within 18 % in the median, and at most 2.2 times
otherwise (4096 at 0.01, batch 8, gains that much more); below batch 8 it is a guess. From batch 128 to 512
the README's figures of the EPYC change as is said here, within a quarter.
"""

import torch

from sparsify._src.kernels import native
from sparsify._src.kernels.dispatch import best
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

BATCH = 128
"""At which the coefficients were measured."""

LEAST, MORE = 40, 20
"""Samples: a connection costs no less than with so many, and a dense weight as with so many more."""


def is_known(device: torch.device) -> bool:
    """Whether this tells of layers there: on a CPU, or on the meta device, which will be on one."""
    return device.type in ("cpu", "meta")


def milliseconds(shape: Shape, nnz: int, batch: int = BATCH) -> float:
    """The time of a sparse layer, forward and backward."""
    name = best()
    form = ("baseline", "AVX2", "AVX-512")[native.LEVEL] if name == "native" else name
    call, feature, connection = SPARSE[form]
    return call + (feature * (shape[0] + shape[1]) * batch + connection * nnz * max(batch, LEAST)) / BATCH


def dense_milliseconds(shape: Shape, batch: int = BATCH) -> float:
    """The time of an nn.Linear, forward and backward."""
    call, weight = DENSE
    return call + weight * shape[0] * shape[1] * (batch + MORE) / (BATCH + MORE)


def speed_up(shape: Shape, nnz: int, batch: int = BATCH) -> float:
    """How many times faster than nn.Linear a layer of `shape` with `nnz` connections is expected to be on this CPU."""
    return dense_milliseconds(shape, batch) / milliseconds(shape, nnz, batch)
