"""The published import: ``from selective_plasticity import SelectivePlasticityOptimizer, ReplayBuffer``."""

from sp import ReplayBuffer, SelectivePlasticityOptimizer

__all__ = ["ReplayBuffer", "SelectivePlasticityOptimizer"]
