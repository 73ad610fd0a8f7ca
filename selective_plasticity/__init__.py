"""All of `sp` under its published name: ``from selective_plasticity import SelectivePlasticityOptimizer``."""

from sp import *  # noqa: F403
from sp import __all__ as __all__
