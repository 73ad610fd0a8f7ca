"""Learners with dendrites: dendrites that grow (`perforatedai`), and dendrites that see a context."""

import os
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sp.checks import check_choice, check_flag, check_integer
from sp.rivals.active_dendrites import ActiveDendrites
from sp.rivals.dendrites import Dendrites, acting, coincidence_optimizer
from sp.rivals.learner import GradientLearner, Needs, masked
from sp.rivals.optimizers import OPTIMIZERS

HELD_OUT = 10  # one example in this many is used for validation
KEPT = 1000  # maximum number of validation examples


class GrowingLearner(GradientLearner):
    """A network that grows dendrites when its validation score stalls (P23): the free part of `perforatedai`.

    A tenth of the examples, always the same ones, are held out for validation and kept until their task ends. When
    dendrites are added, the network continues from the best weights of the task so far, as the package does.

    Args:
        model: the network; changed in place.
        base: a name in `sp.rivals.optimizers.OPTIMIZERS`; options: its arguments.
        check_every: number of steps between validations, >= 1.
        patience, most, tries, folder: as in `sp.rivals.dendrites.Dendrites`.

    Raises:
        ImportError: the package is missing. ValueError, TypeError: an argument is outside its range.
    """

    needs = Needs(boundaries=True)

    def __init__(
        self,
        model: nn.Module,
        base: str = "adam",
        check_every: int = 10,
        patience: int = 3,
        most: int = 1,
        tries: int = 2,
        folder: str | os.PathLike | None = None,
        **options: Any,
    ):
        check_integer("check_every", check_every, 1)
        check_choice("base", base, OPTIMIZERS)
        self.dendrites = Dendrites(model, folder, patience=patience, most=most, tries=tries)
        self.base, self.options, self.check_every = base, options, check_every
        self.model = self.dendrites.model
        self.optimizer = self._optimizer_of(self.model)
        self.steps = 0
        self.validation: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def _optimizer_of(self, model: nn.Module) -> Optimizer:
        make = coincidence_optimizer if self.base == "coincidence" else OPTIMIZERS[self.base]
        return make(model, **self.options)

    def learn(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        held = held_out(x)
        if held.any() and sum(len(kept) for _, kept, _ in self.validation) < KEPT:
            self.validation.append((x[held], y[held], None if allowed is None else allowed[held]))
        if not held.all():
            super().learn(x[~held], y[~held], None if allowed is None else allowed[~held])
        self.steps += 1
        if self.steps % self.check_every == 0 and self.validation and not self.dendrites.finished:
            self._validate()

    @torch.no_grad()
    def _score(self) -> float:
        right = [masked(self.logits(x), allowed).argmax(1) == y for x, y, allowed in self.validation]
        return torch.cat(right).float().mean().item()

    def _validate(self) -> None:
        self.optimizer = self.dendrites.validated(self._score(), self.optimizer, self._optimizer_of)
        self.model = self.dendrites.model

    def end_task(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        self.validation = []
        self.dendrites.new_scores()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters that take part in the forward pass."""
        return acting(self.model)


def held_out(x: Tensor) -> Tensor:
    """Mask of the rows of x used for validation, (B,); an entry depends only on its row, so that all epochs agree."""
    places = torch.arange(1, x.shape[1] + 1, device=x.device)
    return ((x * 255).round().long() * places).sum(1) % HELD_OUT == 0


class ActiveDendritesLearner(GradientLearner):
    """A perceptron with active dendrites (Iyer et al. 2022), as described in `ActiveDendrites`; not for replay.

    Args:
        model: a perceptron; its layers are reused.
        base: a name in `sp.rivals.optimizers.OPTIMIZERS`; options: its arguments.
        told: whether the task of an example is given in tests, too; otherwise it is inferred.
        contexts, segments, winners: as in `ActiveDendrites`.
    """

    needs = Needs(boundaries=True)

    def __init__(
        self,
        model: nn.Module,
        base: str = "adam",
        told: bool = False,
        contexts: int = 10,
        segments: int = 10,
        winners: float = 0.2,
        **options: Any,
    ):
        check_flag("told", told)
        super().__init__(ActiveDendrites(model, contexts, segments, winners), base, options)
        self.needs = replace(self.needs, task=told)

    def learn(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        self.model.observe(x)
        super().learn(x, y, allowed)

    def end_task(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        self.model.end_task()

    def logits(self, x: Tensor, task: int | None = None) -> Tensor:
        self.model.eval()
        logits = self.model(x, task)
        self.model.train()
        return logits
