"""Several models trained, and one model served, from many threads."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sparsify import GMP, SET, GraNet, RigL, SparseLinear, densify, sparsify
from sparsify._src import kernels
from tests.support.comparing import assert_same
from tests.support.models import mlp

WORKERS = 4


@pytest.fixture(autouse=True)
def _one_thread_each():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def together(work, count=WORKERS):
    """`work(number)` in so many threads that begin at the same moment; what each gives."""
    start = threading.Barrier(count)

    def begin(number):
        start.wait()
        return work(number)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(begin, range(count)))


ALGORITHMS = [
    lambda: SET(interval=2),
    lambda: RigL(interval=2),
    lambda: GraNet(until=30, interval=2),
    lambda: GMP(until=30, interval=2),
]


def trained(seed, evolution):
    generator = torch.Generator().manual_seed(seed)
    model = mlp(12, 32, 4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    model, optimizer = sparsify(model, optimizer, 0.3, evolution=evolution, seed=seed)
    for _ in range(40):
        optimizer.zero_grad()
        model(torch.randn(8, 12, generator=generator)).square().mean().backward()
        optimizer.step()
    return model.state_dict(), optimizer.state_dict()


@pytest.mark.parametrize("evolution", ALGORITHMS, ids=lambda make: type(make()).__name__)
def test_models_trained_in_threads_are_those_trained_one_after_the_other(evolution):
    alone = [trained(seed, evolution()) for seed in range(WORKERS)]
    for _ in range(6):
        assert_same(together(lambda number: trained(number, evolution())), alone)


def test_models_copied_averaged_and_loaded_in_threads():
    def work(seed):
        torch.manual_seed(seed)
        model = mlp(12, 32, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        model, optimizer = sparsify(model, optimizer, 0.3, evolution=SET(interval=1), seed=seed)
        for _ in range(30):
            average = copy.deepcopy(model)
            with torch.no_grad():
                for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                    mean.mul_(0.5).add_(value, alpha=0.4)
            optimizer.zero_grad()
            model(torch.ones(2, 12)).sum().backward()
            optimizer.step()
            assert torch.equal(average[0].flat(), model[0].flat())
            average.load_state_dict(model.state_dict())
        return True

    assert together(work) == [True] * WORKERS


@pytest.mark.parametrize("name", kernels.available())
@pytest.mark.parametrize("evolution", [SET(interval=None), GMP(until=60, interval=1)])
def test_who_is_served_while_the_model_evolves_gets_the_model_before_or_after(evolution, name):
    model = mlp(300, 200)[0]
    sgd = torch.optim.SGD([*model.parameters()], lr=1e-30)
    model, optimizer = sparsify(model, sgd, 0.1, evolution=evolution, grown_values="fan_in_uniform")
    x = torch.randn(16, 300)
    right, done = set(), threading.Event()

    def answer():
        with torch.no_grad():
            return model(x)

    def evolve():
        right.add(answer().numpy().tobytes())
        for _ in range(60):
            if evolution.interval is None:
                optimizer.evolve()
            else:
                model.values.grad = torch.ones_like(model.values)
                optimizer.step()
            right.add(answer().numpy().tobytes())
        done.set()
        return set()

    def serve():
        seen = set()
        while not done.is_set():
            seen.add(answer().numpy().tobytes())
        return seen

    def work(number):
        with kernels.use(name):
            return evolve() if number == WORKERS - 1 else serve()

    *served, _ = together(work)
    assert set.union(*served) <= right
    assert len(right) > 30


def test_a_choice_of_kernels_is_that_of_its_thread():
    def work(number):
        name = kernels.available()[number % len(kernels.available())]
        layer, x = SparseLinear(20, 10, 0.3), torch.randn(2, 20)
        for _ in range(200):
            with kernels.use(name):
                assert kernels.dispatch.kernel_for(layer.values) is kernels.dispatch.KERNELS[name]
                layer(x)
        return True

    assert together(work) == [True] * WORKERS
    assert kernels.dispatch.kernel_for(torch.zeros(1)) is kernels.dispatch.KERNELS[kernels.available()[0]]


def test_a_served_model_equals_its_dense_copy_from_every_thread():
    model, _ = sparsify(mlp(64, 128, 32), None, 0.2)
    dense = densify(model)
    inputs = [torch.randn(9, 64) for _ in range(WORKERS)]

    def work(number):
        with torch.inference_mode():
            return [model(inputs[number]) for _ in range(100)]

    for x, outputs in zip(inputs, together(work), strict=True):
        for output in outputs:
            assert torch.equal(output, outputs[0])
        torch.testing.assert_close(outputs[0], dense(x))
