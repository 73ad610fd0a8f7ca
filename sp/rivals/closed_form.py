"""Closed-form heads: fitted from running sums in one pass, without gradients; the order of the data does not matter.

They learn no features: they use the inputs as they are, or random features of them. They are the baselines to beat if
a pretrained network supplies the features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sp.checks import check_number
from sp.rivals.learner import Needs


class RidgeLearner:
    """Ridge regression on fixed random ReLU features, fitted from running sums: the order of the data does not matter.

    ``W = (Z'Z + penalty n I)^-1 Z'T`` with features ``Z = relu(x R + b)``, a one appended, and one-hot targets T. It is
    recursive least squares, a simple method that may be all that a class-incremental stream needs.

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
        features = torch.relu(x.flatten(1) @ self.projection + self.offset)
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


class RanPACLearner:
    """RanPAC (McDonnell et al. 2023, algorithm 1): class prototypes of random ReLU features, decorrelated.

    ``s_k(x) = h(x)' (G + lambda I)^-1 c_k`` with ``h(x) = relu(x R)``, R normal, the Gram matrix ``G = sum h h'`` and
    the prototype ``c_k``, the sum of h over class k. As published, lambda is the power of ten in [1e-8, 1e8] with the
    smallest squared error on a fifth of the training examples, which then join the others. Here that fifth is drawn
    from every batch and its sums suffice, so no examples are stored and no boundaries are needed (the authors draw it
    from the task that ends). Their first phase, which adapts the feature network on the first task, is left out.

    Args:
        inputs, features, outputs: sizes; ``features`` is the authors' M. ``features * outputs`` numbers are learnt.
    """

    needs = Needs()
    PENALTIES = tuple(10.0**power for power in range(-8, 9))
    HELD_OUT = 5  # one example in this many

    def __init__(self, inputs: int, features: int, outputs: int, device: torch.device):
        self.projection = torch.randn(inputs, features).to(device)
        zeros = {"dtype": torch.float64, "device": device}
        # For the examples that are fitted, and for those on which lambda is chosen.
        self.grams = [torch.zeros(features, features, **zeros) for _ in range(2)]
        self.prototypes = [torch.zeros(features, outputs, **zeros) for _ in range(2)]
        self.count, self.penalty, self.weight = 0, None, None

    def _features(self, x: Tensor) -> Tensor:
        return torch.relu(x.flatten(1) @ self.projection)

    def learn(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        features = self._features(x)
        targets = F.one_hot(y, self.prototypes[0].shape[1]).to(features.dtype)
        held_out = (self.count + torch.arange(len(x), device=x.device)) % self.HELD_OUT == self.HELD_OUT - 1
        for part, rows in enumerate((~held_out, held_out)):
            h = features[rows]
            self.grams[part] += (h.T @ h).double()
            self.prototypes[part] += (h.T @ targets[rows]).double()
        self.count += len(x)
        self.weight = None

    def _solve(self) -> Tensor:
        fitted, held_out = self.grams
        errors = {}
        for penalty in self.PENALTIES:
            W = _regularised(fitted, penalty, self.prototypes[0])
            if W is not None:  # the part of |H W - Y|^2 that depends on W
                errors[penalty] = float((W * (held_out @ W - 2 * self.prototypes[1])).sum())
        self.penalty = min(errors, key=errors.get)
        return _regularised(fitted + held_out, self.penalty, sum(self.prototypes)).float()

    def logits(self, x: Tensor) -> Tensor:
        if not self.count:
            return x.new_zeros(len(x), self.prototypes[0].shape[1])
        if self.weight is None:
            self.weight = self._solve()
        return self._features(x) @ self.weight


class SLDALearner:
    """Streaming linear discriminant analysis (Hayes & Kanan 2020) on the inputs as they are.

    ``s_k(x) = w_k' x - w_k' mu_k / 2`` with ``w_k = ((1 - shrinkage) S + shrinkage I)^-1 mu_k``, the mean ``mu_k`` of
    class k and the covariance S of the examples around their class means. The authors update S after each example with
    the class mean at that moment; sums of x and xx' give the same result without that error, in any order.

    Args:
        inputs, outputs: sizes; ``inputs * outputs`` numbers are learnt. A class that was never seen has no mean and is
            never predicted.
        shrinkage: in (0, 1); the authors use 1e-4.
    """

    needs = Needs()

    def __init__(self, inputs: int, outputs: int, device: torch.device, shrinkage: float = 1e-4):
        check_number("shrinkage", shrinkage, 0, 1, low_open=True, high_open=True)
        self.shrinkage = shrinkage
        self.products = torch.zeros(inputs, inputs, dtype=torch.float64, device=device)
        self.sums = torch.zeros(outputs, inputs, dtype=torch.float64, device=device)
        self.counts = torch.zeros(outputs, dtype=torch.float64, device=device)
        self.weight: Tensor | None = None

    def learn(self, x: Tensor, y: Tensor, allowed: Tensor | None) -> None:
        x = x.flatten(1).double()
        self.products.addmm_(x.T, x)
        self.sums.index_add_(0, y, x)
        self.counts += y.bincount(minlength=len(self.counts))
        self.weight = None

    def _solve(self) -> None:
        means = self.sums / self.counts.clamp(min=1)[:, None]
        covariance = (self.products - means.T @ self.sums) / self.counts.sum()
        self.weight = _regularised((1 - self.shrinkage) * covariance, self.shrinkage, means.T)
        self.offset = -(self.weight * means.T).sum(0) / 2
        self.offset[self.counts == 0] = -torch.inf

    def logits(self, x: Tensor) -> Tensor:
        if not self.counts.any():
            return x.new_zeros(len(x), len(self.counts))
        if self.weight is None:
            self._solve()
        return (x.flatten(1).double() @ self.weight + self.offset).to(x.dtype)


def _regularised(matrix: Tensor, penalty: float, right: Tensor) -> Tensor | None:
    """``(matrix + penalty I)^-1 right``, or None if rounding leaves that matrix not positive definite.

    matrix: (d, d), symmetric positive semidefinite. right: (d, k).
    """
    identity = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    root, failed = torch.linalg.cholesky_ex(matrix + penalty * identity)
    return None if failed else torch.cholesky_solve(right, root)
