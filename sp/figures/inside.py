"""Plots of what goes on inside a network: gates, memories, weights."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from sp.figures.kit import SUPERSCRIPTS, Canvas, label_below, legend_below, line_styles, log_ticks, plot, switches
from sp.figures.style import LETTERS, STYLE, look


@plot()
def gate_bands(canvas: Canvas, table: pd.DataFrame) -> Figure:
    """The consolidation gate over training, one panel per layer: median, and band between its outer quantiles.

    Args:
        table: ``step``, ``task``, ``layer``, ``quantile``, ``gate``.
    """
    layers, ink = list(dict.fromkeys(table.layer)), look("Consolidation")[0]
    fig, axes = canvas(1.75, ncols=len(layers), sharey=True, squeeze=False)
    for ax, layer in zip(axes[0], layers, strict=True):
        wide = table[table.layer == layer].pivot_table("gate", "step", "quantile")
        low, middle, high = wide.columns[0], wide.columns[len(wide.columns) // 2], wide.columns[-1]
        band = {"alpha": 0.25, "linewidth": 0, "label": f"{low:.0%} to {high:.0%} of the weights"}
        ax.fill_between(wide.index, wide[low], wide[high], color=ink, **band)
        ax.plot(wide.index, wide[middle], color=ink, label="median" if middle == 0.5 else f"{middle:.0%}")
        switches(ax, table, "step", "task", False)
        ax.set(title=f"Layer {layer}", ylim=(0, 1.02), yticks=(0, 0.5, 1))
        ax.locator_params(axis="x", nbins=3)
    axes[0, 0].set_ylabel("Gate (share of a step)")
    label_below(fig, axes, "Training step")
    legend_below(fig, axes)
    return fig


@plot()
def spectra(canvas: Canvas, table: pd.DataFrame) -> Figure:
    """Eigenvalues of a memory after each task, multiplied by the retention, one panel per stream.

    Args:
        table: ``stream``, ``task``, ``direction``, ``weight``.
    """
    titles = list(dict.fromkeys(table.stream))
    fig, axes = canvas(2.2, ncols=len(titles), sharey=True, squeeze=False)
    for ax, title in zip(axes[0], titles, strict=True):
        rows = table[table.stream == title]
        tasks = sorted(rows.task.unique())
        ax.axhline(1, color="0.4", linewidth=0.6, linestyle="--")
        for task in tasks:
            shade = plt.get_cmap("cividis_r")(0.15 + 0.85 * (task - 1) / max(len(tasks) - 1, 1))
            of_task = rows[rows.task == task]
            name = f"{task} task{'s' if task > 1 else ''}" if task in (1, tasks[len(tasks) // 2], tasks[-1]) else None
            ax.plot(of_task.direction, of_task.weight.clip(lower=1e-6), color=shade, linewidth=0.9, label=name)
        ax.set(title=title, yscale="log", ylim=(1e-2, None))
        log_ticks(ax.yaxis)
        ax.legend(loc="upper right", handlelength=1.2)
    axes[0, 0].set_ylabel("Eigenvalue of r A")
    label_below(fig, axes, "Direction")
    return fig


@plot()
def image_rows(
    canvas: Canvas,
    table: pd.DataFrame,
    shape: Sequence[int],
    row: str = "row",
    grey: Sequence[str] = (),
    height: float = 0.45,
) -> Figure:
    """Rows of images: inputs in grey, weights on a scale centred at zero that is set for each row.

    Args:
        table: one image per line, with the column named by ``row``, and a column ``0``, ``1``, ... for each pixel.
        shape: (height, width) of an image.
        row: column with the name of an image's row.
        grey: names of the rows that are grey.
        height: height of a row, in inches.
    """
    rows = dict(list(table.groupby(row, sort=False)))
    columns = max(len(images) for images in rows.values())
    fig, axes = canvas(height * len(rows) + 0.1, nrows=len(rows), ncols=columns, squeeze=False)
    pixels = [str(pixel) for pixel in range(shape[0] * shape[1])]
    for line, (name, images) in zip(axes, rows.items(), strict=True):
        values = images[pixels].to_numpy(dtype=float).reshape(-1, *shape)
        largest = np.abs(values).max()
        for ax in line:
            ax.set(xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
        for ax, image in zip(line, values, strict=False):
            if name in grey:
                ax.imshow(image, cmap="gray_r")
            else:
                signed = ax.imshow(image / largest, cmap="PuOr", vmin=-1, vmax=1)
        line[0].set_ylabel("\n".join(textwrap.wrap(str(name), 10)), rotation=0, ha="right", va="center")
    if set(rows) - set(grey):
        label = "Share of the\nrow's largest"  # on one line it would be taller than two rows of images
        bar = fig.colorbar(signed, ax=axes, aspect=25, shrink=0.8, label=label, ticks=(-1, 0, 1))
        bar.outline.set_visible(False)
    return fig


class GatePicture:
    """The gate over eligibility and gradient, slices through it, and synapses by gate; `update` replaces the data."""

    def __init__(self, canvas: Canvas, table: pd.DataFrame):
        surface = table[table.part == "surface"]
        self.low, self.high = np.log10([surface.gradient.min(), surface.gradient.max()]).round(3)
        self.figure, axes = canvas(2.3, ncols=3)
        image, slices, histogram = axes
        limits = (self.low, self.high)
        self._image = image.imshow(
            np.zeros((2, 2)), origin="lower", extent=limits * 2, vmin=0, vmax=1, cmap="cividis", aspect="auto"
        )
        edge = {"markeredgecolor": "0.2", "markeredgewidth": 0.25}  # else unseen where the gate is open
        (self._dots,) = image.plot([], [], "o", color="white", markersize=1.7, alpha=0.8, **edge)
        self._threshold = image.axhline(self.low, color="white", linewidth=0.8, linestyle="--")
        self._threshold.set_path_effects([withStroke(linewidth=1.4, foreground="0.2")])
        image.set(xlim=limits, ylim=limits, title="Gate (colour) and synapses (dots)", ylabel="Eligibility")
        self.figure.colorbar(self._image, ax=image, ticks=(0, 0.5, 1), aspect=30)
        levels = list(dict.fromkeys(table[table.part == "slice"].level))
        self._lines = [
            slices.plot([], [], color=self._image.cmap(0.15 + 0.35 * i), linestyle=style, label=f"{level:g} %")[0]
            for i, (level, style) in enumerate(zip(levels, ("-", "--", ":"), strict=True))
        ]
        slices.set(xlim=limits, ylim=(-0.03, 1.03), title="Slices", ylabel="Gate (share of a step)")
        slices.legend(title="Eligibility at", loc="lower right", title_fontsize=6.5)
        ticks = range(int(np.ceil(self.low)), int(np.floor(self.high)) + 1)
        labels = [f"10{str(tick).translate(SUPERSCRIPTS)}" for tick in ticks]
        for ax in (image, slices):
            ax.set(xticks=ticks, xticklabels=labels, xlabel="Gradient now, |g|")
        image.set(yticks=ticks, yticklabels=labels)
        self._edges = np.linspace(0, 1, 11)
        style = {"align": "edge", "color": look("Selective plasticity")[0], "alpha": 0.8}
        self._bars = histogram.bar(self._edges[:-1], np.zeros(10), 0.1, **style)
        histogram.set(xlim=(0, 1), ylim=(0, 1), title="Synapses by gate", xlabel="Gate (share of a step)")
        histogram.set(ylabel="Share of synapses", yticks=(0, 0.5, 1))
        self.moving = (self._image, self._dots, self._threshold, *self._lines, *self._bars)
        self.update(table)

    def update(self, table: pd.DataFrame) -> None:
        """Show another table on the same axes."""
        parts = dict(list(table.groupby("part", sort=False)))
        surface, synapses, slices = parts["surface"], parts["synapse"], parts["slice"]
        size = round(len(surface) ** 0.5)
        self._image.set_data(surface.gate.to_numpy().reshape(size, size))
        lowest = 10**self.low
        shown = np.log10(synapses[["gradient", "eligibility"]].clip(lower=lowest))[:500]
        self._dots.set_data(shown.gradient, shown.eligibility)
        self._threshold.set_ydata([np.log10(max(parts["threshold"].eligibility.iloc[0], lowest))] * 2)
        for line, (_, rows) in zip(self._lines, slices.groupby("level", sort=False), strict=True):
            line.set_data(np.log10(rows.gradient), rows.gate)
        shares = np.histogram(synapses.gate.clip(0, 1), self._edges)[0] / len(synapses)
        for patch, share in zip(self._bars, shares, strict=True):
            patch.set_height(share)


@plot()
def gate(canvas: Canvas, table: pd.DataFrame) -> Figure:
    """The published gate over eligibility and gradient, and its values at a network's synapses.

    Args:
        table: ``part``, ``level``, ``eligibility``, ``gradient``, ``gate``. Parts: ``surface``, a square grid with one
            eligibility per row; ``slice``, at three values of ``level`` (percentiles of the eligibility);
            ``synapse``; and ``threshold``.
    """
    return GatePicture(canvas, table).figure


class LearningPicture:
    """Curves of two tasks, LTP and LTD of each layer, and gates if the first table has them; see `learning`."""

    def __init__(self, canvas: Canvas, table: pd.DataFrame):
        gates = table[table.quantity == "gate"]
        self.figure, ax = canvas(4.2 if len(gates) else 2.2)
        ax.remove()
        parts = self.figure.subfigures(2, height_ratios=(1.15, 1)) if len(gates) else [self.figure.subfigures()]
        self._top = parts[0]
        axes = self._top.subplots(1, 3, width_ratios=(1, 1, 1.15))
        self._curves, self._lines = axes[:2], {}
        curves = table[table.quantity == "accuracy"]
        for task, ax in enumerate(self._curves, 1):
            for place in range(table.method.nunique()):
                (self._lines[task, place],) = ax.plot(curves.step, curves.value, clip_on=False, markevery=0.15)
            switches(ax, curves, "step", "training", False)
            ax.set(title=f"Task {LETTERS[task - 1]}", ylim=(0, 1.02), xlabel="Training step", yticks=(0, 0.5, 1))
        self._curves[0].set_ylabel("Test accuracy")
        self._legend = None
        self._bars = _bars(axes[2], _of_weights(table))
        self._images = _images(parts[1], gates) if len(gates) else {}
        self._without = parts[-1].text(0.5, 0.5, "", ha="center", va="center")
        self.update(table)

    @property
    def moving(self) -> tuple[Artist, ...]:
        """The artists that `update` changes."""
        bars = (bar for pair in self._bars.values() for bar in pair.values())
        return (*self._lines.values(), self._legend, *bars, *self._images.values(), self._without)

    def update(self, table: pd.DataFrame) -> None:
        """Show another table with the same number of methods on the same axes; missing parts stay empty."""
        methods = list(dict.fromkeys(table.method))
        parts = dict(list(table.groupby("quantity", sort=False)))
        styles, curves = line_styles(methods), table[table.quantity == "accuracy"]
        for (task, place), line in self._lines.items():
            rows = curves[(curves.task == task) & (curves.method == methods[place])]
            line.set(
                data=(rows.step, rows.value), label=methods[place], visible=len(rows) > 0, **styles[methods[place]]
            )
        if self._legend is not None:
            self._legend.remove()
        names = self._curves[0].get_legend_handles_labels()
        self._legend = self._top.legend(*names, loc="outside lower left", ncols=2)
        events = _of_weights(table).set_index(["method", "task", "parameter", "quantity"])
        shares = (events.value / (events.synapses * events.looks.clip(lower=1))).to_dict()
        for (place, *layer), pair in self._bars.items():
            for quantity, bar in pair.items():
                share = shares.get((methods[place], *layer, quantity), 0)
                bar.set(width=share if quantity == "ltp" else -share, facecolor=look(methods[place])[0])
        gates = dict(list(parts["gate"].groupby(["task", "parameter"]))) if "gate" in parts else {}
        for layer, image in self._images.items():
            image.set_visible(layer in gates)
            if layer in gates:
                image.set_data(gates[layer].pivot(index="row", columns="column", values="value"))
        missing = f"{methods[0]} has no gate: every synapse takes its whole step" if self._images and not gates else ""
        self._without.set_text(missing)


PICTURES = {"gate": GatePicture, "learning": LearningPicture}  # plots that can be updated in place


@plot()
def learning(canvas: Canvas, table: pd.DataFrame) -> Figure:
    """Curves of two tasks, LTP and LTD of each layer, and below them the gates, if any, for each task.

    Args:
        table: ``method, quantity, value``; with ``training, task, step`` if the quantity is ``accuracy``; ``task,
            parameter, synapses, looks`` if it is ``ltp`` or ``ltd``, a count; ``task, parameter, row, column`` if it
            is ``gate``, the mean over a block of synapses.
    """
    return LearningPicture(canvas, table).figure


def _of_weights(table: pd.DataFrame) -> pd.DataFrame:
    return table[table.quantity.isin(["ltp", "ltd"]) & table.parameter.str.endswith("weight").eq(True)]


def _bars(ax: Axes, events: pd.DataFrame) -> dict[tuple, dict[str, Rectangle]]:
    """LTP bars to the right, LTD bars to the left: the share of a layer's synapses in a step, for each task."""
    bars, labels = {}, []
    for place, method in enumerate(dict.fromkeys(events.method)):
        rows = events[events.method == method]
        for task in sorted(rows.task.unique()):
            for layer, parameter in enumerate(dict.fromkeys(rows.parameter), 1):
                height = -len(labels)
                bars[place, task, parameter] = {
                    quantity: ax.barh(height, 0, alpha=alpha, height=0.75)[0]
                    for quantity, alpha in (("ltp", 1), ("ltd", 0.5))
                }
                labels.append(f"{LETTERS[int(task) - 1]}, layer {layer}")
    ax.axvline(0, color="0.2", linewidth=0.6)
    ax.set(xlim=(-1, 1), xticks=(-1, 0, 1), xticklabels=("1", "0", "1"), title="LTD (left), LTP (right)")
    ax.set(yticks=range(0, -len(labels), -1), yticklabels=labels, xlabel="Share of synapses in a step")
    ax.tick_params(axis="y", length=0)
    return bars


def _images(fig: FigureBase, gates: pd.DataFrame) -> dict[tuple, AxesImage]:
    """Mean gates of each layer, for each task."""
    tasks, layers = sorted(gates.task.unique()), list(dict.fromkeys(gates.parameter))
    axes = iter(fig.subplots(1, len(tasks) * len(layers), squeeze=False)[0])
    images = {}
    for number, layer in enumerate(layers, 1):
        for task in tasks:
            ax, rows = next(axes), gates[(gates.parameter == layer) & (gates.task == task)]
            image = rows.pivot(index="row", columns="column", values="value")
            images[task, layer] = ax.imshow(image, vmin=0, vmax=1, cmap="cividis", aspect="auto")
            ax.set(title=f"Layer {number}, task {LETTERS[int(task) - 1]}", xticks=[], yticks=[])
            ax.spines[:].set_visible(False)
    drawn = list(images.values())
    drawn[0].axes.set_ylabel("Units (blocks)")
    fig.supxlabel("Inputs of the layer (blocks)", size=STYLE["axes.labelsize"])
    bar = {"label": "Mean gate", "ticks": (0, 0.5, 1), "aspect": 20, "shrink": 0.9}
    fig.colorbar(drawn[-1], ax=[image.axes for image in drawn], **bar)
    return images
