"""The gate panel: the published gate as a function of eligibility and gradient, over a real network's synapses."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from ipywidgets import Dropdown

from sp import rules
from sp.checks import check_choice, check_integer
from sp.explore.code import optimizer_code
from sp.explore.learning import ADAM_RATES, PUBLISHED
from sp.explore.panel import Answer, Panel
from sp.explore.sliders import STEPS_OF_B, sliders
from sp.lab import watch
from sp.lab.settings import on_stream

SYNAPSES = 1500  # number of weights drawn at random from the network
DEFAULTS = {
    "plasticity_k": 5.0,
    "trace_decay": 0.99,
    "threshold_percentile": 75,
    "gate_min": 0.0,
    "normalisation": "percentile",
    "steps_into_b": 0,
}
LEVELS = (5, 25, 75)  # percentiles of the eligibility at which the surface is sliced


def gate_panel() -> Panel:
    """Sliders for the published gate (P7): its surface, slices through it, and its values in a trained network.

    The network has learnt task A of two-task digits with Adam; the last slider continues into task B.
    """
    normalisation = Dropdown(
        value=DEFAULTS["normalisation"],
        options=["percentile", "max"],
        description="normalisation",
        tooltip='"percentile": in units of θ. "max": each magnitude in units of its maximum.',
    )
    controls = {
        **sliders((*PUBLISHED, "gate_min"), DEFAULTS),
        "normalisation": normalisation,
        **sliders(["steps_into_b"], DEFAULTS),
    }
    _gradients()  # trains a network, which belongs in the main thread

    def make(choices: dict) -> Iterator[Answer]:
        yield gate_answer(**choices)

    return Panel(
        "gate",
        "The gate: which synapses may move?",
        "A network has learnt task A, and task B begins. Press play, or move 'steps into task B', and watch the "
        "synapses (dots) leave the dark corner, where the gate holds them.",
        controls,
        make,
        _code,
        play="steps_into_b",
    )


def gate_answer(**choices: Any) -> Answer:
    """What the gate panel shows for these choices; see `DEFAULTS` for their names."""
    for name in choices:
        check_choice("choices", name, DEFAULTS)
    chosen = {**DEFAULTS, **choices}
    check_integer("steps_into_b", chosen["steps_into_b"], 0, STEPS_OF_B)
    data = _measure(**chosen)
    gates = data[data.part == "synapse"].gate
    held = (gates < 0.5).mean()
    numbers = {
        "mean gate": f"{gates.mean():.2f}",
        "gate below one half": f"{held:.0%}",
        "threshold θ": f"{data[data.part == 'threshold'].eligibility.iloc[0]:.2g}",
    }
    table = pd.DataFrame([numbers], [f"{len(gates):,} sampled weights"])
    return Answer("gate", data, _in_words(chosen["steps_into_b"], held), table)


def _in_words(step: int, held: float) -> str:
    at_end, now = _gradients()[[-1 - STEPS_OF_B, step - 1 - STEPS_OF_B]].mean(1)
    moment = f"Step {step} of task B" if step else "Task A ends"
    why = "the network has learnt its batches, and most synapses are silent"
    if now > 2 * at_end:
        why = f"gradients are {now / at_end:.0f} times those at the end of task A, and synapses in use are not held"
    return (
        f"{moment}: the gate is below one half for {held:.0%} of the synapses; {why}.\n\n"
        "Left: each dot is a synapse. The higher it is, the more it was used lately; the further right, the more this "
        "batch asks of it. Above the dashed line, θ, it counts as fully used. Dark: the gate is closed.\n"
        "Middle: the gate at three heights of the left plot.\nRight: how the gates of the synapses are distributed.\n\n"
        "gate = clamp(1 − k ê (1 − ĝ), gate_min, 1)\nê = min(e / θ, 1), ĝ = min(|g| / θ, 1)"
    )


def _code(choices: dict) -> str:
    names = [name for name in DEFAULTS if name != "steps_into_b"]
    return optimizer_code("selective", {name: choices[name] for name in names})


@cache
def _gradients() -> torch.Tensor:
    """Absolute gradients of a sample of weights at each step of task A and the beginning of B; (steps, n)."""
    experiment = replace(on_stream("split2_class", "digits"), optimizer="adam", options={"lr": ADAM_RATES[False]})
    history, tasks = [], []

    def look(moment: watch.Moment) -> list[dict]:
        weights = torch.cat([p.grad.flatten() for p in moment.learner.model.parameters() if p.dim() > 1])
        sample = torch.randperm(len(weights), generator=torch.Generator().manual_seed(0))[:SYNAPSES]
        history.append(weights[sample].abs())
        tasks.append(moment.task)
        return []

    watch.follow(experiment, look)
    return torch.stack(history)[: tasks.count(1) + STEPS_OF_B]


def _measure(
    plasticity_k: float,
    trace_decay: float,
    threshold_percentile: float,
    gate_min: float,
    normalisation: str,
    steps_into_b: int,
) -> pd.DataFrame:
    """The table that `sp.figures.inside.gate` draws."""
    history = _gradients()
    seen = history[: len(history) - STEPS_OF_B + steps_into_b]
    weight = (1 - trace_decay) * trace_decay ** torch.arange(len(seen) - 1, -1, -1.0)
    eligibility, gradient = rules.bias_corrected(weight @ seen, trace_decay, len(seen)), seen[-1]
    if normalisation == "max":
        thresholds = eligibility.max(), gradient.max()
    else:
        thresholds = (eligibility.quantile(threshold_percentile / 100),) * 2
    smallest = torch.tensor(1e-30)  # the same as in the optimizer, for when most synapses are silent
    used, now = (torch.maximum(threshold, smallest) for threshold in thresholds)

    def part(name: str, e: torch.Tensor, g: torch.Tensor, level: float = np.nan) -> pd.DataFrame:
        e, g = torch.broadcast_tensors(e, g)
        norms = rules.saturating_ratio(e, used), rules.saturating_ratio(g, now)
        gates = rules.plasticity_gate(*norms, plasticity_k, gate_min)
        columns = {"eligibility": e, "gradient": g, "gate": gates}
        return pd.DataFrame({"part": name, "level": level, **{n: values.flatten() for n, values in columns.items()}})

    top = history.quantile(0.9999).log10().ceil().item()
    grid = torch.logspace(top - 4, top, 60)
    levels = eligibility.quantile(torch.tensor(LEVELS) / 100)
    return pd.concat(
        [
            part("synapse", eligibility, gradient),
            part("surface", grid[:, None], grid[None, :]),
            *(part("slice", e, grid, level) for level, e in zip(LEVELS, levels, strict=True)),
            pd.DataFrame({"part": ["threshold"], "eligibility": [used.item()]}),
        ],
        ignore_index=True,
    )
