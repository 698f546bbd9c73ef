"""Figures of other machines, for one that was not measured. `python examples/benchmark.py --fit` prints such a table.

Each line is a size of `figures.SIZES`: first forward under no_grad, then forward and backward; on it for each batch the
milliseconds of a dense layer and of sparse ones of each density. float32, two cores, torch 2.13.0.
"""

import textwrap
from collections.abc import Mapping
from functools import cache

import numpy as np

from sparsify._src.conversion.convolution_costs import DENSE, SPARSE, Costs
from sparsify._src.conversion.figures import GRID, Figures, Grid

XEON_AVX512 = """
.0125 .0341 .0331 .0356 .0183 .0539 .0519 .0469 .0221 .0608 .0592 .0519 .0169 .0362 .0356 .0386 .0242 .039 .0378 .0405
.014 .0328 .034 .0397 .0164 .0349 .0353 .0393 .0286 .0376 .0384 .0449 .0333 .0399 .0421 .0531 .0686 .0463 .054 .0912
.019 .0364 .0478 .0658 .0978 .041 .0461 .0586 .116 .0404 .0503 .0761 .144 .0483 .0733 .202 .483 .104 .197 .732
.106 .0491 .0853 .308 .262 .0462 .0767 .263 .399 .0539 .11 .432 1.05 .104 .331 1.44 3.71 .361 1.26 4.87
.385 .082 .281 1.51 1.11 .0721 .222 1.16 1.74 .0928 .382 1.67 5.32 .311 2.33 7.38 15.6 1.45 5.11 22.5
2.4 .141 1.14 5.83 7.48 .14 1.08 5.8 7.62 .285 1.59 7.85 18.8 1.16 6.85 26.9 62.3 4.63 20.2 93.1
.137 .246 .245 .244 .162 .237 .236 .317 .245 .356 .337 .343 .113 .177 .184 .192 .148 .207 .209 .217
.105 .157 .164 .198 .121 .159 .167 .195 .146 .173 .183 .207 .183 .198 .226 .27 .365 .3 .356 .506
.159 .174 .247 .401 .278 .178 .226 .401 .358 .208 .27 .485 .578 .297 .394 .818 1.73 .593 .955 2.33
.538 .258 .556 1.83 .806 .25 .547 1.69 1.3 .316 .679 2.13 3.3 .57 1.21 4.36 11.4 2.03 3.99 16
2.38 .551 1.55 19.4 3.07 .452 1.53 19.2 10.1 .607 2.39 27.8 12.1 1.5 4.23 21.1 42 4.82 15.6 82.5
22.5 .986 12 95.5 39.7 .983 16.3 110 36.2 1.3 13.2 105 64.6 3.78 17.9 115 185 14.8 68.1 482
"""
"""An Intel Xeon (Ice Lake, 2.8 GHz) with AVX-512."""

XEON_AVX2 = """
.0111 .0308 .0307 .0312 .0121 .0313 .031 .0314 .0128 .0321 .0316 .0327 .0161 .0345 .0343 .0416 .0228 .0417 .0384 .0407
.0135 .0315 .0328 .0384 .0166 .0331 .0338 .0435 .0212 .0351 .0355 .0382 .0384 .0385 .042 .0535 .106 .0541 .0653 .114
.0162 .035 .0458 .0651 .0389 .0369 .0405 .059 .0745 .0395 .0491 .0816 .241 .0536 .0833 .233 .793 .114 .232 .775
.0918 .0473 .0858 .298 .271 .043 .0748 .251 .528 .058 .143 .575 1.6 .116 .45 2.03 5.81 .42 1.57 7.76
.592 .0786 .284 1.43 1.18 .0644 .244 1.14 3.4 .316 .735 3.29 9.75 .623 2.55 14.7 22.9 1.12 6.57 33.4
2.83 .143 1.32 6.68 7.56 .232 1.15 6.63 9.67 .36 2.1 9.9 26.6 1.17 7.65 35.8 94 3.74 27.4 129
.0888 .155 .152 .156 .0946 .155 .154 .154 .0977 .161 .155 .156 .107 .172 .163 .166 .134 .202 .19 .218
.0996 .157 .165 .201 .113 .165 .162 .179 .126 .172 .176 .19 .185 .201 .242 .295 .464 .31 .501 .778
.148 .174 .246 .386 .207 .18 .222 .382 .335 .209 .257 .47 .881 .309 .572 1.21 2.7 .683 1.57 4.17
.615 .257 .581 1.83 .901 .246 .541 1.67 1.58 .328 .691 2.33 4.84 .823 1.92 8.29 18 2.07 7.45 30.3
2.26 .579 1.74 17 3.65 .594 1.6 19 9.83 1.09 3.33 27.5 24.3 1.82 7.93 68.7 73.5 5.51 26.6 273
28.2 1.38 13.2 117 30.3 1.04 11.4 94.7 45.4 1.53 14.9 107 94.3 5.2 47.5 394 317 21.2 193 1500
"""
"""The same Xeon held to AVX2: MKL_ENABLE_INSTRUCTIONS=AVX2, ATEN_CPU_CAPABILITY=avx2 and
level 1 of the kernels."""

EPYC_AVX512 = """
.000694 .0118 .0116 .0127 .0009 .0195 .019 .013 .000821 .015 .0155 .0136 .00205 .0195 .0187 .0204 .00529 .0237 .0235
.0279
.00305 .018 .019 .0233 .00382 .0193 .0198 .0239 .00911 .0208 .0213 .0273 .0219 .0256 .027 .044 .0784 .039 .0491 .115
.0182 .0192 .0274 .0595 .0707 .0226 .0302 .054 .119 .0235 .0318 .0614 .258 .0362 .0711 .269 1.03 .112 .262 1.29
.205 .0242 .0737 .345 .452 .0267 .0699 .323 .788 .0349 .0906 .432 2.32 .0969 .454 2.21 8.53 .331 2.03 8.07
.672 .0368 .301 .617 2 .0451 .246 .483 1.77 .0614 .29 .487 12.8 .255 3.17 9.04 39.2 1.4 7.44 28.2
1.77 .104 .604 1.93 4.17 .113 .427 1.66 8.64 .227 .807 2.38 34 1.04 8.23 23.8 141 4.13 25.5 78.7
.0076 .0854 .0858 .0873 .00794 .086 .0863 .0878 .0091 .0878 .0882 .0897 .0137 .0954 .0965 .101 .0322 .126 .13 .15
.0228 .0862 .0918 .116 .0282 .0884 .0939 .119 .0467 .0959 .101 .126 .121 .127 .145 .224 .417 .253 .324 .638
.152 .0918 .142 .363 .201 .0983 .148 .369 .368 .121 .171 .392 1.03 .223 .382 1.09 3.7 .635 1.27 4.1
1.04 .127 .481 2.05 1.39 .145 .498 2.07 2.57 .204 .558 2.13 7.32 .531 1.66 6.7 26.3 1.87 6.4 26.5
4.15 .248 1.66 7.95 5.54 .283 1.7 7.99 10.3 .402 1.82 8.11 29.2 1.23 5.76 25.9 105 4.65 22.8 103
16.6 .724 6.39 31.6 22.1 .794 6.46 31.6 41.1 1.03 6.7 31.9 117 3.38 21.5 102 420 13.3 85.7 408
"""
"""An AMD EPYC (Zen 4). Training is a model that was fitted to layers measured at batch 128 there; how
it changes with the batch, and inference, are as on the Xeon."""

_DENSE_CONVOLUTIONS = """
0 6.96e-9 7.35e-9 5.95e-8 1.67e-7 1.31e-6
0 2.56e-8 2.63e-7 0 9.26e-7 6.44e-6
"""
CONVOLUTIONS = {
    "XEON_AVX512": _DENSE_CONVOLUTIONS
    + """.1 1.78e-8 3.74e-7 3.8e-6
.4 5.66e-8 1.25e-6 1.77e-5
""",
    # Not measured: sparse ones with half the lanes are taken to need twice the time, and an EPYC for a Xeon.
    "XEON_AVX2": _DENSE_CONVOLUTIONS
    + """.1 3.56e-8 3.74e-7 3.8e-6
.4 1.13e-7 1.25e-6 1.77e-5
""",
    "EPYC_AVX512": _DENSE_CONVOLUTIONS
    + """.1 1.78e-8 3.74e-7 3.8e-6
.4 5.66e-8 1.25e-6 1.77e-5
""",
}
"""What work of convolutions costs, in milliseconds apiece, as `benchmark.py --fit` finds it: first dense ones
(`convolution_costs.DENSE`), forward under no_grad and then forward and backward, below it sparse ones (`SPARSE`).

The first number of sparse ones is what a layer takes that is so small that nothing else counts.
"""

LANES = {"AVX-512": 16, "AVX2": 8, "baseline": 4}
"""float32 numbers in a vector of our kernels'; where others compute, convolutions have a dense weight."""

SLOWER = {"aten": 4.0, "torch_sparse": 15.0}
"""How many times slower than our own kernels the others were on the EPYC, 1024 and 4096 wide."""


def nearest(described: Mapping[str, str], form: str) -> Figures:
    """The figures of the machine most like this one.

    Args:
        described: this processor (`processor.described`).
        form: its kernels (`speed.form`).
    """
    name, table, words = "XEON_AVX512", XEON_AVX512, "an Intel Xeon with AVX-512"
    if form in ("AVX2", "baseline"):
        name, table, words = "XEON_AVX2", XEON_AVX2, "an Intel Xeon with AVX2"
    elif described.get("vendor_id") == "AuthenticAMD":
        name, table, words = "EPYC_AVX512", EPYC_AVX512, "an AMD EPYC with AVX-512"
    grid = parsed(table)
    if form in SLOWER:
        grid = np.concatenate([grid[..., :1], grid[..., 1:] * SLOWER[form]], axis=-1)
    costs = parsed_costs(CONVOLUTIONS[name], LANES.get(form, 0), words)
    source = f"built-in figures of {words}; plan(..., measure=True) measures this machine"
    return Figures(grid, source, costs=costs)


@cache
def parsed(table: str) -> Grid:
    """A table as a grid; not to be changed."""
    return np.array(table.split(), dtype=np.float64).reshape(GRID)


def parsed_costs(table: str, lanes: int, source: str) -> Costs:
    """A table of `CONVOLUTIONS` as costs."""
    lines = [tuple(map(float, line.split())) for line in table.strip().splitlines()]
    dense, trained, sparse, sparse_trained = lines
    if {len(dense), len(trained)} != {len(DENSE)} or {len(sparse), len(sparse_trained)} != {len(SPARSE)}:
        raise ValueError(f"costs must be of {len(DENSE)} and {len(SPARSE)} kinds of work, got {table}")
    return Costs(lanes, (dense, trained), (sparse, sparse_trained), source)


def written_costs(costs: Costs) -> str:
    """Costs as a table, to three digits."""
    return "\n".join(" ".join(f"{ms:.3g}" for ms in line) for line in (*costs.dense, *costs.sparse))


def written(grid: Grid) -> str:
    """A grid as a table, to three digits."""
    rows = (" ".join(map(_number, size.ravel())) for use in grid for size in use)
    return "\n".join(textwrap.fill(row, 120) for row in rows)


def _number(ms: float) -> str:
    return f"{ms:.0f}" if ms >= 999.5 else f"{ms:.3g}".removeprefix("0")
