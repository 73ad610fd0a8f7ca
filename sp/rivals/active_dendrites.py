"""Active dendrites: segments that see a context, and open a unit's gate if they recognise it (Iyer et al. 2022).

In addition to its weights, a unit has several dendritic segments. A segment is a weight vector over the context; the
one that responds most strongly gates the unit. Only the few strongest units of a layer are then active. Different
contexts activate different units, and only these learn. This is how the dendrites keep tasks separate. For permuted
images the authors use the prototype itself as context, 5 % winners, half of all weights at zero, and layers of 2,048
units. Here the context is the task number, a fifth of the units win, and weights are dense.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from sp.checks import check_integer, check_number


class DendriticLinear(nn.Module):
    """A linear layer whose units are gated by their dendrites: ``(W x + b) sigmoid(d)``, ``d = u_s' c``.

    Of a unit's segments u, ``u_s`` has the largest ``|u' c|``; the response keeps its sign (Iyer et al. 2022, the form
    that they use for permuted images).

    Args:
        linear: the layer of feed-forward weights, used as it is.
        context: length of a context vector, >= 1.
        segments: segments per unit, >= 1. Their weights are initialised standard normal, so that a context that is a
            unit vector opens some units and closes others from the start.

    Raises:
        TypeError: ``linear`` is not an `nn.Linear`. ValueError, TypeError: a number is out of range.
    """

    def __init__(self, linear: nn.Linear, context: int, segments: int):
        super().__init__()
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear must be a torch.nn.Linear, got {linear!r} of type {type(linear).__name__}")
        check_integer("context", context, 1)
        check_integer("segments", segments, 1)
        self.linear = linear
        self.segments = nn.Parameter(torch.randn(linear.out_features, segments, context).to(linear.weight.device))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Map inputs (B, in) and contexts (B, context) to outputs (B, out)."""
        responses = torch.einsum("bc,osc->bos", context, self.segments)
        strongest = responses.gather(2, responses.abs().argmax(2, keepdim=True)).squeeze(2)
        return self.linear(x) * torch.sigmoid(strongest)


def k_winners(x: Tensor, share: float) -> Tensor:
    """Keep the largest entries in each row of x, (B, n), a ``share`` of n rounded up; set the others to zero."""
    count = math.ceil(share * x.shape[1])
    best = x.topk(count, dim=1)
    return torch.zeros_like(x).scatter(1, best.indices, best.values)


class ActiveDendrites(nn.Module):
    """A perceptron whose hidden units have active dendrites, with k-winners instead of its ReLUs.

    The context is the task number as a one-hot vector. A given task gates all examples. Otherwise, training
    mode uses the task being learnt, and evaluation mode infers for each example the task with the nearest prototype. A
    prototype is the mean of a task's inputs learnt so far (Iyer et al. compute it over the whole task beforehand).

    Args:
        model: an `nn.Sequential` of Linear layers with a ReLU between any two; its layers are reused.
        contexts: maximum number of tasks, >= 1.
        segments: segments per hidden unit, >= 1.
        winners: share of a layer's units that are active, in (0, 1].

    Raises:
        TypeError: ``model`` is not such a perceptron. ValueError, TypeError: a number is out of range.
    """

    def __init__(self, model: nn.Sequential, contexts: int = 10, segments: int = 10, winners: float = 0.2):
        super().__init__()
        kinds = [type(layer) for layer in model] if isinstance(model, nn.Sequential) else []
        if len(kinds) < 3 or kinds != [nn.Linear, *[nn.ReLU, nn.Linear] * (len(kinds) // 2)]:
            raise TypeError(
                f"model must be an nn.Sequential of Linear layers with a ReLU between any two, got {model!r}: build "
                "one with sp.lab.networks.mlp"
            )
        check_integer("contexts", contexts, 1)
        check_number("winners", winners, 0, 1, low_open=True)
        self.hidden = nn.ModuleList(DendriticLinear(layer, contexts, segments) for layer in model[:-1:2])
        self.readout, self.winners = model[-1], winners
        zeros = partial(torch.zeros, device=model[0].weight.device)
        self.register_buffer("prototypes", zeros(contexts, model[0].in_features))
        self.register_buffer("seen", zeros(contexts))  # examples behind each prototype
        self.register_buffer("task", zeros((), dtype=torch.int64))  # the one being learnt

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Update the prototype of the current task with inputs (B, in).

        Raises:
            ValueError: there are more tasks than ``contexts``.
        """
        if self.task >= len(self.seen):
            raise ValueError(
                f"contexts must be at least the number of tasks, got {len(self.seen)} for task {int(self.task) + 1}"
            )
        self.seen[self.task] += len(x)
        self.prototypes[self.task] += (x - self.prototypes[self.task]).sum(0) / self.seen[self.task]

    def end_task(self) -> None:
        """Move on to the next task."""
        self.task += 1

    @torch.no_grad()
    def infer(self, x: Tensor) -> Tensor:
        """The task with the prototype nearest to each input, among those that have one; (B, in) to (B,)."""
        distances = torch.cdist(x, self.prototypes).masked_fill(self.seen == 0, torch.inf)
        return distances.argmin(1)

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Map inputs (B, in) to logits (B, out)."""
        if task is None:
            numbers = self.task.expand(len(x)) if self.training else self.infer(x)
        else:
            numbers = torch.full((len(x),), task, device=x.device)
        context = nn.functional.one_hot(numbers, len(self.seen)).to(x.dtype)
        for layer in self.hidden:
            x = k_winners(layer(x, context), self.winners)
        return self.readout(x)
