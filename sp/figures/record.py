"""Draw a figure, store it with its table and its record, and redraw it from these two."""

import importlib.metadata
import importlib.util
import io
import json
import platform
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

import sp
from sp import files
from sp.checks import check_choice
from sp.figures import comparing, inside  # noqa: F401  their plots enter PLOTS
from sp.figures.kit import PLOTS
from sp.figures.place import made_by, path_of
from sp.figures.restyle import restyled
from sp.figures.style import FORMATS, figure, looking

Record = dict[str, Any]


def picture(
    kind: str,
    table: pd.DataFrame,
    options: dict,
    width: str | float = "column",
    journal: str = "icml",
    style: dict[str, Any] | None = None,
) -> Figure:
    """Plot a table, without saving the figure.

    Args:
        kind: a name in `sp.figures.PLOTS`. table: the data to draw. options: options of that plot.
        width, journal: as for `sp.figures.figure`.
        style: as for `sp.figures.restyle.restyled`.

    Raises:
        ValueError: an unknown kind, width, journal, method or colour.
    """
    check_choice("kind", kind, PLOTS)
    table, options, looks = restyled(table, options, style or {})
    with looking(looks):
        return PLOTS[kind](partial(figure, width, journal=journal), table, **options)


def draw(
    kind: str,
    name: str,
    data: pd.DataFrame,
    *,
    question: str,
    caption: str,
    width: str | float = "column",
    journal: str = "icml",
    formats: Sequence[str] = ("pdf", "png"),
    keys: Iterable[str] | None = None,
    command: str | None = None,
    about: dict | None = None,
    **options: Any,
) -> Figure:
    """Draw a figure and store it with its table and everything that `redraw` needs.

    The same data and record give the same bytes, since no file holds a date. The provenance of the data (command,
    experiment keys, versions) is in ``NAME.json``, and inside the PDF (subject), the PNG and the SVG (description).

    Args:
        kind: a name in `sp.figures.PLOTS`. name: file name without a suffix, as for `sp.figures.path_of`.
        data: tidy data to draw and to write as CSV. question: the question that the figure answers, for the gallery.
        caption: caption for a paper. The data set, what is drawn (such as a mean and its interval) and the number of
            seeds are appended.
        width, journal: as for `sp.figures.figure`. formats: some of `FORMATS`; PNG at 300 dpi.
        keys: keys of the experiments behind the data; default: those in the column ``key``, if there is one.
        command: command that makes the data; default: the one that runs its notebook with the parameters of this run.
        about: further JSON values on how the data was made.
        options: options of the plot, as JSON values.

    Raises:
        ValueError: an unknown kind, width, journal or format. TypeError: options that are not JSON, or unknown ones.
        OSError: a file cannot be written.
    """
    check_choice("kind", kind, PLOTS)
    shown, counted, dataset = PLOTS[kind].shows, seeds(data), files.dataset_of(name)
    if dataset:
        caption += f" Data: {files.DATASETS[dataset]}."
    if shown and counted:
        caption += f" {shown}, {counted}."
    record = {
        "kind": kind,
        "options": options,
        "question": question,
        "caption": caption,
        "width": width,
        "journal": journal,
        "provenance": {
            **made_by(name),
            **({"command": command} if command else {}),
            "experiments": sorted(set(data.get("key", ()) if keys is None else keys)),
            "versions": versions(),
            **(about or {}),
        },
    }
    record = json.loads(json.dumps(record))  # as it will be read back
    text, path = _csv(data), path_of(name)
    known = _known(path)
    # An unchanged figure keeps the commit that it was made at, so that refreshing changes no file needlessly.
    same = known is not None and known[0] == text and {**known[1], "commit": None} == {**record, "commit": None}
    if same and "commit" in known[1]:
        record = known[1]
    elif at := commit():
        record["commit"] = at
    return _drawn(path, text, record, formats)


def redraw(
    name: str,
    *,
    width: str | float | None = None,
    journal: str | None = None,
    style: dict[str, Any] | None = None,
    formats: Sequence[str] = ("pdf", "png"),
    to: Path | None = None,
) -> Figure:
    """Draw a figure again from its CSV and its record.

    Args:
        name: as for `sp.figures.path_of`.
        width, journal, style: as for `picture`; None keeps the current value. ``{}`` is the house style. The CSV
            has all methods, whatever the style.
        formats: some of `FORMATS`. to: target folder; None: in place.

    Raises:
        FileNotFoundError: there is no such figure; the message names those with a similar name.
    """
    record, table = stored(name)
    chosen = {"width": width, "journal": journal, "style": style}
    record |= {key: value for key, value in chosen.items() if value is not None}
    path = path_of(name)
    return _drawn(to / path.name if to else path, _csv(table), record, formats)


def _drawn(path: Path, table: str, record: Record, formats: Sequence[str]) -> Figure:
    """Draw the contents of a CSV, and write the figure, the CSV and the record."""
    if unknown := set(formats) - set(FORMATS):
        raise ValueError(f"formats must be some of {', '.join(FORMATS)}, got {', '.join(sorted(unknown))}")
    read = _read(table)
    look = (record["width"], record["journal"], record.get("style"))
    fig = picture(record["kind"], read, record["options"], *look)
    about = json.dumps(record["provenance"], sort_keys=True)
    fields = {
        "pdf": {"CreationDate": None, "Producer": None, "Subject": about},
        "png": {"Software": None, "Description": about},
        "svg": {"Date": None, "Creator": None, "Description": about},
    }
    for suffix in sorted(formats, key=FORMATS.index):
        buffer = io.BytesIO()
        fig.savefig(buffer, format=suffix, dpi=300, metadata=fields[suffix])
        files.write_atomically(_file(path, suffix), buffer.getvalue())
    files.write_atomically(_file(path, "csv"), table)
    files.write_atomically(_file(path, "json"), json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return fig


def save_table(table: pd.DataFrame, name: str) -> Path:
    """Write ``NAME.csv`` where `sp.figures.path_of` says, and return its path."""
    path = _file(path_of(name), "csv")
    files.write_atomically(path, _csv(table))
    return path


def stored(name: str) -> tuple[Record, pd.DataFrame]:
    """The record and the table of a figure that `draw` made.

    Raises:
        FileNotFoundError: there is no such figure; the message names those with a similar name.
    """
    path = path_of(name)
    known = _known(path)
    if known is None or "kind" not in known[1]:
        root = path.parents[name.count("/")]
        names = [str(one.relative_to(root)).removesuffix(".json") for one in root.rglob("*.json")]
        similar = get_close_matches(name, names, 3, 0.5)
        hint = f"; similar: {', '.join(similar)}" if similar else ""
        made = files.made_by(name)
        hint += f"; make it with  {made}" if made else ""
        raise FileNotFoundError(f"{root} has no figure {name!r} with a CSV and a JSON{hint}")
    return known[1], _read(known[0])


def seeds(table: pd.DataFrame) -> str:
    """Number of seeds behind a table, as "n = 10" or "n = 5 to 10"; empty if the table does not say.

    The number is read from column ``n``, or counted in column ``seed``, for each method if there is a ``method``.
    """
    if "n" in table:
        counts = set(table.n)
    elif "seed" in table:
        counts = set(table.groupby("method").seed.nunique()) if "method" in table else {table.seed.nunique()}
    else:
        return ""
    ends = sorted({min(counts), max(counts)})
    return "n = " + " to ".join(f"{end:g}" for end in ends)


def versions() -> dict[str, str]:
    """Versions of the software that makes a figure, as far as it is installed."""
    installed = [name for name in ("torch", "numpy", "pandas", "matplotlib") if importlib.util.find_spec(name)]
    packages = {name: importlib.metadata.version(name) for name in installed}
    return {"sp": sp.__version__, **packages, "python": ".".join(platform.python_version_tuple()[:2])}


def commit() -> str | None:
    """The last commit that changed this package, or None if there is none or the package has changed since."""
    git = shutil.which("git")
    if git is None:
        return None

    def ask(*question: str) -> str:
        command = [git, "-C", str(Path(sp.__file__).parent), *question, "--", "."]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    return None if ask("status", "--porcelain") else ask("log", "-1", "--format=%H") or None


def _file(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}.{suffix}")


def _csv(table: pd.DataFrame) -> str:
    return table.to_csv(index=False, float_format="%.6g")


def _read(text: str) -> pd.DataFrame:
    """The table in a CSV; methods may be called 0.1 or None."""
    return pd.read_csv(io.StringIO(text), dtype={"method": str}, keep_default_na=False, na_values=[""])


def _known(path: Path) -> tuple[str, Record] | None:
    """Text of the CSV, and the record; None if either file is missing."""
    table, record = _file(path, "csv"), _file(path, "json")
    if not (table.is_file() and record.is_file()):
        return None
    return table.read_text(), json.loads(record.read_text())
