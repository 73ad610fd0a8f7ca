"""Plots that compare methods side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator

from sp.figures.kit import (
    INTERVAL,
    LETTER,
    Canvas,
    folded,
    label_below,
    legend_below,
    line_styles,
    log_ticks,
    marker_style,
    name_beside,
    plot,
    points,
    shades,
    short,
    square_grid,
    summary,
    switches,
    wrapped,
)
from sp.figures.style import SMALLEST, STYLE, look
from sp.lab import metrics

PALE = "0.72"  # grey of methods that are shown for comparison only
NARROWEST = 0.1  # accuracy axes span at least this much, so that small differences do not look large


@plot(INTERVAL)
def interval_plot(
    canvas: Canvas,
    table: pd.DataFrame,
    panels: dict[str, str],
    label: str,
    panel: str = "metric",
    metric: str | None = None,
) -> Figure:
    """Dots with intervals, one row per method and one panel per metric or stream; open dots mark replay.

    Args:
        table: ``method``, ``metric``, ``mean``, ``low``, ``high`` and the column named by ``panel``; at most one row
            per method and panel.
        panels: value in that column -> panel title, in order. label: axis label of each panel.
        panel: column that distinguishes the panels. metric: the metric to draw; None: all.
    """
    if metric is not None:
        table = table[table.metric == metric]
    table = table[table[panel].isin(list(panels))]
    methods = list(dict.fromkeys(table.method))
    fig, axes = canvas(0.6 + 0.17 * len(methods), ncols=len(panels), sharey=True, squeeze=False)
    names = [folded(method, fig) for method in methods]
    lines = [line for name in names for line in name.splitlines()]
    for ax, (value, title) in zip(axes[0], panels.items(), strict=True):
        rows = table[table[panel] == value]
        for row in rows.to_dict("records"):
            _dot(ax, row, methods.index(row["method"]), **marker_style(row["method"], 4))
        ax.set_title(wrapped(title, fig, len(panels), lines))
        ax.set(yticks=range(len(methods)), yticklabels=names, ylim=(len(methods) - 0.5, -0.5))
        _accuracy_axis(ax, rows)
    label_below(fig, axes, label, lines)
    if isinstance(fig, Figure):
        above = max(ax.get_title().count("\n") for ax in axes[0]) + axes[0, 0].get_xlabel().count("\n")
        most = max(name.count("\n") for name in names)
        # A second line of titles fits into the height that is usual; more would leave no room for the dots.
        fig.set_figheight(fig.get_figheight() + 0.12 * max(0, above - 1) + 0.09 * most * len(names))
    return fig


@plot(INTERVAL)
def ranking(
    canvas: Canvas,
    table: pd.DataFrame,
    panels: dict[str, str],
    label: str,
    coloured: Sequence[str],
) -> Figure:
    """Methods ranked from best to worst in each panel, named at their dots; a few in colour, the rest in grey.

    Args:
        table: ``stream``, ``method``, ``mean``, ``low``, ``high``; one row per method and stream.
        panels: stream -> panel title, in order. label: axis label of each panel.
        coloured: the methods shown in colour, along with their variants.
    """
    most = table[table.stream.isin(list(panels))].stream.value_counts().max()
    fig, axes = canvas(0.6 + 0.115 * most, ncols=len(panels), squeeze=False)
    for ax, (value, title) in zip(axes[0], panels.items(), strict=True):
        rows = table[table.stream == value].sort_values("mean", ascending=False)
        low, high = _accuracy_axis(ax, rows)
        for place, row in enumerate(rows.to_dict("records")):
            style = _pale_or_coloured(row["method"], coloured, 3.2)
            _dot(ax, row, place, **style)
            left = row["mean"] > (low + high) / 2
            ends = {"xytext": (-5, 0), "ha": "right"} if left else {"xytext": (5, 0), "ha": "left"}
            ink = "0.4" if style["color"] == PALE else style["color"]
            at = (row["low"] if left else row["high"], place)
            ax.annotate(
                row["method"], at, textcoords="offset points", va="center", color=ink, fontsize=SMALLEST, **ends
            )
        ax.set(title=title, yticks=[], ylim=(most - 0.5, -0.5))
        ax.spines["left"].set_visible(False)
    label_below(fig, axes, label)
    return fig


def _pale_or_coloured(method: str, coloured: Sequence[str], size: float) -> dict[str, Any]:
    """Marker style of a method if only some methods, with their variants, are in colour."""
    style = marker_style(method, size)
    if method.partition(" + ")[0] in coloured:
        return style
    return style | {"color": PALE, "markerfacecolor": "white" if "replay" in method else PALE}


def _dot(ax: Axes, row: dict, place: float, **style) -> None:
    """A mean and its interval."""
    ax.plot([row["low"], row["high"]], [place] * 2, color=style["color"], linewidth=1.4, solid_capstyle="butt")
    ax.plot(row["mean"], place, linestyle="", clip_on=False, **style)


def _accuracy_axis(ax: Axes, rows: pd.DataFrame) -> tuple[float, float]:
    """Fit the horizontal axis to its intervals, at least `NARROWEST` wide; return its ends."""
    # A single seed has a mean but no interval, and a run that diverged may have neither.
    low, high = rows[["low", "mean"]].min(axis=None), rows[["high", "mean"]].max(axis=None)
    low, high = (0.0, 1.0) if np.isnan(low) else (low, high)
    missing = max(0, NARROWEST - (high - low)) / 2
    margin = 0.06 * (high - low + 2 * missing)
    ends = low - missing - margin, high + missing + margin
    ax.set_xlim(*ends)
    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(short))
    ax.grid(axis="x", linewidth=0.4, color="0.88")
    ax.tick_params(axis="y", length=0)
    return ends


@plot("Mean over seeds")
def heat_maps(
    canvas: Canvas,
    table: pd.DataFrame,
    panels: dict[str, str],
    value: str,
    labels: Sequence[str],
    panel: str = "method",
    smallest: float | None = None,
) -> Figure:
    """Matrices side by side on one scale, up to 1; small ones also show their values.

    Args:
        table: ``after`` (row, from 1), ``on`` (column, from 1), and the columns named by ``value`` and ``panel``.
            Repeated entries are averaged; entries without a measurement stay empty.
        panels: value in the column ``panel`` -> panel title, in order.
        value: the column to draw. labels: labels of the colours, the rows and the columns.
        panel: column that distinguishes the panels.
        smallest: where a logarithmic scale begins; None: the scale is linear and begins at 0.
    """
    norm, form = (Normalize(0, 1), ".2f") if smallest is None else (LogNorm(smallest, 1), ".1g")
    matrices = {name: table[table[panel] == name].pivot_table(value, "after", "on").to_numpy() for name in panels}
    size = max(len(matrix) for matrix in matrices.values())
    fig, axes, nrows = square_grid(canvas, len(panels), 12 * size if size <= 5 else 45)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax, (name, title) in zip(axes, panels.items(), strict=False):
        matrix = matrices[name]
        size = len(matrix)
        image = ax.imshow(matrix, norm=norm, cmap="cividis", extent=(0.5, size + 0.5, size + 0.5, 0.5))
        for (i, j), number in np.ndenumerate(matrix if size <= 5 else np.empty((0, 0))):
            text, ink = f"{number:{form}}".removeprefix("0"), "black" if norm(number) > 0.5 else "white"
            if np.isfinite(number):
                ax.text(j + 1, i + 1, text, color=ink, size=SMALLEST, ha="center", va="center")
        ticks = range(1, size + 1) if size <= 5 else sorted({1, *range(5, size + 1, 5), size})
        ax.set(xticks=ticks, yticks=ticks)
        ax.set_title(wrapped(title, fig, -(-len(panels) // nrows)))
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    fig.supylabel(labels[1], size=STYLE["axes.labelsize"])
    fig.supxlabel(labels[2], size=STYLE["axes.labelsize"])
    shrink = 0.6 if nrows == 1 else 0.4
    ticks = (0, 0.5, 1) if smallest is None else None
    fig.colorbar(image, ax=axes, label=labels[0], ticks=ticks, format=FuncFormatter(short), shrink=shrink, aspect=25)
    return fig


@plot(INTERVAL)
def line_panels(
    canvas: Canvas,
    table: pd.DataFrame,
    x: str,
    panels: dict[str, str],
    labels: Sequence[str],
    hue: str = "method",
    names: Sequence[str] | None = None,
    limits: Sequence[float | None] | None = (0, 1),
    palette: str | None = None,
    log: str = "",
    ticks: Sequence[float] | None = None,
    across: float | None = None,
    switch: str | None = None,
    height: float = 2.1,
) -> Figure:
    """Lines with intervals over repeats (seeds), one panel per column.

    The lines are named beside the last panel if there is room, otherwise in a legend below.

    Args:
        table: tidy, with the columns ``x``, ``hue`` and those in ``panels``. If the table has an interval for a column
            (``low`` and ``high`` for ``mean``, ``COLUMN_low`` and ``COLUMN_high`` for any other), it is drawn.
            Otherwise the mean and the interval are computed over the repeats at each ``x``.
        x: column of the horizontal axis.
        panels: column -> panel title.
        labels: labels of the horizontal and the vertical axis.
        hue: column that distinguishes the lines; variants of a method differ in dashes, those with replay are open.
        names: the lines to draw, in order; None: all.
        limits: limits of the vertical axis, with None at a free end; None: each panel has its own limits.
        palette: name of a colormap; None: the colours and markers of the methods.
        log: which axes are logarithmic: ``""``, ``"x"``, ``"y"`` or ``"xy"``. ticks: ticks on the horizontal axis;
            None: chosen automatically.
        across: height of a dotted horizontal line.
        switch: column that numbers the tasks; a line marks where one ends and says which one begins.
        height: in inches.
    """
    names = list(names or dict.fromkeys(table[hue]))
    styles = line_styles(names) if palette is None else shades(names, palette)
    fig, axes = canvas(height, ncols=len(panels), sharey=limits is not None, squeeze=False)
    ends, numbers = {}, ["0" * 5 * (len(panels) if limits is None else 1)]  # tick labels beside the axes
    for ax, (column, title) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            line = summary(table[table[hue] == name], x, column)
            ax.fill_between(line[x], line.low, line.high, color=styles[name]["color"], alpha=0.2, linewidth=0)
            # With a marker at every point, a long line would be all markers.
            every = None if len(line) <= 12 else -(-len(line) // 8)
            ax.plot(line[x], line["mean"], label=name, markevery=every, clip_on=False, **styles[name])
            if len(line):
                ends[name] = (line[x].iloc[-1], line["mean"].iloc[-1])
        ax.set(title=wrapped(title, fig, len(panels), numbers), ylabel=labels[1])
        for axis in log:
            ax.set(**{f"{axis}scale": "log"})
            log_ticks(getattr(ax, f"{axis}axis"))
        if "x" not in log and pd.api.types.is_integer_dtype(table[x]):
            ax.xaxis.get_major_locator().set_params(integer=True)
        if ticks is not None:
            ax.set_xticks(ticks)
        if across is not None:
            ax.axhline(across, color="0.4", linewidth=0.8, linestyle=":")
        if switch is not None:
            switches(ax, table, x, switch, len(panels) == 1)
    if limits is not None:
        axes[0, 0].set_ylim(limits)  # shared by all panels; set last, since a free end depends on all that is drawn
        for ax in axes[0]:
            ax.label_outer(remove_inner_ticks=False)
    label_below(fig, axes, labels[0], numbers)
    # A name beside its line has the line's colour, but does not show its dashes.
    without_dashes = {tuple({**styles[name], "linestyle": ""}.items()) for name in names}
    told_apart = palette is None and len(without_dashes) == len(names)
    if len(names) > 1 and told_apart and LETTER * max(map(len, names)) < 0.27 * points(fig):
        name_beside(axes[0, -1], ends)
    elif len(names) > 1:
        legend_below(fig, axes)
    return fig


@plot(INTERVAL)
def trade_off(
    canvas: Canvas,
    table: pd.DataFrame,
    cost: str,
    panels: dict[str, str],
    label: str,
    coloured: Sequence[str],
) -> Figure:
    """Accuracy against cost, one panel per scenario; a few methods are named and in colour, the others grey.

    Args:
        table: ``stream, method, mean, low, high`` and the column named by ``cost``; rows without a cost are left out.
        cost: the column with the cost. label: axis label of the cost.
        panels: stream -> panel title, in order. coloured: the methods to name.
    """
    table = table.dropna(subset=[cost])
    fig, axes = canvas(2.4, ncols=len(panels), sharey=True, squeeze=False)
    for ax, (value, title) in zip(axes[0], panels.items(), strict=True):
        rows = table[table.stream == value].to_dict("records")
        for row in rows:
            style = _pale_or_coloured(row["method"], coloured, 3.6)
            front = 2 + (row["method"] in coloured)
            ax.plot([row[cost]] * 2, [row["low"], row["high"]], color=style["color"], linewidth=1, zorder=front)
            ax.plot(row[cost], row["mean"], clip_on=False, zorder=front, **style)
        ax.set(title=title, ylim=(-0.02, 1.02), xscale="symlog", xlim=(-0.15, max(10, 2 * table[cost].max())))
        ax.xaxis.set_major_formatter(FuncFormatter(short))
        name_beside(ax, {row["method"]: (row[cost], row["mean"]) for row in rows if row["method"] in coloured})
    axes[0, 0].set_ylabel("Final accuracy")
    label_below(fig, axes, label)
    return fig


@plot("Mean difference and 95 % bootstrap interval over seeds, paired")
def effect_plot(canvas: Canvas, table: pd.DataFrame, label: str, margin: float, method: str) -> Figure:
    """Differences from a base with their intervals, one row per method and one panel per stream.

    Args:
        table: ``stream, method, mean, low, high, verdict``. Undecided rows are drawn pale.
        label: label of the shared axis. margin: half the width of the band in which differences do not matter.
        method: the method whose choices are compared.
    """
    names = list(dict.fromkeys(table.method))
    titles = list(dict.fromkeys(table.stream))
    ink, marker = look(method)
    fig, axes = canvas(0.6 + 0.15 * len(names), ncols=len(titles), sharey=True, squeeze=False)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.axvspan(-margin, margin, color="0.92", linewidth=0)
        ax.axvline(0, color="0.6", linewidth=0.6)
        for row in table[table.stream == title].itertuples():
            place, strength = names.index(row.method), 0.35 if row.verdict == "open" else 1
            ax.plot([row.low, row.high], [place, place], color=ink, alpha=strength, linewidth=1.3)
            ax.plot(row.mean, place, marker, color=ink, alpha=strength, markersize=3)
        # Effects span orders of magnitude, and the small ones decide what does not matter.
        ax.set_xscale("symlog", linthresh=margin, linscale=0.5)
        ax.set_title(wrapped(title, fig, len(titles), names))
        ax.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
        low, high = ax.get_xlim()
        outer = 0.1 if max(-low, high) > 0.1 else 0.03
        ticks = [*(end for end in (-outer, outer) if low < end < high), -margin, 0, margin]
        ax.set_xticks(ticks, [f"{tick:+g}".replace("0.", ".") if tick else "0" for tick in ticks])
        ax.minorticks_off()
        ax.tick_params(axis="y", length=0)
    label_below(fig, axes, label, names)
    return fig


@plot()
def fronts(canvas: Canvas, table: pd.DataFrame, labels: Sequence[str]) -> Figure:
    """All points of a search, and each method's Pareto front as a staircase; open dots and dashes mark replay.

    Args:
        table: ``method``, ``old``, ``new``, ``front`` (whether the point is on its method's front).
        labels: axis labels for ``old`` and ``new``.
    """
    styles = line_styles(list(dict.fromkeys(table.method)), 2.4)
    fig, axes = canvas(2.5, ncols=2, squeeze=False)
    for ax, low in zip(axes[0], (0, 0.85), strict=True):
        for method, rows in table.groupby("method", sort=False):
            ax.plot(rows.old, rows.new, alpha=0.6, **{**styles[method], "linestyle": ""})
            front = rows[rows.front].sort_values("old")
            ax.step(front.old, front.new, where="pre", label=method, **styles[method])
        margin = 0.03 * (1 - low)
        ax.set(xlim=(low - margin, 1 + margin), ylim=(low - margin, 1 + margin))
        ax.locator_params(nbins=4)
    axes[0, 0].set(title="All", ylabel=labels[1])
    axes[0, 1].set(title="Upper right corner")
    label_below(fig, axes, labels[0])
    legend_below(fig, axes)
    return fig


@plot()
def scatter_panels(
    canvas: Canvas,
    table: pd.DataFrame,
    panels: dict[str, str],
    values: dict[str, str],
    label: str,
    logarithmic: Sequence[str] = (),
) -> Figure:
    """Measured values against each choice of a search, one panel per choice.

    Args:
        table: one row per point. panels: column of a choice -> panel title. values: column -> name in the legend.
        label: label of the vertical axis. logarithmic: choices with a logarithmic axis.
    """
    nrows = -(-len(panels) // 3)
    fig, axes = canvas(0.5 + 1.15 * nrows, nrows=nrows, ncols=3, sharey=True, squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax, (column, title) in zip(axes.flat, panels.items(), strict=False):
        for (value, name), (mark, ink) in zip(values.items(), (("o", "0.1"), ("^", "0.6")), strict=False):
            ax.plot(table[column], table[value], mark, markersize=2.4, color=ink, label=name, linewidth=0)
        ax.set(xlabel=title, ylim=(-0.03, 1.03))
        if column in logarithmic:
            ax.set_xscale("log")
            log_ticks(ax.xaxis)
        else:
            ax.locator_params(axis="x", nbins=3)
    fig.supylabel(label, size=STYLE["axes.labelsize"])
    legend_below(fig, axes)
    return fig


@plot(INTERVAL)
def plane(
    canvas: Canvas,
    table: pd.DataFrame,
    x: str,
    y: str,
    labels: Sequence[str],
    named: Sequence[str] = (),
) -> Figure:
    """Methods in the plane of two measures, one point for each of their settings.

    Args:
        table: one row per run, with the columns ``method``, ``setting``, ``x`` and ``y``.
        x, y: columns of the axes. labels: labels of the axes.
        named: methods whose points are labelled with their settings, and joined in order.
    """
    halo = withStroke(linewidth=2, foreground="white")  # keeps text readable where a line passes behind
    text = {"textcoords": "offset points", "ha": "center", "va": "center", "fontsize": SMALLEST, "path_effects": [halo]}
    styles = line_styles(list(dict.fromkeys(table.method)), 3.4)
    fig, axes = canvas(3.0, squeeze=False)
    ax = axes[0, 0]
    for method, rows in table.groupby("method", sort=False):
        across, up = (metrics.summarise(rows, ["setting"], column) for column in (x, y))
        ink = styles[method]["color"]
        ax.hlines(up["mean"], across.low, across.high, color=ink, linewidth=0.8, alpha=0.7)
        ax.vlines(across["mean"], up.low, up.high, color=ink, linewidth=0.8, alpha=0.7)
        joined = {} if method in named else {"linestyle": ""}
        ax.plot(across["mean"], up["mean"], label=method, **{**styles[method], **joined})
        if method in named:
            for number, place in enumerate(zip(across.setting, across["mean"], up["mean"], strict=True)):
                ax.annotate(str(place[0]), place[1:], xytext=(0, 9 if 0 < number < len(up) - 1 else -9), **text)
    ax.set_ylabel(labels[1])
    label_below(fig, axes, labels[0])
    legend_below(fig, axes)
    return fig
