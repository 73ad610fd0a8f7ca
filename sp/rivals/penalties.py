"""Penalties: the loss of a new task plus a spring that holds each weight at its old or initial value.

All add ``strength / 2 * sum_i importance_i (w_i - anchor_i)^2`` to the loss and differ in the importance. The gradient
of the penalty is written out instead of differentiated.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from sp.checks import check_integer, check_number
from sp.rivals.learner import GradientLearner, Needs, masked

CHUNK = 64  # number of examples whose gradients are held at once


class Penalty(GradientLearner):
    """A network held at anchors. Subclasses define in `end_task` how importance and anchor follow from a task.

    Args:
        model: the network.
        strength: strength of the penalty, >= 0; 0 gives the plain base optimizer.
        base, options: optimizer and its arguments.
    """

    needs = Needs(boundaries=True)

    def __init__(self, model: nn.Module, strength: float = 1.0, base: str = "adam", **options: Any):
        check_number("strength", strength, 0)
        super().__init__(model, base, options)
        self.strength = strength
        self.importance = [torch.zeros_like(p) for p in self.parameters]
        self.anchor = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def adjust_gradients(self) -> None:
        for p, importance, anchor in zip(self.parameters, self.importance, self.anchor, strict=True):
            p.grad += self.strength * importance * (p - anchor)

    @torch.no_grad()
    def _anchor_here(self) -> None:
        for anchor, p in zip(self.anchor, self.parameters, strict=True):
            anchor.copy_(p)


class L2(Penalty):
    """All weights count equally: importance 1, anchored at the last task (control of Kirkpatrick et al. 2017)."""

    def end_task(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        for importance in self.importance:
            importance.fill_(1)
        self._anchor_here()


class L2Init(Penalty):
    """L2-init (Kumar, Marklund & Van Roy 2023): springs of equal strength pull weights to their initial values.

    It keeps a network plastic on an endless stream, without task boundaries. The paper's penalty is
    ``lambda sum (w - w_0)^2``, so ``strength`` is ``2 lambda``.
    """

    needs = Needs()

    def __init__(self, model: nn.Module, strength: float = 1e-3, base: str = "adam", **options: Any):
        super().__init__(model, strength, base, **options)
        for importance in self.importance:
            importance.fill_(1)


class MeasuredPenalty(Penalty):
    """A penalty whose importance is a mean over examples of a task, measured when the task ends.

    Args:
        samples: number of examples it is measured on, >= 1.
    """

    needs = Needs(boundaries=True, again=True)

    def __init__(
        self, model: nn.Module, strength: float = 1.0, base: str = "adam", samples: int = 1000, **options: Any
    ):
        check_integer("samples", samples, 1)
        super().__init__(model, strength, base, **options)
        self.samples = samples


class EWC(MeasuredPenalty):
    """Elastic weight consolidation (Kirkpatrick et al. 2017, eq. 3): one spring for each task learnt.

    The importance for task t is the diagonal Fisher information F_t: the mean over examples of the squared gradient of
    the log-likelihood of a label drawn from the network's own prediction. The sum over tasks of springs
    ``F_t (w - w_t)^2 / 2`` equals, up to a constant, one spring of strength ``sum F_t`` at the mean of the ``w_t``
    weighted by ``F_t`` (Huszár 2018). Memory therefore does not grow with the number of tasks.
    """

    @torch.no_grad()
    def end_task(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        for total, anchor, p, fisher in zip(
            self.importance, self.anchor, self.parameters, self._fisher(x, allowed), strict=True
        ):
            new = total + fisher
            anchor.copy_(torch.where(new > 0, (total * anchor + fisher * p) / new.clamp(min=1e-30), p))
            total.copy_(new)

    def _fisher(self, x: Tensor, allowed: Tensor | None) -> list[Tensor]:
        x, allowed = _some(self.samples, x, allowed)
        y = torch.multinomial(masked(self.logits(x), allowed).softmax(1), 1).flatten()

        def likelihood(logits: Tensor, y: Tensor, allowed: Tensor) -> Tensor:
            return F.cross_entropy(masked(logits, allowed), y)

        return mean_over_examples(self.model, likelihood, torch.square, x, y, _counting(x, allowed))


class OnlineEWC(EWC):
    """Online EWC (Schwarz et al. 2018, eq. 9): one spring, ``F <- gamma F + F_t``, anchored at the last task.

    The authors also normalise the Fisher information of each task, and use gamma < 1; neither is done by default. The
    factor gamma of their penalty is part of ``strength``.

    Args:
        gamma: share of the older importance that is left after a task, in [0, 1].
    """

    def __init__(self, model: nn.Module, strength: float = 1.0, base: str = "adam", gamma: float = 1.0, **options: Any):
        check_number("gamma", gamma, 0, 1)
        super().__init__(model, strength, base, **options)
        self.gamma = gamma

    @torch.no_grad()
    def end_task(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        for importance, fisher in zip(self.importance, self._fisher(x, allowed), strict=True):
            importance.mul_(self.gamma).add_(fisher)
        self._anchor_here()


class MAS(MeasuredPenalty):
    """Memory aware synapses (Aljundi et al. 2018, eq. 2): importance is how much the output depends on a weight.

    ``Omega <- Omega + mean over examples of |d ||f(x)||^2 / dw|``, with f the units that count for an example. Labels
    are not used. The paper's penalty is ``lambda sum Omega (w - anchor)^2``, so ``strength`` is ``2 lambda``.
    """

    @torch.no_grad()
    def end_task(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        x, allowed = _some(self.samples, x, allowed)

        def power(logits: Tensor, allowed: Tensor) -> Tensor:
            return logits.masked_fill(~allowed, 0).square().sum()

        new = mean_over_examples(self.model, power, torch.abs, x, _counting(x, allowed))
        for importance, dependence in zip(self.importance, new, strict=True):
            importance += dependence
        self._anchor_here()


class SI(Penalty):
    """Synaptic intelligence (Zenke, Poole & Ganguli 2017, eq. 3-5): importance is what a weight did to lower the loss.

    At each step ``omega <- omega - g dw``, with g the gradient of the loss without the penalty. When a task ends,
    ``Omega <- max(Omega + omega / (d^2 + xi), 0)``, with d the change of the weight over the task. A task may lower an
    importance, but no spring pushes away (as in the authors' code). The paper's penalty is
    ``c sum Omega (w - anchor)^2``, so ``strength`` is ``2 c``.

    Args:
        xi: damping, > 0.
    """

    def __init__(self, model: nn.Module, strength: float = 1.0, base: str = "adam", xi: float = 0.1, **options: Any):
        check_number("xi", xi, 0, low_open=True)
        super().__init__(model, strength, base, **options)
        self.xi = xi
        self.path = [torch.zeros_like(p) for p in self.parameters]

    @torch.no_grad()
    def adjust_gradients(self) -> None:
        self._gradients = [p.grad.clone() for p in self.parameters]
        self._before = [p.detach().clone() for p in self.parameters]
        super().adjust_gradients()

    @torch.no_grad()
    def after_step(self) -> None:
        for path, g, p, before in zip(self.path, self._gradients, self.parameters, self._before, strict=True):
            path -= g * (p - before)
        del self._gradients, self._before

    @torch.no_grad()
    def end_task(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        for importance, path, p, anchor in zip(self.importance, self.path, self.parameters, self.anchor, strict=True):
            importance.add_(path / ((p - anchor) ** 2 + self.xi)).clamp_(min=0)
            path.zero_()
        self._anchor_here()


def mean_over_examples(
    model: nn.Module, objective: Callable[..., Tensor], size: Callable[[Tensor], Tensor], *columns: Tensor
) -> list[Tensor]:
    """Mean over examples of ``size(gradient of objective(logits, ...))``, for each trained parameter.

    The network runs in evaluation mode: a single example has no batch statistics, and no result should be random.

    Args:
        model: the network. objective: takes one example's logits, (1, outputs), and its row of each further column.
        size: elementwise function such as `torch.square`. columns: x (N, ...), then the objective's arguments (N, ...).
    """
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def one(parameters: dict[str, Tensor], x: Tensor, *others: Tensor) -> Tensor:
        return objective(functional_call(model, parameters, (x[None],)), *(column[None] for column in others))

    chunk, each = CHUNK, vmap(grad(one), in_dims=(None, *[0] * len(columns)))
    if any(isinstance(module, nn.RNNBase) for module in model.modules()):  # not supported by vmap
        chunk, each = 1, _of_one(grad(one))
    totals = {name: torch.zeros_like(p) for name, p in trained.items()}
    model.eval()
    for rows in zip(*(column.split(chunk) for column in columns), strict=True):
        for name, gradients in each(trained, *rows).items():
            totals[name] += size(gradients).sum(0)
    model.train()
    return [total / len(columns[0]) for total in totals.values()]


def _of_one(gradient: Callable[..., dict[str, Tensor]]) -> Callable[..., dict[str, Tensor]]:
    """What ``vmap(gradient)`` would return for a batch of one example."""

    def each(parameters: dict[str, Tensor], *rows: Tensor) -> dict[str, Tensor]:
        found = gradient(parameters, *(row[0] for row in rows))
        return {name: value[None] for name, value in found.items()}

    return each


def _counting(x: Tensor, allowed: Tensor | None) -> Tensor:
    """Mask of the units that count for each example, which can be split and broadcast."""
    return torch.ones(len(x), 1, dtype=torch.bool, device=x.device) if allowed is None else allowed


def _some(count: int, x: Tensor, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    """At most ``count`` rows, drawn without replacement."""
    rows = torch.randperm(len(x))[:count].to(x.device)
    return tuple(None if column is None else column[rows] for column in (x, *others))
