"""The published rule: an Adam-like step whose size a plasticity gate decides, synapse by synapse."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sp import rules
from sp.biology import NMDACoincidence
from sp.optim.common import (
    PlasticityOptimizer,
    by_device_and_dtype,
    check_choice,
    check_flag,
    check_integer,
    check_number,
    scalar_dtype,
)

REFRESH_EVERY = 50  # steps between two looks at the distribution of the eligibility
SMALLEST_THRESHOLD = 1e-30  # where most of a tensor was never used; its reciprocal is still finite
THRESHOLD_MOMENTUM = 0.9  # share of the old threshold that a look keeps, so that one odd batch does not move the gate


class SelectivePlasticityOptimizer(PlasticityOptimizer):
    r"""Adam with a gate on every synapse: one that was used and is not being used now is held (P1 to P7).

    For each parameter tensor at its step :math:`t`, with gradient :math:`g`::

        e <- beta e + (1-beta) |g|            e_hat = e / (1 - beta^t)         eligibility trace (P6)
        m <- momentum m + (1-momentum) g      m_hat = m / (1 - momentum^t)
        theta   = the threshold_percentile-th percentile of e_hat
        e_norm  = min(e_hat / theta, 1)       g_norm = min(|g| / theta, 1)
        gate    = clamp(1 - k e_norm (1 - g_norm), gate_min, 1)                (P7); 1 while t <= warmup_steps
        w <- w - lr gate m_hat / (e_hat + eps)

    With ``coincidence`` the gate also asks for presynaptic activity (P8, see below).
    The trace is also the scale of the step, so the state is Adam's two tensors a parameter and no more (P15).
    A trace forgets within about ``1 / (1 - trace_decay)`` steps, and with it the protection: on its own this rule does
    not keep an old task, which the notebooks measure.

    Args:
        params: parameters, or dicts of parameters with options of their own.
        lr: learning rate, >= 0. Start from Adam's, possibly 1.5 to 3 times it.
        trace_decay: decay beta of the eligibility trace, in [0, 1). Published: 0.95-0.99 adapts fast and protects less,
            0.99-0.995 balanced, 0.995-0.999 protects strongly.
        plasticity_k: sharpness k of the gate, >= 0; 0 switches the gate off. Published: 1-3 lenient, 3-7 balanced,
            7-10 strict.
        threshold_percentile: percentile of the eligibility that counts as fully used, in [0, 100].
        warmup_steps: steps before the gate begins to work, >= 0.
        adaptive_threshold: True: the threshold follows the distribution, looked at every 50 steps (an exponential
            average of the looks). False: it is fixed at the end of the warm-up.
        eps: added to the scale of the step, > 0.
        momentum: decay of the averaged gradient, in [0, 1); 0 takes the gradient as it is.
        normalisation: ``"percentile"``: both magnitudes in units of theta, as above. ``"max"``: each by the largest of
            its tensor, which leaves most synapses unprotected since gradients are heavy-tailed; the percentile and its
            threshold are then not used.
        base: ``"adam"``: the step above. ``"sgd"``: ``w <- w - lr gate m_hat``.
        gate_min: floor of the gate, in [0, 1]; above 0 no synapse is ever frozen.
        coincidence: None, or ``NMDACoincidence(model)`` for P8: after the warm-up the gate of a watched synapse is
            multiplied by ``a_norm g_norm``, where ``a_norm = min(a / rms(a), 1)`` and a is the root mean square of the
            synapse's input in this batch. So it is low where either the gradient or the activation is absent. A bias
            has a constant input, a_norm = 1. What the watcher did not see in a step is gated as without it.
        foreach: True: all tensors at once through ``torch._foreach_*`` functions. False: the reference, one tensor at
            a time, which reads like the equations.
        on_nonfinite: a step with NaN or infinity in a gradient changes no weight and no state. ``"skip"`` counts it
            in ``get_diagnostics()["skipped_steps"]`` without waiting for the device, ``"raise"`` raises
            FloatingPointError.

    Raises:
        ValueError, TypeError: an argument is outside its range or of the wrong type; the message names it.
    """

    parameter_state = ("eligibility", "momentum")

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 0.001,
        trace_decay: float = 0.99,
        plasticity_k: float = 5.0,
        threshold_percentile: float = 75,
        warmup_steps: int = 1000,
        adaptive_threshold: bool = True,
        eps: float = 1e-8,
        *,
        momentum: float = 0.9,
        normalisation: str = "percentile",
        base: str = "adam",
        gate_min: float = 0.0,
        coincidence: NMDACoincidence | None = None,
        foreach: bool = True,
        on_nonfinite: str = "skip",
    ):
        leave_out = ("self", "params", "coincidence", "__class__")
        options = {name: value for name, value in locals().items() if name not in leave_out}
        super().__init__(params, {**options, "calibration_start": 0}, coincidence)
        self._activations: dict[int, Tensor] = {}  # of the last step, by the parameter's id

    def check_options(self, options: dict[str, Any]) -> None:
        check_number("lr", options["lr"], 0)
        check_number("trace_decay", options["trace_decay"], 0, 1, high_open=True)
        check_number("plasticity_k", options["plasticity_k"], 0)
        check_number("threshold_percentile", options["threshold_percentile"], 0, 100)
        check_integer("warmup_steps", options["warmup_steps"], 0)
        check_flag("adaptive_threshold", options["adaptive_threshold"])
        check_number("eps", options["eps"], 0, low_open=True)
        check_number("momentum", options["momentum"], 0, 1, high_open=True)
        check_choice("normalisation", options["normalisation"], ("percentile", "max"))
        check_choice("base", options["base"], ("adam", "sgd"))
        check_number("gate_min", options["gate_min"], 0, 1)
        check_flag("foreach", options["foreach"])
        check_choice("on_nonfinite", options["on_nonfinite"], ("skip", "raise"))

    def initialise(self, parameters: list[Tensor]) -> None:
        for p in parameters:
            number = {"dtype": scalar_dtype(p), "device": p.device}
            self.state[p].update(
                step=torch.zeros((), **number),
                # An infinite threshold protects nothing, which is right until the distribution has been looked at.
                threshold=torch.full((), math.inf, **number),
                eligibility=torch.zeros_like(p, memory_format=torch.preserve_format),
                momentum=torch.zeros_like(p, memory_format=torch.preserve_format),
            )

    def update(self, groups: list[tuple[dict[str, Any], list[Tensor]]], finite: Tensor) -> None:
        self._activations = self._normalised_activations(finite)
        for group, with_gradient in groups:
            age = group["step_count"] - group["calibration_start"]
            function = _multi_tensor if group["foreach"] else _single_tensor
            for parameters in by_device_and_dtype(with_gradient):
                function(
                    parameters,
                    [p.grad for p in parameters],
                    [self.state[p] for p in parameters],
                    [self._activations.get(id(p)) for p in parameters],
                    finite.to(parameters[0].device, non_blocking=True),
                    look=age % REFRESH_EVERY == 0 or age == max(group["warmup_steps"], 1),
                    seed=group["step_count"],
                    **{name: group[name] for name in _RULE_OPTIONS},
                )

    def _normalised_activations(self, finite: Tensor) -> dict[int, Tensor]:
        """What the presynaptic side gives to each watched parameter, in [0, 1]; nothing where no pass was recorded."""
        activations = {}
        for synapses in {id(synapses): synapses for synapses in self.covered().values()}.values():
            activity = synapses.take()
            if activity is None:
                continue
            inputs = activity.presynaptic[:, : synapses.weight[0].numel()].to(scalar_dtype(synapses.weight))
            seen = rules.activation_norm(inputs).to(synapses.weight.dtype)
            # A step that is not finite must come through as one that changes nothing.
            seen = torch.where(finite.to(seen.device, non_blocking=True), seen, 1)
            activations[id(synapses.weight)] = synapses.by_input(seen, synapses.weight)
            if synapses.bias is not None:
                activations[id(synapses.bias)] = torch.ones_like(synapses.bias)
        return activations

    def reset_eligibility(self) -> None:
        """Forget what was used, before a very different task (P3): every parameter's state as before its first step.

        The warm-up begins again, since the threshold has to be calibrated anew; weights and counts stay.
        """
        for group in self.param_groups:
            group["calibration_start"] = group["step_count"]
            self.initialise([p for p in group["params"] if p in self.state])

    def get_param_eligibility(self, param: Tensor) -> Tensor | None:
        """The bias-corrected eligibility of one parameter, shaped like it, in units of its gradient (P4).

        None where there is none: a parameter that never had a gradient, or does not belong to this optimizer.
        """
        state = self.state.get(param)
        if not state:
            return None
        decay = self.group_of(param)["trace_decay"]
        return rules.bias_corrected(state["eligibility"], decay, state["step"].clamp(min=1))

    @torch.no_grad()
    def get_param_gate(self, param: Tensor) -> Tensor | None:
        """The gate of each synapse in the last step, in [0, 1], shaped like the parameter; None before its first step.

        Where the gradient was cleared since, it is as if the parameter were silent (g = 0).
        """
        eligibility = self.get_param_eligibility(param)
        if eligibility is None:
            return None
        magnitude = torch.zeros_like(param) if param.grad is None else param.grad.abs()
        return _gate(eligibility, magnitude, self._activations.get(id(param)), self.state[param], self.group_of(param))

    @torch.no_grad()
    def get_diagnostics(self) -> dict[str, float]:
        """How the optimizer is doing (P2). Costs nothing in a step, a pass over the parameters when called.

        Returns:
            ``step_count``: steps taken. ``skipped_steps``: steps skipped for a gradient that was not finite.
            ``eligibility_mean``: mean bias-corrected eligibility, in units of the gradient. ``gate_mean``: mean of
            `get_param_gate`, in [0, 1].
            Before the first step the means are 0 and 1: nothing is tagged, everything is plastic.
        """
        eligibility_sum, gate_sum, count = 0.0, 0.0, 0
        for p in (p for group in self.param_groups for p in group["params"]):
            eligibility = self.get_param_eligibility(p)
            if eligibility is None:
                continue
            eligibility_sum += float(eligibility.sum(dtype=torch.float64))
            gate_sum += float(self.get_param_gate(p).sum(dtype=torch.float64))
            count += p.numel()
        means = (eligibility_sum / count, gate_sum / count) if count else (0.0, 1.0)
        return {**self._steps_taken(), "eligibility_mean": means[0], "gate_mean": means[1]}


_RULE_OPTIONS = (
    "lr",
    "trace_decay",
    "plasticity_k",
    "threshold_percentile",
    "warmup_steps",
    "adaptive_threshold",
    "eps",
    "momentum",
    "normalisation",
    "base",
    "gate_min",
)


def _gate(
    eligibility: Tensor,
    magnitude: Tensor,
    activation: Tensor | None,
    state: dict[str, Tensor],
    options: dict[str, Any],
) -> Tensor:
    """The gate of one tensor: from its bias-corrected eligibility, the magnitude of its gradient and, with P8, what its
    inputs were."""
    if options["normalisation"] == "max":
        dtype = state["threshold"].dtype
        thresholds = tuple(x.max().to(dtype).clamp(min=SMALLEST_THRESHOLD) for x in (eligibility, magnitude))
    else:
        thresholds = (state["threshold"], state["threshold"])
    gradient_norm = rules.saturating_ratio(magnitude, thresholds[1])
    gate = rules.plasticity_gate(
        rules.saturating_ratio(eligibility, thresholds[0]), gradient_norm, options["plasticity_k"], options["gate_min"]
    )
    if activation is not None:
        gate = (gate * rules.coincidence(activation, gradient_norm)).clamp(min=options["gate_min"])
    return torch.where(state["step"] > options["warmup_steps"], gate, 1.0)


def _eps(options: dict[str, Any], parameter: Tensor) -> float:
    # In float16 the usual 1e-8 is zero, and an unused synapse would be moved by 0 / 0.
    return max(options["eps"], torch.finfo(parameter.dtype).tiny)


def _look(eligibility: Tensor, state: dict[str, Tensor], finite: Tensor, seed: int, options: dict[str, Any]) -> None:
    """Metaplasticity (P13): move the threshold towards the percentile of the bias-corrected eligibility."""
    threshold = state["threshold"]
    seen = rules.sampled_quantile([eligibility], options["threshold_percentile"] / 100, seed)
    seen = seen.clamp(min=SMALLEST_THRESHOLD)
    unset = threshold.isinf()
    if options["adaptive_threshold"]:
        moved = torch.where(unset, seen, THRESHOLD_MOMENTUM * threshold + (1 - THRESHOLD_MOMENTUM) * seen)
    else:
        moved = torch.where(unset & (state["step"] >= options["warmup_steps"]), seen, threshold)
    threshold.copy_(torch.where(finite, moved, threshold))


def _single_tensor(
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: list[dict[str, Tensor]],
    activations: list[Tensor | None],
    finite: Tensor,
    *,
    look: bool,
    seed: int,
    **options: Any,
) -> None:
    """The reference: one tensor at a time, as in the equations."""
    if not finite:
        return
    for w, g, state, activation in zip(parameters, gradients, states, activations, strict=True):
        state["step"] += 1
        state["eligibility"].copy_(rules.eligibility_trace(state["eligibility"], g, options["trace_decay"]))
        state["momentum"].lerp_(g, 1 - options["momentum"])
        eligibility = rules.bias_corrected(state["eligibility"], options["trace_decay"], state["step"])
        mean_gradient = rules.bias_corrected(state["momentum"], options["momentum"], state["step"])
        if look:
            _look(eligibility, state, finite, seed, options)
        gate = _gate(eligibility, g.abs(), activation, state, options)
        scale = eligibility + _eps(options, w) if options["base"] == "adam" else 1
        w -= options["lr"] * gate * mean_gradient / scale


def _multi_tensor(
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: list[dict[str, Tensor]],
    activations: list[Tensor | None],
    finite: Tensor,
    *,
    look: bool,
    seed: int,
    **options: Any,
) -> None:
    """All tensors at once, in place, and without waiting for the device.

    Whatever differs from tensor to tensor is computed for all of them in one small vector. A step that is not finite
    runs through with the gradient taken as zero and every factor that would change something as 0 or 1.
    """
    steps = [state["step"] for state in states]
    eligibilities = [state["eligibility"] for state in states]
    momenta = [state["momentum"] for state in states]
    finite_number = finite.to(steps[0].dtype)
    trace_decay, momentum = options["trace_decay"], options["momentum"]

    gradients = [torch.where(finite, g, 0) for g in gradients]
    magnitudes = torch._foreach_abs(gradients)
    torch._foreach_add_(steps, finite_number)
    torch._foreach_mul_(eligibilities, 1 - (1 - trace_decay) * finite_number)
    torch._foreach_add_(eligibilities, magnitudes, alpha=1 - trace_decay)
    torch._foreach_mul_(momenta, 1 - (1 - momentum) * finite_number)
    torch._foreach_add_(momenta, gradients, alpha=1 - momentum)

    step = torch.stack(steps)
    trace_correction = 1 / (1 - trace_decay ** step.clamp(min=1))
    if look:
        corrected = torch._foreach_mul(eligibilities, list(trace_correction.unbind()))
        for eligibility, state in zip(corrected, states, strict=True):
            _look(eligibility, state, finite, seed, options)

    if options["normalisation"] == "max":
        per_eligibility, per_magnitude = (
            1 / torch.stack(torch._foreach_max(tensors)).to(step.dtype).clamp(min=SMALLEST_THRESHOLD)
            for tensors in (eligibilities, magnitudes)
        )
    else:
        per_magnitude = 1 / torch.stack([state["threshold"] for state in states])
        per_eligibility = per_magnitude * trace_correction

    # With s the step size, s * clamp(1 - k e_norm (1 - g_norm), gate_min, 1) in two buffers.
    size = options["lr"] * finite_number / (1 - momentum ** step.clamp(min=1))
    strength = -options["plasticity_k"] * size * (step > options["warmup_steps"])
    unused = torch._foreach_mul(magnitudes, list((-per_magnitude).unbind()))
    torch._foreach_clamp_min_(unused, -1)
    torch._foreach_add_(unused, 1)
    gates = torch._foreach_mul(eligibilities, list(per_eligibility.unbind()))
    torch._foreach_clamp_max_(gates, 1)
    torch._foreach_mul_(gates, unused)
    torch._foreach_mul_(gates, list(strength.unbind()))
    torch._foreach_add_(gates, list(size.unbind()))
    for gate, silent, activation, late in zip(gates, unused, activations, step > options["warmup_steps"], strict=True):
        if activation is not None:
            gate.mul_(torch.where(late, rules.coincidence(activation, 1 - silent), 1))
    torch._foreach_maximum_(gates, list((size * options["gate_min"]).unbind()))

    torch._foreach_mul_(gates, momenta)
    if options["base"] == "adam":
        torch._foreach_copy_(unused, eligibilities)
        torch._foreach_mul_(unused, list(trace_correction.unbind()))
        torch._foreach_add_(unused, _eps(options, parameters[0]))
        torch._foreach_addcdiv_(parameters, gates, unused, value=-1)
    else:
        torch._foreach_sub_(parameters, gates)
