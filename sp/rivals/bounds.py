"""References of a comparison: joint training and chance. Closed-form heads are in `sp.rivals.closed_form`."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sp.rivals.learner import GradientLearner, Needs


class JointLearner(GradientLearner):
    """Joint training: when a task ends, a network is trained from scratch on all tasks so far, shuffled together.

    It makes as many passes over all data, in batches of the same size, as the stream made over each task. No continual
    learner is told or stores as much, but in so few passes some do better: it is a reference, not an upper bound.

    Args:
        model: the network. base, options: optimizer and its arguments.
    """

    needs = Needs(boundaries=True, examples="all", again=True)

    def __init__(self, model: nn.Module, base: str = "adam", **options: Any):
        super().__init__(model, base, options)
        self.start = copy.deepcopy((model.state_dict(), self.optimizer.state_dict()))
        self.data: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self.batch, self.count = 1, 0

    def learn(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        self.batch, self.count = max(self.batch, len(x)), self.count + len(x)

    def end_task(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        passes, self.count = round(self.count / len(x)), 0
        self.data.append((x, y, allowed))
        model, optimizer = copy.deepcopy(self.start)
        self.model.load_state_dict(model)
        self.optimizer.load_state_dict(optimizer)
        columns = [None if parts[0] is None else torch.cat(parts) for parts in zip(*self.data, strict=True)]
        for _ in range(passes):
            for rows in torch.randperm(len(columns[0])).to(x.device).split(self.batch):
                super().learn(*(None if column is None else column[rows] for column in columns))


class ChanceLearner:
    """The floor: it learns nothing and answers at random.

    Args:
        outputs: number of output units.
    """

    needs = Needs()

    def __init__(self, outputs: int):
        self.outputs = outputs

    def learn(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        """Do nothing."""

    def logits(self, x: Tensor) -> Tensor:
        return torch.randn(len(x), self.outputs).to(x.device)
