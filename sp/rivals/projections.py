"""Projections: each step is altered so that it changes little of what old tasks need. No examples are stored.

A layer's inputs x are columns with a 1 appended for its bias, and G is the gradient of [weight, bias], (out, d + 1).
Most of these methods do from task to task what coincidence capture does from step to step.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sp.biology import NMDACoincidence, Synapses
from sp.checks import check_integer, check_number
from sp.rivals.learner import GradientLearner, Needs, masked


class Projection(GradientLearner):
    """A network whose layers are watched. Subclasses change gradients using what `recorded` shows of a finished task.

    The optimizer is SGD, since one that scales each weight separately would turn a step out of its subspace.

    Args:
        model: the network. options: arguments of SGD.

    Raises:
        ValueError: the model trains parameters outside its fully connected layers and its convolutions without groups,
            which nothing would protect.
    """

    needs = Needs(boundaries=True, again=True)

    def __init__(self, model: nn.Module, **options: Any):
        super().__init__(model, "sgd", options)
        self.watcher = NMDACoincidence(model)
        self.layers = [s for s in self.watcher.synapses if s.weight.requires_grad and _is_one_matrix(s)]
        protected = {id(p) for synapses in self.layers for p in synapses.parameters}
        if outside := sorted(n for n, p in model.named_parameters() if p.requires_grad and id(p) not in protected):
            raise ValueError(
                f"{type(self).__name__} protects only fully connected layers and convolutions without groups, but "
                f"model also trains {', '.join(outside)}: freeze them with requires_grad_(False), or use a model "
                "without them"
            )

    def after_step(self) -> None:
        self.watcher.clear()

    def recorded(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> list[tuple[Tensor, Tensor]]:
        """For each layer, its inputs (N, d + 1) and the gradients of the summed loss at its outputs (N, out)."""
        self.watcher.clear()
        self.optimizer.zero_grad()
        with torch.enable_grad():
            F.cross_entropy(masked(self.model(x), allowed), y, reduction="sum").backward()
        self.optimizer.zero_grad()
        activities = [synapses.take() for synapses in self.layers]
        return [(activity.presynaptic[0], activity.postsynaptic[0]) for activity in activities]


def _is_one_matrix(synapses: Synapses) -> bool:
    """Whether a layer is a single matrix with vector inputs and observed errors."""
    return synapses.kind.groups == 1 and synapses.kind.errors and not synapses.kind.indices


def gradient(synapses: Synapses) -> Tensor:
    """A layer's gradient of [weight, bias], (out, d + 1)."""
    return synapses.gradient()[0]


def set_gradient(synapses: Synapses, matrix: Tensor) -> None:
    """Set a layer's gradient of [weight, bias]."""
    columns = synapses.kind.matrix(synapses.weight).shape[2]
    synapses.weight.grad.copy_(synapses.kind.unmatrix(matrix[None, :, :columns], synapses.weight.shape))
    if synapses.bias is not None:
        synapses.bias.grad.copy_(matrix[:, columns])


class OWM(Projection):
    """Orthogonal weights modification (Zeng et al. 2019, eq. 1-2): steps orthogonal to the mean inputs of old batches.

    ``G <- G P``, starting from ``P = I``. When a task ends, recursive least squares updates P with the mean input x of
    each of its batches: ``P <- P - P x x'P / (alpha + x'P x)``.

    Args:
        alpha: > 0; the smaller it is, the more of a direction one batch closes.
        batch: size of the batches whose means are taken.
    """

    def __init__(self, model: nn.Module, alpha: float = 1e-2, batch: int = 32, **options: Any):
        check_number("alpha", alpha, 0, low_open=True)
        check_integer("batch", batch, 1)
        super().__init__(model, **options)
        self.alpha, self.batch = alpha, batch
        self.projectors = [_identity(synapses) for synapses in self.layers]

    @torch.no_grad()
    def adjust_gradients(self) -> None:
        for synapses, P in zip(self.layers, self.projectors, strict=True):
            set_gradient(synapses, gradient(synapses) @ P)

    @torch.no_grad()
    def end_task(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        for start in range(0, len(x), self.batch):
            rows = slice(start, start + self.batch)
            seen = self.recorded(x[rows], y[rows], None if allowed is None else allowed[rows])
            for P, (inputs, _) in zip(self.projectors, seen, strict=True):
                close_(P, inputs.mean(0), self.alpha)


class OnlineOWM(Projection):
    """OWM as in its authors' published code, which takes no notice of tasks: every step updates P.

    The mean input of each batch updates P as in `OWM`, and the new P then projects the gradient of that same batch.
    For split streams the authors also lower alpha in the course of each task, use momentum, and clip gradients; here
    alpha is constant, as in their code for permuted images, and the optimizer is SGD.

    Args:
        alpha: > 0; the smaller it is, the more of a direction one batch closes.
    """

    needs = Needs()

    def __init__(self, model: nn.Module, alpha: float = 1.0, **options: Any):
        check_number("alpha", alpha, 0, low_open=True)
        super().__init__(model, **options)
        self.alpha = alpha
        self.projectors = [_identity(synapses) for synapses in self.layers]

    @torch.no_grad()
    def adjust_gradients(self) -> None:
        for synapses, P in zip(self.layers, self.projectors, strict=True):
            activity = synapses.take()
            if activity is not None:
                close_(P, activity.presynaptic[0].mean(0), self.alpha)
                set_gradient(synapses, gradient(synapses) @ P)


def close_(P: Tensor, x: Tensor, alpha: float) -> None:
    """Close the direction of an input x, (d,), in a projector P, (d, d): ``P <- P - P x x'P / (alpha + x'P x)``."""
    k = P @ x
    P -= torch.outer(k, k) / (alpha + x @ k)


class GPM(Projection):
    """Gradient projection memory (Saha, Garg & Roy 2021): steps orthogonal to the space that old inputs span.

    ``G <- G - G M M'``, with an orthonormal basis M, (d + 1, r). When a task ends, what M already spans is removed from
    the inputs X of some of its examples, ``X - X M M'``. The leading right singular vectors of the rest are added to M
    until it holds a share ``threshold`` of ``||X||^2`` (eq. 9). The authors choose a threshold for each layer (.95, .99
    and .99 for permuted MNIST) and use no biases; here there is one threshold, and biases are projected too.

    Args:
        threshold: in [0, 1]. samples: number of examples per task whose inputs are used.
    """

    def __init__(self, model: nn.Module, threshold: float = 0.95, samples: int = 300, **options: Any):
        check_number("threshold", threshold, 0, 1)
        check_integer("samples", samples, 1)
        super().__init__(model, **options)
        self.threshold, self.samples = threshold, samples
        self.bases = [_identity(synapses)[:, :0] for synapses in self.layers]

    @torch.no_grad()
    def adjust_gradients(self) -> None:
        for synapses, M in zip(self.layers, self.bases, strict=True):
            G = gradient(synapses)
            set_gradient(synapses, G - G @ M @ M.T)

    @torch.no_grad()
    def end_task(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        rows = torch.randperm(len(x))[: self.samples].to(x.device)
        seen = self.recorded(x[rows], y[rows], None if allowed is None else allowed[rows])
        self.bases = [extended(M, X, self.threshold) for M, (X, _) in zip(self.bases, seen, strict=True)]


def extended(M: Tensor, X: Tensor, threshold: float) -> Tensor:
    """Add to the basis M, (d, r), the fewest directions that make it hold ``threshold`` of the power of X, (N, d)."""
    total = X.square().sum()
    rest = X - X @ M @ M.T
    _, singular, directions = torch.linalg.svd(rest, full_matrices=False)
    held = 1 - (rest.square().sum() - torch.cat([singular.new_zeros(1), singular.square().cumsum(0)])) / total
    count = int((held < threshold).sum())
    # Rounding leaves a little of M in new directions; QR removes it, and keeps the basis within d columns.
    return torch.linalg.qr(torch.cat([M, directions[:count].T], 1))[0]


class NCL(Projection):
    """Natural continual learning (Kao et al. 2021, eq. 8): natural gradients in the metric of the old tasks.

    ``[w, b] <- [w, b] - lr prior (S^-1 G A^-1 + [w, b] - anchor)``. A ⊗ S is the posterior precision after the old
    tasks, in units of one task's data, as Kronecker factors (Martens & Grosse 2015). Each factor starts as
    ``sqrt(prior) I`` and the anchor as zero, so that the first task is learnt by SGD with a small weight decay. When a
    task ends, the precision of its likelihood is added approximately (`kronecker_sum`): the mean of xx' ⊗ the mean of
    dd', for labels drawn from the network's own prediction. In a convolution, xx' is summed over positions and dd' is
    averaged over them (Grosse & Martens 2016). The authors' code for recurrent networks also has momentum,
    and fits the sum of two precisions by its KL divergence; this is the simpler sum of their feed-forward code.

    Args:
        prior: precision before any task, > 0. samples: number of examples per task used to measure its precision.
        lr: learning rate.
    """

    def __init__(self, model: nn.Module, lr: float = 0.1, prior: float = 1e-3, samples: int = 1000):
        check_number("prior", prior, 0, low_open=True)
        check_integer("samples", samples, 1)
        super().__init__(model, lr=lr)
        self.prior, self.samples = prior, samples
        root = prior**0.5
        self.factors = [
            (root * _identity(synapses), root * torch.eye(len(_matrix(synapses)), device=synapses.weight.device))
            for synapses in self.layers
        ]
        self.anchors = [torch.zeros_like(_matrix(synapses)) for synapses in self.layers]
        self._invert()

    def _invert(self) -> None:
        self.inverses = [tuple(torch.linalg.inv(factor) for factor in pair) for pair in self.factors]

    @torch.no_grad()
    def adjust_gradients(self) -> None:
        for synapses, (A, S), anchor in zip(self.layers, self.inverses, self.anchors, strict=True):
            natural = S @ gradient(synapses) @ A + _matrix(synapses) - anchor
            set_gradient(synapses, self.prior * natural)

    @torch.no_grad()
    def end_task(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        rows = torch.randperm(len(x))[: self.samples].to(x.device)
        x, allowed = x[rows], None if allowed is None else allowed[rows]
        drawn = torch.multinomial(masked(self.logits(x), allowed).softmax(1), 1).flatten()
        seen = self.recorded(x, drawn, allowed)
        self.factors = [
            kronecker_sum(old, (X.T @ X / len(x), D.T @ D / len(D)))
            for old, (X, D) in zip(self.factors, seen, strict=True)
        ]
        self.anchors = [_matrix(synapses).clone() for synapses in self.layers]
        self._invert()


def kronecker_sum(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Approximate ``A1 ⊗ S1 + A2 ⊗ S2`` by ``(A1 + A2 / pi) ⊗ (S1 + pi S2)`` (Kao et al. 2021, appendix).

    ``pi = sqrt(tr A2 tr S1 / (tr A1 tr S2))`` balances the two. All factors are symmetric and positive, and the result
    is no smaller than the sum. If there is no second precision (its trace is zero), the first is returned.
    """
    (A1, S1), (A2, S2) = first, second
    if min(A2.trace(), S2.trace()) <= 0:
        return first
    pi = (A2.trace() * S1.trace() / (A1.trace() * S2.trace())).sqrt()
    return A1 + A2 / pi, S1 + pi * S2


def _matrix(synapses: Synapses) -> Tensor:
    return synapses.matrix(synapses.weight, synapses.bias).detach()[0]


def _identity(synapses: Synapses) -> Tensor:
    return torch.eye(_matrix(synapses).shape[1], device=synapses.weight.device)
