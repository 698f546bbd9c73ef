import gzip
import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path

import charlm
import datasets
import mnist
import networks
import pictures
import pytest
import resnet
import sweep
import torch

from sparsify import SparseLinear

EXAMPLES = Path(datasets.__file__).parent


def run(script, *arguments, cwd):
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=300)


def test_mnist_compares_prints_and_saves(tmp_path):
    done = run("mnist.py", "--dataset", "digits", "--epochs", "3", "--compare", "--hidden", "40", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("dense", "static", "SET", "test accuracy", "parameters", "s an epoch"):
        assert word in done.stdout
    for name in ("digits-accuracy.png", "digits-inputs.png"):
        assert (tmp_path / "runs" / name).read_bytes().startswith(b"\x89PNG")


def test_digits_alone_are_trained_beside_dense_with_settings_of_their_own(tmp_path):
    done = run("mnist.py", "--dataset", "digits", "--epochs", "2", "--quiet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    dense, sparse = ([cell.strip() for cell in line.split("│")] for line in done.stdout.splitlines() if "%" in line)
    assert (dense[1], dense[3]) == ("dense", f"{65_000 + 1_001_000 + 10_010:,}")
    assert (sparse[1], sparse[3]) == ("SET", f"{round(0.05 * 1_064_000) + 10_000 + 2_010:,}"), "the last layer is dense"
    assert (tmp_path / "runs" / "digits-inputs.png").read_bytes().startswith(b"\x89PNG")


def test_evolution_leaves_the_pixels_of_digits_that_are_always_empty():
    options = mnist.parser().parse_args([])
    assert (options.density, options.hidden, options.epochs, options.dense_last) == (0.1, [300, 100], 10, False)
    vars(options).update(mnist.DIGITS, hidden=[100, 20], density=0.3, epochs=20, quiet=True)
    data = mnist.with_empty_pixels_at_zero(datasets.load("digits"))
    assert data.train_images.min() == 0
    empty = data.train_images.std(0) == 0
    assert 2 < empty.sum() < 20
    result = mnist.train("SET", data, options)
    before, after = (counts[empty].sum() / counts.sum() for counts in (result.inputs_before, result.inputs_after))
    assert after < 0.8 * before
    assert result.accuracies[-1] > 95


def test_a_table_is_learned_dense_and_sparse(tmp_path):
    done = run("tabular.py", "--steps", "150", "--density", "0.05", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    _, *lines = done.stdout.splitlines()
    rows = {name: [float(cell.strip("%").replace(",", "")) for cell in cells] for name, *cells in map(str.split, lines)}
    dense, sparse = rows["dense"], rows["sparse"]
    assert (dense[0], sparse[0]) == (1, 0.05)
    assert min(dense[1], sparse[1]) > 90
    assert sparse[2] == round(0.05 * dense[2])
    assert all(few < many / 3 for few, many in zip(sparse[3:], dense[3:], strict=True))


def test_comparing_algorithms_is_resumable(tmp_path):
    algorithms = "dense static SET RigL GMP GraNet"
    arguments = f"--dataset digits --epochs 2 --seeds 2 --densities .1 --hidden 20 --jobs 1 --algorithms {algorithms}"
    arguments = [*arguments.split(), "--interval", "5"]
    first = run("compare_algorithms.py", *arguments, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    record = (tmp_path / "runs" / "compare.jsonl").read_text()
    assert len(record.splitlines()) == 12
    assert (tmp_path / "runs" / "digits-algorithms.png").read_bytes().startswith(b"\x89PNG")
    second = run("compare_algorithms.py", *arguments, cwd=tmp_path)
    assert (tmp_path / "runs" / "compare.jsonl").read_text() == record
    assert second.stdout == first.stdout


SWEEPS = {
    "compare_algorithms.py": "--dataset digits --epochs 30 --seeds 9 --densities .1 --jobs 2 --algorithms SET",
    "schedules.py": "--algorithms SET --seeds 2 --jobs 2",
}


HEARING_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell that starts the suite in the background has switched it off
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.parametrize("script", SWEEPS)
def test_ctrl_c_ends_a_sweep_at_once_and_the_same_command_goes_on(script, tmp_path):
    command = [sys.executable, "-c", HEARING_CTRL_C, str(EXAMPLES / script), *SWEEPS[script].split()]
    stream = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    kept = tmp_path / "runs" / f"{script.partition('_')[0].removesuffix('.py')}.jsonl"
    finished = 0
    for _ in range(2):
        with subprocess.Popen(command, start_new_session=True, **stream) as process:
            begun = time.monotonic()
            while not kept.exists() or len(kept.read_text().splitlines()) <= finished:
                assert time.monotonic() - begun < 120, "no run has finished"
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            said = process.communicate(timeout=30)[1]
        assert process.returncode == 130, said
        assert "Traceback" not in said
        finished = len(list(map(json.loads, kept.read_text().splitlines())))
        assert (
            f"stopped: {finished} finished runs are in {kept.relative_to(tmp_path)}. The same command goes on" in said
        )
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)  # none of its processes is left
    assert finished >= 2


def test_what_was_kept_is_found_again_but_for_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "new" / "runs.jsonl"
    kept = sweep.Kept(path, "key")
    assert kept.results == {}
    for number in range(3):
        kept.add({"key": f"run {number}", "accuracy": 90.0 + number})
    with path.open("a") as file:
        file.write('{"key": "run 3", "accu')
    again = sweep.Kept(path, lambda result: result["key"])
    assert again.results == kept.results
    again.add({"key": "run 3", "accuracy": 1.0})
    assert list(sweep.Kept(path, "key").results) == [f"run {number}" for number in range(4)]


def failing(number):
    if number == 2:
        raise ValueError("run 2 is broken")
    return {"key": number}


def test_an_error_in_a_run_ends_the_sweep_and_keeps_what_was_finished(tmp_path):
    kept = sweep.Kept(tmp_path / "runs.jsonl", "key")
    with pytest.raises(ValueError, match="run 2 is broken"):
        sweep.run(failing, [(number,) for number in range(5)], kept, 1)
    assert {0, 1} <= set(kept.results) <= {0, 1, 3, 4}
    sweep.run(failing, [(3,), (4,)], kept, 2)
    assert set(sweep.Kept(tmp_path / "runs.jsonl", "key").results) == {0, 1, 3, 4}


def test_the_documentation_s_pictures_are_saved_small(tmp_path, monkeypatch, capsys):
    trained = pictures.tiny(steps=200)
    monkeypatch.setattr(pictures, "tiny", lambda: trained)
    monkeypatch.setattr(sys, "argv", ["pictures.py", "--only", "graph.png", "graph.gif", "--out", str(tmp_path)])
    pictures.main()
    assert capsys.readouterr().out.count("KiB") == 2
    assert (tmp_path / "graph.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "graph.gif").read_bytes().startswith(b"GIF89a")
    assert (tmp_path / "graph.png").stat().st_size < 150_000
    assert len(trained.history) == len(trained.film.frames) - 1 == 2


def test_pictures_of_mnist_are_not_made_of_digits(monkeypatch):
    monkeypatch.setattr(datasets, "load", lambda *_: datasets._digits())
    with pytest.raises(SystemExit, match="--data must be a folder with MNIST's four IDX"):
        pictures.lenet(None)


def test_a_resnet_learns_digits_with_a_tenth_of_its_connections():
    options = resnet.parser().parse_args("--width 8 --stride 1 --epochs 5 --quiet --evolution rigl".split())
    assert options.evolution == "RigL"
    data = datasets.load("digits")
    dense, sparse = (resnet.train(variant, data, options) for variant in ("dense", "RigL"))
    assert min(dense.accuracies[-1], sparse.accuracies[-1]) > 85
    assert sparse.parameters < 0.12 * dense.parameters
    assert sparse.bytes < dense.bytes / 3
    assert not dense.before
    assert list(sparse.before) == list(sparse.after) == [f"{stage}.conv{n}" for stage in (3, 4, 5) for n in (1, 2)]
    for name, before in sparse.before.items():
        assert before.sum() == pytest.approx(sparse.after[name].sum())
        assert not torch.equal(before, sparse.after[name])


def test_the_resnet_compares_prints_and_saves(tmp_path):
    arguments = "--dataset digits --width 4 --blocks 2 --steps 8 --compare --evolution set --threads 1"
    done = run("resnet.py", *arguments.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("dense", "SET", "test accuracy", "KiB of weights + optimizer", "s an epoch", "8.conv2"):
        assert words in done.stdout
    assert (tmp_path / "runs" / "digits-resnet.png").read_bytes().startswith(b"\x89PNG")


def test_cifar10_is_read_from_its_binary_batches(monkeypatch, tmp_path):
    monkeypatch.delenv("SPARSIFY_DATA", raising=False)
    with pytest.raises(ValueError, match="cifar10 must be given as --data FOLDER"):
        datasets.load("cifar10", None)
    records = torch.randint(256, (2, 3073), dtype=torch.uint8)
    records[:, 0] = torch.tensor([3, 9])
    for file in [f"data_batch_{number}.bin" for number in range(1, 6)] + ["test_batch.bin"]:
        (tmp_path / file).write_bytes(records.numpy().tobytes())
    data = datasets.load("cifar10", tmp_path)
    assert (data.train_images.shape, data.test_images.shape, data.side) == ((10, 3072), (2, 3072), 32)
    assert data.test_labels.tolist() == [3, 9]
    images, tested = resnet.images_of(data)
    assert images.shape == (10, 3, 32, 32)
    pixels = records[:, 1:].view(2, 3, 32, 32).float()
    torch.testing.assert_close(tested, (pixels - pixels.mean()) / records[:, 1:].float().repeat(5, 1).std())
    (tmp_path / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"test_batch\.bin must be of CIFAR-10's binary version"):
        datasets.load("cifar10", tmp_path)


def test_shares_of_networks_are_counted_without_computing_them():
    options = networks.parser().parse_args([])
    resnet = networks.examine("resnet18", options)
    assert resnet.whole.parameters == 11_689_512
    assert resnet.whole.multiply_adds == 1_814_073_344
    assert networks.added(resnet.sparse, *resnet.rest.values()) == resnet.whole
    shared = networks.added(resnet.kept, resnet.rest["its density is 1"]).parameters
    assert shared == round(0.1 * (resnet.sparse.parameters + resnet.rest["its density is 1"].parameters))
    options.distribution = "uniform"
    mobile = networks.examine("mobilenetv2_100", options)
    assert mobile.kept.multiply_adds == pytest.approx(0.1 * mobile.sparse.multiply_adds, rel=1e-3)
    depthwise = [32, 96, *[144] * 2, *[192] * 3, *[384] * 4, *[576] * 3, *[960] * 3]
    assert mobile.rest["it is depthwise"].parameters == 9 * sum(depthwise)


def test_networks_are_shown_side_by_side(monkeypatch, capsys):
    """In this process: timm needs what tests.support.torchvision_on_cpu declares."""
    monkeypatch.setattr(sys, "argv", "networks.py --networks resnet18 mobilenetv2_100 --size 64".split())
    networks.main()
    shown = capsys.readouterr().out
    for words in ("resnet18", "becomes sparse", "it is depthwise", "its density is 1", "norms, biases", "all of it"):
        assert words in shown


def test_a_network_that_timm_does_not_have_is_an_error_that_names_it(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["networks.py", "--networks", "resnet18", "nonesuch"])
    with pytest.raises(SystemExit, match=r"--networks must name models of timm's, got nonesuch$"):
        networks.main()


def test_benchmark_runs(tmp_path):
    done = run(
        "benchmark.py",
        *"--seconds 0.001 --sizes 64 --batches 8 --densities .1 --evolved 64".split(),
        # growth has one size, a large one
        *"--only layer inference steps evolution memory plan threads telemetry".split(),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "evolve" in done.stdout
    assert "busy processes" in done.stdout
    assert "its records" in done.stdout
    for words in (" 64 x   64 batch   8 inference", " 256 x   64 batch   8 training", "plan is off by"):
        assert words in done.stdout or "something else used the processor" in done.stdout
    assert (tmp_path / "runs" / "plan.json").exists()
    assert (tmp_path / "runs" / "benchmark.png").stat().st_size > 10_000


def test_ddp_trains_equal_topologies_in_two_processes_and_goes_on_in_one(tmp_path):
    options = "--dataset digits --interval 5 --checkpoint run.pt --epochs".split()
    epochs = []
    for ranks, until in ("2", "2"), ("1", "3"):
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks]
        command = [*torchrun, str(EXAMPLES / "ddp.py"), *options, until]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=180)
        assert done.returncode == 0, done.stderr
        _, gradients, _, *lines = done.stdout.splitlines()
        sparse, dense = (int(number.replace(",", "")) for number in re.findall(r"([\d,]+) bytes", gradients))
        assert sparse * 9 < dense
        epochs += [line.split() for line in lines]
    assert [epoch[0] for epoch in epochs] == ["1", "2", "3"]
    (*_, first, its_twin), (*_, second, the_other_twin), (*_, third) = epochs
    assert (first, second) == (its_twin, the_other_twin)
    assert len({first, second, third}) == 3


TINY = "--width 32 --layers 1 --heads 2 --context 32 --batch-size 16 --megabytes .4 --validations 2".split()


def test_charlm_learns_more_than_frequencies_and_stays_sparse():
    options = charlm.parser().parse_args([*TINY, "--steps", "100", "--lr", ".01", "--density", ".2", "--quiet"])
    text = charlm.read_text(options.megabytes)
    result = charlm.train("RigL", options.width, text, options)
    assert result.steps == [50, 100]
    assert result.bits[-1] < charlm.bits_of_frequencies(text) - 0.3
    block = result.model.blocks[0]
    layers = [block.qkv, block.projection, block.mlp[0], block.mlp[2]]
    assert all(isinstance(layer, SparseLinear) for layer in layers)
    assert sum(layer.nnz for layer in layers) == result.connections == round(0.2 * 12 * 32 * 32)
    for prompt in ("", "def "):
        assert len(charlm.sample(result.model, text, prompt, length=50, temperature=0.7, seed=0)) == 50


def test_charlm_compares_prints_and_saves(tmp_path):
    done = run("charlm.py", *TINY, "--steps", "4", "--length", "40", "--compare", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("tied to another", "sparse (SET), width 32", "dense, width 32", "dense, width 16", "a step"):
        assert words in done.stdout
    assert (tmp_path / "runs" / "charlm.png").read_bytes().startswith(b"\x89PNG")


def test_characters_that_charlm_does_not_know_are_one():
    assert charlm.encode("bé\U0001f40da", charlm.UNKNOWN + "ab").tolist() == [2, 0, 0, 1]


def test_charlm_reads_the_same_modules_each_time_and_holds_whole_ones_out():
    text, again = charlm.read_text(0.4), charlm.read_text(0.4)
    assert text.characters == again.characters
    assert torch.equal(text.train, again.train)
    assert len(text.train) + len(text.validation) <= 400_000
    first = (Path(sysconfig.get_paths()["stdlib"]) / "__future__.py").read_text()
    assert torch.equal(text.validation[: len(first)], charlm.encode(first, text.characters))
    assert first not in "".join(text.characters[token] for token in text.train)


@pytest.mark.parametrize("option", ["--width 30", "--steps 0", "--temperature 0"])
def test_charlm_refuses_what_cannot_be(option):
    name, value = option.split()
    with pytest.raises(ValueError, match=f"^{name} must be .*, got {value}"):
        charlm.check(charlm.parser().parse_args([name, value]))


def test_a_folder_without_the_files_is_an_error_that_names_them(tmp_path):
    done = run("mnist.py", "--data", str(tmp_path), cwd=tmp_path)
    assert done.returncode == 1
    assert "train-images-idx3-ubyte.gz" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_network_digits_are_used_and_said_loudly(monkeypatch, tmp_path, capsys):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.delenv("SPARSIFY_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    data = datasets.load("mnist")
    assert data.name == "digits"
    assert (data.train_images.shape, data.test_images.shape, data.side) == ((1437, 64), (360, 64), 8)
    assert abs(data.train_images.mean()) < 1e-5
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith(
        "mnist could not be downloaded (<urlopen error no network>): training on scikit-learn's digits"
    )
    assert "pass --data FOLDER (make mnist DATA=FOLDER) with mnist's four IDX .gz files" in line


def test_a_download_with_another_checksum_is_refused_and_not_kept(monkeypatch, tmp_path):
    class Response:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def read(self):
            return gzip.compress(b"not mnist")

    monkeypatch.delenv("SPARSIFY_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Response())
    with pytest.raises(ValueError, match="must be mnist's, got another checksum"):
        datasets.load("mnist")
    assert list(tmp_path.rglob("*.gz")) == []
