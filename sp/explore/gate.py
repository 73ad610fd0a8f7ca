"""The gate panel: the published gate as a function of eligibility and gradient, over a real network's synapses."""

from dataclasses import replace
from functools import cache, partial
from typing import Any

import ipywidgets as widgets
import numpy as np
import pandas as pd
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from sp import figures, rules
from sp.explore.code import optimizer_code
from sp.explore.learning import ADAM_RATES
from sp.explore.panel import Answer, Panel, encoded
from sp.explore.sliders import published_sliders
from sp.lab import watch
from sp.lab.settings import on_stream

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
        **published_sliders(DEFAULTS),
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

    pictures: list[_Picture] = []  # one, made in the thread that draws

    def make(choices: dict) -> Answer:
        table, text = _measure(**choices)

        def png() -> bytes:
            if not pictures:
                pictures.append(_Picture(table))
            pictures[0].update(table)
            return pictures[0].png()

        return Answer("gate", table, text, png=png)

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
    """What the gate panel shows for these choices; see `DEFAULTS` for their names."""
    return Answer("gate", *_measure(**{**DEFAULTS, **choices}))


def _code(choices: dict) -> str:
    names = [name for name in DEFAULTS if name != "steps_into_b"]
    return optimizer_code("selective", {name: choices[name] for name in names})


@cache
def _gradients() -> torch.Tensor:
    """Size of the gradient of a sample of weights, step by step through task A and the beginning of B; (steps, n)."""
    experiment = replace(on_stream("split2_class", "digits"), optimizer="adam", options={"lr": ADAM_RATES[False]})
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


def _measure(
    plasticity_k: float,
    trace_decay: float,
    threshold_percentile: float,
    gate_min: float,
    normalisation: str,
    steps_into_b: int,
) -> tuple[pd.DataFrame, str]:
    """The table that `sp.figures.inside.gate` draws, and the numbers in words."""
    eligibility, gradient = _eligibility_and_gradient(trace_decay, steps_into_b)
    if normalisation == "max":
        thresholds = eligibility.max(), gradient.max()
    else:
        thresholds = (eligibility.quantile(threshold_percentile / 100),) * 2
    smallest = torch.tensor(1e-30)  # where most synapses are silent, as in the optimizer
    used, now = (torch.maximum(threshold, smallest) for threshold in thresholds)

    def part(name: str, e: torch.Tensor, g: torch.Tensor, level: float = np.nan) -> pd.DataFrame:
        e, g = torch.broadcast_tensors(e, g)
        norms = rules.saturating_ratio(e, used), rules.saturating_ratio(g, now)
        gates = rules.plasticity_gate(*norms, plasticity_k, gate_min)
        columns = {"eligibility": e, "gradient": g, "gate": gates}
        return pd.DataFrame({"part": name, "level": level, **{n: values.flatten() for n, values in columns.items()}})

    grid = _grid()
    synapses = part("synapse", eligibility, gradient)
    levels = eligibility.quantile(torch.tensor(LEVELS) / 100)
    table = pd.concat(
        [
            synapses,
            part("surface", grid[:, None], grid[None, :]),
            *(part("slice", e, grid, level) for level, e in zip(LEVELS, levels, strict=True)),
            pd.DataFrame({"part": ["threshold"], "eligibility": [used.item()]}),
        ],
        ignore_index=True,
    )
    text = (
        f"Mean gate {synapses.gate.mean():.2f}. Gate below one half for {(synapses.gate < 0.5).mean():.0%} of "
        f"{len(synapses):,} sampled weights. Threshold of the eligibility {used.item():.2g} (units of the gradient)."
    )
    return table, text


def _grid() -> torch.Tensor:
    """Eligibilities and gradients at which the surface is measured."""
    top = _gradients().quantile(0.9999).log10().ceil().item()
    return torch.logspace(top - 4, top, 60)


class _Picture(figures.GatePicture):
    """A figure that is drawn once and then only filled anew, which is fast enough for dragging."""

    def __init__(self, table: pd.DataFrame):
        super().__init__(partial(figures.figure, "page"), table)
        for artist in self.moving:
            artist.set_animated(True)
        self._empty: tuple | None = None

    def png(self) -> bytes:
        """The figure as it is, on the axes that were drawn the first time."""
        if self._empty is None:
            canvas = FigureCanvasAgg(self.figure)
            canvas.draw()
            self.figure.set_layout_engine("none")  # found once
            self._empty = canvas, canvas.copy_from_bbox(self.figure.bbox)
        canvas, empty = self._empty
        canvas.restore_region(empty)
        for artist in self.moving:
            artist.axes.draw_artist(artist)
        return encoded(canvas)
