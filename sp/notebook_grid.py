"""A parameterised notebook over a grid: one executed copy for each combination of parameters, in parallel."""

import ast
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import papermill

from sp import parameters
from sp.files import other_figures, write_atomically
from sp.notebooks import FINISHED, execute, kernel_environment, side_by_side, workers_for


@dataclass(frozen=True)
class Grid:
    """What became of a grid.

    Attributes:
        folder: with the copies, a folder of figures for each, and the tables.
        copies: how many there are to make.
        failures: what went wrong, a line for each copy that failed with a link to the failing cell.
        tables: over all copies that are finished.
    """

    folder: Path
    copies: int
    failures: list[str]
    tables: list[Path]


def execute_grid(
    notebook: Path,
    points: Iterable[dict[str, Any]],
    to: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Grid:
    """Execute a notebook once for each point, each in a kernel of its own, and put its tables together.

    A copy that is finished is not made again, unless the notebook or the rules of the package have changed. A copy is
    named after those of its parameters that are not the notebook's own, and its figures go to the folder of that name
    beside it. Each CSV that copies leave there is put together in `tables_over_copies`.

    Args:
        notebook: has a cell tagged ``parameters``.
        points: parameters of each copy; the others keep the notebook's values.
        to: the copies are in its folder NOTEBOOK; default: `sp.files.other_figures`.
        workers: how many at a time; default: as many as there are cores, which they share.
        progress: show a bar.

    Raises:
        ValueError: a parameter that the notebook does not have, or of another type; the message lists the known ones.
        OSError: the notebook cannot be read, or the folder cannot be written.
    """
    defaults = parameters_of(notebook)
    own = {name: _own(text) for name, text in defaults.items()}
    points = [checked(point, defaults) for point in points]
    named = {parameters.run_name(parameters.changed(point, own)): point for point in points}
    varied = dict.fromkeys(name for point in points for name in point)
    folder = Path(to or other_figures()).absolute() / notebook.stem
    made_from = _made_from(notebook)
    write_atomically(folder / "made_from.txt", f"{notebook}\n{made_from}\n")
    workers = min(workers or workers_for(len(named)), max(len(named), 1))
    make = partial(_make, notebook.absolute(), folder, named, made_from, kernel_environment(workers))
    known = partial(_finished, folder, made_from)
    failures = side_by_side(make, named, workers, known, progress)
    finished = {n: {v: point.get(v, own[v]) for v in varied} for n, point in named.items() if known(n)}
    return Grid(folder, len(named), failures, tables_over_copies(folder, finished))


def tables_over_copies(folder: Path, named: Mapping[str, dict[str, Any]]) -> list[Path]:
    """For each CSV of the copies, write one with the rows of all of them, and return these.

    The parameters of a copy are its first columns (``parameter_NAME`` where the CSV has a column NAME). Where the data
    set varies, its name is left out of the name of the CSV.

    Args:
        folder: of the grid. named: for each copy the same parameters.
    """
    parts: dict[str, list[tuple[dict[str, Any], pd.DataFrame]]] = {}
    datasets_vary = len({point.get("dataset") for point in named.values()}) > 1
    for name, point in named.items():
        for path in _tables(folder, name):
            words = path.stem.split("_")
            if datasets_vary:
                words = [word for word in words if word not in point["dataset"].split("_")] or ["datasets"]
            target = f"{'_'.join(words)}.csv"
            # As text, so that every number stays as the copy wrote it.
            parts.setdefault(target, []).append((point, pd.read_csv(path, dtype=str, keep_default_na=False)))
    for target, tables in parts.items():
        taken = {column for _, table in tables for column in table}
        rows = [pd.concat([_columns(point, taken, table.index), table], axis=1) for point, table in tables]
        write_atomically(folder / target, pd.concat(rows).to_csv(index=False))
    return [folder / target for target in parts]


def _columns(point: dict[str, Any], taken: set[str], index: pd.Index) -> pd.DataFrame:
    texts = {name: value if isinstance(value, str) else repr(value) for name, value in point.items()}
    return pd.DataFrame({f"parameter_{n}" if n in taken else n: text for n, text in texts.items()}, index=index)


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


def _own(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # computed in the notebook: no point has the same value


def _made_from(notebook: Path) -> str:
    """A hash of the notebook's cells, without outputs, and of the version of the rules."""
    from sp.lab.experiment import RULES_VERSION  # brings PyTorch, for which each worker process would wait

    cells = [(cell.cell_type, cell.source) for cell in nbformat.read(notebook, as_version=4).cells]
    return hashlib.sha256(json.dumps([RULES_VERSION, cells]).encode()).hexdigest()


def _finished(folder: Path, made_from: str, name: str) -> str | None:
    about = _about(folder, name)
    return FINISHED if about.get("made_from") == made_from and all(map(Path.is_file, _tables(folder, name))) else None


def _tables(folder: Path, name: str) -> list[Path]:
    return [folder / name / path for path in _about(folder, name).get("tables", ())]


def _about(folder: Path, name: str) -> dict[str, Any]:
    """What `_make` has written into a copy; nothing where it is not finished."""
    try:
        return nbformat.read(folder / f"{name}.ipynb", as_version=4).metadata.get("sp", {})
    except (FileNotFoundError, nbformat.reader.NotJSONError):
        return {}


def _make(
    notebook: Path,
    folder: Path,
    named: dict[str, dict[str, Any]],
    made_from: str,
    environment: dict[str, str],
    name: str,
) -> str:
    """Execute one copy, in a worker process; it gets its name when it is finished."""
    draft, failed = folder / f"{name}.running.ipynb", folder / f"{name}.failed.ipynb"
    failed.unlink(missing_ok=True)
    before = _written(folder / name)
    outcome = execute(notebook, draft, named[name], {**environment, "SP_FIGURES": str(folder / name)})
    if outcome != FINISHED:
        shutil.move(draft, failed)
        return outcome.replace(str(draft), str(failed))
    # Not those that an older version of the notebook left.
    tables = sorted(path for path, time in _written(folder / name).items() if before.get(path) != time)
    copy = nbformat.read(draft, as_version=4)
    copy.metadata["sp"] = {"made_from": made_from, "tables": tables}
    write_atomically(folder / f"{name}.ipynb", nbformat.writes(copy) + "\n")
    draft.unlink()
    return FINISHED


def _written(folder: Path) -> dict[str, int]:
    """The CSVs below a folder, and when each was written."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*.csv")}
