"""What a learner is, what it may ask for, and the base of most learners: a network with an optimizer.

A learner has ``learn(x, y, allowed)`` for one batch and ``logits(x)``. ``allowed`` is None, or a mask of the output
units that count for each example, (B, outputs). A learner that needs boundaries also has ``end_task(x, y, allowed)``,
which gets the whole training set of the task that ends. A learner that needs the task in tests is given its number,
counted from 0: ``logits(x, task)``. No other learner is told.
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
    """What a method is told or given beyond one pass over the stream; each is a column in every comparison.

    Attributes:
        boundaries: it is told when a task ends.
        examples: what it stores: ``"none"``, a ``"buffer"`` (an `Experiment`'s ``replay_capacity``), or ``"all"``.
        again: it goes through a task's data once more when the task is over.
        second_network: it keeps and evaluates a copy of the network.
        task: it is told the task of each example in tests, too.
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
    """A network trained with an optimizer, with cross-entropy or the ``criterion`` that a stream uses instead.

    Subclasses override `loss`, `adjust_gradients` (called between ``backward()`` and the step) or `after_step`.

    Args:
        model: the network.
        optimizer: a name in `OPTIMIZERS`, or an optimizer of the network. options: arguments of a named one.

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
        """Record what the step did."""

    def logits(self, x: Tensor) -> Tensor:
        self.model.eval()
        logits = self.model(x)
        self.model.train()
        return logits

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return [p for p in self.model.parameters() if p.requires_grad]


def own_learner(method: Callable[..., Any], model: nn.Module, options: dict[str, Any]) -> Any:
    """Make the learner of a custom method.

    Args:
        method: takes a model and options, and returns an optimizer of the model or a learner. An optimizer class, or a
            `functools.partial` of one, is given the model's parameters instead.
        model: the network. options: further arguments.

    Raises:
        TypeError: it returns something else.
    """
    inner = method.func if isinstance(method, partial) else method
    of_parameters = isinstance(inner, type) and issubclass(inner, Optimizer)
    made = method(model.parameters() if of_parameters else model, **options)
    if isinstance(made, Optimizer):
        return GradientLearner(model, made, {})
    bounded = getattr(getattr(made, "needs", None), "boundaries", False)
    wanted = ("learn", "logits", "needs", *(["end_task"] if bounded else []))
    if missing := [name for name in wanted if not hasattr(made, name)]:
        raise TypeError(
            "it must return a torch.optim.Optimizer, or a learner (see sp.rivals.learner), got "
            f"{type(made).__name__} without {', '.join(missing)}"
        )
    return made


def masked(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """Logits with minus infinity for units that do not count."""
    return logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)
