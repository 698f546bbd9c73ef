"""What an installation without torch-sparse must do: train, evolve, save, load and serve, with native kernels."""

import io
import sys
import time

started = time.perf_counter()
import torch  # noqa: E402
from torch import nn  # noqa: E402

imported = time.perf_counter()
import sparsify  # noqa: E402
from sparsify import SET, kernels, summary  # noqa: E402

ours = time.perf_counter()


def network():
    """A small dense model."""
    return nn.Sequential(nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 10))


model, optimizer = sparsify.sparsify(dense := network(), torch.optim.Adam(dense.parameters()), 0.05, steps=100)
for step in range(100):
    optimizer.zero_grad()
    model(torch.randn(64, 784)).square().mean().backward()
    optimizer.step()
    if not step:
        first = time.perf_counter()
file = io.BytesIO()
torch.save(model.state_dict(), file)
file.seek(0)
served, _ = sparsify.sparsify(network(), evolution=SET(interval=None), start=torch.load(file, weights_only=True))
x = torch.randn(5, 784)
with torch.inference_mode():
    assert torch.equal(served.eval()(x), model.eval()(x))
assert optimizer.history, "it has evolved"
assert "native" in kernels.available(), kernels.available()
assert not {"torch_sparse", "torch_scatter"} & set(sys.modules)
print(summary(model, optimizer))
print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, kernels {kernels.available()}, {sparsify.__file__}")
print(
    f"import torch {imported - started:.1f} s, sparsify {ours - imported:.2f} s, first sparse step {first - ours:.2f} s"
)
