"""What learns a stream: a network with an optimizer, and the rivals that do something else with each batch.

A learner has ``learn(x, y, allowed)`` for one batch and ``logits(x)``. ``allowed`` is None, or says which output units
count for each example, (B, outputs).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sp.biology import NMDACoincidence
from sp.optim import ConsolidatingPlasticityOptimizer, SelectivePlasticityOptimizer


def _coincidence(model: nn.Module, **options: Any) -> ConsolidatingPlasticityOptimizer:
    return ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model), **options)


def _selective_coincidence(model: nn.Module, **options: Any) -> SelectivePlasticityOptimizer:
    return SelectivePlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model), **options)


def _of_parameters(optimizer: type[torch.optim.Optimizer]):
    return lambda model, **options: optimizer(model.parameters(), **options)


OPTIMIZERS = {
    "adagrad": _of_parameters(torch.optim.Adagrad),
    "adam": _of_parameters(torch.optim.Adam),
    "coincidence": _coincidence,
    "consolidating": _of_parameters(ConsolidatingPlasticityOptimizer),
    "selective": _of_parameters(SelectivePlasticityOptimizer),
    "selective_coincidence": _selective_coincidence,
    "sgd": _of_parameters(torch.optim.SGD),
}


class GradientLearner:
    """A network trained by cross-entropy with an optimizer of `OPTIMIZERS`."""

    def __init__(self, model: nn.Module, optimizer: str, options: dict[str, Any]):
        self.model = model
        self.optimizer = OPTIMIZERS[optimizer](model, **options)

    def learn(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(masked(self.model(x), allowed), y).backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning changes, for a checkpoint."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])

    def logits(self, x: Tensor) -> Tensor:
        self.model.eval()
        logits = self.model(x)
        self.model.train()
        return logits


class RidgeLearner:
    """Ridge regression on fixed random ReLU features, from running sums: the order of the data does not matter to it.

    ``W = (Z'Z + penalty n I)^-1 Z'T`` with features ``Z = relu(x R + b)``, a one appended, and one-hot targets T. It is
    recursive least squares: the simple thing that a class-incremental stream may not need more than.

    Args:
        inputs, features, outputs: sizes; ``features * outputs`` numbers are learnt.
        penalty: >= 0, per example and in units of the features' mean square.
    """

    def __init__(self, inputs: int, features: int, outputs: int, device: torch.device, penalty: float = 1e-4):
        self.projection = torch.randn(inputs, features).to(device) * (2 / inputs) ** 0.5
        self.offset = torch.rand(features).to(device) * 2 - 1
        self.penalty, self.count, self.weight = penalty, 0, None
        self.products = torch.zeros(features + 1, features + 1, dtype=torch.float64, device=device)
        self.targets = torch.zeros(features + 1, outputs, dtype=torch.float64, device=device)

    def state_dict(self) -> dict[str, Any]:
        """Everything that learning changes, for a checkpoint; the random features come with the seed."""
        return {"count": self.count, "products": self.products, "targets": self.targets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.count, self.weight = state["count"], None
        self.products.copy_(state["products"])
        self.targets.copy_(state["targets"])

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


def masked(logits: Tensor, allowed: Tensor | None) -> Tensor:
    """Logits in which units that do not count are minus infinity."""
    return logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)
