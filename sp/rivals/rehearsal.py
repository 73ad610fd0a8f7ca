"""Replay beyond mixing stored examples into the batch, which any learner can do (ER: Chaudhry et al. 2019).

These methods treat stored examples differently from new ones, so they manage the buffer themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sp.checks import check_number
from sp.replay import ReplayBuffer
from sp.rivals.learner import GradientLearner, Needs, masked


@dataclass(frozen=True)
class ReplaySource:
    """A replay buffer, the number of examples drawn from it per step, and which units count for given labels."""

    buffer: ReplayBuffer
    batch: int
    allowed: Callable[[Tensor], Tensor | None]

    def sample(self) -> tuple[Tensor, Tensor] | None:
        return self.buffer.sample(self.batch) if len(self.buffer) else None


class Rehearsal(GradientLearner):
    """A network with a store, which `keep` offers every batch; subclasses use it in `loss` or `adjust_gradients`.

    Args:
        model: the network. store: the stored examples. base, options: optimizer and its arguments.
    """

    needs = Needs(examples="buffer")

    def __init__(self, model: nn.Module, store: ReplaySource, base: str = "sgd", **options: Any):
        super().__init__(model, base, options)
        self.store = store

    def learn(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        super().learn(x, y, allowed)
        self.keep(x, y)

    def keep(self, x: Tensor, y: Tensor) -> None:
        self.store.buffer.add(x, y)


class AGEM(Rehearsal):
    """A-GEM, averaged gradient episodic memory (Chaudhry et al. 2019, eq. 11): no step against the stored examples.

    With g the gradient of the batch and r that of a sample of stored examples: if ``g'r < 0``, then
    ``g <- g - (g'r / r'r) r``. Only examples of earlier tasks are sampled, so a task is stored when it ends.
    """

    needs = Needs(boundaries=True, examples="buffer")

    def keep(self, x: Tensor, y: Tensor) -> None:
        """Keep nothing until the task ends."""

    def end_task(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        self.store.buffer.add(x, y)

    def adjust_gradients(self) -> None:
        sample = self.store.sample()
        if sample is None:
            return
        reference = torch.autograd.grad(self.loss(*sample, self.store.allowed(sample[1])), self.parameters)
        against = sum((p.grad * r).sum() for p, r in zip(self.parameters, reference, strict=True))
        size = sum(r.square().sum() for r in reference)
        share = torch.where(against < 0, against / size.clamp(min=1e-30), 0)
        for p, r in zip(self.parameters, reference, strict=True):
            p.grad -= share * r


class DERpp(Rehearsal):
    """Dark experience replay ++ (Buzzega et al. 2020, eq. 6): stored examples keep their label and old logits.

    ``loss + alpha mean (f(x1) - z1)^2 + beta H(y2, f(x2))`` for two samples of stored examples (x, y, z).

    Args:
        alpha, beta: weights >= 0 of the two terms.
    """

    def __init__(
        self,
        model: nn.Module,
        store: ReplaySource,
        alpha: float = 0.5,
        beta: float = 0.5,
        base: str = "sgd",
        **options: Any,
    ):
        check_number("alpha", alpha, 0)
        check_number("beta", beta, 0)
        super().__init__(model, store, base, **options)
        self.alpha, self.beta = alpha, beta

    def keep(self, x: Tensor, y: Tensor) -> None:
        self.store.buffer.add(x, torch.cat([y[:, None].to(x.dtype), self._logits], 1))
        del self._logits

    def loss(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> Tensor:
        logits = self.model(x)
        self._logits = logits.detach()
        loss = F.cross_entropy(masked(logits, allowed), y)
        if (first := self.store.sample()) is None:
            return loss
        old_x, kept = first
        loss = loss + self.alpha * F.mse_loss(self.model(old_x), kept[:, 1:])
        old_x, kept = self.store.sample()
        old_y = kept[:, 0].long()
        return loss + self.beta * F.cross_entropy(masked(self.model(old_x), self.store.allowed(old_y)), old_y)


class ERACE(Rehearsal):
    """ER with asymmetric cross-entropy (Caccia et al. 2022, eq. 4): new classes do not push old ones away.

    ``H over the classes in the batch (new examples) + H over all classes met so far (stored examples)``.
    """

    def __init__(self, model: nn.Module, store: ReplaySource, base: str = "sgd", **options: Any):
        super().__init__(model, store, base, **options)
        self.met: Tensor | None = None

    def loss(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> Tensor:
        logits = self.model(x)
        present = torch.zeros(logits.shape[1], dtype=torch.bool, device=x.device)
        present[y] = True
        self.met = present if self.met is None else self.met | present
        loss = F.cross_entropy(masked(logits, _both(allowed, present)), y)
        if (sample := self.store.sample()) is None:
            return loss
        old_x, old_y = sample
        return loss + F.cross_entropy(masked(self.model(old_x), _both(self.store.allowed(old_y), self.met)), old_y)


def _both(allowed: Tensor | None, units: Tensor) -> Tensor:
    return units[None] if allowed is None else allowed & units
