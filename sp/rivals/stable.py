"""Stable SGD: a training regime instead of a rule."""

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sp.checks import check_number
from sp.rivals.learner import GradientLearner, Needs


class StableSGD(GradientLearner):
    """Stable SGD (Mirzadeh et al. 2020): dropout, and a learning rate that falls from task to task.

    ``lr_t = lr decay^(t - 1)`` in task t, with dropout after every ReLU. In a flat minimum, the old loss rises less
    when weights move. The authors also use small batches (10) and momentum 0.8, which are left out here.

    Args:
        model: a network whose hidden layers are followed by `nn.ReLU`.
        dropout: share of hidden units that are dropped, in [0, 1). decay: in (0, 1]. lr: rate of the first task.

    Raises:
        ValueError: the model has no `nn.ReLU`.
    """

    needs = Needs(boundaries=True)

    def __init__(self, model: nn.Module, lr: float = 0.1, dropout: float = 0.25, decay: float = 0.7):
        check_number("dropout", dropout, 0, 1, high_open=True)
        check_number("decay", decay, 0, 1, low_open=True)
        super().__init__(model, "sgd", {"lr": lr})
        self.decay = decay
        hidden = [module for module in model.modules() if isinstance(module, nn.ReLU)]
        if not hidden:
            raise ValueError(f"model must have nn.ReLU modules for dropout, got {type(model).__name__} without one")

        def drop(module: nn.Module, _: Any, output: Tensor) -> Tensor:
            return F.dropout(output, dropout, training=module.training)

        for module in hidden:
            module.register_forward_hook(drop)

    def end_task(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] *= self.decay
