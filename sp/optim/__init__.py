"""The optimizers."""

from sp.optim.selective import SelectivePlasticityOptimizer

__all__ = ["SelectivePlasticityOptimizer"]
