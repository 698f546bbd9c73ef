"""Globs name layers by their plain names and by those that wrappers make; where they name none the error helps."""

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from sparsify import SET, SparseLinear, densify, plan, sparsify, summary, trim
from sparsify._src.conversion.globs import named, names
from tests.support.models import mlp


@pytest.mark.parametrize("glob", ["fc1", "module.fc1", "_orig_mod.fc1", "module._orig_mod.fc1", "fc?", "module.*", "*"])
@pytest.mark.parametrize("name", ["module._orig_mod.fc1", "module.fc1", "_orig_mod.fc1", "_orig_mod.module.fc1"])
def test_with_and_without_the_parts_of_wrappers(glob, name):
    if glob != "module.*" or "module" in name.split("."):
        assert names(glob, name)


@pytest.mark.parametrize(
    ("glob", "name"),
    [
        ("encoder.fc1", "module.encoder._orig_mod.fc1"),
        ("encoder", "_orig_mod.encoder.0"),
        ("encoder._orig_mod.fc1", "encoder.fc1"),
        ("encoder.[01].fc", "encoder.1._orig_mod.fc"),
        ("features.0", "features.module.0"),
    ],
)
def test_at_any_depth(glob, name):
    assert names(glob, name)


@pytest.mark.parametrize(
    ("glob", "name"), [("fc", "module.fc1"), ("module", "fc1"), ("", "module.fc1"), ("fc1", "a.module.fc1")]
)
def test_no_more_than_that(glob, name):
    assert not names(glob, name)


def test_a_module_of_the_user_s_may_be_called_so():
    assert named("fc", ["fc", "module.fc"]) == {"fc"}
    assert named("module", ["fc", "module.fc"]) == {"module.fc"}
    assert named("block?.fc", ["block0.fc", "block1._orig_mod.fc"]) == {"block0.fc", "block1._orig_mod.fc"}


def compiled(model):
    return torch.compile(model, backend="eager")


WRAPPED = {
    "compiled": compiled,
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "both": lambda model: nn.DataParallel(compiled(model)),
    "the other way round": lambda model: compiled(nn.DataParallel(model)),
}


@pytest.fixture(params=WRAPPED)
def wrap(request):
    yield WRAPPED[request.param]
    torch._dynamo.reset()


def sparse(model):
    return {row.name.rpartition(".")[2]: row.nnz for row in summary(model).sparse}


def test_wrapped_models_are_planned_made_sparse_trained_trimmed_and_densified(wrap):
    model, x = wrap(mlp(12, 16, 8, 4)), torch.randn(5, 12)
    model(x)
    expected = {row.name.rpartition(".")[2]: row.nnz for row in plan(model, {"0": 0.3, "2": 0.2}).sparse}
    assert expected == {"0": 58, "2": 26}
    assert [row.reason for row in plan(model, 0.3, skip="4").layers][-1] == "skip names it"
    model, sgd = sparsify(
        model, torch.optim.SGD(model.parameters(), lr=0.1), {"0": 0.3, "2": 0.2}, evolution=SET(interval=1)
    )
    assert sparse(model) == expected
    before = model(x)
    for _ in range(2):
        model(x).square().mean().backward()
        sgd.step()
    assert len(sgd.history) == 2
    assert sgd.history[0].grown
    assert not torch.equal(model(x), before)
    dense = densify(model)
    torch.testing.assert_close(dense(x), model(x))
    assert not any(isinstance(module, SparseLinear) for module in dense.modules())
    with torch.no_grad():
        next(module for module in dense.modules() if isinstance(module, nn.Linear)).bias += 1
    assert not torch.allclose(dense(x), model(x)), "the copy computes with its own layers"
    trim(model, 0.5, sgd)
    assert sparse(model)["0"] in range(29, 32)
    model(x)


def test_a_compiled_block_in_a_model_that_is_not():
    model = nn.Sequential(compiled(mlp(12, 12)), mlp(12, 12))
    assert [row.name for row in plan(model, {"?.0": 0.3}).sparse] == ["0._orig_mod.0", "1.0"]
    torch._dynamo.reset()


LONG = nn.ModuleDict({f"block{number}": nn.ModuleDict({"query": nn.Linear(2, 2)}) for number in range(110)})


@pytest.mark.parametrize(
    ("model", "glob", "says"),
    [
        (
            LONG,
            "blok7",
            r"names none of \['block0.query', .* 'block9.query', ... and 100 more\]. Did you mean 'block7'\?",
        ),
        (LONG, "block7.qury", r"Did you mean 'block7.query'\?"),
        (LONG, "querry", r"Did you mean 'block0.query'\?"),
        (nn.DataParallel(LONG), "blok7", r"Did you mean 'block7'\?"),
        (mlp(2, 2, 2), "head", r"which names none of \['0', '2'\]\.$"),
        (nn.ReLU(), "head", r"which names none of this model, which has none that could be sparse\.$"),
    ],
)
@pytest.mark.parametrize("argument", ["skip", "density"])
def test_what_names_nothing_is_told_what_there_is(model, glob, says, argument):
    options = {"density": {glob: 0.5}} if argument == "density" else {"density": 0.5, "skip": [glob]}
    with pytest.raises(ValueError, match=rf"^{argument} must name layers, got .*{says}") as error:
        plan(model, **options)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("skip", [None, 3, nn.Linear(2, 2), nn.Sequential(nn.ReLU()), [nn.Linear(2, 2)], [None], b"4"])
def test_skip_must_hold_names(skip):
    with pytest.raises(
        TypeError, match=r"^skip must hold module-name globs, got .*\. Names are those of model.named_mod"
    ):
        plan(mlp(2, 2), 0.5, skip=skip)


def test_density_must_hold_names():
    with pytest.raises(TypeError, match=r"^density must hold module-name globs, got 0"):
        plan(mlp(2, 2), {0: 0.5})
