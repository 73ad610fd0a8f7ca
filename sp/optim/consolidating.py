"""Consolidation: what was used is captured for good, and plasticity falls with it. No boundaries, no stored data."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sp import rules
from sp.biology import Activity, NMDACoincidence, Synapses
from sp.optim.common import (
    PlasticityOptimizer,
    by_device_and_dtype,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    scalar_dtype,
)
from sp.optim.memory import SMALLEST, ExactMemory, SketchedMemory

AVERAGE = 0.99  # share of the old value in running means: of the gradient's norm, and of the errors' directions
SCALE_STEPS = 10  # steps over which the scales of gradients and inputs are measured
READOUT_STRENGTH = 0.1  # memory strength of the layer whose error arrives first: a linear model, which one pass fits
GAIN = 80  # so that one learning rate suits both forms of the rule


class ConsolidatingPlasticityOptimizer(PlasticityOptimizer):
    r"""Learns a stream of tasks without forgetting, told of no boundary and keeping no example.

    By itself, for any parameter :math:`w` with gradient :math:`g` (*diagonal form*)::

        C <- C + g^2                                     consolidated eligibility: accumulates, never decays
        theta = quantile of C over all parameters        measured in the warm-up, then fixed
        w <- w - lr (g / sqrt(theta)) theta / (theta + C)

    With ``coincidence=NMDACoincidence(model)``, for every Linear and Conv2d layer (*coincidence form*), with inputs X
    in units of their root mean squared length, errors D, and the gradient G = D'X of [weight, bias]::

        A <- A + X'X / B          P = (I + A / a)^-1           presynaptic memory: what of an input is new
        S <- mean of D'D          Q = (I + p S / tr S)^-1      postsynaptic scaling: a running mean, forgets
        [w, b] <- [w, b] - lr 80 / a  Q G P P

    A synapse moves only along what is new in its input. The layer nearest the loss is linear in its weights: there one
    factor P does, as in recursive least squares, and Q is left out.

    In both, the gradient's norm over all parameters is held to ``absorber`` times its own running mean, and multiplying
    the loss or the inputs by a constant changes nothing.

    Args:
        params: parameters, or dicts of parameters with options of their own.
        lr: learning rate, >= 0; 0.1 served every stream that was tried.
        threshold_quantile: diagonal form: share of synapses that the warm-up leaves below half consolidated, in (0, 1).
        warmup_steps: diagonal form: steps in which the threshold is measured, >= 1.
        memory_strength: coincidence form: a > 0; smaller keeps more of the old and leaves less room for the new.
        equalisation: coincidence form: p >= 0; 0 leaves Q out.
        absorber: largest gradient norm in units of its running mean, >= 1.
        coincidence: a watcher of the model, or None. Parameters that it does not cover follow the diagonal form.
        foreach: diagonal form: True: all tensors at once. False: the reference, one tensor at a time.
        on_nonfinite: as in `SelectivePlasticityOptimizer`.

    Raises:
        ValueError, TypeError: an argument is outside its range or of the wrong type; the message names it.
    """

    scalar_state = ("input_power",)

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 0.1,
        threshold_quantile: float = 0.85,
        warmup_steps: int = 100,
        *,
        memory_strength: float = 0.4,
        equalisation: float = 30.0,
        absorber: float = 1.25,
        coincidence: NMDACoincidence | None = None,
        rank: int | None = None,
        refresh_every: int = 20,
        foreach: bool = True,
        on_nonfinite: str = "skip",
    ):
        if coincidence is not None and not isinstance(coincidence, NMDACoincidence):
            raise TypeError(f"coincidence must be None or NMDACoincidence(model), got {coincidence!r}")
        self.coincidence = coincidence
        leave_out = ("self", "params", "coincidence", "__class__")
        super().__init__(params, {name: value for name, value in locals().items() if name not in leave_out})
        device = self.param_groups[0]["params"][0].device
        self.param_groups[0]["shared"] = {
            name: torch.zeros((), device=device) for name in ("steps", "threshold", "mean_norm", "scale")
        }

    def check_options(self, options: dict[str, Any]) -> None:
        check_number("lr", options["lr"], 0)
        check_number("threshold_quantile", options["threshold_quantile"], 0, 1, low_open=True, high_open=True)
        check_integer("warmup_steps", options["warmup_steps"], 1)
        check_number("memory_strength", options["memory_strength"], 0, low_open=True)
        check_number("equalisation", options["equalisation"], 0)
        check_number("absorber", options["absorber"], 1)
        if options["rank"] is not None:
            check_integer("rank", options["rank"], 1)
        check_integer("refresh_every", options["refresh_every"], 1)
        check_flag("foreach", options["foreach"])
        check_choice("on_nonfinite", options["on_nonfinite"], ("skip", "raise"))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, and what the watcher recorded beside them."""
        super().zero_grad(set_to_none)
        if self.coincidence is not None:
            self.coincidence.clear()

    def initial_state(self, parameter: Tensor) -> dict[str, Tensor]:
        if id(parameter) in self._covered():
            return {}
        return {"consolidated": torch.zeros_like(parameter, memory_format=torch.preserve_format)}

    def _covered(self) -> dict[int, Synapses]:
        """The watched layer of each covered parameter, by the parameter's id."""
        if self.coincidence is None:
            return {}
        return {id(p): synapses for synapses in self.coincidence.synapses for p in synapses.parameters}

    def update(self, groups: list[tuple[dict[str, Any], list[Tensor]]], finite: Tensor) -> None:
        covered = self._covered()
        options = self.param_groups[0]
        shared = {name: value.to(finite.device) for name, value in options["shared"].items()}
        shared["steps"] += finite
        layers = []
        for group, parameters in groups:
            names = dict.fromkeys(id(covered[id(p)]) for p in parameters if id(p) in covered)
            by_id = {id(synapses): synapses for synapses in covered.values()}
            layers += [_Layer(self, by_id[name], group, finite, shared["steps"]) for name in names]
        rest = [(group, [p for p in parameters if id(p) not in covered]) for group, parameters in groups]

        squares = [layer.squared_norm() for layer in layers]
        for _, parameters in rest:
            for members in by_device_and_dtype(parameters):
                norms = torch.stack(torch._foreach_norm([p.grad for p in members])).to(finite.device)
                squares.append(norms.float().square().sum())
        factor = _absorb(shared, torch.stack(squares).sum().sqrt(), finite, options["absorber"]) if squares else 1.0

        for layer in layers:
            layer.update(factor / (shared["scale"] + SMALLEST))
        self._diagonal(rest, shared, factor, finite)
        options["shared"] = shared

    def _diagonal(self, rest: list, shared: dict[str, Tensor], factor: Tensor, finite: Tensor) -> None:
        count = self.param_groups[0]["step_count"]
        lists = [(group, members) for group, parameters in rest for members in by_device_and_dtype(parameters)]
        for group, members in lists:
            gradients = [torch.where(finite, p.grad, 0) for p in members]
            torch._foreach_mul_(gradients, factor.to(gradients[0].dtype))
            consolidated = [self.state[p]["consolidated"] for p in members]
            torch._foreach_addcmul_(consolidated, gradients, gradients)
            if count <= group["warmup_steps"] and (count <= 10 or count % 10 == 0 or count == group["warmup_steps"]):
                self._measure_threshold(shared, group, finite)
            theta = shared["threshold"]
            torch._foreach_mul_(gradients, (group["lr"] * theta.sqrt()).to(gradients[0].dtype))
            scale = torch._foreach_add(consolidated, theta.to(gradients[0].dtype))
            torch._foreach_addcdiv_(members, gradients, scale, value=-1)

    def _measure_threshold(self, shared: dict[str, Tensor], group: dict[str, Any], finite: Tensor) -> None:
        """The quantile over all parameters together, scaled to what it will be when the warm-up ends."""
        values = [s["consolidated"] for s in self.state.values() if "consolidated" in s]
        seen = rules.sampled_quantile(values, group["threshold_quantile"], seed=self.param_groups[0]["step_count"])
        seen = seen * (group["warmup_steps"] / shared["steps"].clamp(min=1))
        shared["threshold"] = torch.where(finite, seen.clamp(min=SMALLEST), shared["threshold"])


def _absorb(shared: dict[str, Tensor], norm: Tensor, finite: Tensor, absorber: float) -> Tensor:
    """Move the running mean of the gradient's norm, and return the factor that the absorber leaves of the gradient."""
    first = shared["steps"] <= 1
    kept = torch.where(first, norm, rules.absorbed(norm, shared["mean_norm"], absorber))
    moved = torch.where(first, kept, AVERAGE * shared["mean_norm"] + (1 - AVERAGE) * kept)
    shared["mean_norm"] = torch.where(finite, moved, shared["mean_norm"])
    measuring = finite & (shared["steps"] <= SCALE_STEPS)
    shared["scale"] = torch.where(measuring, shared["mean_norm"], shared["scale"])
    return torch.where(finite, kept / (norm + SMALLEST), 0)


class _Layer:
    """One step of a watched layer."""

    def __init__(self, optimizer, synapses: Synapses, group: dict[str, Any], finite: Tensor, steps: Tensor):
        self.synapses, self.group, self.steps = synapses, group, steps
        weight = synapses.weight
        self.state = optimizer.state[weight]
        self.finite = finite.to(weight.device, non_blocking=True)
        self.gradient = torch.where(self.finite, synapses.gradient(), 0).to(scalar_dtype(weight))
        self.strength = READOUT_STRENGTH if synapses.readout else group["memory_strength"]
        self.inputs = self._memory("inputs", self.strength, 1 if synapses.readout else 2)
        self.errors = None
        if group["equalisation"] and not synapses.readout:
            self.errors = self._memory("errors", 1 / group["equalisation"], 1, decay=AVERAGE, relative=True)
        if not self.state:
            self._initialise()
        activity = synapses.take()
        if activity is not None:
            self._remember(activity)

    def _memory(self, name: str, strength: float, power: int, **options) -> ExactMemory | SketchedMemory:
        every, rank = self.group["refresh_every"], self.group["rank"]
        if rank is None:
            return ExactMemory(name, strength, power, every, **options)
        return SketchedMemory(name, strength, power, every, rank=rank if name == "inputs" else rank // 3, **options)

    def _initialise(self) -> None:
        out, inputs = self.gradient.shape
        number = {"dtype": self.gradient.dtype, "device": self.gradient.device}
        self.state["input_power"] = torch.zeros((), **number)
        self.inputs.initialise(self.state, inputs, **number)
        if self.errors is not None:
            self.errors.initialise(self.state, out, **number)

    def _remember(self, activity: Activity) -> None:
        count, power = self.group["step_count"], self.state["input_power"]
        x, errors = (side.to(self.gradient.dtype) for side in (activity.presynaptic, activity.postsynaptic))
        if count <= 10 * SCALE_STEPS:  # some of which may have been skipped
            moved = power + (x.square().sum(1).mean() - power) / self.steps.clamp(min=1)
            power.copy_(torch.where(self.finite & (self.steps <= SCALE_STEPS), moved, power))
        weight = 1 / (activity.examples * (power + SMALLEST))
        self.inputs.remember(self.state, x, weight, self.finite, count)
        if self.errors is not None:
            weight = torch.full_like(power, activity.examples)
            self.errors.remember(self.state, errors, weight, self.finite, count)

    def squared_norm(self) -> Tensor:
        """Of the gradient with respect to weights in units of the inputs."""
        norm = torch.linalg.vector_norm(self.gradient)
        return (norm**2 / (self.state["input_power"] + SMALLEST)).to(self.steps.device)

    def update(self, factor: Tensor) -> None:
        change = self.inputs.multiply(self.state, self.gradient)
        if self.errors is not None:
            change = self.errors.multiply(self.state, change.T).T
        size = self.group["lr"] * GAIN / self.strength / (self.state["input_power"] + SMALLEST)
        self.synapses.add_((change * (-size * factor.to(change.device))).to(self.synapses.weight.dtype))
