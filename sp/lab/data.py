"""Data sets (digits, MNIST, Fashion-MNIST, CIFAR-10), and the streams of tasks made from them.

The IDX files of MNIST and Fashion-MNIST and the binary files of CIFAR-10 come from the first of these that applies:

1. ``$SP_DATA/mnist/``, ``$SP_DATA/fashion_mnist/`` and ``$SP_DATA/cifar10/``, gzipped or not, if SP_DATA is set.
2. The cache: ``$SP_CACHE``, or else the system's usual place.
3. A download into the cache, from ``$SP_MIRROR/mnist/`` and so on, or from public mirrors if SP_MIRROR is unset.

Wherever a file comes from, its content is checked against the known checksum.
"""

import gzip
import hashlib
import math
import os
import string
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd
import pooch
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from sp.checks import check_choice, check_integer
from sp.files import DATASETS

Kind = Literal["split", "permuted", "rotated"]
Scenario = Literal["class", "domain", "task"]
Evaluation = Literal["test", "validation"]
Examples = Callable[[], tuple[Tensor, Tensor]]  # made when called, so that many tasks do not fill the memory
View = Callable[[Tensor], Tensor]  # how a task transforms images, (n, d) -> (n, d)

# MD5 checksums of the unpacked content, because every mirror packs its files differently.
SUMS = {
    "mnist": {
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    "cifar10": {
        "data_batch_1.bin": "5dd7e06a14cb22eb9f671a540d1b7c25",
        "data_batch_2.bin": "5ea93a67294ea407fff1d09f752e9692",
        "data_batch_3.bin": "942cd6a4bcdd0dd3c604fbe906cb4421",
        "data_batch_4.bin": "ae636b3ba5c66a11e91e8cb52e771fcb",
        "data_batch_5.bin": "53f37980c15c3d472c316c40844f3f0d",
        "test_batch.bin": "803d5f7f4d78ea53de84dbe85f74fb6d",
    },
}
CIFAR_ARCHIVE, CIFAR_SUM = "cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"
# How many of CIFAR-10's first images a network trained on ImageNet is applied to (`sp.lab.pretrained`).
FROZEN = {"cifar10_maps": (10_000, 2_000), "cifar10_features": (10_000, 2_000)}
MIRRORS = {
    "mnist": ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
    "fashion_mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    ),
    "cifar10": ("https://www.cs.toronto.edu/~kriz",),
}


class DataError(OSError):
    """A data file is missing, damaged or not what its name says; the message says which, and how to fix it."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, or what a network computes from them, and their classes.

    Attributes:
        name: one of `sp.files.DATASETS`.
        train_x: (N, d) float32, flattened images minus the mean of all training pixels, divided by their standard
            deviation. Features likewise; the input to the last block of a network is left as it is.
        train_y: (N,) int64 in [0, classes).
        test_x: (M, d) float32, standardised by the same two numbers.
        test_y: (M,) int64 in [0, classes).
        image_shape: sizes whose product is d: (height, width), or (3, height, width) for colour images.
        classes: number of classes.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    image_shape: tuple[int, ...]
    classes: int


@cache
def load(name: str) -> Dataset:
    """Load a data set by name. A second call returns the same object, so do not modify its tensors.

    Args:
        name: "digits" (1,400 training and 397 test images of 8x8, no download), "mnist" or "fashion_mnist" (60,000
            and 10,000 of 28x28), "cifar10" (50,000 and 10,000 of 3x32x32). "cifar10_features" and "cifar10_maps": the
            output of the frozen layers of EfficientNet-Lite0 for CIFAR-10's first 10,000 and 2,000 images, at the end
            (1,280 features) and before the last block (192x4x4); computed once, in two minutes, and kept in the cache.

    Raises:
        DataError: a file is missing, damaged, the wrong one, or cannot be downloaded.
        sp.lab.pretrained.MissingWeights: the extra that provides the weights is not installed.
    """
    check_choice("name", name, DATASETS)
    if name == "digits":
        return _digits()
    if name in FROZEN:
        return _frozen(name)
    images = _colour_images if name == "cifar10" else partial(_grey_images, name)
    return _standardised(name, *images("train"), *images("test"))


def _digits() -> Dataset:
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    # The seed is part of the data set: every result on digits depends on this one split.
    parts = train_test_split(images, labels, train_size=1400, test_size=397, stratify=labels, random_state=0)
    train_images, test_images, train_y, test_y = map(torch.from_numpy, parts)
    return _standardised("digits", train_images, train_y, test_images, test_y)


def _grey_images(name: str, part: str) -> tuple[Tensor, Tensor]:
    """Images (n, 28, 28) uint8 and labels (n,) int64 of "train" or "test"."""
    prefix = "t10k" if part == "test" else part
    images = _content(name, f"{prefix}-images-idx3-ubyte")[16:]  # without the header
    labels = _content(name, f"{prefix}-labels-idx1-ubyte")[8:]
    return images.reshape(-1, 28, 28), labels.long()


def _colour_images(part: str) -> tuple[Tensor, Tensor]:
    """CIFAR-10's images (n, 3, 32, 32) uint8 and labels (n,) int64 of "train" or "test"."""
    files = [file for file in SUMS["cifar10"] if file.startswith("test") == (part == "test")]
    # A record is the label, then the red, green and blue planes, one byte per value.
    records = torch.cat([_content("cifar10", file).reshape(-1, 3073) for file in files])
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].long()


def _frozen(name: str) -> Dataset:
    from sp.lab import pretrained  # needs the extra only when called, not when imported

    parts = [_colour_images(part) for part in ("train", "test")]
    (train, train_y), (test, test_y) = ((x[:n], y[:n]) for (x, y), n in zip(parts, FROZEN[name], strict=True))
    found = pretrained.frozen("cifar10", (train, test), cache_folder() / "pretrained")
    if name == "cifar10_maps":
        train_x, test_x = (x.flatten(1) for x in found[:2])
        return Dataset(name, train_x, train_y, test_x, test_y, pretrained.SHAPE, classes=10)
    train_x, test_x = found[2:]
    mean, deviation = float(train_x.double().mean()), float(train_x.double().std(correction=0))
    train_x, test_x = ((x - mean) / deviation for x in (train_x, test_x))
    return Dataset(name, train_x, train_y, test_x, test_y, (pretrained.FEATURES,), classes=10)


def _standardised(name: str, train_images: Tensor, train_y: Tensor, test_images: Tensor, test_y: Tensor) -> Dataset:
    # Whole numbers in double precision add up exactly, so the result is the same on any number of threads.
    counts = torch.bincount(train_images.flatten(), minlength=256).double()
    levels = torch.arange(256, dtype=torch.double, device=counts.device)
    mean = float(counts @ levels / counts.sum())
    deviation = math.sqrt(counts @ levels.square() / counts.sum() - mean**2)
    train_x, test_x = (x.flatten(1).float().sub_(mean).div_(deviation) for x in (train_images, test_images))
    return Dataset(name, train_x, train_y, test_x, test_y, tuple(train_images.shape[1:]), classes=10)


def _content(name: str, file: str) -> Tensor:
    """The bytes of a data file as uint8, after checking them."""
    path = _in_folder(name, file) if os.environ.get("SP_DATA") else _in_cache(name, file)
    try:
        content = _unpacked(path)
    except (OSError, EOFError, zlib.error) as error:
        raise _wrong(path, f"a readable file, gzipped or not, found: {error}") from error
    if hashlib.md5(content).hexdigest() != SUMS[name][file]:
        raise _wrong(path, f"the published content of {name}/{file} (MD5 {SUMS[name][file]}), found other content")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _wrong(path: Path, expected: str) -> DataError:
    return DataError(
        f"{path}: expected {expected}. Delete it and put an intact copy in its place, or unset SP_DATA to have the "
        "data downloaded. For your own data, use sp.lab.Stream.from_arrays(...)."
    )


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def _in_folder(name: str, file: str) -> Path:
    root = os.environ["SP_DATA"]
    plain = Path(root).expanduser() / name / file
    for path in (plain, plain.with_name(f"{file}.gz")):
        if path.is_file():
            return path
    raise DataError(
        f"{plain}: expected this file or {file}.gz beside it, because SP_DATA={root}, found neither. "
        f"Put it there, set SP_DATA to a folder that holds {name}/{file}.gz, or unset SP_DATA to have it downloaded."
    )


def _in_cache(name: str, file: str) -> Path:
    if name != "cifar10":
        return Path(_fetched(name, f"{file}.gz", file, SUMS[name][file], downloader=_download_unpacked))
    unpack = pooch.Untar(members=[f"cifar-10-batches-bin/{one}" for one in SUMS[name]])
    show = pooch.HTTPDownloader(progressbar=True)
    paths = _fetched(name, CIFAR_ARCHIVE, CIFAR_ARCHIVE, CIFAR_SUM, downloader=show, processor=unpack)
    return next(path for path in map(Path, paths) if path.name == file)


def cache_folder() -> Path:
    """Folder for downloads and for what is slow to compute from them: ``$SP_CACHE``, else the system's usual place."""
    return Path(os.environ.get("SP_CACHE") or pooch.os_cache("sp")).expanduser()


def _fetched(name: str, served: str, file: str, md5: str, **how: Callable) -> str | list[str]:
    """A file in the cache, checked against its checksum; downloaded from the mirrors if it is missing or wrong."""
    folder = cache_folder() / name
    mirror = os.environ.get("SP_MIRROR")
    failures = ""
    for base in (f"{mirror.rstrip('/')}/{name}",) if mirror else MIRRORS[name]:
        url = f"{base}/{served}"
        try:
            return pooch.retrieve(url, f"md5:{md5}", file, folder, **how)
        except (OSError, ValueError, EOFError, zlib.error) as error:
            failures += f"\n  {url}: {error}"
    raise DataError(
        f"{folder / file}: expected to download it, found no mirror that has it:{failures}\nCheck the network and run "
        "again, set SP_MIRROR to the base URL of another mirror (one that serves "
        f"{name}/{served}), or set SP_DATA to a folder that holds {', '.join(f'{name}/{one}' for one in SUMS[name])}."
    )


def _download_unpacked(url: str, file: str, caller: pooch.Pooch | None) -> None:
    # Unpack here already, so that pooch checks the sum of the content before it moves the file into place.
    pooch.HTTPDownloader(progressbar=True)(url, file, caller)
    Path(file).write_bytes(_unpacked(Path(file)))


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a stream.

    Attributes:
        name: what tells it from the other tasks, such as "classes 0-1" or "36 degrees".
        outputs: the output units that count, if the task is known at test time too (task-incremental): loss and
            accuracy compare ``logits[:, outputs]`` with y, which is a position in ``outputs``. None: all units count,
            and y is a unit.
        train: ``train()`` makes the training examples, as new tensors on each call: x (n, d) float32 and y (n,) int64.
        test: ``test()`` makes the test (or validation) examples, likewise.
    """

    name: str
    outputs: tuple[int, ...] | None
    train: Examples = field(repr=False)
    test: Examples = field(repr=False)


@dataclass(frozen=True, eq=False)
class Tasks:
    """Tasks in the order in which they are learnt.

    Attributes:
        tasks: the tasks.
        inputs: d, the number of pixels.
        outputs: the number of output units that all tasks need together.
        image_shape: the shape of the data set's images, although a permuted image is no longer a picture. For
            user-supplied arrays: the shape of one example.
        numbers: whether targets are numbers, float32 (n, outputs), rather than classes. The score is then the share of
            the targets' variance that is explained (R2), 0 if negative, and it replaces the accuracy everywhere.
        scored_from: if not None, the stream is one pass over one task in its own order, without boundaries: each batch
            is tested before it is learnt, and the accuracy is computed on the examples from this number on.
    """

    tasks: tuple[Task, ...]
    inputs: int
    outputs: int
    image_shape: tuple[int, ...]
    numbers: bool = False
    scored_from: int | None = None


def example_images(stream: Tasks, columns: int) -> pd.DataFrame:
    """Training images of a stream, ``columns`` per task, different labels first.

    Returns:
        One row per image: ``task`` ("Task A", ...), ``label``, and the pixels ``0``, ``1``, ...
    """
    tables = []
    for letter, task in zip(string.ascii_uppercase, stream.tasks, strict=False):
        x, y = task.train()
        by_label = [(y == label).nonzero().flatten()[: -(-columns // len(y.unique()))] for label in y.unique()]
        chosen = torch.stack(by_label).T.flatten()[:columns]
        pixels = pd.DataFrame(x[chosen].numpy(), columns=map(str, range(stream.inputs)))
        tables.append(pixels.assign(task=f"Task {letter}", label=y[chosen].numpy()))
    return pd.concat(tables, ignore_index=True)


def make_stream(
    dataset: Dataset,
    kind: Kind,
    tasks: int,
    scenario: Scenario,
    seed: int,
    samples_per_task: int | None = None,
    evaluation: Evaluation = "test",
) -> Tasks:
    """A stream of T tasks of k classes each. Equal arguments give bit-equal streams; the global generator is not used.

    Args:
        dataset: the source of the images.
        kind: how the tasks differ. "split": each has its own group of k = classes / T classes, in order (two tasks of
            ten classes: 0-4, 5-9). "permuted": each has all k = classes and its own order of pixels; the first leaves
            them in place. "rotated": each has all k = classes, and task t = 0, 1, ... rotates the images
            counter-clockwise by 180 t / T degrees.
        tasks: T, at least 1; for "split" it must divide the number of classes.
        scenario: what a label y says about an image of class c in [0, k) in task t. "class": task and class,
            y = k t + c of k T output units. "domain": the class, y = c of k units. "task": the class, with the task
            given, y = c, a position in the task's ``outputs`` k t, ..., k t + k - 1 of k T units.
        seed: seed of the generator that draws first the permutations, then the training images; in [0, 2**63).
        samples_per_task: number of training images to draw for each task, without replacement; None takes all.
        evaluation: "test": train on the training set, test on the test set. "validation": hold out the last tenth of
            the training set (for digits, the last fifth) and test on it, so that tuning never sees a test image.
    """
    check_choice("kind", kind, get_args(Kind))
    check_choice("scenario", scenario, get_args(Scenario))
    check_choice("evaluation", evaluation, get_args(Evaluation))
    check_integer("tasks", tasks, 1)
    check_integer("seed", seed, 0)
    if samples_per_task is not None:
        check_integer("samples_per_task", samples_per_task, 1)
    if kind == "split" and dataset.classes % tasks:
        raise ValueError(f"tasks must divide the {dataset.classes} classes of {dataset.name}, got {tasks}")
    group = dataset.classes // tasks if kind == "split" else dataset.classes
    if group == 1 and scenario != "class":
        raise ValueError(
            f"tasks must leave each task at least two classes to tell apart unless scenario is 'class', got {tasks} "
            f"with {scenario!r}"
        )
    generator = torch.Generator().manual_seed(int(seed))
    views = _views(dataset, kind, tasks, generator)
    train, test = _train_and_test(dataset, evaluation)

    def examples(part: tuple[Tensor, Tensor], number: int, samples: int | None = None) -> Examples:
        x, y = part
        start = group * number if kind == "split" else 0
        rows = ((y >= start) & (y < start + group)).nonzero().flatten()
        if len(rows) < (samples or 1):
            raise ValueError(
                f"samples_per_task must be at most {len(rows)}, the number of images in {dataset.name} for task "
                f"{number} ({views[number][0]}), got {samples}; ask for fewer, or make fewer tasks"
            )
        if samples is not None:
            rows = rows[torch.randperm(len(rows), generator=generator, device="cpu")[:samples]]
        labels = y[rows] - start + (group * number if scenario == "class" else 0)
        return partial(_show, x, rows, labels, views[number][1])

    return Tasks(
        tasks=tuple(
            Task(
                name=name,
                outputs=tuple(range(group * number, group * number + group)) if scenario == "task" else None,
                train=examples(train, number, samples_per_task),
                test=examples(test, number),
            )
            for number, (name, _) in enumerate(views)
        ),
        inputs=dataset.train_x.shape[1],
        outputs=group if scenario == "domain" else group * tasks,
        image_shape=dataset.image_shape,
    )


def _views(dataset: Dataset, kind: Kind, tasks: int, generator: torch.Generator) -> list[tuple[str, View]]:
    """The name of each task and how it transforms images."""
    if kind == "split":
        group = dataset.classes // tasks
        return [(f"classes {group * t}-{group * t + group - 1}", _same) for t in range(tasks)]
    if kind == "rotated":
        background = float(dataset.train_x.min())
        turn = partial(_rotate, image_shape=dataset.image_shape, background=background)
        angles = [180 * t / tasks for t in range(tasks)]
        return [(f"{angle:g} degrees", partial(turn, degrees=angle) if angle else _same) for angle in angles]
    orders = [torch.randperm(dataset.train_x.shape[1], generator=generator, device="cpu") for _ in range(tasks)]
    permuted = [(f"permutation {t}", partial(torch.index_select, dim=1, index=orders[t])) for t in range(tasks)]
    return [("identity", _same), *permuted[1:]]


def _show(x: Tensor, rows: Tensor, labels: Tensor, view: View) -> tuple[Tensor, Tensor]:
    return view(x.index_select(0, rows)), labels.clone()


def _same(x: Tensor) -> Tensor:
    return x


def _rotate(x: Tensor, image_shape: tuple[int, ...], background: float, degrees: float) -> Tensor:
    """Rotate images (n, d), of one plane or three, counter-clockwise; exposed corners are filled with background."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Where each pixel comes from, in a frame whose y axis points down and that is two wide and two high for any image.
    height, width = image_shape[-2:]
    aspect = height / width
    matrix = torch.tensor([[[cosine, -sine * aspect, 0], [sine / aspect, cosine, 0]]], dtype=x.dtype, device=x.device)
    grid = affine_grid(matrix, [1, 1, height, width], align_corners=False)
    # All images are channels of one, to share the grid; the background is subtracted because the outside is zero.
    turned = grid_sample((x - background).reshape(1, -1, height, width), grid, align_corners=False)
    return turned.reshape(x.shape).add_(background)


def _train_and_test(dataset: Dataset, evaluation: Evaluation) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    x, y = dataset.train_x, dataset.train_y
    if evaluation == "test":
        return (x, y), (dataset.test_x, dataset.test_y)
    # A tenth of digits would be 14 images per class, too few for tuning.
    kept = len(y) - len(y) // (5 if dataset.name == "digits" else 10)
    return (x[:kept], y[:kept]), (x[kept:], y[kept:])
