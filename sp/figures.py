"""How every figure looks, and how it leaves the notebook: PDF and PNG beside the CSV it was drawn from."""

import io
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from sp import files

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
    files.write_atomically(folder / f"{name}.csv", data.to_csv(index=False, float_format="%.6g"))
    return folder / f"{name}.png"


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
    fig, axes = figure("column", 2.3)
    for arm in arms:
        rows = shown[shown.arm == arm]
        style = "--" if "replay" in arm else "-"
        sns.lineplot(rows, x="step", y="accuracy", color=colour(arm), linestyle=style, label=arm, ax=axes, seed=0)
    switches = shown.groupby("training").step.max().iloc[:-1]
    for number, step in switches.items():
        axes.axvline(step, color="0.6", linewidth=0.6, zorder=0)
        axes.annotate(
            f"task {number + 1} begins", (step, 1.02), xycoords=("data", "axes fraction"), ha="center", size=6
        )
    axes.set(xlabel="Training step", ylabel=f"Accuracy on task {task}", ylim=(-0.02, 1.02))
    axes.legend(loc="lower left")
    return fig, shown


def interval_plot(table: pd.DataFrame, panels: dict[str, str]) -> Figure:
    """Dots with intervals, a row for each arm and a panel for each metric.

    Args:
        table: ``arm``, ``metric``, ``mean``, ``low``, ``high``; one row for an arm and metric.
        panels: metric -> label of its axis, in order.
    """
    arms = list(dict.fromkeys(table.arm))
    fig, axes = figure("column", 0.5 + 0.2 * len(arms), ncols=len(panels), sharey=True, squeeze=False)
    for ax, (metric, label) in zip(axes[0], panels.items(), strict=True):
        rows = table[table.metric == metric].set_index("arm").loc[arms]
        for place, (arm, row) in enumerate(rows.iterrows()):
            face = "white" if "replay" in arm else colour(arm)
            ax.plot([row.low, row.high], [place, place], color=colour(arm), linewidth=1.4, solid_capstyle="butt")
            ax.plot(row["mean"], place, "o", color=colour(arm), markerfacecolor=face, markersize=4)
        ax.set(xlabel=label, xlim=(-0.03, 1.03), yticks=range(len(arms)), yticklabels=arms)
        ax.grid(axis="x", linewidth=0.3, color="0.85")
    axes[0, 0].invert_yaxis()
    return fig
