"""How every figure looks, and how it leaves the notebook: PDF and PNG beside the CSV it was drawn from."""

import io
import string
from pathlib import Path

import matplotlib.pyplot as plt
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
    return plt.subplots(figsize=(WIDTHS[width], height), **subplots)


def colour(arm: str) -> str:
    """The colour of a method; variants of it ("Adam + replay") share it."""
    return next(value for name, value in sorted(COLOURS.items(), key=lambda i: -len(i[0])) if arm.startswith(name))


def save(fig: Figure, name: str, data: pd.DataFrame) -> Path:
    """Write ``name.pdf``, ``name.png`` (300 dpi) and ``name.csv`` into the folder for figures; equal data, equal bytes.

    Returns:
        Path of the PNG file.
    """
    folder = files.folder("figures")
    for suffix, metadata in (("pdf", {"CreationDate": None, "Producer": None}), ("png", {"Software": None})):
        buffer = io.BytesIO()
        fig.savefig(buffer, format=suffix, dpi=300, metadata=metadata)
        files.write_atomically(folder / f"{name}.{suffix}", buffer.getvalue())
    save_table(data, name)
    return folder / f"{name}.png"


def save_table(table: pd.DataFrame, name: str) -> Path:
    """Write ``name.csv`` into the folder for figures, and return its path."""
    path = files.folder("figures") / f"{name}.csv"
    files.write_atomically(path, table.to_csv(index=False, float_format="%.6g"))
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


def interval_plot(table: pd.DataFrame, panels: dict[str, str], label: str) -> Figure:
    """Dots with intervals, a row for each arm and a panel for each metric; open dots with replay.

    Args:
        table: ``arm``, ``metric``, ``mean``, ``low``, ``high``; one row for an arm and metric.
        panels: metric -> title of its panel, in order.
        label: of the axis that the panels share.
    """
    arms = list(dict.fromkeys(table.arm))
    fig, axes = figure("column", 0.6 + 0.17 * len(arms), ncols=len(panels), sharey=True, squeeze=False)
    for ax, (metric, title) in zip(axes[0], panels.items(), strict=True):
        rows = table[table.metric == metric].set_index("arm").loc[arms]
        ax.grid(axis="x", linewidth=0.4, color="0.88")
        for place, (arm, row) in enumerate(rows.iterrows()):
            face = "white" if "replay" in arm else colour(arm)
            ax.plot([row.low, row.high], [place, place], color=colour(arm), linewidth=1.4, solid_capstyle="butt")
            ax.plot(row["mean"], place, "o", color=colour(arm), markerfacecolor=face, markersize=4, clip_on=False)
        ax.set(title=title, xlim=(-0.03, 1.03), xticks=(0, 0.5, 1), yticks=range(len(arms)), yticklabels=arms)
        ax.tick_params(axis="y", length=0)
    axes[0, 0].invert_yaxis()
    fig.supxlabel(label, size=STYLE["axes.labelsize"])
    return fig
