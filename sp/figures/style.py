"""The look of every figure: print sizes, fonts, and the colours and markers of the methods."""

import string
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from sp.checks import check_choice

LETTERS = string.ascii_uppercase  # names of tasks
JOURNALS = {  # inches: width of a column, and of the full text
    "icml": {"column": 3.25, "page": 6.75},
    "neurips": {"column": 5.5, "page": 5.5},  # one column, as wide as the text
    "nature": {"column": 89 / 25.4, "page": 183 / 25.4},
    "elsevier": {"column": 90 / 25.4, "page": 190 / 25.4},
}
WIDTHS = ("column", "page")
FORMATS = ("pdf", "png", "svg")
SMALLEST = 6  # points; smaller text is unreadable in print

_GREY, _SKY, _WINE, _INDIGO = "#9E9E9E", "#38C2FF", "#6C1542", "#1D0685"
# Colour and marker of each method, the same in every figure. A family shares a colour and differs in markers. The
# colours are Okabe and Ito's and Tol's, adjusted so that any two are further apart for colour-blind readers.
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
    "SLDA": ("#B571B1", "s"),
    "RanPAC": ("#B571B1", "^"),
    "L2": (_SKY, "o"),
    "L2-init": (_SKY, "X"),
    "EWC": (_SKY, "s"),
    "Online EWC": (_SKY, "^"),
    "SI": (_SKY, "v"),
    "MAS": (_SKY, "D"),
    "LwF": (_SKY, "P"),
    "OWM": (_WINE, "o"),
    "Online OWM": (_WINE, "D"),
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
OTHER = ("#4D4D4D", "h")  # for any other method
Looks = dict[str, tuple[str, str]]
_own: ContextVar[Looks] = ContextVar("own", default={})  # noqa: B039  never changed in place

STYLE = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so every machine has it
    "font.size": 7,
    "axes.labelsize": 7,
    "axes.titlesize": 7,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "legend.fontsize": 6.5,
    "legend.title_fontsize": 6.5,
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


def figure(width: str | float = "column", height: float = 2.1, journal: str = "icml", **subplots) -> tuple[Figure, Any]:
    """An empty figure in the house style, at its size in print.

    Args:
        width: ``"column"`` or ``"page"``, as defined in `JOURNALS`; or a width in inches, 1 to 20.
        height: in inches.
        journal: a name in `JOURNALS`.
        subplots: passed to `matplotlib.pyplot.subplots`, e.g. ``ncols=2``.

    Returns:
        The figure and its axes, as `matplotlib.pyplot.subplots` returns them.

    Raises:
        ValueError: an unknown width or journal.
    """
    check_choice("journal", journal, JOURNALS)
    if isinstance(width, str):
        check_choice("width", width, WIDTHS)
        width = JOURNALS[journal][width]
    elif not 1 <= width <= 20:
        raise ValueError(f"width must be 'column', 'page', or 1 to 20 inches, got {width!r}")
    plt.style.use(["default", STYLE])  # from the default, so that user settings do not change a byte
    size = (width, height)
    if threading.current_thread() is threading.main_thread():
        return plt.subplots(figsize=size, **subplots)
    fig = Figure(figsize=size)  # pyplot, and figures shown at the end of a cell, belong to the main thread
    return fig, fig.subplots(**subplots)


def look(method: str) -> tuple[str, str]:
    """Colour and marker of a method; variants ("Adam + replay", "Adam, wide") share them; unknown ones get `OTHER`."""
    if method in _own.get():
        return _own.get()[method]
    return next((METHODS[name] for name in sorted(METHODS, key=len, reverse=True) if method.startswith(name)), OTHER)


@contextmanager
def looking(own: Looks) -> Iterator[None]:
    """Temporarily give these methods these colours and markers."""
    token = _own.set(own)
    try:
        yield
    finally:
        _own.reset(token)
