"""A digest of a user-supplied callable: of its code and all that it closes over, so that no kept run goes stale.

The pickles of joblib and cloudpickle do not serve this purpose. They store importable objects by name, so an edit goes
unseen. In what they store by value, comments change the bytes, and so does set order, which varies between processes.
"""

import contextlib
import copyreg
import dis
import enum
import functools
import hashlib
import importlib
import json
import operator
import platform
import random
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from importlib import metadata, util
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
_RANDOM = (random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator, torch.Generator)
_REACHES_ANYTHING = (eval, exec, globals, __import__, importlib.import_module)
# Attributes of a class that say where it lies or describe it, or that Python or pickle add along the way.
_NOT_CONTENT = {
    *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__firstlineno__", "__static_attributes__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__slotnames__", "_abc_impl"),
    *("__orig_bases__", "__parameters__", "__type_params__", "__conditional_annotations__"),
}
_HAS_DOCSTRING = 0x4000000  # a flag of code objects since Python 3.13
_LOADS_GLOBAL = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
_LOADS_CELL = ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF")
_MISSING = "a name that is not there"


class NoDigest(Exception):
    """Something has no digest; the message names what prevents it."""


def digest(thing: Any, where: str | None = None) -> str:
    """Digest of a callable and all that it closes over: 64 hexadecimal digits.

    It changes with code and constants, defaults, cells, the globals that the code names and what these name in turn,
    attributes and bases of classes, and the content of values, arrays and tensors. What belongs to an installed
    distribution counts by its name and version; one installed from a folder counts as user code. A function with an
    attribute ``counts_as``, such as `sp.lab.experiment.run`, which has a version, counts by that attribute. Comments,
    docstrings, annotations, line numbers and file locations do not count. The digest is the same in every process of
    Python 3.11, say, but differs in 3.12, which has different bytecode. What the callable reads from files, from
    attributes whose names it computes, or from the global state of a library is not seen.

    Args:
        thing: a callable, or a value that it closes over. where: what messages call it; default: its own name.

    Raises:
        NoDigest: it holds something that cannot be compared, such as a lock or a random generator.
    """
    writer = _Writer()
    try:
        writer.value(thing, where or getattr(thing, "__qualname__", type(thing).__qualname__))
        return writer.finish()
    except RecursionError as error:
        raise NoDigest(f"{where or thing!r} is nested too deeply") from error


class _Writer:
    """Writes things into a hash: plain ones right away, others as a number, with their contents written later."""

    def __init__(self):
        self.hash = hashlib.sha256(_python().encode())
        self.numbers: dict[int, int] = {}
        self.kept: list[Any] = []  # the id of a deleted object could be reused
        self.waiting: deque[tuple[Any, str]] = deque()

    def finish(self) -> str:
        while self.waiting:
            thing, where = self.waiting.popleft()
            try:
                parts = list(_parts(thing))
            except NoDigest as reason:
                raise NoDigest(f"{where} is {reason}") from reason
            for name, part in parts:
                self.value(part, f"{where}, {name}" if name else where)
            self.token("end")
        return self.hash.hexdigest()

    def token(self, *texts: Any) -> None:
        for text in texts:
            data = text if isinstance(text, bytes) else str(text).encode(errors="surrogatepass")
            self.hash.update(b"%d:" % len(data))
            self.hash.update(data)

    def value(self, thing: Any, where: str) -> None:
        if type(thing) in _PLAIN:
            self.token(type(thing).__name__, thing if type(thing) is bytes else repr(thing))
        elif type(thing) is tuple:
            self.token("tuple", len(thing))
            for part in thing:
                self.value(part, where)
        elif type(thing) in (set, frozenset):
            self.token(type(thing).__name__, *sorted(digest(part, where) for part in thing), "end")
        elif type(thing) is CodeType:
            self.code(thing, where)
        else:
            known = id(thing) in self.numbers
            number = self.numbers.setdefault(id(thing), len(self.numbers))
            self.token("number", number)
            if not known:
                self.kept.append(thing)
                self.waiting.append((thing, where))

    def code(self, code: CodeType, where: str) -> None:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & ~_HAS_DOCSTRING)
        names = (code.co_names, code.co_varnames, code.co_cellvars, code.co_freevars)
        self.value((counts, names, code.co_exceptiontable), where)
        steps = list(dis.get_instructions(code))
        for step, after in zip(steps, [*steps[1:], steps[-1]], strict=True):
            # Constants by value, because a docstring shifts their positions; none that only says where a class lies.
            constant = None if after.opname == "STORE_NAME" and after.argval in _NOT_CONTENT else step.argval
            self.token(step.opname)
            self.value(constant if step.opcode in dis.hasconst else step.arg, where)
        self.token("end")


def _parts(thing: Any) -> Iterator[tuple[str, Any]]:
    """The parts that define a thing, each with a name for messages."""
    kind = type(thing)
    if isinstance(thing, _RANDOM):
        raise NoDigest("a random generator, whose state changes")
    if any(thing is one for one in _REACHES_ANYTHING):
        raise NoDigest("a way to access anything by its name")
    if kind is FunctionType and "counts_as" in vars(thing):
        yield "", ("counts as", thing.counts_as)
    elif kind is ModuleType:
        if (version := version_of(thing.__name__)) is None:
            raise NoDigest("a whole module: name what the code uses of it, as MODULE.NAME or from MODULE import NAME")
        yield "", (thing.__name__, version)
    elif (installed := _installed(thing)) is not None:
        yield "", installed
    elif kind in (list, dict, MappingProxyType):
        yield "", kind.__name__
        yield from _pairs(thing) if kind is not list else [(f"[{i}]", part) for i, part in enumerate(thing)]
    elif kind is FunctionType:
        yield from _of_function(_unhooked(thing))
    elif isinstance(thing, type):
        if not thing.__flags__ & 1 << 9:  # Python's Py_TPFLAGS_HEAPTYPE
            raise NoDigest("a compiled class that is not part of an installed package")
        yield "", ("class", thing.__name__, type(thing), thing.__bases__)
        for name, part in vars(thing).items():
            below = (_unhooked(vars(base).get(name)) for base in thing.__mro__[1:])
            inherited = _unhooked(part) is not part and any(_unhooked(part) is other for other in below)
            if name not in _NOT_CONTENT and not inherited:
                yield "", name
                yield name, part
    elif isinstance(thing, torch.Tensor) and thing.layout is torch.strided:
        plain = thing.detach().resolve_conj().resolve_neg().cpu().contiguous()
        yield "", (kind, str(plain.dtype), tuple(plain.shape), thing.requires_grad, str(thing.device.type))
        yield "", (plain.reshape(-1).view(torch.uint8).numpy().tobytes(), thing.grad if thing.is_leaf else None)
        yield from _pairs(vars(thing))
    elif kind in (np.ndarray, np.memmap) and not thing.dtype.hasobject:
        yield "", ("array", str(thing.dtype.descr), thing.shape, thing.tobytes())
    elif isinstance(thing, enum.Enum):
        yield "", ("member", kind, thing.name, thing.value)
    elif isinstance(thing, MethodType):
        yield "", ("method", thing.__func__)
        yield "self", thing.__self__
    elif isinstance(thing, property | classmethod | staticmethod | functools.cached_property):
        parts = ("fget", "fset", "fdel", "__func__", "func", "attrname")
        yield "", (kind, *(getattr(thing, part, None) for part in parts))
    elif kind is MemberDescriptorType:
        yield "", ("slot", thing.__name__)
    else:
        yield from _of_object(thing)


def _pairs(mapping: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    for key, part in mapping.items():
        yield "a key", key
        yield f"[{key!r}]" if type(key) in _PLAIN else "a value", part


def _unhooked(function: Any) -> Any:
    """Undo the wrapper that torch puts around `step` in an optimizer's class when its first instance is made."""
    return function.__wrapped__ if getattr(function, "hooked", False) is True else function


def _of_function(function: FunctionType) -> Iterator[tuple[str, Any]]:
    yield "", ("function", function.__code__, function.__kwdefaults__ and tuple(function.__kwdefaults__))
    yield "a default", (function.__defaults__, tuple((function.__kwdefaults__ or {}).values()))
    yield from _pairs(vars(function))
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    yield from _named(function.__code__, function, cells)


def _named(code: CodeType, function: FunctionType, cells: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the code names outside itself; for a user's own module, only the attributes that the code names."""
    steps = list(dis.get_instructions(code))
    for place, step in enumerate(steps):
        name = step.argval
        if step.opname in _LOADS_GLOBAL and name != "__name__":
            value = function.__globals__.get(name, function.__builtins__.get(name, _MISSING))
        elif step.opname in _LOADS_CELL and name in cells:
            value = _content(cells[name])
        else:
            if step.opname == "IMPORT_NAME":
                yield from _imported(name, steps[place - 2].argval, steps[place - 1].argval, function)
            if isinstance(name, CodeType):
                yield from _named(name, function, cells)
            continue
        for after in steps[place + 1 :]:
            own = type(value) is ModuleType and version_of(value.__name__) is None
            if not own or after.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                break
            name, value = f"{name}.{after.argval}", getattr(value, after.argval, _MISSING)
        yield name, value


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # an empty cell
        return _MISSING


def _imported(name: str, level: int, wanted: tuple | None, function: FunctionType) -> Iterator[tuple[str, Any]]:
    try:
        full = util.resolve_name("." * level + name, function.__globals__.get("__package__"))
        module = importlib.import_module(full)
    except ImportError:
        yield name, _MISSING
        return
    if wanted is None or version_of(full) is not None:
        yield name, module
        return
    for attribute in wanted:
        with contextlib.suppress(ImportError):  # it may be a submodule that nothing has imported yet
            if not hasattr(module, attribute):
                importlib.import_module(f"{full}.{attribute}")
        yield f"{name}.{attribute}", getattr(module, attribute, _MISSING)


def _of_object(thing: Any) -> Iterator[tuple[str, Any]]:
    """For any other object, what pickle would use to rebuild it."""
    if hasattr(thing, "cache_info") and hasattr(thing, "__wrapped__"):  # functools.cache
        yield "", ("cached", thing.__wrapped__)
        return
    try:
        made = copyreg.dispatch_table.get(type(thing), lambda one: one.__reduce_ex__(4))(thing)
    except Exception as error:
        raise NoDigest(f"of type {type(thing).__qualname__}, for which no digest can be made ({error})") from error
    owner = getattr(thing, "__objclass__", None)
    if isinstance(made, str) or (owner is not None and _installed(owner) is None):
        raise NoDigest(f"of type {type(thing).__qualname__}, compiled code for which no digest can be made")
    function, arguments, state, items, pairs, *_ = *made, None, None, None
    yield "", ("object", type(thing), function)
    yield "an argument", arguments
    yield from _pairs(state) if type(state) is dict else [("its state", state)]
    yield "an item", list(items or ())
    yield "a pair", list(pairs or ())


def _installed(thing: Any) -> tuple[str, ...] | None:
    """Name and version of a thing that an installed distribution holds under the thing's own name."""
    module = getattr(thing, "__module__", None)
    version = version_of(module) if isinstance(module, str) else None
    if version is None:
        return None
    if isinstance(thing, type) and not thing.__flags__ & 1 << 9:
        return module, thing.__qualname__, version
    name = getattr(thing, "__qualname__", None) or getattr(thing, "__name__", None)
    if name is None and isinstance(thing, torch.dtype | torch.layout | torch.memory_format):
        name = str(thing).removeprefix("torch.")
    try:
        found = operator.attrgetter(name)(sys.modules[module])
    except (AttributeError, KeyError, TypeError):
        return None
    return (module, name, version) if found is thing else None


def version_of(module: str) -> str | None:
    """Version of the installed distribution, or of the Python, that a module belongs to; None for user code."""
    top = module.partition(".")[0]
    file = getattr(sys.modules.get(module), "__file__", None) or getattr(sys.modules.get(top), "__file__", None)
    if file is None:
        return _python() if top in sys.stdlib_module_names else None
    if {"site-packages", "dist-packages"} & set(Path(file).parts):
        return _distributed(top)
    library = Path(json.__file__).parent.parent
    return _python() if top in sys.stdlib_module_names and Path(file).is_relative_to(library) else None


def _python() -> str:
    return "python " + ".".join(platform.python_version_tuple()[:2])


@functools.cache
def _distributed(top: str) -> str | None:
    names = sorted(set(_distributions().get(top, ())))
    if any('"dir_info"' in (metadata.distribution(name).read_text("direct_url.json") or "") for name in names):
        return None  # installed from a folder, whose content may change within one version
    return " ".join(f"{name} {metadata.version(name)}" for name in names) or None


_distributions = functools.cache(metadata.packages_distributions)
