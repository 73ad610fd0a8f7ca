"""Active dendrites: segments that see a context, and let a unit through where they know it (Iyer et al. 2022).

A unit has its weights and, apart from them, some dendritic segments. A segment is a weight vector over the context; the
one that responds most strongly gates the unit. Of the units of a layer only the strongest few then speak. Different
contexts leave different units to speak and so to learn, which is how these dendrites keep tasks apart.
"""

import math
from functools import partial

import torch
from torch import Tensor, nn

from sp.checks import check_integer, check_number


class DendriticLinear(nn.Module):
    """A linear layer whose units are gated by their dendrites: ``(W x + b) sigmoid(d)``, ``d = u_s' c``.

    Of a unit's segments u the one with the largest ``|u' c|`` counts, with its sign (Iyer et al. 2022, the form that
    they use for permuted images).

    Args:
        linear: the feed-forward weights; taken over as they are.
        context: length of a context vector, >= 1.
        segments: segments of each unit, >= 1. Their weights begin standard normal, so that a context that is a unit
            vector opens some units and shuts others from the start.

    Raises:
        TypeError: ``linear`` is no `nn.Linear`. ValueError, TypeError: a number out of its range.
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
        """Inputs (B, in) and contexts (B, context) to outputs (B, out)."""
        responses = torch.einsum("bc,osc->bos", context, self.segments)
        strongest = responses.gather(2, responses.abs().argmax(2, keepdim=True)).squeeze(2)
        return self.linear(x) * torch.sigmoid(strongest)


def k_winners(x: Tensor, share: float) -> Tensor:
    """The largest of each row of x, (B, n), as they are, zeros in place of the others; a ``share`` of n, rounded up."""
    count = math.ceil(share * x.shape[1])
    best = x.topk(count, dim=1)
    return torch.zeros_like(x).scatter(1, best.indices, best.values)


class ActiveDendrites(nn.Module):
    """A perceptron whose hidden units have active dendrites, in place of its ReLUs k-winners.

    The context is a task's number as a unit vector. Given, it gates all examples. Not given: in training it is the task
    that is being learnt; else it is inferred for each example, as the task whose prototype is nearest. A prototype is
    the mean of the inputs of a task that were learnt so far (Iyer et al. take it over all of the task beforehand).

    Args:
        model: an `nn.Sequential` of Linear layers with a ReLU between any two; its layers are taken over.
        contexts: how many tasks there may be, >= 1.
        segments: of each hidden unit, >= 1.
        winners: share of a layer's units that speak, in (0, 1].

    Raises:
        TypeError: ``model`` is not such a perceptron. ValueError, TypeError: a number out of its range.
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
        self.register_buffer("task", zeros((), dtype=torch.int64))  # that is being learnt

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Take inputs (B, in) of the present task into its prototype.

        Raises:
            ValueError: more tasks than ``contexts``.
        """
        if self.task >= len(self.seen):
            raise ValueError(
                f"contexts must be at least the number of tasks, got {len(self.seen)} and a task {int(self.task) + 1}"
            )
        self.seen[self.task] += len(x)
        self.prototypes[self.task] += (x - self.prototypes[self.task]).sum(0) / self.seen[self.task]

    def end_task(self) -> None:
        """The next inputs are another task's."""
        self.task += 1

    @torch.no_grad()
    def infer(self, x: Tensor) -> Tensor:
        """The task whose prototype is nearest to each input, among those that have one; (B, in) to (B,)."""
        distances = torch.cdist(x, self.prototypes).masked_fill(self.seen == 0, torch.inf)
        return distances.argmin(1)

    def forward(self, x: Tensor, task: int | None = None) -> Tensor:
        """Inputs (B, in) to logits (B, out)."""
        if task is None:
            numbers = self.task.expand(len(x)) if self.training else self.infer(x)
        else:
            numbers = torch.full((len(x),), task, device=x.device)
        context = nn.functional.one_hot(numbers, len(self.seen)).to(x.dtype)
        for layer in self.hidden:
            x = k_winners(layer(x, context), self.winners)
        return self.readout(x)
