"""To and from other forms: dense models, PyTorch's CSR tensors, SciPy's sparse arrays."""

from sparsify._src.interchange import densify, from_csr, from_scipy, fuse, to_csr, to_scipy

__all__ = ["densify", "from_csr", "from_scipy", "fuse", "to_csr", "to_scipy"]
