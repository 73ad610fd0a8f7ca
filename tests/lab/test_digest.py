"""A digest changes with anything that could change what a callable computes, and with nothing else."""

import functools
import importlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import sp.lab.digest
from sp.lab.digest import NoDigest, digest

HELPER = """
RATE = 0.1
TABLE = {"a": 1}
UNUSED = 1

def deepest(x):
    return x * RATE

def deep(x):
    return deepest(x) + 1

def local():
    return 40
"""
MINE = '''
import dataclasses
import enum
import functools

import numpy as np
import torch

import helper
from helper import deep

NAMES = {"one", "two", "three", "four", "five"}
WEIGHTS = torch.tensor([1.0, 2.0])
GRID = np.array([3.0, 4.0])
BOTH = [NAMES, NAMES]

class Color(enum.Enum):
    RED = "red"

@dataclasses.dataclass
class Choices:
    rate: float = 0.25

class Base(torch.nn.Module):
    strength = 50

    def forward(self, x):
        return x - 60

class Rule(Base):
    __slots__ = ("kept",)
    decay = 0.75

    @property
    def width(self):
        return 70

    @functools.cached_property
    def depth(self):
        return 80

    @classmethod
    def made(cls, size=90):
        return cls()

    def forward(self, x, scale=2, *, power=3):
        return super().forward(x) * scale**power + cycle(x)

@functools.cache
def remembered(x):
    return x + 100

def cycle(x):
    return make if x else cycle

def middle(x, y):
    """Adds."""
    return deep(x) + helper.TABLE["a"] + y

middle.order = 150

def closing(rate):
    def inner(x):
        class Local:
            """A class with a line of its own."""
            value = 110
        return [Local.value * rate * part for part in x if part > 120]
    return inner

closed = closing(0.5)
part = functools.partial(middle, y=130)
method = Rule().forward
choices = Choices()

def make(model):
    from helper import local
    return Rule, closed, part, method, choices, Color.RED, NAMES, WEIGHTS, GRID, BOTH, remembered, local, model + 140
'''
CHANGES = {
    "a constant": ("mine", "140", "141"),
    "a true number for True's": ("mine", "model + 140", "model + True"),
    "a value closed over": ("mine", "closing(0.5)", "closing(0.6)"),
    "a constant of what was closed over": ("mine", "part > 120", "part > 121"),
    "a class in a function": ("mine", "value = 110", "value = 111"),
    "a number two functions down": ("helper", "RATE = 0.1", "RATE = 0.2"),
    "a function two functions down": ("helper", "x * RATE", "x / RATE"),
    "a function imported inside": ("helper", "return 40", "return 41"),
    "a value of a module of one's own": ("helper", '{"a": 1}', '{"a": 2}'),
    "an attribute of a class": ("mine", "decay = 0.75", "decay = 0.5"),
    "an attribute of a base": ("mine", "strength = 50", "strength = 51"),
    "a method of a base": ("mine", "x - 60", "x - 61"),
    "another base": ("mine", "Base(torch.nn.Module)", "Base(torch.nn.ReLU)"),
    "a property": ("mine", "return 70", "return 71"),
    "a cached property": ("mine", "return 80", "return 81"),
    "a class method": ("mine", "size=90", "size=91"),
    "a cached function": ("mine", "x + 100", "x + 101"),
    "an attribute of a function": ("mine", "order = 150", "order = 151"),
    "a default": ("mine", "scale=2", "scale=4"),
    "the default of a keyword": ("mine", "power=3", "power=4"),
    "an argument of a partial": ("mine", "y=130", "y=131"),
    "a tensor": ("mine", "[1.0, 2.0]", "[1.0, 2.5]"),
    "a tensor's type": ("mine", "[1.0, 2.0])", "[1.0, 2.0]).view(torch.int32)"),
    "an array": ("mine", "[3.0, 4.0]", "[3.0, 4.5]"),
    "a set": ("mine", '"five"', '"six"'),
    "a default of a dataclass": ("mine", "rate: float = 0.25", "rate: float = 0.5"),
    "a member of an enum": ("mine", '"red"', '"blue"'),
    "a function of a library": ("mine", "return x - 60", "return torch.sub(x, 60)"),
}
SAME = {
    "a comment": ("mine", "def make(", "# A comment.\ndef make("),
    "a blank line": ("mine", "NAMES =", "\n\nNAMES ="),
    "a blank line in a function": ("mine", "    def inner(", "\n\n    def inner("),
    "a docstring": ("mine", '"""Adds."""', '"""Adds both."""'),
    "no docstring": ("mine", '    """Adds."""\n', ""),
    "the docstring of a class": ("mine", "A class with a line", "With a line"),
    "a value that is not used": ("helper", "UNUSED = 1", "UNUSED = 2"),
}


@pytest.fixture
def loaded(tmp_path, monkeypatch):
    """Imports both modules, changed, each time from another folder."""
    folders = iter(tmp_path / name for name in "abc")

    def load(module: str = "mine", old: str = "", new: str = ""):
        folder = next(folders)
        folder.mkdir()
        for name, text in {"helper": HELPER, "mine": MINE}.items():
            if name == module and old:
                assert text.count(old) == 1
                text = text.replace(old, new)
            (folder / f"{name}.py").write_text(text)
            monkeypatch.delitem(sys.modules, name, raising=False)
        with monkeypatch.context() as path:
            path.syspath_prepend(folder)
            torch.manual_seed(0)
            return importlib.import_module("mine")

    yield load
    for name in ("helper", "mine"):
        sys.modules.pop(name, None)


def taken(module) -> str:
    return digest(module.make)


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_the_result_changes_the_digest(loaded, change):
    before = taken(loaded())
    assert taken(loaded(*CHANGES[change])) != before


@pytest.mark.parametrize("change", SAME)
def test_what_changes_no_result_and_another_folder_leave_the_digest(loaded, change):
    before = taken(loaded())
    assert taken(loaded(*SAME[change])) == before


def test_a_value_that_is_changed_after_the_import_is_seen(loaded, monkeypatch):
    module = loaded()
    before = taken(module)
    module.WEIGHTS[0] += 1
    after = taken(module)
    monkeypatch.setattr(sys.modules["helper"], "RATE", 0.3)
    assert len({before, after, taken(module)}) == 3


def inside():
    from package_of_one import below

    return below


def test_a_submodule_that_only_a_function_imports_is_seen(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "package_of_one").mkdir()
    (tmp_path / "package_of_one" / "__init__.py").write_text("")
    monkeypatch.setitem(sys.modules, "package_of_one", importlib.import_module("package_of_one"))
    (tmp_path / "package_of_one" / "below.py").write_text("RATE = 1")
    with pytest.raises(NoDigest, match=r"inside, package_of_one\.below is a whole module"):
        digest(inside)


def test_processes_with_other_hashes_agree_also_on_what_was_typed_into_a_notebook(tmp_path):
    for name, text in {"helper": HELPER, "mine": MINE}.items():
        (tmp_path / f"{name}.py").write_text(text)
    program = (
        "import torch; torch.manual_seed(0); import mine, helper; from sp.lab.digest import digest\n"
        "words = {'a', 'b', 'c', 'd', mine.Color.RED}\n"
        "print(digest(lambda model: (mine.make(model), helper.deep, words)))"
    )
    found = set()
    for seed in "12":  # the second process reads compiled files
        path = os.pathsep.join([str(tmp_path), str(Path(sp.__file__).parent.parent)])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        ran = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
        )
        found.add(ran.stdout)
    assert len(found) == 1 and len(found.pop().strip()) == 64


class Step(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})

    @torch.no_grad()
    def step(self, closure=None):
        return None


class Inherits(Step):
    pass


@pytest.mark.parametrize("kind", [Inherits, Step])
def test_making_an_optimizer_around_whose_step_torch_puts_a_hook_leaves_the_digest(kind):
    before = digest(kind)
    kind([torch.nn.Parameter(torch.ones(1))])
    assert kind.step.hooked and digest(kind) == before is not None


def test_the_same_layer_twice_is_not_two_equal_layers():
    one, other = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    orders = [one, one], [one, other], [one, other, one], [one, other, other]
    assert len({digest(functools.partial(print, order)) for order in orders}) == 4
    assert digest(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(1, 1))) is not None


def test_a_library_counts_by_its_version(monkeypatch):
    def chosen(model):
        return torch.optim.Adam(model.parameters())

    before = digest(chosen), digest(torch.optim.Adam), digest(torch.relu)
    monkeypatch.setattr(sp.lab.digest, "_distributed", lambda top: f"{top} 0.0")
    after = digest(chosen), digest(torch.optim.Adam), digest(torch.relu)
    assert len({*before, *after}) == 6


LOCK, NUMBERS = threading.Lock(), np.random.default_rng(0)
STREAM = (number for number in range(3))
TORCH_NUMBERS = torch.Generator()
HERE = sys.modules[__name__]
REFUSED = {
    "LOCK is of type lock": lambda: LOCK,
    "STREAM is of type generator": lambda: next(STREAM),
    "NUMBERS is a random generator": lambda: NUMBERS.normal(),
    "self is a random generator": NUMBERS.normal,
    "partial.* is a random generator": functools.partial(torch.rand, 2, generator=TORCH_NUMBERS),
    "HERE is a whole module": lambda name: getattr(HERE, name),
    "eval is a way to access anything": lambda: eval("1"),
    "is of type ufunc": np.frompyfunc(lambda x: x, 1, 1),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_has_no_digest_says_why(reason):
    with pytest.raises(NoDigest, match=reason):
        digest(REFUSED[reason])


def test_an_open_file_has_no_digest(tmp_path):
    with open(tmp_path / "log", "w") as log:

        def inner():
            log.write("")

        def outer():
            return inner()

        with pytest.raises(NoDigest, match="inner, log is of type TextIOWrapper"):
            digest(outer)


@pytest.mark.parametrize("zeros", [torch.zeros, np.zeros])
def test_the_shape_of_a_tensor_counts(zeros):
    assert digest(zeros((2, 3))) == digest(zeros((2, 3))) != digest(zeros((3, 2)))
