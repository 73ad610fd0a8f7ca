"""How every figure looks, and how it leaves the notebook: PDF and PNG beside the CSV it was drawn from."""

import io
import json
import string
import threading
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure

from sp import files
from sp.data import Stream

LETTERS = string.ascii_uppercase  # names of tasks
WIDTHS = {"column": 3.25, "page": 6.75}  # inches: one column and the full text width of a two-column page

# Okabe and Ito's colours, which stay apart for colour-blind readers. A method has the same colour everywhere.
COLOURS = {
    "SGD": "#999999",
    "Adam": "#E69F00",
    "Selective plasticity": "#0072B2",
    "Consolidation": "#009E73",
    "Coincidence": "#D55E00",
    "Ridge": "#CC79A7",
    **dict.fromkeys(("L2", "EWC", "Online EWC", "SI", "MAS", "LwF"), "#56B4E9"),
    **dict.fromkeys(("OWM", "GPM", "NCL"), "#882255"),
    **dict.fromkeys(("A-GEM", "DER++", "ER-ACE"), "#332288"),
    **dict.fromkeys(("Adagrad", "Stable SGD", "UPGD"), "#999999"),
    **dict.fromkeys(("Joint training", "Chance"), "#000000"),
    "Decaying trace": "#0072B2",
    "Accumulating trace": "#009E73",
}

STYLE = {
    "font.family": "DejaVu Sans",
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
    "svg.hashsalt": "sp",
}


def figure(width: str = "column", height: float = 2.1, **subplots) -> tuple[Figure, object]:
    """An empty figure in the house style, at the size it will have in print.

    Args:
        width: ``"column"`` or ``"page"``.
        height: in inches.
        subplots: for `matplotlib.pyplot.subplots`, e.g. ``ncols=2``.

    Returns:
        The figure and its axes, as `matplotlib.pyplot.subplots` gives them.
    """
    if width not in WIDTHS:
        raise ValueError(f"width must be one of {', '.join(map(repr, WIDTHS))}, got {width!r}")
    sns.set_theme(style="ticks", rc=STYLE)
    size = (WIDTHS[width], height)
    if threading.current_thread() is threading.main_thread():
        return plt.subplots(figsize=size, **subplots)
    fig = Figure(figsize=size)  # pyplot, and what a notebook shows at the end of a cell, belong to the main thread
    return fig, fig.subplots(**subplots)


def colour(arm: str) -> str:
    """The colour of a method; variants of it ("Adam + replay") share it."""
    return next(value for name, value in sorted(COLOURS.items(), key=lambda i: -len(i[0])) if arm.startswith(name))


def save(fig: Figure, name: str, data: pd.DataFrame, provenance: dict | None = None) -> Path:
    """Write ``name.pdf``, ``name.png`` (300 dpi) and ``name.csv`` into the folder for figures; equal data, equal bytes.

    Args:
        fig: the figure. name: of the files, without a suffix. data: what the figure was drawn from.
        provenance: JSON values that say how it was made, kept in each file: in the PDF's subject, the PNG's
            description, and as a first line of the CSV that begins with ``#`` (``pandas.read_csv(..., comment="#")``).

    Returns:
        Path of the PNG file.
    """
    folder = files.folder("figures")
    text = None if provenance is None else json.dumps(provenance, sort_keys=True)
    fields = {"pdf": {"CreationDate": None, "Producer": None}, "png": {"Software": None}}
    if text is not None:
        fields["pdf"]["Subject"] = fields["png"]["Description"] = text
    for suffix, metadata in fields.items():
        buffer = io.BytesIO()
        fig.savefig(buffer, format=suffix, dpi=300, metadata=metadata)
        files.write_atomically(folder / f"{name}.{suffix}", buffer.getvalue())
    save_table(data, name, "" if text is None else f"# {text}\n")
    return folder / f"{name}.png"


def save_table(table: pd.DataFrame, name: str, head: str = "") -> Path:
    """Write ``name.csv`` into the folder for figures, after a ``head``, and return its path."""
    path = files.folder("figures") / f"{name}.csv"
    files.write_atomically(path, head + table.to_csv(index=False, float_format="%.6g"))
    return path


def example_images(stream: Stream, columns: int) -> Figure:
    """Training images of a stream: a row for each task, ``columns`` images in it, those of different labels first."""
    fig, axes = figure("column", 0.36 * len(stream.tasks), nrows=len(stream.tasks), ncols=columns, squeeze=False)
    for row, task in zip(axes, stream.tasks, strict=True):
        x, y = task.train()
        by_label = [(y == label).nonzero().flatten()[: -(-columns // len(y.unique()))] for label in y.unique()]
        for ax, image in zip(row, x[torch.stack(by_label).T.flatten()], strict=False):
            ax.imshow(image.reshape(stream.image_shape), cmap="gray_r")
            ax.set_axis_off()
    return fig


def accuracy_curves(curves: pd.DataFrame, arms: list[str], task: int) -> tuple[Figure, pd.DataFrame]:
    """Accuracy on one task while the stream goes by: mean over seeds and a 95 % bootstrap interval.

    Args:
        curves: as `sp.sweep.compare` gives it.
        arms: which arms to draw; the ones with replay are drawn dashed.
        task: number of the task, from 1.

    Returns:
        The figure, and the rows that it shows.
    """
    shown = curves[curves.arm.isin(arms) & (curves.task == task)]
    fig, axes = figure("column", 2.5)
    for arm in arms:
        rows = shown[shown.arm == arm]
        style = "--" if "replay" in arm else "-"
        sns.lineplot(rows, x="step", y="accuracy", color=colour(arm), linestyle=style, label=arm, ax=axes, seed=0)
    switches = shown.groupby("training").step.max().iloc[:-1]
    for number, step in switches.items():
        axes.axvline(step, color="0.6", linewidth=0.6, zorder=0)
        axes.annotate(f"task {LETTERS[number]} begins", (step, 1.02), xycoords=("data", "axes fraction"), ha="center")
    axes.set(xlabel="Training step", ylabel=f"Accuracy on task {LETTERS[task - 1]}", ylim=(-0.02, 1.02))
    axes.get_legend().remove()
    fig.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig, shown


def interval_plot(
    table: pd.DataFrame,
    panels: dict[str, str],
    label: str,
    limits: tuple[float, float] = (0, 1),
    ticks: tuple[float, ...] = (0, 0.5, 1),
) -> Figure:
    """Dots with intervals, a row for each arm and a panel for each metric; open dots with replay.

    Args:
        table: ``arm``, ``metric``, ``mean``, ``low``, ``high``; one row for an arm and metric.
        panels: metric -> title of its panel, in order.
        label: of the axis that the panels share.
        limits, ticks: of that axis.
    """
    margin = 0.03 * (limits[1] - limits[0])
    arms = list(dict.fromkeys(table.arm))
    fig, axes = figure("column", 0.6 + 0.17 * len(arms), ncols=len(panels), sharey=True, squeeze=False)
    for ax, (metric, title) in zip(axes[0], panels.items(), strict=True):
        rows = table[table.metric == metric].set_index("arm").loc[arms]
        ax.grid(axis="x", linewidth=0.4, color="0.88")
        for place, (arm, row) in enumerate(rows.iterrows()):
            face = "white" if "replay" in arm else colour(arm)
            ax.plot([row.low, row.high], [place, place], color=colour(arm), linewidth=1.4, solid_capstyle="butt")
            ax.plot(row["mean"], place, "o", color=colour(arm), markerfacecolor=face, markersize=4, clip_on=False)
        ax.set(title=title, xlim=(limits[0] - margin, limits[1] + margin), xticks=ticks)
        ax.set(yticks=range(len(arms)), yticklabels=arms)
        ax.tick_params(axis="y", length=0)
    axes[0, 0].invert_yaxis()
    fig.supxlabel(label, size=STYLE["axes.labelsize"])
    return fig


def heat_maps(
    panels: dict[str, np.ndarray], label: str, rows: str, columns: str, ncols: int = 2, colours: str = "cividis"
) -> Figure:
    """Square matrices side by side on one scale from 0 to 1, with their values where there are few.

    Args:
        panels: title -> matrix, (T, T), NaN where nothing was measured.
        label: of the scale. rows, columns: of the axes, whose places are counted from 1.
        ncols: panels side by side.
        colours: a name of a matplotlib colour map.
    """
    nrows = -(-len(panels) // ncols)
    shared = len({len(matrix) for matrix in panels.values()}) == 1
    options = {"nrows": nrows, "ncols": ncols, "sharex": shared, "sharey": shared, "squeeze": False}
    fig, axes = figure("column", 0.35 + 1.4 * nrows, **options)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax, (title, matrix) in zip(axes.flat, panels.items(), strict=False):
        size = len(matrix)
        drawn = ax.imshow(matrix, vmin=0, vmax=1, cmap=colours, extent=(0.5, size + 0.5, size + 0.5, 0.5))
        if size <= 5:
            for (i, j), value in np.ndenumerate(matrix):
                if not np.isnan(value):
                    dark = np.dot(drawn.cmap(drawn.norm(value))[:3], (0.30, 0.59, 0.11)) < 0.5
                    ink = "white" if dark else "black"
                    text = f"{value:.2f}".removeprefix("0")
                    ax.text(j + 1, i + 1, text, ha="center", va="center", fontsize=5.5, color=ink)
        ticks = range(1, size + 1) if size <= 5 else sorted({1, *range(5, size + 1, 5), size})
        ax.set(title=title, xticks=ticks, yticks=ticks)
        ax.tick_params(length=0)
        ax.spines[:].set_visible(False)
    fig.supylabel(rows, size=STYLE["axes.labelsize"])
    fig.supxlabel(columns, size=STYLE["axes.labelsize"])
    fig.colorbar(drawn, ax=axes, label=label, ticks=(0, 0.5, 1), shrink=0.6, aspect=25)
    return fig


def line_panels(
    table: pd.DataFrame,
    x: str,
    panels: dict[str, str],
    labels: tuple[str, str],
    hue: str = "arm",
    limits: tuple[float, float] = (0, 1),
    palette: dict[str, str] | str | None = None,
    height: float = 2.1,
) -> Figure:
    """Lines with 95 % bootstrap intervals over what repeats (seeds), a panel for each column, one legend below.

    Args:
        table: tidy, with columns ``x``, ``hue`` and those of ``panels``.
        x: column of the horizontal axis.
        panels: column -> title of its panel.
        labels: of the horizontal axis and of the vertical one.
        hue: column that tells the lines apart; a method's variants differ in dashes.
        limits: of the vertical axis.
        palette: colour of each line, or the name of a seaborn palette; default: the methods' own colours.
        height: in inches.
    """
    names = list(dict.fromkeys(table[hue]))
    if isinstance(palette, str):
        palette = dict(zip(names, sns.color_palette(palette, len(names)), strict=True))
    palette = palette or {name: colour(name) for name in names}
    shades = {name: sum(palette[other] == palette[name] for other in names[:i]) for i, name in enumerate(names)}
    dashes = {name: ["", (4, 1.5), (1, 1), (4, 1, 1, 1), (7, 2)][shade % 5] for name, shade in shades.items()}
    fig, axes = figure("column", height, ncols=len(panels), sharey=True, squeeze=False)
    for ax, (column, title) in zip(axes[0], panels.items(), strict=True):
        options = {"hue": hue, "style": hue, "palette": palette, "dashes": dashes, "hue_order": names, "seed": 0}
        sns.lineplot(table, x=x, y=column, style_order=names, ax=ax, **options)
        ax.set(title=title, xlabel=labels[0], ylabel=labels[1], ylim=limits)
        if pd.api.types.is_integer_dtype(table[x]):
            ax.xaxis.get_major_locator().set_params(integer=True)
        ax.get_legend().remove()
    ncols = 2 if max(map(len, names)) < 30 else 1
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=ncols)
    return fig


def scaling_panels(table: pd.DataFrame, x: str, panels: dict[str, str], label: str, height: float = 2.6) -> Figure:
    """How costs grow, on two logarithmic axes: lines with bars for the intervals that the table has.

    Args:
        table: a row for each ``optimizer`` and value of ``x``; the columns of ``panels``, with ``_low`` and ``_high``
            where there is an interval.
        x: column of the horizontal axis.
        panels: column -> label of its panel's vertical axis.
        label: of the horizontal axis.
        height: in inches.
    """
    names = list(dict.fromkeys(table.optimizer))
    colours = [colour(name) for name in names]
    looks = [("-", "o"), ("--", "s"), (":", "^")]
    fig, axes = figure("column", height, ncols=len(panels), squeeze=False)
    for ax, (column, title) in zip(axes[0], panels.items(), strict=True):
        for i, name in enumerate(names):
            rows = table[table.optimizer == name].sort_values(x)
            line, marker = looks[colours[:i].count(colours[i]) % len(looks)]
            bars = None
            if f"{column}_low" in rows:
                ends = rows[[f"{column}_low", f"{column}_high"]].to_numpy().T
                bars = np.abs(ends - rows[column].to_numpy()).clip(min=0)
            style = {"color": colours[i], "linestyle": line, "marker": marker, "markersize": 2.5, "label": name}
            ax.errorbar(rows[x], rows[column], yerr=bars, elinewidth=0.8, linewidth=0.9, **style)
        ax.set(xscale="log", yscale="log", xlabel=label, ylabel=title)
        ax.minorticks_off()
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


MARKERS = {"told nothing": "o", "told of boundaries": "s", "stores examples": "^"}


def trade_off(panels: dict[str, pd.DataFrame], label: str, named: int = 9) -> Figure:
    """Accuracy against what a method costs, a panel for each scenario one above the other, with 95 % intervals.

    Args:
        panels: title -> ``arm, cost, mean, low, high`` and ``kind``, a name in `MARKERS`; a row for each arm.
        label: of the cost. named: how many arms are named, the best first; ours are named wherever they lie.
    """
    fig, axes = figure("column", 0.55 + 2.1 * len(panels), nrows=len(panels), sharex=True, squeeze=False)
    for ax, (title, table) in zip(axes[:, 0], panels.items(), strict=True):
        table = table.sort_values("mean", ascending=False)
        ours = table.arm.isin(["Coincidence", "Consolidation", "Selective plasticity"])
        for row in table.itertuples():
            ink = colour(row.arm)
            ax.plot([row.cost, row.cost], [row.low, row.high], color=ink, linewidth=1.2)
            ax.plot(row.cost, row.mean, MARKERS[row.kind], color=ink, markersize=4, markeredgecolor="white", mew=0.4)
        shown = table[ours | (np.arange(len(table)) < named)]
        _name_points(ax, shown)
        ax.set(title=title, ylabel="Average accuracy", ylim=(-0.02, 1.06), xscale="symlog")
        ax.set_xlim(-0.15, max(10, 2 * table.cost.max()))
        ax.xaxis.set_major_formatter("{x:g}")
    axes[-1, 0].set_xlabel(label)
    handles = [plt.Line2D([], [], marker=m, color="0.4", linestyle="", markersize=4) for m in MARKERS.values()]
    fig.legend(handles, list(MARKERS), loc="outside lower center", ncols=3, handletextpad=0.1, columnspacing=1.0)
    return fig


def _name_points(ax: plt.Axes, rows: pd.DataFrame) -> None:
    """Names in a column at the right, from top to bottom as the points lie, with a thin line to each."""
    spacing = 0.07
    places = rows["mean"].to_numpy().copy()
    places[0] = min(places[0], 1.0)
    for i in range(1, len(places)):
        places[i] = min(places[i], places[i - 1] - spacing)
    places += max(0.0, 0.01 - places.min())
    for row, place in zip(rows.itertuples(), places, strict=True):
        ax.annotate(
            row.arm,
            (row.cost, row.mean),
            (1.02, place),
            textcoords=ax.get_yaxis_transform(),
            fontsize=5.5,
            va="center",
            color=colour(row.arm),
            arrowprops={
                "arrowstyle": "-",
                "color": "0.75",
                "linewidth": 0.4,
                "shrinkA": 0,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
        )


def gate_bands(table: pd.DataFrame, ends: list[int]) -> Figure:
    """The gate over training, a panel for each layer: median and the band between its outer quantiles.

    Args:
        table: ``step``, ``layer``, ``quantile``, ``gate``, as `sp.watch.gate_quantiles` gives it.
        ends: last step of each task; the next begins there.
    """
    layers = list(dict.fromkeys(table.layer))
    fig, axes = figure("column", 1.75, ncols=len(layers), sharey=True, squeeze=False)
    for ax, layer in zip(axes[0], layers, strict=True):
        wide = table[table.layer == layer].pivot_table("gate", "step", "quantile")
        low, middle, high = wide.columns[0], wide.columns[len(wide.columns) // 2], wide.columns[-1]
        ax.fill_between(wide.index, wide[low], wide[high], color=COLOURS["Consolidation"], alpha=0.25, linewidth=0)
        ax.plot(wide.index, wide[middle], color=COLOURS["Consolidation"])
        for end in ends[:-1]:
            ax.axvline(end, color="0.6", linewidth=0.5, zorder=0)
        ax.set(title=f"Layer {layer}", ylim=(0, 1.02))
        ax.locator_params(axis="x", nbins=3)
    axes[0, 0].set_ylabel("Gate (share of a step)")
    fig.supxlabel("Training step", size=STYLE["axes.labelsize"])
    return fig


def spectra(tables: dict[str, pd.DataFrame]) -> Figure:
    """Eigenvalues of a memory after each task, in units of its strength, a panel for each stream.

    Args:
        tables: title -> ``task``, ``direction``, ``weight``, as `sp.watch.spectrum` gives it.
    """
    fig, axes = figure("column", 2.2, ncols=len(tables), sharey=True, squeeze=False)
    for ax, (title, table) in zip(axes[0], tables.items(), strict=True):
        tasks = sorted(table.task.unique())
        ax.axhline(1, color="0.4", linewidth=0.6, linestyle="--")
        for task in tasks:
            shade = sns.color_palette("cividis_r", as_cmap=True)(0.15 + 0.85 * (task - 1) / max(len(tasks) - 1, 1))
            rows = table[table.task == task]
            name = f"{task} task{'s' if task > 1 else ''}" if task in (1, tasks[len(tasks) // 2], tasks[-1]) else None
            ax.plot(rows.direction, rows.weight.clip(lower=1e-6), color=shade, linewidth=0.9, label=name)
        ax.set(title=title, yscale="log", ylim=(1e-2, None), xlabel="Direction")
        ax.legend(loc="upper right", handlelength=1.2)
    axes[0, 0].set_ylabel("Eigenvalue of A / a")
    return fig


def weight_images(rows: dict[str, torch.Tensor], shape: tuple[int, int], columns: int) -> Figure:
    """Rows of a matrix as images of the input: a row of images for each matrix, on its own scale around zero.

    Args:
        rows: name -> (units, pixels). One with a single row, such as a mean image, is shown once, in grey.
        shape: (height, width) of an image.
        columns: how many units.
    """
    fig, axes = figure("column", 0.45 * len(rows) + 0.1, nrows=len(rows), ncols=columns, squeeze=False)
    for line, (name, matrix) in zip(axes, rows.items(), strict=True):
        largest = matrix.abs().max().item()
        for ax in line:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        if len(matrix) == 1:
            line[0].imshow(matrix[0].reshape(shape).numpy(), cmap="gray_r")
        else:
            for ax, image in zip(line, matrix, strict=False):
                ax.imshow(image.reshape(shape).numpy(), cmap="PuOr", vmin=-largest, vmax=largest)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    return fig


def effect_plot(panels: dict[str, pd.DataFrame], label: str, margin: float, colour: str) -> Figure:
    """Differences from a base with their intervals, a row for each arm and a panel for each stream.

    Args:
        panels: title -> ``arm, mean, low, high, verdict``, the same arms in each. What is not decided is drawn pale.
        label: of the axis that the panels share. margin: half the width of the band in which nothing matters.
        colour: of the dots.
    """
    names = list(next(iter(panels.values())).arm)
    fig, axes = figure("column", 0.6 + 0.15 * len(names), ncols=len(panels), sharey=True, squeeze=False)
    for ax, (title, table) in zip(axes[0], panels.items(), strict=True):
        ax.axvspan(-margin, margin, color="0.92", linewidth=0)
        ax.axvline(0, color="0.6", linewidth=0.6)
        for place, row in enumerate(table.itertuples()):
            strength = 0.35 if row.verdict == "open" else 1
            ax.plot([row.low, row.high], [place, place], color=colour, alpha=strength, linewidth=1.3)
            ax.plot(row.mean, place, "o", color=colour, alpha=strength, markersize=3)
        # Effects differ by orders of magnitude, and the small ones decide what does not matter.
        ax.set_xscale("symlog", linthresh=margin, linscale=0.5)
        ax.set(title=title, yticks=range(len(names)), yticklabels=names)
        ends = [end for end in (-0.1, 0.1) if ax.get_xlim()[0] < end < ax.get_xlim()[1]]
        ax.set(xticks=[*ends, -margin, 0, margin], xticklabels=[*map("{:+g}".format, ends), "", "0", ""])
        ax.minorticks_off()
        ax.tick_params(axis="y", length=0)
    axes[0, 0].invert_yaxis()
    fig.supxlabel(label, size=STYLE["axes.labelsize"])
    return fig


def fronts(table: pd.DataFrame, labels: tuple[str, str], corner: float = 0.85) -> Figure:
    """Every point of a search, and the Pareto front of each arm as a staircase; open dots and dashes with replay.

    Args:
        table: ``arm``, ``old``, ``new``, ``front`` (whether the point is on its arm's front).
        labels: of the axes, for ``old`` and ``new``. corner: where the second panel, the upper right corner, begins.
    """
    fig, axes = figure("column", 2.5, ncols=2)
    for ax, low in zip(axes, (0, corner), strict=True):
        for arm, rows in table.groupby("arm", sort=False):
            replay = "replay" in arm
            face = "white" if replay else colour(arm)
            ax.plot(rows.old, rows.new, "o", color=colour(arm), markerfacecolor=face, markersize=2.2, alpha=0.6)
            front = rows[rows.front].sort_values("old")
            style = {"color": colour(arm), "linestyle": "--" if replay else "-", "label": arm}
            ax.step(front.old, front.new, where="pre", **style)
        margin = 0.03 * (1 - low)
        ax.set(xlim=(low - margin, 1 + margin), ylim=(low - margin, 1 + margin))
        ax.locator_params(nbins=4)
        ax.set(xlabel=labels[0])
    axes[0].set(title="All", ylabel=labels[1])
    axes[1].set(title="Upper right corner")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig


def scatter_panels(
    table: pd.DataFrame, panels: dict[str, str], values: dict[str, str], logarithmic: Sequence[str], label: str
) -> Figure:
    """Measured values against each choice of a search, a panel for each.

    Args:
        table: a row for each point. panels: column of a choice -> title. values: column -> name in the legend.
        logarithmic: choices with a logarithmic axis. label: of the vertical axis.
    """
    nrows = -(-len(panels) // 3)
    fig, axes = figure("column", 0.5 + 1.15 * nrows, nrows=nrows, ncols=3, sharey=True, squeeze=False)
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for ax, (column, title) in zip(axes.flat, panels.items(), strict=False):
        for (value, name), (mark, ink) in zip(values.items(), (("o", "0.1"), ("^", "0.6")), strict=False):
            ax.plot(table[column], table[value], mark, markersize=2.4, color=ink, label=name, linewidth=0)
        ax.set(xlabel=title, ylim=(-0.03, 1.03))
        if column in logarithmic:
            ax.set_xscale("log")
        else:
            ax.locator_params(axis="x", nbins=3)
    fig.supylabel(label, size=STYLE["axes.labelsize"])
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return fig
