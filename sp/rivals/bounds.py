"""What frames a comparison: a simple learner that order does not matter to, the ceiling and the floor."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sp.checks import check_number
from sp.rivals.learner import GradientLearner, Needs


class RidgeLearner:
    """Ridge regression on fixed random ReLU features, from running sums: the order of the data does not matter to it.

    ``W = (Z'Z + penalty n I)^-1 Z'T`` with features ``Z = relu(x R + b)``, a one appended, and one-hot targets T. It is
    recursive least squares: the simple thing that a class-incremental stream may not need more than.

    Args:
        inputs, features, outputs: sizes; ``features * outputs`` numbers are learnt.
        penalty: > 0, per example and in units of the features' mean square.
    """

    needs = Needs()

    def __init__(self, inputs: int, features: int, outputs: int, device: torch.device, penalty: float = 1e-4):
        check_number("penalty", penalty, 0, low_open=True)
        self.projection = torch.randn(inputs, features).to(device) * (2 / inputs) ** 0.5
        self.offset = torch.rand(features).to(device) * 2 - 1
        self.penalty, self.count, self.weight = penalty, 0, None
        self.products = torch.zeros(features + 1, features + 1, dtype=torch.float64, device=device)
        self.targets = torch.zeros(features + 1, outputs, dtype=torch.float64, device=device)

    def _features(self, x: Tensor) -> Tensor:
        features = torch.relu(x @ self.projection + self.offset)
        return torch.cat([features, features.new_ones(len(x), 1)], 1)

    def learn(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        features = self._features(x)
        self.products += (features.T @ features).double()
        self.targets += (features.T @ F.one_hot(y, self.targets.shape[1]).to(features.dtype)).double()
        self.count += len(x)
        self.weight = None

    def logits(self, x: Tensor) -> Tensor:
        if not self.count:
            return x.new_zeros(len(x), self.targets.shape[1])
        if self.weight is None:
            scale = self.penalty * self.products.diagonal().mean()
            identity = torch.eye(len(self.products), dtype=torch.float64, device=x.device)
            self.weight = torch.linalg.solve(self.products + scale * identity, self.targets).float()
        return self._features(x) @ self.weight


class JointLearner(GradientLearner):
    """The ceiling: when a task ends, a network is trained from the start on all tasks so far, shuffled together.

    It gets as many passes over all data, in batches of the same size, as the stream gave over each task. What it is
    told and what it stores no continual learner is given.

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
        outputs: number of units.
    """

    needs = Needs()

    def __init__(self, outputs: int):
        self.outputs = outputs

    def learn(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        """Nothing."""

    def logits(self, x: Tensor) -> Tensor:
        return torch.randn(len(x), self.outputs).to(x.device)
