"""Data sets (digits, MNIST, Fashion-MNIST), and the streams of tasks that are made from them.

Where the IDX files of MNIST and Fashion-MNIST come from, the first that applies:

1. ``$SP_DATA/mnist/`` and ``$SP_DATA/fashion_mnist/``, gzipped or not, where SP_DATA is set. Their form is checked, not
   their content, so that a subset or a look-alike can stand in (its results are stored apart, see `look_alike`).
2. The cache, ``$SP_CACHE`` or else the system's usual place. Its content is checked against known sums.
3. A download into the cache, from ``$SP_MIRROR/mnist/`` and so on, or from public mirrors where SP_MIRROR is unset.
"""

import gzip
import hashlib
import math
import os
import string
import struct
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

Kind = Literal["split", "permuted", "rotated"]
Scenario = Literal["class", "domain", "task"]
Evaluation = Literal["test", "validation"]
Examples = Callable[[], tuple[Tensor, Tensor]]  # made when called, so that many tasks do not fill the memory
View = Callable[[Tensor], Tensor]  # what a task does to images, (n, d) -> (n, d)

# MD5 sums of the unpacked content, because every mirror packs differently.
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
}
DATASETS = ("digits", *SUMS)
MIRRORS = {
    "mnist": ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist"),
    "fashion_mnist": (
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    ),
}
MEND = "Delete it and put an intact copy in its place, or unset SP_DATA to have the data downloaded."


class DataError(RuntimeError):
    """A data file is missing, damaged or not what its name says; the message tells which, and what mends it."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and their classes.

    Attributes:
        name: "digits", "mnist" or "fashion_mnist".
        train_x: (N, d) float32, flattened images less the mean of all training pixels, in units of their standard
            deviation.
        train_y: (N,) int64 in [0, classes).
        test_x: (M, d) float32, standardised by the same two numbers.
        test_y: (M,) int64 in [0, classes).
        image_shape: (height, width), whose product is d.
        classes: number of classes.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    image_shape: tuple[int, int]
    classes: int


@cache
def load(name: str) -> Dataset:
    """A data set by name. A second call returns the same object: leave its tensors as they are.

    Args:
        name: "digits" (1,400 training and 397 test images of 8x8, no download), "mnist" or "fashion_mnist" (60,000
            and 10,000 of 28x28).

    Raises:
        ValueError: an unknown name.
        DataError: a file is missing, damaged, the wrong one, or cannot be downloaded.
    """
    check_choice("name", name, DATASETS)
    return _digits() if name == "digits" else _standardised(name, *_images(name, "train"), *_images(name, "t10k"))


def look_alike(name: str) -> str | None:
    """A sum of the content that stands in for a data set in ``$SP_DATA``; None for the known content, or without it.

    Results on a look-alike are not results on the data set, and it is by this sum that a store tells them apart.
    """
    root = os.environ.get("SP_DATA")
    return _look_alike(name, root) if root and name in SUMS else None


@cache
def _look_alike(name: str, root: str) -> str | None:
    found = []
    for file in SUMS[name]:
        try:
            found.append(hashlib.md5(_unpacked(_locate(name, file))).hexdigest())
        except (DataError, OSError, EOFError, zlib.error):  # `load` says what is wrong with it
            return None
    return None if found == list(SUMS[name].values()) else hashlib.md5("".join(found).encode()).hexdigest()


def _digits() -> Dataset:
    digits = load_digits()
    images, labels = digits.images.astype(np.uint8), digits.target.astype(np.int64)
    # The seed is part of the data set: every result on digits rests on this one split.
    parts = train_test_split(images, labels, train_size=1400, test_size=397, stratify=labels, random_state=0)
    train_images, test_images, train_y, test_y = map(torch.from_numpy, parts)
    return _standardised("digits", train_images, train_y, test_images, test_y)


def _images(name: str, part: str) -> tuple[Tensor, Tensor]:
    """Images (n, 28, 28) uint8 and labels (n,) int64 of "train" or "t10k"."""
    images_path, labels_path = _locate(name, f"{part}-images-idx3-ubyte"), _locate(name, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(images_path, (28, 28)), read_idx(labels_path, ())
    _expect(labels_path, f"as many labels as {images_path} has images,", len(images), len(labels))
    _expect(labels_path, "labels", list(range(10)), labels.unique().tolist())
    if images.min() == images.max():
        raise DataError(f"{images_path}: expected pictures, found {images.min()} in every pixel. {MEND}")
    return images, labels.long()


def _standardised(name: str, train_images: Tensor, train_y: Tensor, test_images: Tensor, test_y: Tensor) -> Dataset:
    # Whole numbers in double precision add up exactly, so that the result is the same on any number of threads.
    counts, levels = torch.bincount(train_images.flatten(), minlength=256).double(), torch.arange(256).double()
    mean = float(counts @ levels / counts.sum())
    deviation = math.sqrt(counts @ levels.square() / counts.sum() - mean**2)
    train_x, test_x = ((x.flatten(1).float() - mean) / deviation for x in (train_images, test_images))
    height, width = train_images.shape[1:]
    return Dataset(name, train_x, train_y, test_x, test_y, (height, width), classes=10)


def read_idx(path: Path, shape: tuple[int, ...]) -> Tensor:
    """The items of an IDX file of unsigned bytes, gzipped or not.

    Args:
        path: the file.
        shape: of one item: (28, 28) for images, () for labels.

    Returns:
        uint8, the number of items followed by ``shape``.

    Raises:
        DataError: the file cannot be read or unpacked, holds other items, or is too short or too long for its header.
    """
    try:
        content = _unpacked(path)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: expected a readable file, gzipped or not, found: {error}. {MEND}") from error
    dimensions = 1 + len(shape)
    header = 4 + 4 * dimensions
    # Two zero bytes, the type of the numbers (8: unsigned byte), how many dimensions there are.
    _expect(path, "magic number", bytes((0, 0, 8, dimensions)).hex(), content[:4].hex())
    _expect(path, "bytes of header", header, len(content[:header]))
    count, *found = struct.unpack(f">{dimensions}I", content[4:header])
    _expect(path, "items of shape", shape, tuple(found))
    _expect(path, f"bytes for {count} items of shape {shape},", header + count * math.prod(shape), len(content))
    return torch.from_numpy(np.frombuffer(content[header:], np.uint8).copy()).reshape(count, *shape)


def _expect(path: Path, what: str, expected: object, found: object) -> None:
    if expected != found:
        raise DataError(f"{path}: expected {what} {expected}, found {found or 'none'}. {MEND}")


def _unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content


def _locate(name: str, file: str) -> Path:
    if not (root := os.environ.get("SP_DATA")):
        return _cached(name, file)
    plain = Path(root).expanduser() / name / file
    for path in (plain, plain.with_name(f"{file}.gz")):
        if path.is_file():
            return path
    raise DataError(
        f"{plain}: expected this file or {file}.gz beside it, because SP_DATA={root}, found neither. "
        f"Put it there, set SP_DATA to a folder that holds {name}/{file}.gz, or unset SP_DATA to have it downloaded."
    )


def _cached(name: str, file: str) -> Path:
    folder = Path(os.environ.get("SP_CACHE") or pooch.os_cache("sp")).expanduser() / name
    mirror = os.environ.get("SP_MIRROR")
    failures = ""
    for base in (f"{mirror.rstrip('/')}/{name}",) if mirror else MIRRORS[name]:
        url = f"{base}/{file}.gz"
        try:
            return Path(pooch.retrieve(url, f"md5:{SUMS[name][file]}", file, folder, downloader=_download_unpacked))
        except (OSError, ValueError, EOFError, zlib.error) as error:
            failures += f"\n  {url}: {error}"
    raise DataError(
        f"{folder / file}: expected to download it, found no mirror that gave it:{failures}\nCheck the network and run "
        "again, set SP_MIRROR to the base URL of another mirror (it serves "
        f"{name}/{file}.gz), or set SP_DATA to a folder that holds {name}/{file}.gz."
    )


def _download_unpacked(url: str, file: str, caller: pooch.Pooch | None) -> None:
    # Unpacked already here, so that the sum that pooch checks before it moves the file in place is the content's.
    pooch.HTTPDownloader(progressbar=True)(url, file, caller)
    Path(file).write_bytes(_unpacked(Path(file)))


@dataclass(frozen=True, eq=False)
class Task:
    """One task of a stream.

    Attributes:
        name: for tables and figures.
        outputs: the output units that count, where the task is known at test time too (task-incremental): loss and
            accuracy are those of ``logits[:, outputs]`` against y, which is a position in ``outputs``. None: all
            units count, and y is a unit.
        train: ``train()`` makes the training examples, new tensors at each call: x (n, d) float32 and y (n,) int64.
        test: ``test()`` makes the test (or validation) examples, likewise.
    """

    name: str
    outputs: tuple[int, ...] | None
    train: Examples = field(repr=False)
    test: Examples = field(repr=False)


@dataclass(frozen=True, eq=False)
class Stream:
    """Tasks in the order in which they are learnt.

    Attributes:
        tasks: the tasks.
        inputs: d, the number of pixels.
        outputs: the number of output units that all tasks need together.
        image_shape: (height, width) of the data set's images; a permuted image is no picture any more. Of somebody's
            own arrays the shape of an example.
        numbers: whether targets are numbers, float32 (n, outputs), and no classes. A score is then the share of the
            targets' variance that is explained (R2), 0 where it is negative, and stands wherever an accuracy does.
        scored_from: None, or the stream is one pass over one task in its own order, without boundaries: each batch is
            tested before it is learnt, and the accuracy is that on the examples from this number on.
    """

    tasks: tuple[Task, ...]
    inputs: int
    outputs: int
    image_shape: tuple[int, ...]
    numbers: bool = False
    scored_from: int | None = None


def example_images(stream: Stream, columns: int) -> pd.DataFrame:
    """Training images of a stream, ``columns`` of each task, those of different labels first.

    Returns:
        One row an image: ``task`` ("Task A", ...), ``label``, and the pixels ``0``, ``1``, ...
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
    first_identity: bool = True,
) -> Stream:
    """A stream of T tasks of k classes each. Equal arguments give bit-equal streams; the global generator is not used.

    Args:
        dataset: where the images come from.
        kind: what tells the tasks apart. "split": each has its own group of k = classes / T classes, in order (two of
            ten: 0-4, 5-9). "permuted": each has all k = classes, and its own order of pixels. "rotated": each has
            all k = classes, and task t = 0, 1, ... turns the images counter-clockwise by 180 t / T degrees.
        tasks: T, at least 1; for "split" it divides the number of classes.
        scenario: what a label y says of an image of class c in [0, k) in task t. "class": task and class, y = k t + c
            of k T output units. "domain": the class, y = c of k units. "task": the class, the task being given,
            y = c, a position in the task's ``outputs`` k t, ..., k t + k - 1 of k T units.
        seed: of the generator that draws first permutations, then training images; in [0, 2**63).
        samples_per_task: how many training images to draw for each task, without repeats; None takes all.
        evaluation: "test": train on the training set, test on the test set. "validation": leave the last tenth of the
            training set (of digits, the last fifth) out and test on that, so that tuning never sees a test image.
        first_identity: whether the first task of "permuted" leaves the pixels in place. The others are the same
            either way.

    Raises:
        ValueError: an argument out of its range, or a task with too few images or with nothing to tell apart.
        TypeError: a number that is not whole.
    """
    check_choice("kind", kind, get_args(Kind))
    check_choice("scenario", scenario, get_args(Scenario))
    check_choice("evaluation", evaluation, get_args(Evaluation))
    check_integer("tasks", tasks, 1)
    check_integer("seed", seed, 0)
    if samples_per_task is not None:
        check_integer("samples_per_task", samples_per_task, 1)
    if not first_identity and kind != "permuted":
        raise ValueError(f"first_identity must be True unless kind is 'permuted', got {first_identity} with {kind!r}")
    if kind == "split" and dataset.classes % tasks:
        raise ValueError(f"tasks must divide the {dataset.classes} classes of {dataset.name}, got {tasks}")
    group = dataset.classes // tasks if kind == "split" else dataset.classes
    if group == 1 and scenario != "class":
        raise ValueError(
            f"tasks must leave each task two classes or more to tell apart unless scenario is 'class', got {tasks} "
            f"with {scenario!r}"
        )
    generator = torch.Generator().manual_seed(int(seed))
    views = _views(dataset, kind, tasks, generator, first_identity)
    train, test = _train_and_test(dataset, evaluation)

    def examples(part: tuple[Tensor, Tensor], number: int, samples: int | None = None) -> Examples:
        x, y = part
        start = group * number if kind == "split" else 0
        rows = ((y >= start) & (y < start + group)).nonzero().flatten()
        if len(rows) < (samples or 1):
            raise ValueError(
                f"samples_per_task must be at most {len(rows)}, the images that {dataset.name} has for task {number} "
                f"({views[number][0]}), got {samples}; ask for fewer, or make fewer tasks"
            )
        if samples is not None:
            rows = rows[torch.randperm(len(rows), generator=generator)[:samples]]
        labels = y[rows] - start + (group * number if scenario == "class" else 0)
        return partial(_show, x, rows, labels, views[number][1])

    return Stream(
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


def _views(
    dataset: Dataset, kind: Kind, tasks: int, generator: torch.Generator, first_identity: bool
) -> list[tuple[str, View]]:
    """Each task's name, and what it does to images."""
    if kind == "split":
        group = dataset.classes // tasks
        return [(f"classes {group * t}-{group * t + group - 1}", _same) for t in range(tasks)]
    if kind == "rotated":
        background = float(dataset.train_x.min())
        turn = partial(_rotate, image_shape=dataset.image_shape, background=background)
        angles = [180 * t / tasks for t in range(tasks)]
        return [(f"{angle:g} degrees", partial(turn, degrees=angle) if angle else _same) for angle in angles]
    orders = [torch.randperm(dataset.train_x.shape[1], generator=generator) for _ in range(tasks)]
    permuted = [(f"permutation {t}", partial(torch.index_select, dim=1, index=orders[t])) for t in range(tasks)]
    return [("identity", _same), *permuted[1:]] if first_identity else permuted


def _show(x: Tensor, rows: Tensor, labels: Tensor, view: View) -> tuple[Tensor, Tensor]:
    return view(x.index_select(0, rows)), labels.clone()


def _same(x: Tensor) -> Tensor:
    return x


def _rotate(x: Tensor, image_shape: tuple[int, int], background: float, degrees: float) -> Tensor:
    """Images (n, d) turned counter-clockwise about their centre; corners that come into sight are background."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Where each pixel comes from, in a frame whose y points down and that is two wide and two high for any image.
    aspect = image_shape[0] / image_shape[1]
    matrix = torch.tensor([[[cosine, -sine * aspect, 0], [sine / aspect, cosine, 0]]], dtype=x.dtype)
    grid = affine_grid(matrix, [1, 1, *image_shape], align_corners=False)
    # All images as channels of one, so that they share the grid; less the background, because the outside is zero.
    turned = grid_sample((x - background).reshape(1, -1, *image_shape), grid, align_corners=False)
    return turned.reshape(x.shape).add_(background)


def _train_and_test(dataset: Dataset, evaluation: Evaluation) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    x, y = dataset.train_x, dataset.train_y
    if evaluation == "test":
        return (x, y), (dataset.test_x, dataset.test_y)
    # A tenth of digits would be 14 images a class, too few to tune by.
    kept = len(y) - len(y) // (5 if dataset.name == "digits" else 10)
    return (x[:kept], y[:kept]), (x[kept:], y[kept:])
