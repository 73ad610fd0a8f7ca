"""The optimizers."""

from sp.optim.consolidating import ConsolidatingPlasticityOptimizer
from sp.optim.grow import grow_outputs
from sp.optim.selective import SelectivePlasticityOptimizer

__all__ = ["ConsolidatingPlasticityOptimizer", "SelectivePlasticityOptimizer", "grow_outputs"]
