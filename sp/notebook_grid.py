"""A parameterised notebook over a grid: one executed copy for each combination of parameters, in parallel."""

import ast
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import nbformat
import papermill

from sp.experiment import RULES_VERSION
from sp.files import bar, write_atomically
from sp.notebooks import execute
from sp.parallel import Failed, call_all

LONGEST_NAME = 120  # characters; file systems take 255 bytes


def execute_grid(
    notebook: Path,
    points: Iterable[dict[str, Any]],
    to: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[list[str], Path]:
    """Execute a notebook once for each point, each in a kernel of its own.

    A copy that is finished is not made again, unless the notebook or the rules of the package have changed. A copy is
    named after its parameters, and its figures go to the folder of that name beside it.

    Args:
        notebook: has a cell tagged ``parameters``.
        points: parameters of each copy; the others keep the notebook's values.
        to: folder for the copies; default ``build/notebooks/NAME``.
        workers: how many at a time; default: as many as there are cores, which they share.
        progress: show a bar.

    Returns:
        What went wrong, a line for each notebook with a link to the failing cell; and the folder.

    Raises:
        ValueError: a parameter that the notebook does not have, or of another type; the message lists the known ones.
        OSError: the notebook cannot be read, or the folder cannot be written.
    """
    defaults = parameters_of(notebook)
    named = {_name(point): point for point in (checked(point, defaults) for point in points)}
    folder = Path(to or Path("build/notebooks") / notebook.stem).absolute()
    made_from = _made_from(notebook)
    write_atomically(folder / "made_from.txt", f"{notebook}\n{made_from}\n")
    workers = min(workers or joblib.cpu_count(), max(len(named), 1))
    cores = max(1, joblib.cpu_count() // workers)
    make = partial(_make, notebook.absolute(), folder, named, made_from, cores)
    known = partial(_finished, folder, made_from)
    failures = []
    with bar(total=len(named), unit="notebook", progress=progress) as shown:
        for name, outcome in call_all(make, named, workers, known):
            if isinstance(outcome, Failed):
                failures.append(f"{folder / name}.ipynb: {outcome.reason}")
            elif outcome != FINISHED:
                failures.append(outcome)
            shown.set_postfix(failed=len(failures))
            shown.update()
    return failures, folder


def parameters_of(notebook: Path) -> dict[str, str]:
    """The names in the ``parameters`` cell, and their values as they are written there.

    Raises:
        ValueError: there is no such cell, or nothing in it. OSError: the notebook cannot be read.
    """
    if not notebook.is_file():
        raise FileNotFoundError(f"{notebook} is not there; the notebooks are in notebooks/")
    found = {name: about["default"] for name, about in papermill.inspect_notebook(str(notebook)).items()}
    if not found:
        raise ValueError(f"{notebook} has no cell tagged `parameters` with values in it")
    return found


def checked(point: dict[str, Any], defaults: dict[str, str]) -> dict[str, Any]:
    """The point, if each of its names is known and each value of the type of the notebook's own; 1 becomes 1.0.

    Raises:
        ValueError: one is not; the message lists the known names, or says what is expected.
    """
    if unknown := sorted(set(point) - set(defaults)):
        known = ", ".join(f"{name} = {value}" for name, value in defaults.items())
        raise ValueError(f"unknown parameter(s) {', '.join(unknown)}; the notebook has {known}")
    return {name: _as_typed(name, value, defaults[name]) for name, value in point.items()}


def _as_typed(name: str, value: Any, default: str) -> Any:
    try:
        own = ast.literal_eval(default)
    except (ValueError, SyntaxError):
        return value  # computed in the notebook; its type is not known before it runs
    if own is None or type(value) is type(own) or (isinstance(own, tuple | list) and isinstance(value, tuple | list)):
        return value
    if type(own) is float and type(value) is int:
        return float(value)
    hint = ": put it in quotes, \"'...'\"" if isinstance(own, str) else ""
    raise ValueError(f"{name} must be of type {type(own).__name__}, such as {default}, got {value!r}{hint}")


def _name(point: dict[str, Any]) -> str:
    """A file name that says the parameters, and is another one for other parameters."""
    if not point:
        return "defaults"
    exact = ",".join(f"{name}={value}" for name, value in point.items())
    name = re.sub(r"[^\w.+=,-]+", "-", exact)
    if name == exact and len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(repr(point).encode()).hexdigest()[:8]}"


def _made_from(notebook: Path) -> str:
    """A hash of the notebook's cells, without outputs, and of the version of the rules."""
    cells = [(cell.cell_type, cell.source) for cell in nbformat.read(notebook, as_version=4).cells]
    return hashlib.sha256(json.dumps([RULES_VERSION, cells]).encode()).hexdigest()


FINISHED = "finished"


def _finished(folder: Path, made_from: str, name: str) -> str | None:
    try:
        copy = nbformat.read(folder / f"{name}.ipynb", as_version=4)
    except (FileNotFoundError, nbformat.reader.NotJSONError):
        return None
    return FINISHED if copy.metadata.get("sp", {}).get("made_from") == made_from else None


def _make(notebook: Path, folder: Path, named: dict[str, dict[str, Any]], made_from: str, cores: int, name: str) -> str:
    """Execute one copy, in a worker process; it gets its name when it is finished."""
    draft, failed = folder / f"{name}.running.ipynb", folder / f"{name}.failed.ipynb"
    failed.unlink(missing_ok=True)
    chosen = {"SP_FIGURES": str(folder / name), "LOKY_MAX_CPU_COUNT": str(cores), "PYDEVD_DISABLE_FILE_VALIDATION": "1"}
    with _environment(chosen):  # this may be the caller's own process
        failure = execute(notebook, draft, named[name])
    if failure:
        shutil.move(draft, failed)
        return failure.replace(str(draft), str(failed))
    copy = nbformat.read(draft, as_version=4)
    copy.metadata["sp"] = {"made_from": made_from}
    write_atomically(folder / f"{name}.ipynb", nbformat.writes(copy) + "\n")
    draft.unlink()
    return FINISHED


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
