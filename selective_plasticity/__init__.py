"""All of `sp` under its published name: ``from selective_plasticity import SelectivePlasticityOptimizer``."""

from sp import (
    ConsolidatingPlasticityOptimizer,
    NMDACoincidence,
    PlasticityCounter,
    ReplayBuffer,
    SelectivePlasticityOptimizer,
)

__all__ = [
    "ConsolidatingPlasticityOptimizer",
    "NMDACoincidence",
    "PlasticityCounter",
    "ReplayBuffer",
    "SelectivePlasticityOptimizer",
]
