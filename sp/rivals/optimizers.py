"""Optimizers of the comparison by name: those of PyTorch, those of this package, and UPGD."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sp.biology import NMDACoincidence
from sp.checks import check_number
from sp.optim import ConsolidatingPlasticityOptimizer, SelectivePlasticityOptimizer


class UPGD(Optimizer):
    """Utility-based perturbed gradient descent, first-order and global (Elsayed & Mahmood 2024, algorithm 1).

    ``U <- beta U + (1 - beta) (-g w)``, ``s = sigmoid(U_hat / max U)``,
    ``w <- (1 - lr decay) w - lr (g + noise) (1 - s)``

    U_hat is U corrected for its start at zero, the maximum is over all parameters, and the noise is normal with
    standard deviation ``sigma``. Useful weights (removing one would raise the loss) are protected, the rest perturbed.
    The authors' stand-alone code takes twice this step and has a weight decay of 0.001.

    Args:
        params: parameters. lr: learning rate >= 0. decay: weight decay >= 0. beta: decay of the utility, in [0, 1).
        sigma: standard deviation of the noise, >= 0.
    """

    def __init__(
        self, params: Iterable, lr: float = 0.01, decay: float = 0.0, beta: float = 0.999, sigma: float = 1e-3
    ):
        for name, value in (("lr", lr), ("decay", decay), ("sigma", sigma)):
            check_number(name, value, 0)
        check_number("beta", beta, 0, 1, high_open=True)
        super().__init__(params, {"lr": lr, "decay": decay, "beta": beta, "sigma": sigma})

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        trained = [(group, p) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for group, p in trained:
            state = self.state[p]
            if not state:
                state["step"], state["utility"] = 0, torch.zeros_like(p)
            state["step"] += 1
            state["utility"].lerp_(-p.grad * p, 1 - group["beta"])
        if not trained:
            return loss
        largest = torch.stack([self.state[p]["utility"].max() for _, p in trained]).max()
        for group, p in trained:
            state = self.state[p]
            share = torch.sigmoid(state["utility"] / (1 - group["beta"] ** state["step"]) / largest)
            noise = torch.randn_like(p) * group["sigma"]
            p.mul_(1 - group["lr"] * group["decay"]).sub_(group["lr"] * (p.grad + noise) * (1 - share))
        return loss


def _coincidence(model: nn.Module, **options: Any) -> ConsolidatingPlasticityOptimizer:
    return ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model), **options)


def _selective_coincidence(model: nn.Module, **options: Any) -> SelectivePlasticityOptimizer:
    return SelectivePlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model), **options)


def _of_parameters(optimizer: type[Optimizer], **fixed: Any) -> Callable[..., Optimizer]:
    return lambda model, **options: optimizer(model.parameters(), **{**fixed, **options})


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "adagrad": _of_parameters(torch.optim.Adagrad),
    "adam": _of_parameters(torch.optim.Adam),
    "adamw": _of_parameters(torch.optim.AdamW),
    "coincidence": _coincidence,
    "consolidating": _of_parameters(ConsolidatingPlasticityOptimizer),
    "momentum": _of_parameters(torch.optim.SGD, momentum=0.9),
    "selective": _of_parameters(SelectivePlasticityOptimizer),
    "selective_coincidence": _selective_coincidence,
    "sgd": _of_parameters(torch.optim.SGD),
    "upgd": _of_parameters(UPGD),
}
