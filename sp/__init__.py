"""Selective synaptic plasticity for PyTorch: optimizers that protect the synapses that matter."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sp.biology import NMDACoincidence, PlasticityCounter
    from sp.optim import ConsolidatingPlasticityOptimizer, SelectivePlasticityOptimizer, grow_outputs
    from sp.replay import ReplayBuffer

__version__ = "0.1.0"

__all__ = [
    "ConsolidatingPlasticityOptimizer",
    "NMDACoincidence",
    "PlasticityCounter",
    "ReplayBuffer",
    "SelectivePlasticityOptimizer",
    "grow_outputs",
]

_MODULES = {
    "ConsolidatingPlasticityOptimizer": "sp.optim",
    "NMDACoincidence": "sp.biology",
    "PlasticityCounter": "sp.biology",
    "ReplayBuffer": "sp.replay",
    "SelectivePlasticityOptimizer": "sp.optim",
    "grow_outputs": "sp.optim",
}


def __getattr__(name: str):
    # Imported when asked for: drawing a figure again needs no PyTorch, which takes seconds to import.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
