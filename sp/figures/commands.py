"""``python -m sp figure`` and ``paper``: figures drawn again from what is stored; nothing trains."""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt

from sp import files
from sp.figures import paper, record, style, tables
from sp.figures.place import path_of


def add_commands(commands) -> None:
    """``figure`` and ``paper``."""
    again = commands.add_parser("figure", help="draw figures again from their CSV, at the size of a journal")
    again.add_argument("names", nargs="+", metavar="NAME", help="in figures/, such as 01_forgetting/digits_curves")
    again.add_argument("--journal", choices=style.JOURNALS, help="whose widths; default: as it was")
    again.add_argument("--width", type=_width, help="column, page, or inches; default: as it was")
    again.add_argument("--only", nargs="+", metavar="METHOD", help="these methods, in this order")
    pairs = {"nargs": "+", "default": [], "type": _pair}
    again.add_argument("--rename", metavar="METHOD=NAME", help="what methods are called", **pairs)
    again.add_argument("--colour", metavar="METHOD=COLOUR", help="colours of methods, such as Adam=#CF5100", **pairs)
    again.add_argument("--format", nargs="+", choices=style.FORMATS, default=["pdf", "png"], dest="formats")
    again.add_argument("--to", type=Path, help="folder; default: in place")
    again.add_argument("--latex", action="store_true", help="also NAME.tex, with the caption")
    again.set_defaults(run=_figure)

    sheets = commands.add_parser("paper", help="five figures and three tables for a paper, from stored results")
    sheets.add_argument("--journal", choices=style.JOURNALS, default="icml", help="whose width (default: icml)")
    sheets.add_argument("--to", type=Path, default=Path("build/paper"), help="folder (default: build/paper)")
    sheets.set_defaults(run=_paper)


def _width(text: str) -> str | float:
    return text if text in style.WIDTHS else float(text)


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise argparse.ArgumentTypeError(f"must be METHOD=..., got {text!r}")
    return name, value


def _figure(chosen: argparse.Namespace) -> None:
    own = {"only": chosen.only, "names": dict(chosen.rename), "colours": dict(chosen.colour)}
    own = {word: value for word, value in own.items() if value} or None
    for name in chosen.names:
        look = {"width": chosen.width, "journal": chosen.journal, "style": own}
        plt.close(record.redraw(name, formats=chosen.formats, to=chosen.to, **look))
        if chosen.latex:
            known, path = record.stored(name)[0], path_of(name)
            text = tables.latex_figure(path.name, known["caption"], (chosen.width or known["width"]) == "page")
            files.write_atomically((chosen.to or path.parent) / f"{path.name}.tex", text)


def _paper(chosen: argparse.Namespace) -> None:
    for path in paper.make(chosen.to, chosen.journal):
        print(path)
