"""What a learner is, what it may ask for, and the one that most others build on: a network with an optimizer.

A learner has ``learn(x, y, allowed)`` for one batch and ``logits(x)``. ``allowed`` is None, or says which output units
count for each example, (B, outputs). One that needs boundaries has ``end_task(x, y, allowed)`` as well, which gets the
whole training set of the task that ends. One that needs the task in tests is given its number from 0,
``logits(x, task)``. Nobody else is told.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from sp.checks import check_choice
from sp.rivals.optimizers import OPTIMIZERS


@dataclass(frozen=True)
class Needs:
    """What a method is told or given beyond one pass over the stream: a column each in every comparison.

    Attributes:
        boundaries: it is told when a task ends.
        examples: ``"none"`` are stored, a ``"buffer"`` of them (an `Experiment`'s ``replay_capacity``), or ``"all"``.
        again: it looks at a task's data once more when the task is over.
        second_network: it keeps and evaluates a copy of the network.
        task: it is told in tests, too, which task an example is of.
    """

    boundaries: bool = False
    examples: str = "none"
    again: bool = False
    second_network: bool = False
    task: bool = False


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy of logits (B, C) and classes (B,), or of (B, T, C) and (B, T)."""
    return F.cross_entropy(logits.flatten(0, -2), y.flatten())


class GradientLearner:
    """A network trained with an optimizer, by cross-entropy or the ``criterion`` that a stream puts in its place.

    Others override `loss`, or `adjust_gradients`, which is called between ``backward()`` and the step, or `after_step`.

    Args:
        model: the network.
        optimizer: a name in `OPTIMIZERS`, or an optimizer of the network. options: arguments of one that is named.

    Raises:
        ValueError, TypeError: an argument is outside its range or of the wrong type; the message names it.
    """

    needs = Needs()
    criterion = staticmethod(cross_entropy)

    def __init__(self, model: nn.Module, optimizer: str | Optimizer, options: dict[str, Any]):
        self.model = model
        if isinstance(optimizer, Optimizer):
            self.optimizer = optimizer
        else:
            check_choice("optimizer", optimizer, OPTIMIZERS)
            self.optimizer = OPTIMIZERS[optimizer](model, **options)

    def learn(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        self.optimizer.zero_grad()
        self.loss(x, y, allowed).backward()
        self.adjust_gradients()
        self.optimizer.step()
        self.after_step()

    def loss(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> Tensor:
        return self.criterion(masked(self.model(x), allowed), y)

    def adjust_gradients(self) -> None:
        """Change the gradients before the step."""

    def after_step(self) -> None:
        """Note what the step did."""

    def logits(self, x: Tensor) -> Tensor:
        self.model.eval()
        logits = self.model(x)
        self.model.train()
        return logits

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [p for p in self.model.parameters() if p.requires_grad]


def own_learner(method: Callable[..., Any], model: nn.Module, options: dict[str, Any]) -> Any:
    """The learner that somebody's own method makes.

    Args:
        method: gives, of a model and options, an optimizer of it or a learner. An optimizer's class, or a
            `functools.partial` of one, is given the model's parameters instead.
        model: the network. options: further arguments.

    Raises:
        TypeError: it gives something else.
    """
    inner = method.func if isinstance(method, partial) else method
    of_parameters = isinstance(inner, type) and issubclass(inner, Optimizer)
    made = method(model.parameters() if of_parameters else model, **options)
    if isinstance(made, Optimizer):
        return GradientLearner(model, made, {})
    if missing := [name for name in ("learn", "logits", "needs") if not hasattr(made, name)]:
        raise TypeError(
            "it must return a torch.optim.Optimizer, or a learner (see sp.rivals.learner), got "
            f"{type(made).__name__} without {', '.join(missing)}"
        )
    return made


def masked(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """Logits in which units that do not count are minus infinity."""
    return logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)
