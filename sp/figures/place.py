"""Where the figures and tables of a notebook go, and the command that makes them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp import files
from sp.figures import parameters


@dataclass(frozen=True)
class _Run:
    """A run of a notebook: the parameters in use, and the notebook's own."""

    notebook: str
    values: dict[str, Any]
    own: dict[str, Any]

    @property
    def changed(self) -> dict[str, Any]:
        return parameters.changed(self.values, self.own)

    @property
    def is_own(self) -> bool:
        # Figure names already distinguish the known data sets.
        return set(self.changed) <= {"dataset"} and self.values.get("dataset") in (None, *files.DATASETS)

    def folder(self) -> Path:
        if self.is_own:
            return files.folder("figures") / self.notebook
        root, name = files.other_figures(), parameters.run_name(self.changed)
        return root if root.name == name else root / self.notebook / name  # a grid names each copy's folder itself


_run: _Run | None = None  # the notebook that called `begin` last


def begin(notebook: str, namespace: Mapping[str, Any]) -> None:
    """Read a notebook's parameters, which decide where its figures and tables go and are part of their records.

    With the notebook's own parameters (`parameters.own`), on any data set, the folder is ``figures/NOTEBOOK``.
    With others it is ``build/figures/NOTEBOOK/NAME=VALUE,...``, and this is printed. ``$SP_FIGURES`` replaces
    ``figures`` and ``build/figures``. Later changes to the namespace have no effect until `begin` is called again.

    Args:
        notebook: name without a suffix, such as ``01_forgetting``.
        namespace: ``globals()`` of the notebook.

    Raises:
        FileNotFoundError, ValueError: as for `parameters.own`. ValueError: a parameter is not in the namespace, or
            its value cannot be written as JSON (see `parameters.plain`).
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
        name: such as ``digits_curves``, in the current notebook's folder (see `begin`) or, without one, in ``figures``;
            or with its folder in ``figures``: ``01_forgetting/digits_curves``. A suffix such as ``.pdf`` is dropped.

    Raises:
        ValueError: the name leads out of that folder.
    """
    name = re.sub(r"\.(pdf|png|svg|csv|json)$", "", name)
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise ValueError(f"the name of a figure must lie in the folder of figures, got {name!r}: set SP_FIGURES")
    folder, _, file = name.rpartition("/")
    return _run.folder() / file if _run and folder in ("", _run.notebook) else files.folder("figures") / name


def made_by(name: str) -> dict[str, Any]:
    """The command that makes a figure or table, and the parameters if a notebook has called `begin`."""
    if _run is None:
        return {"command": files.made_by(name)}
    if not _run.is_own:
        return {"command": parameters.command(_run.notebook, _run.changed), "parameters": _run.values}
    # A figure without a data set in its name is the same for all data sets, and so is its record.
    dataset = {"dataset": files.dataset_of(name) or _run.own["dataset"]} if "dataset" in _run.own else {}
    command = files.made_by(name if "/" in name else f"{_run.notebook}/{name}")
    return {"command": command, "parameters": {**_run.values, **dataset}}
