"""Run a notebook over a grid of parameters: one executed copy per combination, and its tables put together."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sp.commands.running import Copy, execute_all
from sp.figures import parameters
from sp.files import other_figures, write_atomically


def make_grid(
    notebook: Path, points: Iterable[dict[str, Any]], workers: int | None = None, commit: bool = False
) -> int:
    """Execute a notebook once for each point, in parallel, and combine the tables that the copies write.

    Copies are stored in a folder named after the notebook in `sp.files.other_figures`. A copy is named after those of
    its parameters that differ from the notebook's own, and its figures go to a folder of the same name beside it.
    Copies are recreated each time; the runs are what takes long, and the ledger keeps those.

    Args:
        notebook: the notebook, with a cell tagged ``parameters``.
        points: parameters of each copy; the others keep the notebook's values.
        workers: number of copies executed at a time; defaults to the number of cores, which they share.
        commit: as in `sp.commands.running.execute_all`.

    Returns:
        Exit status: 0, or 1 if a copy failed.
    """
    own = parameters.of(notebook)
    points = [parameters.checked(point, own) for point in points]
    named = {parameters.run_name(parameters.changed(point, own)): point for point in points}
    varied = dict.fromkeys(name for point in points for name in point)
    folder = other_figures().absolute() / notebook.stem
    if any(folder.glob("*.json")):
        raise ValueError(
            f"{folder} has the figures of a run without -p, whose tables a grid would replace: set SP_FIGURES to "
            "another folder, or leave it unset"
        )
    copies = {name: Copy(notebook.absolute(), folder / f"{name}.ipynb", named[name], folder / name) for name in named}
    for old in (table for name in named for table in (folder / name).rglob("*.csv")):
        old.unlink()  # which the new copy may no longer write
    failures = execute_all(list(copies.values()), workers, commit)
    finished = {name: point for name, point in named.items() if copies[name] not in failures}
    made = f"{len(finished)} of {len(named)} notebooks"
    print(f"{made} are in {folder}.")
    for table in tables_over_copies(folder, {n: {v: p.get(v, own[v]) for v in varied} for n, p in finished.items()}):
        print(f"Combined table of {made}: {table}")
    return 1 if failures else 0


def tables_over_copies(folder: Path, named: Mapping[str, Mapping[str, Any]]) -> list[Path]:
    """For each CSV that the copies wrote, write one with the rows of all copies, and return the new paths.

    The parameters of a copy are the first columns (``parameter_NAME`` if the CSV has a column NAME). If the data set
    varies, its name is left out of the name of the CSV.

    Args:
        folder: the folder of the grid. named: parameters by copy, the same ones for each; a copy's folder has its name.
    """
    parts: dict[str, list[tuple[Mapping[str, Any], pd.DataFrame]]] = {}
    datasets_vary = len({point.get("dataset") for point in named.values()}) > 1
    for name, point in named.items():
        for path in sorted((folder / name).rglob("*.csv")):
            stem = re.sub(rf"(^|_){point['dataset']}(?=_|$)", "", path.stem) if datasets_vary else path.stem
            target = f"{stem.strip('_') or 'datasets'}.csv"
            # Read as text, so that every number stays as the copy wrote it.
            parts.setdefault(target, []).append((point, pd.read_csv(path, dtype=str, keep_default_na=False)))
    for target, tables in parts.items():
        taken = {column for _, table in tables for column in table}
        rows = [pd.concat([_columns(point, taken, table.index), table], axis=1) for point, table in tables]
        write_atomically(folder / target, pd.concat(rows).to_csv(index=False))
    return [folder / target for target in parts]


def _columns(point: Mapping[str, Any], taken: set[str], index: pd.Index) -> pd.DataFrame:
    texts = {name: value if isinstance(value, str) else repr(value) for name, value in point.items()}
    return pd.DataFrame({f"parameter_{n}" if n in taken else n: text for n, text in texts.items()}, index=index)
