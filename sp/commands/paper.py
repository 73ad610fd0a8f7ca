"""Figures and tables for a paper, from what is stored in figures/: nothing trains.

Without a NAME, five figures of several panels and three tables. With NAMEs of files in figures/, without a suffix,
these figures alone, each with its caption in NAME.tex; or with --table a LaTeX table (booktabs) of each CSV.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from sp import figures, files, paper, report
from sp.checks import check_choice

INTERVALS = ("arm", "metric", "mean", "low", "high", "n")  # columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which, and how they look."""
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="default: the five figures and three tables")
    add("--journal", choices=figures.JOURNALS, help="whose width (default: icml, with a NAME as it was)")
    add("--width", choices=figures.WIDTHS, help="of a figure, a column or the page; default: as it was")
    add("--format", nargs="+", choices=figures.FORMATS, default=["pdf"], dest="formats", help="(default: pdf)")
    add("--table", action="store_true", help="LaTeX tables in place of figures: of arm, metric, mean, low, high, n")
    add("--metric", metavar="NAME", help="of a table that has streams: which metric of each")
    add("--caption", default="", help="of a table, before the intervals are explained")
    add("--to", type=Path, default=Path("build/paper"), help="folder (default: build/paper)")


def run(chosen: argparse.Namespace) -> None:
    """Write them, and print their paths."""
    if chosen.names:
        make = _table if chosen.table else _figure
        written = [make(name, chosen) for name in chosen.names]
    else:
        written = paper.make(chosen.to, chosen.journal or "icml")
    print(*written, sep="\n")


def _figure(name: str, chosen: argparse.Namespace) -> Path:
    options = {"width": chosen.width, "journal": chosen.journal, "formats": chosen.formats}
    plt.close(figures.redraw(name, to=chosen.to, **options))
    record, _ = figures.stored(name)
    wide = (chosen.width or record["width"]) == "page"
    return _write(name, report.latex_figure(name, record["caption"], wide), chosen)


def _table(name: str, chosen: argparse.Namespace) -> Path:
    table = pd.read_csv(files.existing(files.folder("figures") / f"{name}.csv"))
    if missing := [column for column in INTERVALS if column not in table]:
        raise ValueError(f"{name}.csv is not a table of intervals: it has no column {missing[0]!r}")
    if "stream" in table:
        check_choice("--metric", chosen.metric, table.metric.unique())
        table = report.across_streams(table, chosen.metric)
    elif chosen.metric:
        raise ValueError(f"{name} has one stream and all its metrics in one table: leave --metric out")
    caption = f"{chosen.caption} {report.INTERVALS}".strip()
    return _write(name, report.latex_table(report.wide(table), caption, name), chosen)


def _write(name: str, text: str, chosen: argparse.Namespace) -> Path:
    files.write_atomically(chosen.to / f"{name}.tex", text)
    return chosen.to / f"{name}.tex"
