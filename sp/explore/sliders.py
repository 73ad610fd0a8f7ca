"""The sliders of the panels, by the name of the option that each one sets."""

from collections.abc import Iterable, Mapping
from typing import Any

from ipywidgets import FloatLogSlider, FloatSlider, IntSlider, SelectionSlider, Widget

STEPS = 220  # training steps of both tasks in the learning panel
STEPS_OF_B = 100  # how far the gate panel goes into task B

# Name -> kind, smallest, largest, step, label. Ends of a logarithmic slider are given as powers of ten.
SLIDERS: dict[str, tuple[type[Widget], float, float, float, str]] = {
    "lr": (FloatLogSlider, -5, 0, 0.25, "learning rate"),
    "plasticity_k": (FloatSlider, 0, 10, 0.25, "k (sharpness)"),
    "trace_decay": (FloatSlider, 0.95, 0.999, 0.001, "β (per step)"),
    "threshold_percentile": (IntSlider, 5, 100, 5, "percentile (%)"),
    "gate_min": (FloatSlider, 0, 1, 0.05, "gate_min"),
    "steps_into_b": (IntSlider, 0, STEPS_OF_B, 1, "steps into task B"),
    "warmup_steps": (IntSlider, 10, 500, 10, "warm-up (steps)"),
    "threshold_quantile": (FloatSlider, 0.05, 0.95, 0.05, "θ quantile"),
    "replay_capacity": (IntSlider, 0, 500, 50, "replay (images)"),
    "seed": (IntSlider, 0, 9, 1, "seed"),
    "step": (IntSlider, 0, STEPS, 1, "shown up to step"),
}
FORMATS = {"lr": ".1e", "trace_decay": ".3f"}  # number formats, where not the default
TOOLTIPS = {
    "lr": "Step size. Published advice: Adam's, or 1.5 to 3 times it.",
    "plasticity_k": "Protection strength, without unit. Published: 1-3 lenient, 3-7 balanced, 7-10 strict; 0: no gate.",
    "trace_decay": "Decay of the eligibility trace: it remembers about 1 / (1 - β) steps. Published: 0.95 to 0.999.",
    "threshold_percentile": "Percentile of the eligibility that counts as fully used: the threshold θ. Published: 75.",
    "gate_min": "Floor of the gate, as a fraction of a step: above 0, no synapse is ever frozen.",
    "steps_into_b": "When to look at the network: 0 is the last step of task A.",
    "warmup_steps": "Selective plasticity: steps before the gate begins to work. Consolidation: steps over which θ is "
    "measured. A task has 110 steps.",
    "threshold_quantile": "Consolidation strength: fraction of synapses left plastic by the warm-up; smaller values "
    "protect more.",
    "retention": "Coincidence: the novelty of an input met n times is about 1 / (1 + r n).",
    "replay_capacity": "Size of each method's replay buffer, a reservoir; 0: no replay.",
    "seed": "Seed of the weights and of the order of the images, for both methods.",
    "step": "Training step up to which the run is shown; press play to watch it.",
}


def sliders(names: Iterable[str], values: Mapping[str, Any]) -> dict[str, Widget]:
    """A slider for each name, at its value in ``values``."""
    return {name: _slider(name, values[name]) for name in names}


def retention_slider(value: float) -> Widget:
    """A slider for the retention, over 1, 2, 5, 10, ... 5,000."""
    options = [(f"{digit * 10**power}", float(digit * 10**power)) for power in range(4) for digit in (1, 2, 5)]
    return SelectionSlider(options=options, value=value, description="retention r", tooltip=TOOLTIPS["retention"])


def _slider(name: str, value: float) -> Widget:
    kind, low, high, step, label = SLIDERS[name]
    form = {"readout_format": FORMATS[name]} if name in FORMATS else {}
    return kind(value, min=low, max=high, step=step, description=label, tooltip=TOOLTIPS[name], **form)
