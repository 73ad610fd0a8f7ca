"""The gate panel: the published gate as a function of eligibility and gradient, over a real network's synapses."""

from functools import cache
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from sp import figures, rules, studies, watch
from sp.explore.code import optimizer_code
from sp.explore.panel import DRAWING, Answer, Panel, encoded

SYNAPSES = 1500  # of the network's weights, drawn at random
STEPS_OF_B = 100  # recorded after the switch to task B
DEFAULTS = {
    "plasticity_k": 5.0,
    "trace_decay": 0.99,
    "threshold_percentile": 75,
    "gate_min": 0.0,
    "normalisation": "percentile",
    "steps_into_b": 0,
}
LEVELS = (5, 25, 75)  # percentiles of the eligibility at which the surface is cut


def gate_panel() -> Panel:
    """Sliders for the published gate (P7): its surface, slices through it, and what it makes of a trained network.

    The network learnt task A of two-task digits with Adam; the last slider goes on into task B with it.
    """
    controls = {
        "plasticity_k": widgets.FloatSlider(
            DEFAULTS["plasticity_k"],
            min=0,
            max=10,
            step=0.25,
            description="k (sharpness)",
            tooltip="Protection strength, without unit. Published: 1-3 lenient, 3-7 balanced, 7-10 strict; 0: no gate.",
        ),
        "trace_decay": widgets.FloatSlider(
            DEFAULTS["trace_decay"],
            min=0.95,
            max=0.999,
            step=0.001,
            readout_format=".3f",
            description="β (per step)",
            tooltip="Decay of the eligibility trace: it remembers about 1 / (1 - β) steps. Published: 0.95 to 0.999.",
        ),
        "threshold_percentile": widgets.IntSlider(
            DEFAULTS["threshold_percentile"],
            min=5,
            max=100,
            step=5,
            description="percentile (%)",
            tooltip="Percentile of the eligibility that counts as fully used: the threshold θ. Published: 75.",
        ),
        "gate_min": widgets.FloatSlider(
            DEFAULTS["gate_min"],
            min=0,
            max=1,
            step=0.05,
            description="gate_min",
            tooltip="Floor of the gate, as a share of a step: above 0 no synapse is ever frozen.",
        ),
        "normalisation": widgets.Dropdown(
            value=DEFAULTS["normalisation"],
            options=["percentile", "max"],
            description="normalisation",
            tooltip='"percentile": in units of θ. "max": each magnitude in units of its largest.',
        ),
        "steps_into_b": widgets.IntSlider(
            DEFAULTS["steps_into_b"],
            min=0,
            max=STEPS_OF_B,
            description="steps into task B",
            tooltip="When the network is looked at: 0 is the last step of task A.",
        ),
    }
    _gradients()  # trains, which is for the main thread

    picture = cache(_Picture)  # made in the thread that draws

    def make(choices: dict) -> Answer:
        with DRAWING:
            return _answer(picture(), **choices)

    return Panel(
        "gate",
        "The gate: which synapses may move?",
        "Look for the dark corner: synapses that were used (high eligibility) and are silent now (low gradient) are "
        "held. Each dot is a synapse of a trained network. Move 'steps into task B' and watch the dots leave it.",
        controls,
        make,
        _code,
    )


def gate_answer(**choices: Any) -> Answer:
    """What the gate panel shows for these choices, as a figure of its own; see `DEFAULTS` for their names."""
    return _answer(_Picture(), **{**DEFAULTS, **choices})


def _code(choices: dict) -> str:
    names = [name for name in DEFAULTS if name != "steps_into_b"]
    return optimizer_code("selective", {name: choices[name] for name in names})


@cache
def _gradients() -> torch.Tensor:
    """Size of the gradient of a sample of weights, step by step through task A and the beginning of B; (steps, n)."""
    experiment = studies.forgetting("digits")["Adam"]
    history, drawn = [], []

    def look(moment: watch.Moment) -> list[dict]:
        if moment.task > 1 and len(history) >= drawn[0] + STEPS_OF_B:
            return []
        weights = torch.cat([p.grad.flatten() for p in moment.learner.model.parameters() if p.dim() > 1])
        if not history:
            drawn.extend([0, torch.randperm(len(weights), generator=torch.Generator().manual_seed(0))[:SYNAPSES]])
        history.append(weights[drawn[1]].abs())
        if moment.last and moment.task == 1:
            drawn[0] = len(history)
        return []

    watch.follow(experiment, look, until=2)
    return torch.stack(history)[: drawn[0] + STEPS_OF_B]


def _eligibility_and_gradient(trace_decay: float, steps_into_b: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Bias-corrected eligibility of each synapse, and the size of its gradient, at a moment; (n,) each."""
    history = _gradients()
    seen = history[: len(history) - STEPS_OF_B + steps_into_b]
    weight = (1 - trace_decay) * trace_decay ** torch.arange(len(seen) - 1, -1, -1.0)
    return rules.bias_corrected(weight @ seen, trace_decay, len(seen)), seen[-1]


def _answer(
    picture: "_Picture",
    plasticity_k: float,
    trace_decay: float,
    threshold_percentile: float,
    gate_min: float,
    normalisation: str,
    steps_into_b: int,
) -> Answer:
    eligibility, gradient = _eligibility_and_gradient(trace_decay, steps_into_b)
    if normalisation == "max":
        thresholds = eligibility.max(), gradient.max()
    else:
        thresholds = (eligibility.quantile(threshold_percentile / 100),) * 2
    smallest = torch.tensor(1e-30)  # where most synapses are silent, as in the optimizer
    used, now = (torch.maximum(threshold, smallest) for threshold in thresholds)

    def gate(e: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        norms = rules.saturating_ratio(e, used), rules.saturating_ratio(g, now)
        return rules.plasticity_gate(*norms, plasticity_k, gate_min)

    gates = gate(eligibility, gradient)
    grid = picture.grid
    levels = eligibility.quantile(torch.tensor(LEVELS) / 100)
    picture.update(
        surface=gate(grid[:, None], grid[None, :]),
        slices=[gate(level, grid) for level in levels],
        synapses=(gradient, eligibility),
        gates=gates,
        threshold=used,
    )
    shut = (gates < 0.5).float().mean().item()
    text = (
        f"Mean gate {gates.mean().item():.2f}. Gate below one half for {shut:.0%} of {len(gates):,} sampled weights. "
        f"Threshold of the eligibility {used.item():.2g} (units of the gradient)."
    )
    data = pd.DataFrame({"eligibility": eligibility, "gradient": gradient, "gate": gates})
    return Answer(picture.figure, data, text, png=picture.png)


class _Picture:
    """A figure that is drawn once and then only filled anew, which is fast enough for dragging."""

    def __init__(self):
        history = _gradients()
        top = history.quantile(0.9999).log10().ceil().item()
        self.low, self.high = top - 4, top
        self.grid = torch.logspace(self.low, self.high, 120)
        self.figure, axes = figures.figure("page", 2.3, ncols=3)
        surface, slices, histogram = axes
        limits = (self.low, self.high)
        self._image = surface.imshow(
            np.zeros((2, 2)), origin="lower", extent=limits * 2, vmin=0, vmax=1, cmap="cividis", aspect="auto"
        )
        (self._dots,) = surface.plot([], [], "o", color="white", markersize=1.4, alpha=0.5, markeredgewidth=0)
        self._threshold = surface.axhline(self.low, color="white", linewidth=0.8, linestyle="--")
        surface.set(xlim=limits, ylim=limits, title="Gate (colour) and synapses (dots)", ylabel="Eligibility")
        self.figure.colorbar(self._image, ax=surface, ticks=(0, 0.5, 1), aspect=30)
        colours = [self._image.cmap(0.15 + 0.35 * i) for i in range(len(LEVELS))]
        self._lines = [
            slices.plot([], [], color=colour, linestyle=style, label=f"{level} %")[0]
            for level, colour, style in zip(LEVELS, colours, ("-", "--", ":"), strict=True)
        ]
        slices.set(xlim=limits, ylim=(-0.03, 1.03), title="Slices", ylabel="Gate (share of a step)")
        slices.legend(title="Eligibility at", loc="lower right", title_fontsize=6.5)
        for ax, along in ((surface, "xy"), (slices, "x")):
            ticks = range(round(self.low), round(self.high) + 1)
            ax.set(xticks=ticks, xticklabels=[f"$10^{{{t}}}$" for t in ticks], xlabel="Gradient now, |g|")
            if along == "xy":
                ax.set(yticks=ticks, yticklabels=[f"$10^{{{t}}}$" for t in ticks])
        self._edges = np.linspace(0, 1, 11)
        self._bars = histogram.bar(
            self._edges[:-1], np.zeros(10), 0.1, align="edge", color=figures.COLOURS["Selective plasticity"], alpha=0.8
        )
        histogram.set(xlim=(0, 1), ylim=(0, 1), title="Synapses by gate", xlabel="Gate (share of a step)")
        histogram.set(ylabel="Share of synapses", yticks=(0, 0.5, 1))
        self._moving = (self._image, self._dots, self._threshold, *self._lines, *self._bars)
        for artist in self._moving:
            artist.set_animated(True)
        self._empty: tuple | None = None

    def update(
        self,
        surface: torch.Tensor,
        slices: list[torch.Tensor],
        synapses: tuple[torch.Tensor, torch.Tensor],
        gates: torch.Tensor,
        threshold: torch.Tensor,
    ) -> None:
        """Show these values: the surface on `grid` (row: eligibility, column: gradient), and the rest beside it."""
        self._image.set_data(surface.numpy())
        lowest = 10**self.low
        self._dots.set_data(*(values.clamp(min=lowest).log10().numpy()[:500] for values in synapses))
        self._threshold.set_ydata([threshold.clamp(min=lowest).log10().item()] * 2)
        for line, values in zip(self._lines, slices, strict=True):
            line.set_data(self.grid.log10().numpy(), values.numpy())
        shares = np.histogram(gates.numpy().clip(0, 1), self._edges)[0] / len(gates)
        for patch, share in zip(self._bars, shares, strict=True):
            patch.set_height(share)

    def png(self) -> bytes:
        """The figure as it is, on the axes that were drawn the first time."""
        if self._empty is None:
            canvas = FigureCanvasAgg(self.figure)
            canvas.draw()
            self.figure.set_layout_engine("none")  # found once
            self._empty = canvas, canvas.copy_from_bbox(self.figure.bbox)
        canvas, empty = self._empty
        canvas.restore_region(empty)
        for artist in self._moving:
            artist.axes.draw_artist(artist)
        return encoded(canvas)
