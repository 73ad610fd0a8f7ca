"""Selective synaptic plasticity for PyTorch: optimizers that protect the synapses that matter."""

__version__ = "0.1.0"

from sp.biology import NMDACoincidence, PlasticityCounter
from sp.optim import ConsolidatingPlasticityOptimizer, SelectivePlasticityOptimizer
from sp.replay import ReplayBuffer

__all__ = [
    "ConsolidatingPlasticityOptimizer",
    "NMDACoincidence",
    "PlasticityCounter",
    "ReplayBuffer",
    "SelectivePlasticityOptimizer",
]
