"""Sliders for options of the published rule, which more than one panel has."""

from collections.abc import Mapping
from typing import Any

import ipywidgets as widgets

_SLIDERS: dict[str, tuple[type[widgets.Widget], dict[str, Any]]] = {
    "plasticity_k": (
        widgets.FloatSlider,
        {
            "min": 0,
            "max": 10,
            "step": 0.25,
            "description": "k (sharpness)",
            "tooltip": "Protection strength, without unit. Published: 1-3 lenient, 3-7 balanced, 7-10 strict; "
            "0: no gate.",
        },
    ),
    "trace_decay": (
        widgets.FloatSlider,
        {
            "min": 0.95,
            "max": 0.999,
            "step": 0.001,
            "readout_format": ".3f",
            "description": "β (per step)",
            "tooltip": "Decay of the eligibility trace: it remembers about 1 / (1 - β) steps. Published: 0.95 to "
            "0.999.",
        },
    ),
    "threshold_percentile": (
        widgets.IntSlider,
        {
            "min": 5,
            "max": 100,
            "step": 5,
            "description": "percentile (%)",
            "tooltip": "Percentile of the eligibility that counts as fully used: the threshold θ. Published: 75.",
        },
    ),
}


def published_sliders(values: Mapping[str, Any]) -> dict[str, widgets.Widget]:
    """A slider for k, β and the percentile of the published rule, each at its value in ``values``."""
    return {name: kind(values[name], **look) for name, (kind, look) in _SLIDERS.items()}
