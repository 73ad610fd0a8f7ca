"""What the optimizers share: checked arguments, gradients that are looked at before anything changes, skipped steps."""

import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sp.biology import NMDACoincidence, Synapses


def check_number(
    name: str, value: Any, low: float, high: float = math.inf, *, low_open: bool = False, high_open: bool = False
) -> None:
    """Raise a TypeError unless ``value`` is a real number, a ValueError unless it lies between ``low`` and ``high``."""
    allowed = f"{'(' if low_open else '['}{low}, {high}{')' if high_open or math.isinf(high) else ']'}"
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number in {allowed}, got {value!r} of type {type(value).__name__}")
    too_low = value <= low if low_open else value < low
    too_high = value >= high if high_open else value > high
    if math.isnan(value) or math.isinf(value) or too_low or too_high:
        raise ValueError(f"{name} must be a finite number in {allowed}, got {value!r}")


def check_integer(name: str, value: Any, low: int) -> None:
    """Raise a TypeError unless ``value`` is a whole number, a ValueError unless it is at least ``low``."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number >= {low}, got {value!r} of type {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name} must be a whole number >= {low}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise a TypeError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise a ValueError unless ``value`` is one of ``allowed``."""
    allowed = tuple(allowed)
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def scalar_dtype(parameter: Tensor) -> torch.dtype:
    """The type in which thresholds and corrections of a parameter are kept: never narrower than float32."""
    return torch.promote_types(parameter.dtype, torch.float32)


def zero_unless(finite: Tensor, values: Tensor) -> Tensor:
    """``values`` where the tensor ``finite`` is True, else zeros, in which no NaN is left.

    It masks the bits, since ``torch.where`` with one condition for all takes five times as long on a CPU.
    """
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    return torch.bitwise_and(values.view(integer), -finite.to(integer)).view(values.dtype)


class PlasticityOptimizer(Optimizer):
    """Base of the optimizers. A subclass defines three methods:

    ``check_options(options)`` raises a ValueError or TypeError that names the first wrong option of a parameter group;
    ``initialise(parameters)`` makes the state of parameters before their first step;
    ``update(groups, finite)`` changes parameters and their state, given each group with those of its parameters that
    have a gradient, and leaves all as it is where the tensor ``finite`` is False.

    What of a parameter's state has the parameter's shape and dtype is named in ``parameter_state``; everything else is
    kept in float32 or wider, also when a state dict is loaded into a half-precision model.

    Args:
        params: parameters, or dicts of parameters with options of their own.
        defaults: the options.
        coincidence: a watcher of the model, or None.
    """

    parameter_state: tuple[str, ...] = ()

    def __init__(self, params: Iterable, defaults: dict[str, Any], coincidence: NMDACoincidence | None):
        if coincidence is not None and not isinstance(coincidence, NMDACoincidence):
            raise TypeError(f"coincidence must be None or NMDACoincidence(model), got {coincidence!r}")
        self.coincidence = coincidence
        params = list(params) if not isinstance(params, Tensor) else params
        if isinstance(params, list) and not params:
            raise ValueError("params must hold at least one parameter, got an empty list: pass model.parameters()")
        super().__init__(params, {**defaults, "step_count": 0, "skipped_steps": 0})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own; wrong options raise before anything is added."""
        self.check_options({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and what the watcher recorded beside them."""
        super().zero_grad(set_to_none)
        if self.coincidence is not None:
            self.coincidence.clear()

    def covered(self) -> dict[int, Synapses]:
        """The watched layer of each parameter that the watcher covers, by the parameter's id."""
        if self.coincidence is None:
            return {}
        own = {id(p) for group in self.param_groups for p in group["params"]}
        return {
            id(p): synapses
            for synapses in self.coincidence.synapses
            if synapses.weight.requires_grad and id(synapses.weight) in own
            for p in synapses.parameters
            if id(p) in own
        }

    def group_of(self, param: Tensor) -> dict[str, Any]:
        """The parameter group that holds a parameter."""
        return next(group for group in self.param_groups if any(p is param for p in group["params"]))

    @torch.no_grad()
    def step(self, closure=None):
        """Make one step from the gradients that are there.

        Args:
            closure: re-evaluates the model and returns the loss, as for any ``torch.optim`` optimizer.

        Returns:
            What the closure returned, else None.

        Raises:
            TypeError: a gradient is sparse or complex; nothing was changed.
            FloatingPointError: a gradient holds NaN or infinity and ``on_nonfinite="raise"``; nothing was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with_gradient = [
            [p for p in group["params"] if p.grad is not None and p.numel() > 0] for group in self.param_groups
        ]
        finite = self._finite([p for parameters in with_gradient for p in parameters])
        for group, parameters in zip(self.param_groups, with_gradient, strict=True):
            group["step_count"] += 1
            group["skipped_steps"] = group["skipped_steps"] + (~finite).to(torch.int64)
            self.initialise([p for p in parameters if not self.state[p]])
        self.update(list(zip(self.param_groups, with_gradient, strict=True)), finite)
        return loss

    def _finite(self, parameters: list[Tensor]) -> Tensor:
        """True, on the device, when every gradient is finite; found without waiting for the device."""
        for p in parameters:
            if p.grad.layout != torch.strided or p.grad.is_complex():
                raise TypeError(
                    f"{type(self).__name__} takes dense real gradients, got one of layout {p.grad.layout} and dtype "
                    f"{p.grad.dtype} for the parameter of shape {tuple(p.shape)}; nothing was changed. Build an "
                    "Embedding with sparse=False, or give that parameter to another optimizer."
                )
        finite = torch.tensor(True)
        for members in by_device_and_dtype(parameters):
            # A sum is finite where its terms are, and is the cheapest way to look at all of them.
            sums = torch.stack([p.grad.sum(dtype=scalar_dtype(p)) for p in members])
            finite = finite.to(sums.device, non_blocking=True) & sums.isfinite().all()
        if any(group["on_nonfinite"] == "raise" for group in self.param_groups) and not finite:
            wrong = [tuple(p.shape) for p in parameters if not p.grad.isfinite().all()]
            raise FloatingPointError(
                f"the gradient of the parameter(s) of shape {', '.join(map(str, wrong))} holds NaN or infinity; "
                'nothing was changed. Lower lr or clip the gradient, or skip such steps with on_nonfinite="skip".'
            )
        return finite

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on exactly where ``state_dict()`` was taken; numbers keep their precision in half-precision models."""
        super().load_state_dict(state_dict)
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        own = [p for group in self.param_groups for p in group["params"]]
        for saved_id, p in zip(saved_ids, own, strict=True):
            for name, value in state_dict["state"].get(saved_id, {}).items():
                if name not in self.parameter_state:
                    dtype = scalar_dtype(p) if value.is_floating_point() else value.dtype
                    self.state[p][name] = value.to(p.device, dtype, copy=True)

    def _steps_taken(self) -> dict[str, int]:
        """Counts for the diagnostics: steps that were taken, and steps skipped for a gradient that was not finite."""
        skipped = max(int(group["skipped_steps"]) for group in self.param_groups)
        calls = max(group["step_count"] for group in self.param_groups)
        return {"step_count": calls - skipped, "skipped_steps": skipped}


def by_device_and_dtype(parameters: list[Tensor]) -> list[list[Tensor]]:
    """Parameters in lists that the foreach functions can take at once."""
    lists: dict[Any, list[Tensor]] = {}
    for p in parameters:
        lists.setdefault((p.device, p.dtype), []).append(p)
    return list(lists.values())
