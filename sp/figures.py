"""How every figure looks, and the one way it leaves a notebook.

A figure is a kind of plot (`sp.plots`), its options, and one CSV. `draw` writes these three, draws from what it has
written, and `redraw` draws again from them alone: ``python -m sp figure NAME``.
"""

import importlib.metadata
import io
import json
import platform
import shutil
import string
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

import sp
from sp import files, parameters
from sp.checks import check_choice

LETTERS = string.ascii_uppercase  # names of tasks
JOURNALS = {  # inches: a column, and the full width of the text
    "icml": {"column": 3.25, "page": 6.75},
    "neurips": {"column": 5.5, "page": 5.5},  # one column, as wide as the text
    "nature": {"column": 89 / 25.4, "page": 183 / 25.4},
    "elsevier": {"column": 90 / 25.4, "page": 190 / 25.4},
}
WIDTHS = ("column", "page")
FORMATS = ("pdf", "png", "svg")
DATASETS = {"digits": "digits", "mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
SMALLEST = 6  # points: what is smaller cannot be read in print

_GREY, _SKY, _WINE, _INDIGO = "#9E9E9E", "#38C2FF", "#6C1542", "#1D0685"
# Colour and marker of each method, the same in every figure. A family shares a colour and differs in markers. The
# colours are Okabe and Ito's and Tol's, moved until colour-blind readers see any two of them further apart.
METHODS = {
    "SGD": (_GREY, "o"),
    "SGD with momentum": (_GREY, "s"),
    "Adagrad": (_GREY, "^"),
    "Stable SGD": (_GREY, "v"),
    "UPGD": (_GREY, "D"),
    "Adam": ("#F6950A", "s"),
    "AdamW": ("#F6950A", "P"),
    "Selective plasticity": ("#0A5BAB", "^"),
    "Consolidation": ("#12975A", "v"),
    "Coincidence": ("#CF5100", "D"),
    "Ridge": ("#B571B1", "P"),
    "L2": (_SKY, "o"),
    "L2-init": (_SKY, "X"),
    "EWC": (_SKY, "s"),
    "Online EWC": (_SKY, "^"),
    "SI": (_SKY, "v"),
    "MAS": (_SKY, "D"),
    "LwF": (_SKY, "P"),
    "OWM": (_WINE, "o"),
    "GPM": (_WINE, "s"),
    "NCL": (_WINE, "^"),
    "A-GEM": (_INDIGO, "o"),
    "DER++": (_INDIGO, "s"),
    "ER-ACE": (_INDIGO, "^"),
    "Joint training": ("#000000", "*"),
    "Chance": ("#000000", "X"),
    "Decaying trace": ("#0A5BAB", "^"),
    "Accumulating trace": ("#12975A", "v"),
}
OTHER = ("#4D4D4D", "h")  # of a method that has none

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that every machine has it
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "figure.dpi": 150,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # TrueType: submission systems refuse Type 3
    "svg.fonttype": "path",
    "svg.hashsalt": "sp",
}

Record = dict[str, Any]


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
        return set(self.changed) <= {"dataset"} and self.values.get("dataset") in (None, *DATASETS)

    def folder(self) -> Path:
        if self.is_own:
            return files.folder("figures")
        root, name = files.other_figures(), parameters.run_name(self.changed)
        return root if root.name == name else root / self.notebook / name  # a grid names each copy's folder itself

    def provenance(self, name: str) -> dict[str, Any]:
        if not self.is_own:
            return {"command": parameters.command(self.notebook, self.changed), "parameters": self.values}
        if "dataset" not in self.own:
            return {"command": files.made_by(name), "parameters": self.values}
        # What has no data set in its name is the same for all of them, and so is its record.
        dataset = files.made_from(name)[1] or self.own["dataset"]
        return {"command": files.made_by(name), "parameters": {**self.values, "dataset": dataset}}


_runs: dict[str, _Run] = {}  # of the notebooks that began in this process, the last one at the end


def begin(notebook: str, namespace: Mapping[str, Any]) -> None:
    """Take a notebook's parameters, which decide where its figures and tables go and are part of their records.

    With the notebook's own parameters (`sp.parameters.own`), on any data set, that is the folder ``figures``. With
    others it is ``build/figures/NOTEBOOK/NAME=VALUE,...``, which is printed. ``$SP_FIGURES`` is put in place of
    ``figures`` and ``build/figures``. What the namespace holds later changes nothing, until `begin` is called again.

    Args:
        notebook: its name without a suffix, such as ``01_forgetting``. Figures whose names start with it are its own;
            others are of the notebook that began last.
        namespace: ``globals()`` of the notebook.

    Raises:
        FileNotFoundError, ValueError: as `sp.parameters.own`. ValueError: a parameter is not in the namespace, or its
            value cannot be written down (see `sp.parameters.plain`).
    """
    own = parameters.own(notebook)
    if missing := [name for name in own if name not in namespace]:
        raise ValueError(f"{notebook} has no {', '.join(missing)}: run the cell with its parameters before this one")
    run = _Run(notebook, {name: parameters.plain(namespace[name], value) for name, value in own.items()}, own)
    _runs.pop(notebook, None)
    _runs[notebook] = run
    if not run.is_own:
        chosen = ", ".join(f"{name} = {value!r}" for name, value in run.changed.items())
        print(f"With parameters that are not the notebook's own ({chosen}), figures and tables go to {run.folder()}.")


def folder_of(name: str) -> Path:
    """The folder of a figure or table, by its name: that of the run of its notebook (see `begin`), if there is one."""
    run = _run_of(name)
    return run.folder() if run else files.folder("figures")


def _run_of(name: str) -> _Run | None:
    notebook, _ = files.made_from(name)
    return _runs.get(notebook) or next(reversed(_runs.values()), None)


def figure(width: str = "column", height: float = 2.1, journal: str = "icml", **subplots) -> tuple[Figure, Any]:
    """An empty figure in the house style, at the size it will have in print.

    Args:
        width: ``"column"`` or ``"page"``, as wide as `JOURNALS` says.
        height: in inches.
        journal: a name in `JOURNALS`.
        subplots: for `matplotlib.pyplot.subplots`, e.g. ``ncols=2``.

    Returns:
        The figure and its axes, as `matplotlib.pyplot.subplots` gives them.

    Raises:
        ValueError: an unknown width or journal.
    """
    for name, value, known in (("width", width, WIDTHS), ("journal", journal, JOURNALS)):
        check_choice(name, value, known)
    plt.style.use(["default", STYLE])  # from the default, so that nobody's own settings change a byte
    size = (JOURNALS[journal][width], height)
    if threading.current_thread() is threading.main_thread():
        return plt.subplots(figsize=size, **subplots)
    fig = Figure(figsize=size)  # pyplot, and what a notebook shows at the end of a cell, belong to the main thread
    return fig, fig.subplots(**subplots)


def look(arm: str) -> tuple[str, str]:
    """Colour and marker of a method; variants ("Adam + replay", "Adam, wide") share them; of an unknown one `OTHER`."""
    return next((METHODS[name] for name in sorted(METHODS, key=len, reverse=True) if arm.startswith(name)), OTHER)


def colour(arm: str) -> str:
    """The colour of a method, as `look` gives it."""
    return look(arm)[0]


def picture(kind: str, table: pd.DataFrame, options: dict, width: str = "column", journal: str = "icml") -> Figure:
    """A plot of a table, which is not saved.

    Args:
        kind: a name in `sp.plots.PLOTS`. table: what it is drawn from. options: of that plot.
        width, journal: as for `figure`.

    Raises:
        ValueError: an unknown kind, width or journal.
    """
    return _plot(kind)(partial(figure, width, journal=journal), table, **options)


def draw(
    kind: str,
    name: str,
    data: pd.DataFrame,
    *,
    question: str,
    caption: str,
    width: str = "column",
    journal: str = "icml",
    formats: Sequence[str] = ("pdf", "png"),
    keys: Iterable[str] | None = None,
    command: str | None = None,
    about: dict | None = None,
    **options: Any,
) -> Figure:
    """Draw a figure and `save` it with all that `redraw` needs.

    Args:
        kind: a name in `sp.plots.PLOTS`.
        name: of the files, without a suffix.
        data: tidy; what the figure is drawn from, and its CSV.
        question: what the figure answers, for the gallery.
        caption: for a paper. The data set, what is drawn (such as a mean and its interval) and the number of seeds are
            put after it.
        width, journal: as for `figure`. formats: some of `FORMATS`.
        keys: of the experiments behind the data; default: those in the column ``key``, where there is one.
        command: what makes the data; default: the one that runs its notebook with the parameters of this run.
        about: more JSON values on how it was made.
        options: JSON values, for the plot.

    Returns:
        The figure, as it was saved.

    Raises:
        ValueError: an unknown kind, width, journal or format. TypeError: options that are not JSON, or not the plot's.
    """
    shown = _plot(kind).shows
    counted, (_, dataset) = seeds(data), files.made_from(name)
    run = _run_of(name)
    made = run.provenance(name) if run else {"command": files.made_by(name)}
    endings = [
        caption,
        f"Data: {DATASETS[dataset]}." if dataset else "",
        f"{shown}, {counted}." if shown and counted else "",
    ]
    record = {
        "kind": kind,
        "options": options,
        "question": question,
        "caption": " ".join(filter(None, endings)),
        "width": width,
        "journal": journal,
        "provenance": {
            **made,
            **({"command": command} if command else {}),
            "experiments": sorted(set(data.get("key", ()) if keys is None else keys)),
            "versions": versions(),
            **(about or {}),
        },
    }
    record = json.loads(json.dumps(record))  # as it will be read
    text = _csv(data)
    folder = folder_of(name)
    known = _known(folder, name)
    # What is the same as before keeps the commit that it was made at: refreshing changes no file for nothing.
    same = known is not None and known[0] == text and {**known[1], "commit": None} == {**record, "commit": None}
    if same and "commit" in known[1]:
        record = known[1]
    elif at := commit():
        record["commit"] = at
    table = pd.read_csv(io.StringIO(text))
    fig = picture(kind, table, record["options"], width, journal)
    save(fig, name, table, record, formats, folder)
    return fig


def redraw(
    name: str,
    *,
    width: str | None = None,
    journal: str | None = None,
    formats: Sequence[str] = ("pdf", "png"),
    to: Path | None = None,
) -> Figure:
    """Draw a figure again from its CSV and its record.

    Args:
        name: of the files, without a suffix. width, journal: as for `figure`; None: as it was.
        formats: some of `FORMATS`. to: folder; None: `folder_of` it.

    Raises:
        FileNotFoundError: there is no such figure; the message names those with a similar name.
    """
    record, table = stored(name)
    record |= {key: value for key, value in (("width", width), ("journal", journal)) if value is not None}
    fig = picture(record["kind"], table, record["options"], record["width"], record["journal"])
    save(fig, name, table, record, formats, to)
    return fig


def save(
    fig: Figure,
    name: str,
    data: pd.DataFrame,
    record: Record | None = None,
    formats: Sequence[str] = ("pdf", "png"),
    folder: Path | None = None,
) -> Path:
    """Write a figure, ``name.csv`` that it was drawn from, and ``name.json`` with its record.

    The same data and record give the same bytes: no file holds a date. The record's ``provenance`` (command, keys of
    the experiments, versions) is also inside the PDF (subject), the PNG and the SVG (description). The commit is in
    ``name.json`` only, where it cannot make figures differ that show the same.

    Args:
        fig: the figure. name: of the files, without a suffix. data: what it was drawn from.
        record: as `draw` makes it; None: the provenance is the versions alone.
        formats: some of `FORMATS`; PNG at 300 dpi. folder: default: `folder_of` it.

    Returns:
        Path of the files, without a suffix.

    Raises:
        ValueError: an unknown format. OSError: a file cannot be written.
    """
    if unknown := set(formats) - set(FORMATS):
        raise ValueError(f"formats must be some of {', '.join(FORMATS)}, got {', '.join(sorted(unknown))}")
    folder = folder or folder_of(name)
    record = record or {"provenance": {"versions": versions()}}
    text = json.dumps(record["provenance"], sort_keys=True)
    fields = {
        "pdf": {"CreationDate": None, "Producer": None, "Subject": text},
        "png": {"Software": None, "Description": text},
        "svg": {"Date": None, "Creator": None, "Description": text},
    }
    for suffix in sorted(formats, key=FORMATS.index):
        buffer = io.BytesIO()
        fig.savefig(buffer, format=suffix, dpi=300, metadata=fields[suffix])
        files.write_atomically(folder / f"{name}.{suffix}", buffer.getvalue())
    save_table(data, name, folder)
    files.write_atomically(folder / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return folder / name


def save_table(table: pd.DataFrame, name: str, folder: Path | None = None) -> Path:
    """Write ``name.csv`` into a folder, by default `folder_of` it, and return its path."""
    path = (folder or folder_of(name)) / f"{name}.csv"
    files.write_atomically(path, _csv(table))
    return path


def stored(name: str) -> tuple[Record, pd.DataFrame]:
    """The record and the table of a figure that `draw` made.

    Raises:
        FileNotFoundError: there is none; the message names those with a similar name, and what makes this one.
    """
    folder = folder_of(name)
    known = _known(folder, name)
    if known is None or "kind" not in known[1]:
        similar = get_close_matches(name, [path.stem for path in folder.glob("*.json")], 3, 0.5)
        hint = f"; similar: {', '.join(similar)}" if similar else ""
        made = files.made_by(name)
        raise FileNotFoundError(
            f"{folder} has no figure {name!r} with a CSV and a JSON{hint}" + (f"; make it with  {made}" if made else "")
        )
    return known[1], pd.read_csv(io.StringIO(known[0]))


def seeds(table: pd.DataFrame) -> str:
    """How many seeds a table was made of, as "n = 10" or "n = 5 to 10"; empty where it does not say.

    They are in its column ``n``, or are counted in its column ``seed``, arm by arm where there is an ``arm``.
    """
    if "n" in table:
        counts = set(table.n)
    elif "seed" in table:
        counts = set(table.groupby("arm").seed.nunique()) if "arm" in table else {table.seed.nunique()}
    else:
        return ""
    ends = sorted({min(counts), max(counts)})
    return "n = " + " to ".join(f"{end:g}" for end in ends)


def versions() -> dict[str, str]:
    """Of the software that makes a figure."""
    packages = {name: importlib.metadata.version(name) for name in ("torch", "numpy", "pandas", "matplotlib")}
    return {"sp": sp.__version__, **packages, "python": ".".join(platform.python_version_tuple()[:2])}


def commit() -> str | None:
    """The last commit that changed this package, where there is one and nothing was changed since."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*question: str) -> str:
        command = [git, "-C", str(Path(__file__).parent), *question, "--", "."]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return None if ask("status", "--porcelain") else ask("log", "-1", "--format=%H") or None


def _plot(kind: str) -> Callable[..., Figure]:
    from sp.plots import PLOTS  # they are made with the look above

    check_choice("kind", kind, PLOTS)
    return PLOTS[kind]


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.6g")


def _known(folder: Path, name: str) -> tuple[str, Record] | None:
    """Text of the CSV, and the record."""
    table, record = folder / f"{name}.csv", folder / f"{name}.json"
    if not (table.is_file() and record.is_file()):
        return None
    return table.read_text(), json.loads(record.read_text())
