"""Small image data sets for the examples: MNIST and Fashion-MNIST (files or a download), CIFAR-10 (files), digits."""

import gzip
import hashlib
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

TIMEOUT = 10  # seconds without an answer
SOURCES = {
    "mnist": "https://ossci-datasets.s3.amazonaws.com/mnist/",
    "fashion": "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
}
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
CHECKSUMS = {  # SHA-256 of the unpacked files, in the order of FILES
    "mnist": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
CIFAR = [f"data_batch_{number}.bin" for number in range(1, 6)], ["test_batch.bin"]


class Dataset(NamedTuple):
    """Standardized images (n, pixels) float32 and labels (n,) int64, for training and for testing.

    Of colours all pixels of one come first, then those of the next.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    side: int


def load(name: str, folder: str | Path | None = None) -> Dataset:
    """Load a data set: from `folder` or $SPARSIFY_DATA, else the cache folder, else a download, else digits.

    Args:
        name: "mnist", "fashion", "cifar10" (from files only) or "digits" (scikit-learn's 1,797 images of 8 x 8).
        folder: holds the four IDX .gz files, of CIFAR-10 the binary batches, or a folder `name` that does.
    Raises:
        FileNotFoundError: `folder` (or $SPARSIFY_DATA) is given but lacks a file.
        ValueError: a file is not the one it should be, or CIFAR-10 is asked for without a folder.
    """
    if name == "digits":
        return _digits()
    given = folder or os.environ.get("SPARSIFY_DATA")
    if name == "cifar10" and not given:
        raise ValueError(f"cifar10 must be given as --data FOLDER with its binary batches: {CIFAR[0][0]}, ...")
    if given:
        source = Path(given)
        source = source / name if (source / name).is_dir() else source
        if name == "cifar10":
            return _cifar10(source)
        return _idx(name, {file: (source / f"{file}.gz").read_bytes() for file in FILES})
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sparsify" / name
    try:
        return _idx(name, {file: _cached(name, file, cache) for file in FILES})
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        print(
            f"{name} could not be downloaded ({error}): training on scikit-learn's digits instead, 1,797 images of "
            f"8 x 8. For the real data pass --data FOLDER (make mnist DATA=FOLDER) with {name}'s four IDX .gz files.",
            file=sys.stderr,
        )
        return _digits()


def _cached(name: str, file: str, cache: Path) -> bytes:
    path = cache / f"{file}.gz"
    if not path.exists():
        print(f"downloading {name}: {file} ...", file=sys.stderr)
        with urllib.request.urlopen(f"{SOURCES[name]}{file}.gz", timeout=TIMEOUT) as response:
            content = response.read()
        _unpack(name, file, content)  # the checksum, before anything is kept
        cache.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(content)
        partial.replace(path)
    return path.read_bytes()


def _unpack(name: str, file: str, packed: bytes) -> bytes:
    content = gzip.decompress(packed)
    if hashlib.sha256(content).hexdigest() != CHECKSUMS[name][FILES.index(file)]:
        raise ValueError(f"{file}.gz must be {name}'s, got another checksum. Delete it and try again.")
    return content


def _idx(name: str, packed: dict[str, bytes]) -> Dataset:
    tensors = []
    for file in FILES:
        content = bytearray(_unpack(name, file, packed[file]))
        dimensions = content[3]
        sizes = [int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dimensions)]
        tensors.append(torch.frombuffer(content, dtype=torch.uint8, offset=4 + 4 * dimensions).view(sizes))
    return _standardized(name, *tensors)


def _cifar10(folder: Path) -> Dataset:
    parts = []
    for files in CIFAR:
        content = bytearray().join((folder / file).read_bytes() for file in files)
        if not content or len(content) % 3073:
            raise ValueError(f"{files[0]} must be of CIFAR-10's binary version, records of 3,073 bytes.")
        records = torch.frombuffer(content, dtype=torch.uint8).view(-1, 3073)
        parts += [records[:, 1:], records[:, 0]]
    return _standardized("cifar10", *parts)._replace(side=32)


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    train_images, test_images, train_labels, test_labels = map(torch.as_tensor, parts)
    return _standardized("digits", train_images, train_labels, test_images, test_labels)


def _standardized(name: str, train_images: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> Dataset:
    train, test = train_images.flatten(1).float(), test.flatten(1).float()
    mean, deviation = train.mean(), train.std()
    side = round(train.shape[1] ** 0.5)
    images = (train - mean) / deviation, (test - mean) / deviation
    return Dataset(name, images[0], train_labels.long(), images[1], test_labels.long(), side)
