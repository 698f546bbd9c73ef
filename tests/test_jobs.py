"""What newcomers come for, each job as they would write it: public names, plain loops, scikit-learn's data."""

import copy
import csv
import itertools
import time

import pytest
import torch
from sklearn import datasets
from sklearn.model_selection import KFold, train_test_split
from torch import nn, optim
from torch.nn import functional as F

from sparsify import GMP, SET, Evolution, GraNet, RigL, Static, plan, sparsify, summary
from sparsify.evolution import uniformly
from sparsify.interchange import to_scipy


@pytest.fixture(scope="module", autouse=True)
def _in_one_thread():
    """Layers this small only wait for one another in several, where other processes are at work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def digits():
    images, labels = datasets.load_digits(return_X_y=True)
    split = train_test_split(images / 16, labels, test_size=0.25, random_state=0, stratify=labels)
    images, validation_images, labels, validation_labels = map(torch.tensor, split)
    return images.float(), labels, validation_images.float(), validation_labels


def mlp():
    return nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 100), nn.ReLU(), nn.Linear(100, 10))


def adamw(model, lr=3e-3):
    return optim.AdamW(model.parameters(), lr=lr)


def train(model, optimizer, images, labels, steps):
    model.train()
    for _ in range(steps):
        batch = torch.randint(len(images), (64,))
        loss = F.cross_entropy(model(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model, images, labels):
    model.eval()
    return (model(images).argmax(1) == labels).float().mean().item()


# 1. My own network on my own table, beside dense (examples/tabular.py has the loop)


class Regressor(nn.Module):
    def __init__(self, inputs, width=256):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, 1)
        self.norm, self.dropout = nn.BatchNorm1d(width), nn.Dropout(0.2)

    def forward(self, x):
        return self.head(self.dropout(F.relu(self.second(self.norm(F.relu(self.first(x))))))).squeeze(1)


def test_a_network_of_my_own_learns_as_well_with_a_tenth_of_its_weights():
    numbers, targets = (torch.tensor(part).float() for part in datasets.load_diabetes(return_X_y=True))
    numbers, targets = numbers / numbers.std(0), (targets - targets.mean()) / targets.std()
    explained, parameters = {}, {}
    for density in 1.0, 0.1:
        torch.manual_seed(0)
        model = Regressor(numbers.shape[1])
        optimizer = adamw(model, 1e-3)
        if density < 1:
            model, optimizer = sparsify(model, optimizer, density, steps=200)
        for _ in range(200):
            batch = torch.randint(342, (64,))  # the last 100 patients are for testing
            optimizer.zero_grad()
            F.mse_loss(model(numbers[batch]), targets[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            explained[density] = 1 - F.mse_loss(model.eval()(numbers[342:]), targets[342:]).item()
        parameters[density] = sum(p.numel() for p in model.parameters())
    assert explained[0.1] > 0.35
    assert explained[0.1] > explained[1.0] - 0.1
    assert parameters[0.1] < 0.13 * parameters[1.0]  # biases and norms stay


# 2. Which algorithm, for 300 steps?


def test_the_best_of_five_algorithms_is_picked_on_a_validation_split(digits):
    images, labels, validation_images, validation_labels = digits
    train_images, picking_images, train_labels, picking_labels = (
        images[:1000],
        images[1000:],
        labels[:1000],
        labels[1000:],
    )
    found = {}
    for evolution in Static(), SET(), RigL(), GraNet(), GMP():
        torch.manual_seed(0)
        model = mlp()
        model, optimizer = sparsify(model, adamw(model), density=0.05, steps=300, evolution=evolution)
        train(model, optimizer, train_images, train_labels, 300)
        assert summary(model).totals[-1].density == pytest.approx(0.05, rel=1e-3)  # all are compared at one density
        evolved = [record.step for record in optimizer.history]
        assert not evolved if evolution == Static() else len(evolved) >= 20 and evolved[-1] <= 225
        found[type(evolution).__name__] = accuracy(model, picking_images, picking_labels), model
    best = max(found, key=lambda name: found[name][0])
    assert found[best][0] > found["Static"][0]  # evolution pays
    assert accuracy(found[best][1], validation_images, validation_labels) > 0.92


# 3. GPT-2 and BERT


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"vocab_size": 100, "n_positions": 32, "n_embd": 64, "n_layer": 2, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0))
    tokens = torch.arange(16 * 32).view(16, 32) % 7
    return model, {"input_ids": tokens, "labels": tokens}


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    shape = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = BertForSequenceClassification(BertConfig(**shape, intermediate_size=128, max_position_embeddings=32))
    tokens = torch.randint(100, (32, 16))
    return model, {"input_ids": tokens, "labels": (tokens[:, 0] > 50).long()}


@pytest.mark.parametrize("make", [gpt2, bert])
def test_a_transformer_trains_at_the_density_that_its_plan_tells(make):
    model, batch = make()
    optimizer = adamw(model)
    report = plan(model, 0.1, optimizer=optimizer)
    shared, whole = report.totals
    assert shared.density == pytest.approx(0.1, abs=1e-3)  # of the layers that share it
    assert whole.density > 1.5 * shared.density  # with embeddings and heads, which stay dense
    assert all(layer.reason for layer in report.dense)

    model, optimizer = sparsify(model, optimizer, density=0.1, steps=60)
    first = model(**batch).loss.item()
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    assert model(**batch).loss.item() < first / 2
    assert optimizer.history
    told, now = ({layer.name: layer.nnz for layer in each.sparse} for each in (report, summary(model)))
    assert told == now
    counted = sum(p.numel() for p in model.parameters() if p.dim() > 1 or p.numel() in now.values())
    assert counted == whole.nnz  # a tied head is counted once


# 4. Prune what is trained, then fine-tune with a new optimizer


@pytest.fixture(scope="module")
def trained(digits):
    torch.manual_seed(0)
    model = mlp()
    train(model, adamw(model), *digits[:2], 300)
    return model


def pruned_gradually(model, images, labels):
    model, optimizer = sparsify(model, adamw(model, 1e-3), density=0.05, steps=200, evolution=GMP())
    assert summary(model).totals[-1].density == 1  # begins with all that was learned
    train(model, optimizer, images, labels, 200)
    return model


def pruned_at_once(model, images, labels):
    return sparsify(model, density=0.05, start="magnitude")[0]


@pytest.mark.parametrize("prune", [pruned_gradually, pruned_at_once])
@pytest.mark.parametrize("evolution", [Static(), SET()], ids=repr)
def test_a_trained_network_is_pruned_and_fine_tuned_with_a_new_optimizer(trained, digits, prune, evolution):
    model = prune(copy.deepcopy(trained), *digits[:2])
    pruned = accuracy(model, *digits[2:])
    model, tuning = sparsify(
        model, optim.SGD(model.parameters(), lr=0.05, momentum=0.9), steps=150, evolution=evolution
    )
    train(model, tuning, *digits[:2], 150)
    assert bool(tuning.history) == (evolution != Static())
    assert summary(model).totals[-1].density == pytest.approx(0.05, rel=1e-3)
    assert accuracy(model, *digits[2:]) > max(pruned - 0.01, accuracy(trained, *digits[2:]) - 0.04)


def test_a_network_that_is_pruned_gradually_keeps_more_than_one_pruned_at_once(trained, digits):
    gradually, at_once = (
        accuracy(prune(copy.deepcopy(trained), *digits[:2]), *digits[2:])
        for prune in (pruned_gradually, pruned_at_once)
    )
    assert gradually > at_once + 0.1


# 5. Load for inference, whatever the density was


@pytest.mark.parametrize("evolution", [SET(), RigL(), GMP()], ids=repr)
def test_a_checkpoint_is_served_without_its_density(digits, tmp_path, evolution):
    model = nn.Sequential(nn.BatchNorm1d(64), *mlp(), nn.Dropout(0.5))
    model, optimizer = sparsify(model, adamw(model), density=0.08, steps=60, evolution=evolution, skip="5")
    train(model, optimizer, *digits[:2], 60)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    expected = model.eval()(digits[2])

    served = nn.Sequential(nn.BatchNorm1d(64), *mlp(), nn.Dropout(0.5))
    served, _ = sparsify(served, start=torch.load(tmp_path / "model.pt"))
    served.eval()
    assert torch.equal(served(digits[2]), expected)
    assert [layer.nnz for layer in summary(served).layers] == [layer.nnz for layer in summary(model).layers]


# 6. Log evolutions to CSV and TensorBoard


def test_evolutions_are_logged_to_a_csv_file(digits, tmp_path):
    model = mlp()
    with open(tmp_path / "evolutions.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["step", "density", "layer", "dropped", "grown", "connections"])
        writer.writeheader()

        def log(record):
            for layer, connections in record.connections.items():
                changed = {"dropped": record.dropped[layer], "grown": record.grown[layer]}
                row = {"step": record.step, "density": record.density, "layer": layer, "connections": connections}
                writer.writerow({**row, **changed})

        model, optimizer = sparsify(model, adamw(model), 0.1, steps=60, evolution=GraNet(), on_evolve=log)
        train(model, optimizer, *digits[:2], 60)
    with open(tmp_path / "evolutions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * len(optimizer.history) > 0
    assert float(rows[0]["density"]) > float(rows[-1]["density"]) == pytest.approx(0.1, rel=1e-3)
    for layer in summary(model).sparse:
        own = [row for row in rows if row["layer"] == layer.name]
        assert int(own[-1]["connections"]) == layer.nnz
        for before, after in itertools.pairwise(own):  # the books are right
            change = int(after["grown"]) - int(after["dropped"])
            assert int(after["connections"]) == int(before["connections"]) + change


class Scalars:
    """What TensorBoard's SummaryWriter does, in a dict."""

    def __init__(self):
        self.found = {}

    def add_scalar(self, tag, value, step):
        self.found.setdefault(tag, []).append((step, float(value)))


def log_to(writer, digits):
    def log(record):
        writer.add_scalar("evolution/drop_fraction", record.drop_fraction, record.step)
        writer.add_scalar("evolution/density", record.density, record.step)
        for layer, grown in record.grown.items():
            writer.add_scalar(f"grown/{layer}", grown, record.step)

    model = mlp()
    model, optimizer = sparsify(model, adamw(model), 0.1, steps=60, on_evolve=log)
    train(model, optimizer, *digits[:2], 60)
    return optimizer


def test_evolutions_are_logged_as_scalars(digits):
    writer = Scalars()
    optimizer = log_to(writer, digits)
    assert set(writer.found) == {"evolution/drop_fraction", "evolution/density", "grown/0", "grown/2", "grown/4"}
    fractions = writer.found["evolution/drop_fraction"]
    assert [step for step, _ in fractions] == [record.step for record in optimizer.history]
    shares = [share for _, share in fractions]
    assert shares == sorted(shares, reverse=True)  # less and less
    assert shares[0] > 0.25
    assert shares[-1] < 0.01


def test_evolutions_are_logged_to_tensorboard(digits, tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        log_to(writer, digits)
    assert any(path.stat().st_size > 1000 for path in tmp_path.iterdir())


# 7. Is it worth it?


def seconds_of_a_step(model, optimizer, x, repeats=5):
    def step():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        taken.append(time.perf_counter() - start)
    return min(taken)


def test_what_a_plan_predicts_stands_beside_what_is_measured():
    def make():
        return nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))

    x, dense, table = torch.randn(64, 512), make(), []
    whole = seconds_of_a_step(dense, adamw(dense), x)
    for density in 0.2, 0.1, 0.02:
        model = make()
        optimizer = adamw(model)
        report = plan(model, density, optimizer=optimizer, batch=64)
        model, optimizer = sparsify(model, optimizer, density, steps=1000)
        measured = whole / seconds_of_a_step(model, optimizer, x)
        size = report.totals[-1].training_bytes / report.totals[-1].dense_training_bytes
        table.append({"density": density, "predicted": report.speed_up, "measured": measured, "size": size})
        rows = report.rows()
        assert [row["layer"] for row in rows] == ["0", "2", "4"]
        assert all(row["speed_up"] > 0 and row["milliseconds"] > 0 for row in rows if row["sparse"])
        assert all(row["reason"] for row in rows if not row["sparse"])
    assert all(row["measured"] > 0 for row in table)
    predicted, sizes = ([row[key] for row in table] for key in ("predicted", "size"))
    assert predicted == sorted(predicted)  # the sparser the faster, and the smaller
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 0.1


# 8. A learning-rate finder, early stopping, cross-validation


def losses_at_rising_rates(model, optimizer, images, labels):
    found = {}
    for group in optimizer.param_groups:
        group["lr"] = 1e-5
    scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 1.25)
    for _ in range(60):
        train_loss = F.cross_entropy(model(images[:256]), labels[:256])
        found[scheduler.get_last_lr()[0]] = train_loss.item()
        optimizer.zero_grad()
        train_loss.backward()
        optimizer.step()
        scheduler.step()
    return found


def the_same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("way", ["deepcopy of the pair", "state dicts"])
def test_a_learning_rate_is_found_and_leaves_no_trace(digits, way):
    def prepare():
        torch.manual_seed(0)
        model = mlp()
        return sparsify(model, adamw(model), density=0.1, steps=100, evolution=RigL())

    model, optimizer = prepare()
    if way == "state dicts":
        before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        losses = losses_at_rising_rates(model, optimizer, *digits[:2])
        assert optimizer.history
        model.load_state_dict(before[0])
        optimizer.load_state_dict(before[1])
    else:
        losses = losses_at_rising_rates(*copy.deepcopy((model, optimizer)), *digits[:2])
    best = min(losses, key=losses.get)
    assert 1e-4 < best < 1
    assert not optimizer.history

    again, untouched = prepare()
    for pair in (model, optimizer), (again, untouched):
        torch.manual_seed(1)
        train(*pair, *digits[:2], 100)
    assert the_same(model.state_dict(), again.state_dict())


def test_early_stopping_brings_the_best_model_back(digits):
    model = mlp()
    model, optimizer = sparsify(model, adamw(model, 2e-2), density=0.05, steps=400)
    best, patience = -1.0, 0
    for _ in range(40):
        train(model, optimizer, *digits[:2], 10)
        found = accuracy(model, *digits[2:])
        patience += 1
        if found > best:
            best, patience = found, 0
            state = copy.deepcopy({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        if patience == 5:
            break
    assert patience > 0  # some evolutions came after the best
    evolved = len(optimizer.history)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    assert accuracy(model, *digits[2:]) == best > 0.9
    assert len(optimizer.history) < evolved
    train(model, optimizer, *digits[:2], 10)  # and it goes on from there

    served, _ = sparsify(mlp(), start=state["model"])
    assert accuracy(served, *digits[2:]) == best


def fresh_models():
    for fold in itertools.count():
        model = mlp()
        yield sparsify(model, adamw(model), density=0.1, steps=100, seed=fold)  # without it: one topology for all


def one_model_reset():
    model = mlp()
    model, optimizer = sparsify(model, adamw(model), density=0.1, steps=100)
    while True:
        yield model, optimizer
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        model, optimizer = sparsify(model, optimizer, steps=100)  # steps and history begin anew


@pytest.mark.parametrize("models", [fresh_models, one_model_reset])
def test_cross_validation_begins_each_fold_anew(digits, models):
    images, labels = digits[:2]
    first_connections, accuracies = [], []
    for (model, optimizer), (train_rows, test_rows) in zip(models(), KFold(3).split(images), strict=False):
        assert not optimizer.history
        first_connections.append(to_scipy(model[0]).nonzero()[1].tolist())
        assert accuracy(model, images[test_rows], labels[test_rows]) < 0.4  # nothing is known beforehand
        train(model, optimizer, images[train_rows], labels[train_rows], 100)
        assert [record.step for record in optimizer.history] == list(range(3, 76, 3))
        accuracies.append(accuracy(model, images[test_rows], labels[test_rows]))
    assert len(set(map(tuple, first_connections))) == len(accuracies) == 3
    assert min(accuracies) > 0.8
    assert max(accuracies) - min(accuracies) < 0.1


# 9. A growth rule and a drop rule of my own


def test_rules_of_my_own_keep_connections_off_the_pixels_that_say_nothing(digits):
    images, labels = digits[:2]
    tells = images.std(0) > 0.05  # of each pixel
    assert 5 < (~tells).sum() < 32

    def silent_pixels_first(layer):
        scores = layer.values.abs()
        if layer.name == "0":
            scores = torch.where(tells[layer.flat % layer.shape[1]], scores, 0.0)
        return scores

    def at_telling_pixels(layer, count):
        if layer.name != "0":
            return uniformly(layer, count)
        free = torch.ones(layer.shape, dtype=torch.bool)
        free[:, ~tells] = False
        free.view(-1)[layer.flat] = False
        places = free.view(-1).nonzero().squeeze(1)
        chosen = torch.randperm(len(places), generator=layer.generator)[:count]
        return places[chosen].sort().values

    mine = Evolution(drop=silent_pixels_first, grow=at_telling_pixels)
    model = mlp()
    model, optimizer = sparsify(model, adamw(model), density=0.1, steps=150, evolution=mine)
    connections = [layer.nnz for layer in summary(model).sparse]
    assert (~tells)[to_scipy(model[0]).nonzero()[1]].any()
    train(model, optimizer, images, labels, 150)
    assert tells[to_scipy(model[0]).nonzero()[1]].all()
    assert [layer.nnz for layer in summary(model).sparse] == connections
    assert accuracy(model, *digits[2:]) > 0.9


def test_a_rule_that_gives_what_cannot_be_is_named_and_changes_nothing(digits):
    def anywhere(layer, count):
        return torch.randint(layer.shape[0] * layer.shape[1], (count,), generator=layer.generator)

    model = mlp()
    model, optimizer = sparsify(model, adamw(model), density=0.1, steps=150, evolution=Evolution(grow=anywhere))
    before = model.state_dict()["0.col"].clone()
    with pytest.raises(ValueError, match=r"growth rule must give .* sorted.* anywhere in layer '0'"):
        train(model, optimizer, *digits[:2], 150)
    assert torch.equal(model.state_dict()["0.col"], before)


# 10. Mistakes, and the words that lead out of them


def prepare(density=0.1, *, optimizer=None, **options):
    model = mlp()
    return sparsify(model, optimizer or adamw(model), density, **options)


def with_sparsity():
    prepare(None, sparsity=0.9)


def without_a_density():
    model = mlp()
    sparsify(model, adamw(model))


def density_in_the_place_of_the_optimizer():
    sparsify(mlp(), 0.1)


def with_the_optimizer_of_another_model():
    prepare(optimizer=adamw(mlp()))


def with_a_sparse_model():
    model, _ = prepare()
    sparsify(model, adamw(model), density=0.1)


def with_a_whole_checkpoint():
    model, optimizer = prepare()
    sparsify(mlp(), start={"model": model.state_dict(), "optimizer": optimizer.state_dict()})


def with_a_dense_checkpoint():
    sparsify(mlp(), start=mlp().state_dict())


def with_a_layer_that_was_kept():
    model = nn.Linear(64, 10)
    sparsify(model, adamw(model), density=0.1)  # what it returns is thrown away
    model(torch.zeros(1, 64))


def with_an_optimizer_that_is_wrapped():
    model = mlp()
    optimizer = adamw(model)
    model, _ = sparsify(model, optimizer, density=0.1)
    sparsify(model, optimizer, evolution=RigL())  # not the one that sparsify returned


def evolving_by_hand_before_any_gradient():
    _, optimizer = prepare(evolution=RigL())
    optimizer.evolve()


@pytest.mark.parametrize(
    ("mistake", "words"),
    [
        (lambda: prepare(10), "got 10. For 10 % of the weights pass density=0.1"),
        (lambda: prepare("10%"), "must be a number in (0, 1]"),
        (with_sparsity, "density = 1 - sparsity: here density=0.1"),
        (without_a_density, "such as density=0.1"),
        (density_in_the_place_of_the_optimizer, "If that is the density, name it: sparsify(model, density=...)"),
        (lambda: prepare(evolution=GMP()), "Say how many optimizer steps the training has: sparsify(..., steps=...)"),
        (lambda: prepare(evolution=GraNet()), "GraNet(until=...)"),
        (lambda: GraNet(0.75), "takes its options by name, got 0.75. They are: interval"),
        (lambda: SET(steps=300), "got steps, an option of sparsify()"),
        (lambda: prepare(steps=300, evolution=GMP(until=600)), "Leave until out: it follows from steps"),
        (lambda: prepare(steps=300, evolution=SET(interval=500)), "Leave interval and until out: they follow"),
        (lambda: prepare(steps=1e4), "must be a whole number of optimizer steps, got 10000.0"),
        (lambda: prepare(evolution="rigl"), "from sparsify import RigL; evolution=RigL()"),
        (lambda: prepare(evolution=RigL), "Call it: evolution=RigL()"),
        (lambda: prepare(evolution=RigL(grow="uniform")), "from sparsify.evolution import uniformly; grow=uniformly"),
        (lambda: prepare(grown_values="zeros"), 'must be "zero", "fan_in_uniform" or a function'),
        (lambda: prepare(skip="head"), "got 'head', which names none of ['0', '2', '4']"),
        (lambda: prepare({"encoder.*": 0.1}), "got 'encoder.*', which names none of ['0', '2', '4']"),
        (with_the_optimizer_of_another_model, "Make it of model.parameters(), of the model that is passed here"),
        (with_a_sparse_model, "To train it with a new optimizer, or by another algorithm: sparsify(model, optimizer"),
        (with_a_whole_checkpoint, "Pass it alone: start=...['model']"),
        (with_a_dense_checkpoint, "got one without sparse layers"),
        (lambda: sparsify(mlp(), start="model.pt"), "Load the file first: start=torch.load(...)"),
        (with_a_layer_that_was_kept, "Write model, optimizer = sparsify(model, optimizer, ...)"),
        (with_an_optimizer_that_is_wrapped, "Use what it returned"),
        (evolving_by_hand_before_any_gradient, "must follow a backward pass"),
        (lambda: sparsify(nn.Conv2d(3, 3, 3), density=0.1), "must hold an nn.Linear that can be sparse"),
    ],
)
def test_a_mistake_is_answered_by_the_way_out(mistake, words):
    with pytest.raises((TypeError, ValueError, RuntimeError)) as raised:
        mistake()
    assert words in str(raised.value)


def test_parameters_listed_before_are_warned_of(digits):
    model = mlp()
    clipped = list(model.parameters())
    model, optimizer = sparsify(model, adamw(model), density=0.1, steps=60)
    with pytest.warns(UserWarning, match=r"Make such lists after sparsify\(\): list\(model.parameters\(\)\)"):
        train(model, optimizer, *digits[:2], 1)
    assert len(clipped) == 6


def test_the_best_model_of_a_pruning_that_is_not_over_is_warned_of(digits):
    model = mlp()
    model, optimizer = sparsify(model, adamw(model), density=0.1, steps=100, evolution=GMP())
    train(model, optimizer, *digits[:2], 20)
    with pytest.warns(UserWarning, match="To keep the best model, compare those after step 50"):
        model.state_dict()


def test_an_evaluation_right_after_an_evolution_is_warned_of(digits):
    model = mlp()
    model, optimizer = sparsify(model, adamw(model), density=0.1, evolution=SET(interval=10))  # no steps: no end
    train(model, optimizer, *digits[:2], 10)
    with pytest.warns(UserWarning, match=r"worse than before it.* sparsify\(\.\.\., steps=\.\.\.\)"):
        accuracy(model, *digits[2:])
