"""Make figures and tables for a paper from what is stored in figures/. Nothing is trained.

Without a NAME: five multi-panel figures and three tables. With NAMEs in figures/, such as
01_forgetting/mnist_curves: only these figures, each with its LaTeX caption, in a style you choose.
"""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from sp import figures, files
from sp.figures import paper, tables


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: which figures, and how they look."""
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="default: the five figures and three tables")
    add("--journal", choices=figures.JOURNALS, help="journal whose width to use (default: icml; for a NAME, unchanged)")
    add("--width", type=_width, help="for a NAME: column, page, or inches; default: unchanged")
    add("--format", nargs="+", choices=figures.FORMATS, dest="formats", help="for a NAME (default: pdf)")
    add("--only", nargs="+", metavar="METHOD", help="for a NAME: only these methods, in this order")
    pairs = {"nargs": "+", "default": [], "type": _pair}
    add("--rename", metavar="METHOD=TEXT", help="for a NAME: new names of methods", **pairs)
    add("--colour", metavar="METHOD=COLOUR", help="for a NAME: colours of methods, such as Adam=#CF5100", **pairs)
    add("--to", type=Path, default=Path("build/paper"), help="target folder (default: build/paper)")


def run(chosen: argparse.Namespace) -> None:
    """Write the figures and tables, and print their paths."""
    style = {"only": chosen.only, "names": dict(chosen.rename), "colours": dict(chosen.colour)}
    style = {word: value for word, value in style.items() if value} or None
    if not chosen.names:
        if chosen.width or chosen.formats or style:
            raise ValueError(
                "--width, --format, --only, --rename and --colour need a NAME: the multi-panel figures are "
                "always PDFs of page width"
            )
        print(*paper.make(chosen.to, chosen.journal or "icml"), sep="\n")
    files_of = [figures.path_of(name).name for name in chosen.names]
    if again := next((file for file in files_of if files_of.count(file) > 1), None):
        raise ValueError(f"the NAMEs must end in different names, got {again!r} twice: give each a folder, with --to")
    for name in chosen.names:
        look = {"width": chosen.width, "journal": chosen.journal, "style": style}
        plt.close(figures.redraw(name, to=chosen.to, formats=chosen.formats or ["pdf"], **look))
        record, file = figures.stored(name)[0], figures.path_of(name).name
        wide = (chosen.width or record["width"]) == "page"
        files.write_atomically(chosen.to / f"{file}.tex", tables.latex_figure(file, record["caption"], wide))
        print(chosen.to / f"{file}.tex")


def _width(text: str) -> str | float:
    try:
        return text if text in figures.WIDTHS else float(text)
    except ValueError:
        known = ", ".join(figures.WIDTHS)
        raise argparse.ArgumentTypeError(f"must be {known} or a number of inches, got {text!r}") from None


def _pair(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not (name and value):
        raise argparse.ArgumentTypeError(f"must be METHOD=..., got {text!r}")
    return name, value
