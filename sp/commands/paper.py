"""Figures and tables for a paper, from what is stored in figures/: nothing trains.

Without a NAME, five figures of several panels and three tables. With NAMEs of files in figures/, without a suffix,
these figures alone, each with its caption in NAME.tex.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from sp import figures, files, paper, report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which, and how they look."""
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="default: the five figures and three tables")
    add("--journal", choices=figures.JOURNALS, help="whose width (default: icml; of a NAME, as it was)")
    add("--width", choices=figures.WIDTHS, help="of a NAME: a column or the page; default: as it was")
    add("--format", nargs="+", choices=figures.FORMATS, dest="formats", help="of a NAME (default: pdf)")
    add("--to", type=Path, default=Path("build/paper"), help="folder (default: build/paper)")


def run(chosen: argparse.Namespace) -> None:
    """Write them, and print their paths."""
    if not chosen.names:
        if chosen.width or chosen.formats:
            raise ValueError("--width and --format are of a NAME: the figures of several panels are PDF, of a page")
        print(*paper.make(chosen.to, chosen.journal or "icml"), sep="\n")
    for name in chosen.names:
        options = {"width": chosen.width, "journal": chosen.journal, "formats": chosen.formats or ["pdf"]}
        plt.close(figures.redraw(name, to=chosen.to, **options))
        record, _ = figures.stored(name)
        wide = (chosen.width or record["width"]) == "page"
        text = report.latex_figure(name, record["caption"], wide)
        files.write_atomically(chosen.to / f"{name}.tex", text)
        print(chosen.to / f"{name}.tex")
