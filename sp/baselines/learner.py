"""What a learner is, what it may ask for, and the one that most others build on: a network with an optimizer.

A learner has ``learn(x, y, allowed)`` for one batch and ``logits(x)``. ``allowed`` is None, or says which output units
count for each example, (B, outputs). One that needs boundaries has ``end_task(x, y, allowed)`` as well, which gets the
whole training set of the task that ends. One that needs the task in tests is given its number from 0,
``logits(x, task)``. Nobody else is told.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sp.baselines.optimizers import OPTIMIZERS
from sp.checks import check_choice


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


class GradientLearner:
    """A network trained by cross-entropy with an optimizer of `OPTIMIZERS`.

    Others override `loss`, or `adjust_gradients`, which is called between ``backward()`` and the step, or `after_step`.

    Args:
        model: the network.
        optimizer: a name in `OPTIMIZERS`. options: its arguments.

    Raises:
        ValueError, TypeError: an argument is outside its range or of the wrong type; the message names it.
    """

    needs = Needs()

    def __init__(self, model: nn.Module, optimizer: str, options: dict[str, Any]):
        check_choice("optimizer", optimizer, OPTIMIZERS)
        self.model = model
        self.optimizer = OPTIMIZERS[optimizer](model, **options)

    def learn(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        self.optimizer.zero_grad()
        self.loss(x, y, allowed).backward()
        self.adjust_gradients()
        self.optimizer.step()
        self.after_step()

    def loss(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> Tensor:
        return F.cross_entropy(masked(self.model(x), allowed), y)

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


def masked(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """Logits in which units that do not count are minus infinity."""
    return logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)


def kept_bytes(learner: Any) -> int:
    """What a learner keeps from step to step besides the weights of its network, in bytes: all tensors it holds."""
    model = getattr(learner, "model", None)
    weights = {id(p) for p in model.parameters()} if model is not None else set()
    gradients = {id(p.grad) for p in model.parameters()} if model is not None else set()
    found = {id(t): t for t in _tensors(vars(learner), set()) if id(t) not in weights | gradients}
    return sum(t.nbytes for t in found.values())


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(key, seen)
            yield from _tensors(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        yield from _tensors(vars(value), seen)
    elif isinstance(value, nn.Module):
        yield from value.parameters()
