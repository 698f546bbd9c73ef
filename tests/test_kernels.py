import torch

from sparsify import SparseLinear, kernels


def test_the_supported_dtypes_are_those_that_the_kernel_takes():
    for dtype in kernels.SUPPORTED:
        layer = SparseLinear(20, 12, 0.3).to(dtype)
        layer(torch.randn(3, 20).to(dtype)).sum().backward()
        assert layer.values.grad.dtype == dtype


def test_two_runs_are_equal_to_the_last_bit():
    layer, x = SparseLinear(200, 120, 0.3), torch.randn(64, 200)
    first, second = layer(x), layer(x)
    assert torch.equal(first, second)
    gradients = [torch.autograd.grad(out.square().sum(), layer.values)[0] for out in (first, second)]
    assert torch.equal(*gradients)
