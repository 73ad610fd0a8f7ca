"""Shared parts of the plots: registry, line styles of the methods, ticks, names and legends."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from sp.figures.style import LETTERS, SMALLEST, STYLE, look
from sp.lab import metrics

# Called with a height in inches and arguments of `Figure.subplots`; returns a figure, or part of one, and its axes.
Canvas = Callable[..., tuple[FigureBase, Any]]
PLOTS: dict[str, Callable[..., Figure]] = {}  # each called as plot(canvas, table, **options)

INTERVAL = "Mean and 95 % bootstrap interval over seeds"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MORE_MARKERS = ("s", "^", "D", "v", "P", "X")  # of lines beyond the number of dashes
LETTER = 3.6  # width of a letter in a label, in points


def plot(shows: str = "") -> Callable:
    """Register a plot; ``shows`` ends its captions if the table says how many seeds there are."""

    def register(function: Callable[..., Figure]) -> Callable[..., Figure]:
        function.shows = shows
        PLOTS[function.__name__] = function
        return function

    return register


def marker_style(method: str, size: float) -> dict[str, Any]:
    """Colour and marker of a method; the marker is open with replay."""
    ink, marker = look(method)
    face = "white" if "replay" in method else ink
    return {"color": ink, "marker": marker, "markersize": size, "markerfacecolor": face, "markeredgewidth": 0.8}


def line_styles(names: Sequence[str], size: float = 3) -> dict[str, dict[str, Any]]:
    """Colour, marker and dashes of each line; variants of a method differ in dashes, those with replay come last.

    Where there are more of them than dashes, the others have another marker.
    """
    order = sorted(names, key=lambda name: "replay" in name)
    looks = [look(name) for name in order]
    dashes = ["-", (0, (4, 1.5)), (0, (1, 1)), (0, (4, 1, 1, 1)), (0, (7, 2))]
    styles = {}
    for i, name in enumerate(order):
        again, dash = divmod(looks[:i].count(looks[i]), len(dashes))
        styles[name] = {**marker_style(name, size), "linestyle": dashes[dash]}
        if again:
            styles[name]["marker"] = MORE_MARKERS[(again - 1) % len(MORE_MARKERS)]
    return styles


def shades(names: Sequence[str], palette: str) -> dict[str, dict[str, Any]]:
    """A colour for each line from a colormap, leaving out its ends."""
    shades = plt.get_cmap(palette)(np.linspace(0, 1, len(names) + 2)[1:-1])
    return {name: {"color": tuple(shade)} for name, shade in zip(names, shades, strict=True)}


def summary(rows: pd.DataFrame, x: str, column: str) -> pd.DataFrame:
    """``x``, ``mean``, ``low`` and ``high``, sorted by ``x``; an interval in the table is used if there is one."""
    rows = rows.dropna(subset=[column]).sort_values(x, kind="stable")
    low, high = ("low", "high") if column == "mean" else (f"{column}_low", f"{column}_high")
    if low in rows:
        return rows.assign(mean=rows[column], low=rows[low], high=rows[high])
    if not rows[x].duplicated().any():
        return rows.assign(mean=rows[column], low=np.nan, high=np.nan)
    return metrics.summarise(rows, [x], column)


def switches(ax: Axes, table: pd.DataFrame, x: str, switch: str, named: bool) -> None:
    """Draw a thin line at the end of each task but the last."""
    ends = table.groupby(switch)[x].max().iloc[:-1]
    for number, end in enumerate(ends, 1):
        ax.axvline(end, color="0.8", linewidth=0.5, zorder=0)
        if named and len(ends) == 1:
            place = (end, 1.02), ("data", "axes fraction")
            ax.annotate(f"task {LETTERS[number]} begins", place[0], xycoords=place[1], ha="center", fontsize=6.5)


def square_grid(canvas: Canvas, count: int, smallest: float) -> tuple[FigureBase, np.ndarray, int]:
    """Figure, axes and row count for square panels: the fewest rows with panels at least ``smallest`` points wide."""
    fig, ax = canvas(2.0)
    width = points(fig)
    ax.remove()
    per_row = max(1, int((width - 60) // (smallest + 8)))
    nrows = -(-count // per_row)
    ncols = -(-count // nrows)
    if isinstance(fig, Figure):
        fig.set_figheight((nrows * ((width - 75) / ncols + 12) + 28) / 72)
    return fig, fig.subplots(nrows, ncols, squeeze=False).ravel(), nrows


def short(value: float, _: int | None = None) -> str:
    """Format a number in few characters, without mathtext's small exponents: 0.01, 50, 20k, 3M, 10⁻⁷."""
    size = abs(value)
    if size and not 1e-4 < size < 1e9:
        exponent = int(np.floor(np.log10(size)))
        digits = "" if round(value / 10.0**exponent, 3) == 1 else f"{value / 10.0**exponent:g}·"
        return f"{digits}10{str(exponent).translate(SUPERSCRIPTS)}"
    for unit, letter in ((1e6, "M"), (1e3, "k")):
        if size >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def log_ticks(axis: Axis) -> None:
    """Label a logarithmic axis with as many ticks as fit; a short range gets more than one per decade."""
    low, high = sorted(axis.get_view_interval())
    decades = np.log10(high / low)
    box = axis.axes.bbox.transformed(axis.axes.figure.dpi_scale_trans.inverted())
    room = int(box.width * 72 // 26 if axis.axis_name == "x" else box.height * 72 // 14)
    subs = next((subs for subs in ((1, 2, 5), (1, 3)) if decades * len(subs) <= min(room, 5)), (1,))
    axis.set_major_locator(LogLocator(subs=subs, numticks=max(room, 2)))
    axis.set_major_formatter(FuncFormatter(short))
    axis.set_minor_locator(NullLocator())


def label_below(fig: FigureBase, axes: np.ndarray, label: str, names: Sequence[str] = ("",)) -> None:
    """Label the horizontal axis of each panel in the last row, leaving space for a column of names."""
    for ax in axes[-1]:
        ax.set_xlabel(wrapped(label, fig, axes.shape[1], names))


def legend_below(fig: FigureBase, axes: np.ndarray) -> None:
    """Legend of the first panel below all panels, in as many columns as fit; rows beyond 3 make the figure taller."""
    handles = axes[0, 0].get_legend_handles_labels()[0]
    letters = [len(handle.get_label()) for handle in handles]
    columns = range(1, min(len(handles), 4) + 1)
    widths = {n: sum(LETTER * max(part) + 26 for part in np.array_split(letters, n)) for n in columns}
    ncols = max((n for n in columns if widths[n] < points(fig)), default=1)
    if isinstance(fig, Figure):
        lines = max(0, -(-len(handles) // ncols) - 3)
        fig.set_figheight(fig.get_figheight() + lines * 1.5 * STYLE["legend.fontsize"] / 72)
    fig.legend(handles=handles, loc="outside lower center", ncols=ncols, columnspacing=1.2)


def name_beside(ax: Axes, places: Mapping[str, tuple[float, float]]) -> None:
    """Names in a column to the right of a panel, as level with their points as space allows, each with a thin line.

    Args:
        ax: axes whose limits and scales are set. places: name -> (x, y) of its point.
    """
    from scipy.optimize import isotonic_regression  # takes a quarter of a second to import

    order = sorted(places, key=lambda name: -places[name][1])
    to_axes = ax.transData + ax.transAxes.inverted()
    heights = to_axes.transform([places[name] for name in order])[:, 1]
    figure = ax.get_figure(root=False)
    steps = 1.2 * SMALLEST / (0.75 * figure.bbox.height / figure.dpi * 72) * np.arange(len(order))
    fitted = isotonic_regression(heights + steps, increasing=False).x.clip(steps[-1], None) - steps
    for name, height in zip(order, fitted, strict=True):
        ink = look(name)[0]
        line = {"arrowstyle": "-", "color": ink, "linewidth": 0.4, "relpos": (0, 0.5), "shrinkA": 0, "shrinkB": 2}
        place = {"xytext": (1.05, height), "textcoords": "axes fraction", "va": "center", "fontsize": SMALLEST}
        ax.annotate(name, places[name], color=ink, arrowprops=line, annotation_clip=False, **place)


def points(fig: FigureBase) -> float:
    """Width of a figure or subfigure in points."""
    return fig.bbox.width / fig.dpi * 72


def folded(name: str, fig: FigureBase) -> str:
    """Break the name of a row into lines that take less than half of a figure's width."""
    return textwrap.fill(name, int(0.45 * points(fig) / LETTER), break_on_hyphens=False)


def wrapped(title: str, fig: FigureBase, panels: int, names: Sequence[str] = ("",)) -> str:
    """Wrap a title to its share of the width, beside a column of names."""
    letters = (points(fig) / 4.4 - max(map(len, names))) / panels
    whole = {"break_on_hyphens": False, "break_long_words": False}
    return "\n".join(textwrap.wrap(title, max(10, int(letters)), **whole))
