"""Where the figures and tables of a notebook go, and the command that makes them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp import files
from sp.notebooks import parameters


@dataclass(frozen=True)
class _Run:
    """A run of a notebook: its parameters, and those of them that are not its own."""

    notebook: str
    values: dict[str, Any]
    own: dict[str, Any]

    @property
    def changed(self) -> dict[str, Any]:
        return parameters.changed(self.values, self.own)

    @property
    def is_own(self) -> bool:
        # The names of figures tell the known data sets apart.
        return set(self.changed) <= {"dataset"} and self.values.get("dataset") in (None, *files.DATASETS)

    def folder(self) -> Path:
        if self.is_own:
            return files.folder("figures") / self.notebook
        root, name = files.other_figures(), parameters.run_name(self.changed)
        return root if root.name == name else root / self.notebook / name  # a grid names each copy's folder itself


_run: _Run | None = None  # of the notebook that began last


def begin(notebook: str, namespace: Mapping[str, Any]) -> None:
    """Take a notebook's parameters, which decide where its figures and tables go and are part of their records.

    With the notebook's own parameters (`parameters.own`), on any data set, that is the folder ``figures/NOTEBOOK``.
    With others it is ``build/figures/NOTEBOOK/NAME=VALUE,...``, which is printed. ``$SP_FIGURES`` is put in place of
    ``figures`` and ``build/figures``. What the namespace holds later changes nothing, until `begin` is called again.

    Args:
        notebook: its name without a suffix, such as ``01_forgetting``.
        namespace: ``globals()`` of the notebook.

    Raises:
        FileNotFoundError, ValueError: as `parameters.own`. ValueError: a parameter is not in the namespace, or its
            value cannot be written down (see `parameters.plain`).
    """
    global _run
    own = parameters.own(notebook)
    if missing := [name for name in own if name not in namespace]:
        raise ValueError(f"{notebook} has no {', '.join(missing)}: run the cell with its parameters before this one")
    _run = _Run(notebook, {name: parameters.plain(namespace[name], value) for name, value in own.items()}, own)
    if not _run.is_own:
        chosen = ", ".join(f"{name} = {value!r}" for name, value in _run.changed.items())
        print(f"With parameters that are not the notebook's own ({chosen}), figures and tables go to {_run.folder()}.")


def path_of(name: str) -> Path:
    """Path of the files of a figure or table, without a suffix.

    Args:
        name: ``digits_curves`` of the notebook that began (see `begin`), else in ``figures`` itself; or with the folder
            in ``figures`` before it, ``01_forgetting/digits_curves``. A suffix such as ``.pdf`` is dropped.
    """
    name = re.sub(r"\.(pdf|png|svg|csv|json)$", "", name)
    folder, _, file = name.rpartition("/")
    return _run.folder() / file if _run and folder in ("", _run.notebook) else files.folder("figures") / name


def made_by(name: str) -> dict[str, Any]:
    """The command that makes a figure or table, and the parameters where a notebook has begun."""
    if _run is None:
        return {"command": files.made_by(name)}
    if not _run.is_own:
        return {"command": parameters.command(_run.notebook, _run.changed), "parameters": _run.values}
    # What has no data set in its name is the same for all of them, and so is its record.
    dataset = {"dataset": files.dataset_of(name) or _run.own["dataset"]} if "dataset" in _run.own else {}
    command = files.made_by(name if "/" in name else f"{_run.notebook}/{name}")
    return {"command": command, "parameters": {**_run.values, **dataset}}
