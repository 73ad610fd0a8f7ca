"""Distillation: the old network teaches the new one."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sp.checks import check_number
from sp.rivals.learner import GradientLearner, Needs, masked


class LwF(GradientLearner):
    """Learning without forgetting (Li & Hoiem 2017): keep the old network's answers on the new images.

    ``loss + strength T^2 H(softmax(old / T), softmax(new / T))``, with the cross-entropy H over the units of the old
    tasks; if tasks have separate units, H is averaged over the tasks (the authors add it up). T^2 keeps the size of
    gradients the same (Hinton et al. 2015). The authors do without it, so their lambda of 1 with T = 2 is ``strength``
    0.25. Their warm-up of a new head and their weight decay are left out.

    Args:
        model: the network. strength: >= 0. temperature: T > 0. base, options: optimizer and its arguments.
    """

    needs = Needs(boundaries=True, second_network=True)

    def __init__(
        self, model: nn.Module, strength: float = 1.0, temperature: float = 2.0, base: str = "adam", **options: Any
    ):
        check_number("strength", strength, 0)
        check_number("temperature", temperature, 0, low_open=True)
        super().__init__(model, base, options)
        self.strength, self.temperature = strength, temperature
        self.teacher: nn.Module | None = None
        self.groups: list[Tensor] = []  # masks of units, (outputs,), that share a softmax

    def loss(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> Tensor:
        logits = self.model(x)
        loss = F.cross_entropy(masked(logits, allowed), y)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            old = self.teacher(x)
        return loss + self.strength * self._distance(logits, old)

    def _distance(self, new: Tensor, old: Tensor) -> Tensor:
        T = self.temperature
        each = [F.cross_entropy(new[:, units] / T, (old[:, units] / T).softmax(1)) for units in self.groups]
        return T**2 * torch.stack(each).mean()

    def end_task(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        if allowed is None:
            seen = torch.zeros(self.logits(x[:1]).shape[1], dtype=torch.bool, device=x.device)
            seen[y.unique()] = True
            self.groups = [seen | self.groups[0] if self.groups else seen]
        else:
            self.groups.append(allowed[0])
        self.teacher = copy.deepcopy(self.model).requires_grad_(False).eval()
