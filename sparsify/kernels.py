"""Which kernels compute: "native", "aten" or "torch_sparse"."""

from sparsify._src.kernels import available, use

__all__ = ["available", "use"]
