"""All of `sp` under its published name: ``from selective_plasticity import SelectivePlasticityOptimizer``."""

from sp import (
    ConsolidatingPlasticityOptimizer,
    NMDACoincidence,
    PlasticityCounter,
    ReplayBuffer,
    SelectivePlasticityOptimizer,
    grow_outputs,
)

__all__ = [
    "ConsolidatingPlasticityOptimizer",
    "NMDACoincidence",
    "PlasticityCounter",
    "ReplayBuffer",
    "SelectivePlasticityOptimizer",
    "grow_outputs",
]
