"""The optimizers."""

from sp.optim.consolidating import ConsolidatingPlasticityOptimizer
from sp.optim.selective import SelectivePlasticityOptimizer

__all__ = ["ConsolidatingPlasticityOptimizer", "SelectivePlasticityOptimizer"]
