"""Plots that set methods side by side."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from sp.figures import SMALLEST, STYLE, colour, look
from sp.plots.kit import (
    INTERVAL,
    Canvas,
    legend_below,
    line_styles,
    log_ticks,
    marker_style,
    plot,
    shades,
    short,
    square_grid,
    summary,
    switches,
    wrapped,
)

FILLS = {"told nothing": "full", "told of boundaries": "bottom", "stores examples": "none"}  # of a marker


@plot(INTERVAL)
def interval_plot(
    canvas: Canvas,
    table: pd.DataFrame,
    panels: dict[str, str],
    label: str,
    panel: str = "metric",
    metric: str | None = None,
    limits: Sequence[float] = (0, 1),
    ticks: Sequence[float] = (0, 0.5, 1),
) -> Figure:
    """Dots with intervals, a row for each arm and a panel for each metric or stream; open dots with replay.

    Args:
        table: ``arm``, ``metric``, ``mean``, ``low``, ``high`` and the column ``panel``; at most one row for an arm in
            a panel.
        panels: value of the column ``panel`` -> title of its panel, in order.
        label: of the axis that the panels share.
        panel: which column tells the panels apart. metric: which metric is drawn; None: all.
        limits, ticks: of the axis.
    """
    if metric is not None:
        table = table[table.metric == metric]
    table = table[table[panel].isin(list(panels))]
    margin = 0.03 * (limits[1] - limits[0])
    arms = list(dict.fromkeys(table.arm))
    fig, axes = canvas(0.6 + 0.17 * len(arms), ncols=len(panels), sharey=True, squeeze=False)
    for ax, (value, title) in zip(axes[0], panels.items(), strict=True):
        ax.grid(axis="x", linewidth=0.4, color="0.88")
        for row in table[table[panel] == value].to_dict("records"):
            place, style = arms.index(row["arm"]), marker_style(row["arm"], 4)
            ax.plot([row["low"], row["high"]], [place] * 2, color=style["color"], linewidth=1.4, solid_capstyle="butt")
            ax.plot(row["mean"], place, linestyle="", clip_on=False, **style)
        ax.set(
            title=wrapped(title, fig, len(panels), arms), xlim=(limits[0] - margin, limits[1] + margin), xticks=ticks
        )
        ax.set(yticks=range(len(arms)), yticklabels=arms, ylim=(len(arms) - 0.5, -0.5))
        ax.xaxis.set_major_formatter(FuncFormatter(short))
        ax.tick_params(axis="y", length=0)
    fig.supxlabel(wrapped(label, fig, 1), size=STYLE["axes.labelsize"])
    return fig


@plot("Mean over seeds")
def heat_maps(
    canvas: Canvas, table: pd.DataFrame, panels: dict[str, str], value: str, labels: Sequence[str], panel: str = "arm"
) -> Figure:
    """Matrices of one kind side by side, on one scale from 0 to 1; small ones have their values printed in.

    Args:
        table: ``after`` (row, from 1), ``on`` (column, from 1), the columns ``value`` and ``panel``; the mean over
            what repeats is drawn, and nothing where nothing was measured.
        panels: value of the column ``panel`` -> title of its panel, in order.
        value: which column is drawn.
        labels: of the colours, of the rows and of the columns.
        panel: which column tells the panels apart.
    """
    from seaborn import heatmap  # imports scipy.stats, which takes half a second

    matrices = {name: table[table[panel] == name].pivot_table(value, "after", "on").to_numpy() for name in panels}
    size = max(len(matrix) for matrix in matrices.values())
    printed = {name: len(matrix) <= 5 for name, matrix in matrices.items()}
    fig, axes, nrows = square_grid(canvas, len(panels), 12 * size if all(printed.values()) else 45)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for ax, (name, title) in zip(axes, panels.items(), strict=False):
        matrix = matrices[name]
        size = len(matrix)
        # Rasterized: viewers draw hairlines between the cells of a vector image.
        style = {"vmin": 0, "vmax": 1, "cmap": "cividis", "square": True, "cbar": False, "rasterized": True}
        texts = pd.DataFrame(matrix).map(lambda number: f"{number:.2f}".removeprefix("0"))
        heatmap(matrix, ax=ax, annot=texts if printed[name] else False, fmt="", annot_kws={"size": SMALLEST}, **style)
        ticks = range(1, size + 1) if size <= 5 else sorted({1, *range(5, size + 1, 5), size})
        ax.set_title(wrapped(title, fig, -(-len(panels) // nrows)))
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_ticks([tick - 0.5 for tick in ticks], [str(tick) for tick in ticks], rotation=0)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    fig.supylabel(labels[1], size=STYLE["axes.labelsize"])
    fig.supxlabel(labels[2], size=STYLE["axes.labelsize"])
    fig.colorbar(
        axes[0].collections[0],
        ax=axes,
        label=labels[0],
        ticks=(0, 0.5, 1),
        shrink=0.6 if nrows == 1 else 0.4,
        aspect=25,
    )
    return fig


@plot(INTERVAL)
def line_panels(
    canvas: Canvas,
    table: pd.DataFrame,
    x: str,
    panels: dict[str, str],
    labels: Sequence[str],
    hue: str = "arm",
    names: Sequence[str] | None = None,
    limits: Sequence[float | None] = (0, 1),
    palette: str | None = None,
    log: bool = False,
    ticks: Sequence[float] | None = None,
    across: float | None = None,
    switch: str | None = None,
    height: float = 2.1,
) -> Figure:
    """Lines with intervals over what repeats (seeds), a panel for each column, one legend below.

    Args:
        table: tidy, with columns ``x``, ``hue`` and those of ``panels``. A column ``mean`` beside ``low`` and ``high``
            is drawn with them; of any other the mean and the interval are taken at each ``x``.
        x: column of the horizontal axis.
        panels: column -> title of its panel.
        labels: of the horizontal axis and of the vertical one.
        hue: column that tells the lines apart; variants of a method differ in dashes, those with replay are open.
        names: which lines, in order; None: all.
        limits: of the vertical axis; None: free.
        palette: name of a colormap; None: the methods' own colours and markers.
        log: whether the horizontal axis is logarithmic. ticks: on it; None: as they fall.
        across: where a dotted line goes across.
        switch: column that numbers the tasks; a line stands where one ends, and says which one begins.
        height: in inches.
    """
    names = list(names or dict.fromkeys(table[hue]))
    styles = line_styles(names) if palette is None else shades(names, palette)
    fig, axes = canvas(height, ncols=len(panels), sharey=True, squeeze=False)
    for ax, (column, title) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            line = summary(table[table[hue] == name], x, column)
            ax.fill_between(line[x], line.low, line.high, color=styles[name]["color"], alpha=0.2, linewidth=0)
            # Where every point has a marker a long line is all markers.
            every = None if len(line) <= 12 else -(-len(line) // 8)
            ax.plot(line[x], line["mean"], label=name, markevery=every, clip_on=False, **styles[name])
        ax.set(title=title, ylabel=labels[1], ylim=limits)
        if log:
            ax.set_xscale("log")
            log_ticks(ax.xaxis)
        elif pd.api.types.is_integer_dtype(table[x]):
            ax.xaxis.get_major_locator().set_params(integer=True)
        if ticks is not None:
            ax.set_xticks(ticks)
        if across is not None:
            ax.axhline(across, color="0.4", linewidth=0.8, linestyle=":")
        if switch is not None:
            switches(ax, table, x, switch, len(panels) == 1)
        ax.label_outer(remove_inner_ticks=False)
    legend_below(fig, axes, labels[0])
    return fig


@plot("Lines and bars: mean or median and 95 % bootstrap interval")
def scaling_panels(
    canvas: Canvas,
    table: pd.DataFrame,
    x: str,
    panels: dict[str, str],
    label: str,
    hue: str = "optimizer",
    height: float = 2.6,
) -> Figure:
    """How costs grow, on two logarithmic axes: lines with bars for the intervals that the table has.

    Args:
        table: a row for each ``hue`` and value of ``x``; the columns of ``panels``, with ``_low`` and ``_high`` where
            there is an interval.
        x: column of the horizontal axis.
        panels: column -> label of its panel's vertical axis.
        label: of the horizontal axis.
        hue: column that tells the lines apart.
        height: in inches.
    """
    names = list(dict.fromkeys(table[hue]))
    styles = line_styles(names)
    fig, axes = canvas(height, ncols=len(panels), squeeze=False)
    for ax, (column, title) in zip(axes[0], panels.items(), strict=True):
        for name in names:
            rows = table[table[hue] == name].sort_values(x)
            bars = None
            if f"{column}_low" in rows:
                ends = rows[[f"{column}_low", f"{column}_high"]].to_numpy().T
                bars = np.abs(ends - rows[column].to_numpy()).clip(min=0)
            ax.errorbar(rows[x], rows[column], yerr=bars, elinewidth=0.8, label=name, **styles[name])
        ax.set(xscale="log", yscale="log", ylabel=wrapped(title, fig, 2))
        log_ticks(ax.xaxis)
        log_ticks(ax.yaxis)
    legend_below(fig, axes, label)
    return fig


@plot(INTERVAL)
def trade_off(canvas: Canvas, table: pd.DataFrame, panels: dict[str, str], label: str, panel: str = "stream") -> Figure:
    """Accuracy against what a method costs, a panel for each scenario, every point named.

    Args:
        table: ``arm, cost, mean, low, high``, the column ``panel``, and ``kind``, a name in `FILLS`; rows without a
            cost are left out.
        panels: value of the column ``panel`` -> title of its panel, in order.
        label: of the cost. panel: which column tells the panels apart.
    """
    table = table.dropna(subset=["cost"])
    most = table[panel].value_counts().max()
    height = max(2.1, LINE * most)
    fig, axes = canvas(0.55 + height, ncols=len(panels), sharey=True, squeeze=False)
    for ax, (value, title) in zip(axes[0], panels.items(), strict=True):
        rows = table[table[panel] == value].sort_values("mean", ascending=False)
        for row in rows.itertuples():
            ink, marker = look(row.arm)
            style = {"color": ink, "fillstyle": FILLS[row.kind], "markerfacecoloralt": "white", "markersize": 3.6}
            ax.plot([row.cost, row.cost], [row.low, row.high], color=ink, linewidth=1)
            ax.plot(row.cost, row.mean, marker, markeredgewidth=0.7, clip_on=False, **style)
        _name_points(ax, rows, 1.08 * LINE / height)
        ax.set(title=title if len(panels) > 1 else "", ylim=(-0.02, 1.06), xscale="symlog")
        ax.set_xlim(-0.15, max(10, 2 * table.cost.max()))
        ax.xaxis.set_major_formatter(FuncFormatter(short))
    axes[0, 0].set_ylabel("Average accuracy")
    style = {"linestyle": "", "marker": "o", "color": "0.4", "markerfacecoloralt": "white", "markersize": 4}
    handles = [plt.Line2D([], [], fillstyle=fill, label=kind, **style) for kind, fill in FILLS.items()]
    legend_below(fig, axes, label, handles)
    return fig


LINE = 0.1  # inches from a name to the next


def _name_points(ax: Axes, rows: pd.DataFrame, spacing: float) -> None:
    """Names in a column at the right, as near to the height of their points as they fit, with a thin line to each."""
    from scipy.optimize import isotonic_regression  # takes a quarter of a second to import

    steps = spacing * np.arange(len(rows))
    shifted = isotonic_regression(rows["mean"].to_numpy() + steps, increasing=False).x
    places = shifted.clip(steps[-1], 1.04) - steps
    for row, place in zip(rows.itertuples(), places, strict=True):
        to = {"xytext": (1.04, place), "textcoords": ax.get_yaxis_transform(), "va": "center"}
        line = {"arrowstyle": "-", "color": colour(row.arm), "linewidth": 0.4, "alpha": 0.6, "relpos": (0, 0.5)}
        line |= {"shrinkA": 0, "shrinkB": 2}
        ax.annotate(row.arm, (row.cost, row.mean), fontsize=SMALLEST, arrowprops=line, **to)


@plot("Mean difference and 95 % bootstrap interval over seeds, paired")
def effect_plot(
    canvas: Canvas, table: pd.DataFrame, label: str, margin: float, method: str, panel: str = "stream"
) -> Figure:
    """Differences from a base with their intervals, a row for each arm and a panel for each stream.

    Args:
        table: ``arm, mean, low, high, verdict`` and the column ``panel``. What is not decided is drawn pale.
        label: of the axis that the panels share. margin: half the width of the band in which nothing matters.
        method: whose choices the arms are.
        panel: which column tells the panels apart.
    """
    names = list(dict.fromkeys(table.arm))
    titles = list(dict.fromkeys(table[panel]))
    fig, axes = canvas(0.6 + 0.15 * len(names), ncols=len(titles), sharey=True, squeeze=False)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.axvspan(-margin, margin, color="0.92", linewidth=0)
        ax.axvline(0, color="0.6", linewidth=0.6)
        for row in table[table[panel] == title].itertuples():
            place, strength = names.index(row.arm), 0.35 if row.verdict == "open" else 1
            ink, marker = look(method)
            ax.plot([row.low, row.high], [place, place], color=ink, alpha=strength, linewidth=1.3)
            ax.plot(row.mean, place, marker, color=ink, alpha=strength, markersize=3)
        # Effects differ by orders of magnitude, and the small ones decide what does not matter.
        ax.set_xscale("symlog", linthresh=margin, linscale=0.5)
        ax.set(
            title=wrapped(title, fig, len(titles), names),
            yticks=range(len(names)),
            yticklabels=names,
            ylim=(len(names) - 0.5, -0.5),
        )
        ends = [end for end in (-0.1, 0.1) if ax.get_xlim()[0] < end < ax.get_xlim()[1]]
        ticks = [*ends, -margin, margin]  # a line marks zero
        ax.set(xticks=ticks, xticklabels=map("{:+g}".format, ticks))
        ax.minorticks_off()
        ax.tick_params(axis="y", length=0)
    fig.supxlabel(wrapped(label, fig, 1), size=STYLE["axes.labelsize"])
    return fig


@plot()
def fronts(canvas: Canvas, table: pd.DataFrame, labels: Sequence[str], corner: float = 0.85) -> Figure:
    """Every point of a search, and the Pareto front of each arm as a staircase; open dots and dashes with replay.

    Args:
        table: ``arm``, ``old``, ``new``, ``front`` (whether the point is on its arm's front).
        labels: of the axes, for ``old`` and ``new``. corner: where the second panel, the upper right corner, begins.
    """
    styles = line_styles(list(dict.fromkeys(table.arm)), 2.4)
    fig, axes = canvas(2.5, ncols=2, squeeze=False)
    for ax, low in zip(axes[0], (0, corner), strict=True):
        for arm, rows in table.groupby("arm", sort=False):
            ax.plot(rows.old, rows.new, alpha=0.6, **{**styles[arm], "linestyle": ""})
            front = rows[rows.front].sort_values("old")
            ax.step(front.old, front.new, where="pre", label=arm, **styles[arm])
        margin = 0.03 * (1 - low)
        ax.set(xlim=(low - margin, 1 + margin), ylim=(low - margin, 1 + margin))
        ax.locator_params(nbins=4)
    axes[0, 0].set(title="All", ylabel=labels[1])
    axes[0, 1].set(title="Upper right corner")
    legend_below(fig, axes, labels[0])
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
    """Measured values against each choice of a search, a panel for each.

    Args:
        table: a row for each point. panels: column of a choice -> title. values: column -> name in the legend.
        label: of the vertical axis. logarithmic: choices with a logarithmic axis.
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
    limits: Sequence[float] | None = None,
) -> Figure:
    """Methods on two axes at once; the settings of one method are joined in their order.

    Args:
        table: a row for each run, with columns ``arm``, ``setting``, ``x`` and ``y``.
        x, y: columns of the axes. labels: of the axes.
        named: arms whose settings stand beside their points. limits: of both axes; None: as they fall.
    """
    from sp.lab import metrics  # imports scipy.stats, which takes half a second

    beside = {"xytext": (0, -9), "textcoords": "offset points", "ha": "center", "fontsize": SMALLEST}
    styles = line_styles(list(dict.fromkeys(table.arm)), 3.4)
    fig, axes = canvas(3.0, squeeze=False)
    ax = axes[0, 0]
    for arm, rows in table.groupby("arm", sort=False):
        across, up = (metrics.summarise(rows, ["setting"], column) for column in (x, y))
        ink = styles[arm]["color"]
        ax.hlines(up["mean"], across.low, across.high, color=ink, linewidth=0.8, alpha=0.7)
        ax.vlines(across["mean"], up.low, up.high, color=ink, linewidth=0.8, alpha=0.7)
        ax.plot(across["mean"], up["mean"], label=arm, **styles[arm])
        if arm in named:
            for place in zip(across.setting, across["mean"], up["mean"], strict=True):
                ax.annotate(str(place[0]), place[1:], **beside)
    ax.set(ylabel=labels[1])
    if limits is not None:
        ax.set(xlim=limits, ylim=limits)
    legend_below(fig, axes, labels[0])
    return fig
