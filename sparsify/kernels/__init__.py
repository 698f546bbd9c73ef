"""The sparse products and their gradients: the one place that knows which kernels compute them."""

from sparsify.kernels.torch_sparse import SUPPORTED, linear

__all__ = ["SUPPORTED", "linear"]
