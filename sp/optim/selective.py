"""The published rule: an Adam-like step whose size a plasticity gate decides, synapse by synapse."""

import math
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sp import rules
from sp.biology import NMDACoincidence
from sp.checks import check_choice, check_flag, check_integer, check_number
from sp.optim.common import PlasticityOptimizer, by_device_and_dtype, scalar_dtype, signed_rate
from sp.optim.fast import blocks, local, whole

REFRESH_EVERY = 50  # steps between two looks at the distribution of the eligibility
SMALLEST_THRESHOLD = 1e-30  # where most of a tensor was never used; its reciprocal is still finite
ONE = torch.tensor(1.0)
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
        weight_decay: decoupled, >= 0: every weight that has a gradient is multiplied by ``1 - lr weight_decay`` before
            the step, as in AdamW; the gate does not hold this back.
        maximize: climb the objective instead of descending.
        foreach: True: all tensors at once through ``torch._foreach_*`` functions. False: the reference, one tensor at
            a time, which reads like the equations.
        compile: run the step under ``torch.compile(fullgraph=True)``: the fastest form, after some 20 s of compiling at
            the first step. Where there is no compiler it says so in a warning, and the step runs as without.
        differentiable: always False; a step cannot be differentiated through.
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
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool = True,
        compile: bool = False,
        differentiable: bool = False,
        on_nonfinite: str = "skip",
    ):
        super().__init__(params, {**SelectivePlasticityOptimizer.chosen(locals()), "calibration_start": 0}, coincidence)
        if 0 < threshold_percentile < 1:
            warnings.warn(
                f"threshold_percentile is in percent, and {threshold_percentile:g} is less than one of them: did you "
                f"mean {100 * threshold_percentile:g}?",
                stacklevel=2,
            )
        self._activations: dict[int, Tensor] = {}  # of the last step, by the parameter's id

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_activations": {}}

    def check_options(self, options: dict[str, Any]) -> None:
        super().check_options(options)
        if options["compile"] and options["normalisation"] == "max":
            raise ValueError(
                "normalisation must be 'percentile' with compile=True, got 'max', whose threshold has to be known "
                "before the pass that is compiled: leave one of the two out"
            )
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
            if group["compile"]:
                function = partial(_multi_tensor, compiled=self.compiled(_move_tensors))
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
                    lr=signed_rate(group),
                )

    def _normalised_activations(self, finite: Tensor) -> dict[int, Tensor]:
        """What the presynaptic side gives to each watched parameter, in [0, 1]; nothing where no pass was recorded."""
        activations = {}
        for synapses in {id(synapses): synapses for synapses in self.watched().values()}.values():
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
        eligibility = whole(eligibility)
        magnitude = torch.zeros_like(eligibility) if param.grad is None else whole(param.grad).abs()
        return _gate(eligibility, magnitude, self._activations.get(id(param)), self.state[param], self.group_of(param))


_RULE_OPTIONS = (
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


def _largest(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return whole(tensor).abs().max().to(dtype).clamp(min=SMALLEST_THRESHOLD)


def _gate(
    eligibility: Tensor,
    magnitude: Tensor,
    activation: Tensor | None,
    state: dict[str, Tensor],
    options: dict[str, Any],
) -> Tensor:
    """The gate of one tensor: from its bias-corrected eligibility, the magnitude of its gradient and, with P8, what its
    inputs were."""
    threshold = state["threshold"]
    if options["normalisation"] == "max":
        thresholds = _largest(eligibility, threshold.dtype), _largest(magnitude, threshold.dtype)
    else:
        thresholds = threshold, threshold
    gradient_norm = rules.saturating_ratio(local(magnitude), thresholds[1])
    gate = rules.plasticity_gate(
        rules.saturating_ratio(local(eligibility), thresholds[0]),
        gradient_norm,
        options["plasticity_k"],
        options["gate_min"],
    )
    if activation is not None:
        gate = (gate * rules.coincidence(activation, gradient_norm)).clamp(min=options["gate_min"])
    return torch.where(state["step"] > options["warmup_steps"], gate, 1.0)


def _eps(options: dict[str, Any], parameter: Tensor) -> float:
    # In float16 the usual 1e-8 is zero, and an unused synapse would be moved by 0 / 0.
    return max(options["eps"], torch.finfo(parameter.dtype).tiny)


def _look(state: dict[str, Tensor], finite: Tensor, seed: int, options: dict[str, Any]) -> None:
    """Metaplasticity (P13): move the threshold towards the percentile of the bias-corrected eligibility."""
    threshold, step = state["threshold"], state["step"]
    eligibility = rules.bias_corrected(whole(state["eligibility"]), options["trace_decay"], step.clamp(min=1))
    seen = rules.sampled_quantile([eligibility], options["threshold_percentile"] / 100, seed)
    seen = seen.clamp(min=SMALLEST_THRESHOLD)
    unset = threshold.isinf()
    if options["adaptive_threshold"]:
        moved = torch.where(unset, seen, THRESHOLD_MOMENTUM * threshold + (1 - THRESHOLD_MOMENTUM) * seen)
    else:
        moved = torch.where(unset & (step >= options["warmup_steps"]), seen, threshold)
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
        trace, momentum = local(state["eligibility"]), local(state["momentum"])
        trace.copy_(rules.eligibility_trace(trace, local(g), options["trace_decay"]))
        momentum.lerp_(local(g), 1 - options["momentum"])
        eligibility = rules.bias_corrected(state["eligibility"], options["trace_decay"], state["step"])
        mean_gradient = rules.bias_corrected(momentum, options["momentum"], state["step"])
        if look:
            _look(state, finite, seed, options)
        gate = _gate(eligibility, g.abs(), activation, state, options)
        scale = local(eligibility) + _eps(options, w) if options["base"] == "adam" else 1
        local(w).sub_(options["lr"] * gate * mean_gradient / scale)


def _multi_tensor(
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: list[dict[str, Tensor]],
    activations: list[Tensor | None],
    finite: Tensor,
    *,
    look: bool,
    seed: int,
    compiled: Callable | None = None,
    **options: Any,
) -> None:
    """All tensors at once and in place: block by block on a CPU, else through one function that can be compiled.

    An accelerator is never waited for. A CPU's numbers are there when they are asked for, so it works with plain ones,
    and leaves out a step that is not finite instead of masking it.
    """
    on_cpu = parameters[0].device.type == "cpu"
    if on_cpu and not finite:
        return
    traces = [[state[name] for state in states] for name in ("eligibility", "momentum")]
    tensors = [[local(t) for t in members] for members in (parameters, gradients, *traces)]
    steps = [state["step"] for state in states]
    # A tensor and not the number 1, which would be made a tensor again for each of them.
    torch._foreach_add_(steps, [ONE if on_cpu else finite.to(steps[0].dtype)] * len(steps))
    rates = {"trace_decay": options["trace_decay"], "momentum": options["momentum"]}
    # Where a threshold is to be taken from the new traces, these are moved beforehand.
    traced = look or options["normalisation"] == "max"
    if traced:
        for _, (_, *block) in blocks(tensors):
            _move_traces(*block, None if on_cpu else finite, **rates)
    if look:
        for state in states:
            _look(state, finite, seed, options)
    if options["normalisation"] == "max":
        units = [[_largest(t, steps[0].dtype) for t in members] for members in (traces[0], gradients)]
    else:
        units = [[state["threshold"] for state in states]] * 2
    small = torch.finfo(parameters[0].dtype)
    options["smallest"] = small.smallest_normal * small.eps
    options["eps"] = max(options["eps"], small.smallest_normal)
    if on_cpu:
        options["lr"] = float(options["lr"])
        columns = torch.stack([*steps, *units[0], *units[1]]).tolist()
        count = len(steps)
        factors = [_factors(*columns[i::count], **options) for i in range(count)]
    else:
        options["lr"] = options["lr"] * finite
        factors = _factors(torch.stack(steps).clamp(min=1), *map(torch.stack, units), **options)
    rest = {"traced": traced, **rates, "adam": options["base"] == "adam", "gate_min": options["gate_min"]}
    watched = any(activation is not None for activation in activations)
    # The thresholds of sparse gradients are zero in float16.
    if on_cpu and compiled is None and not watched and parameters[0].dtype != torch.float16:
        for places, block in blocks(tensors):
            _move_block(*block, [factors[place] for place in places], **rest)
    else:
        if on_cpu:
            factors = torch.tensor([_reciprocal(*row) for row in factors], dtype=steps[0].dtype)
        else:
            factors = torch.stack(_reciprocal(*factors), 1)
        function = _move_tensors if compiled is None or traced else compiled
        function(*tensors, activations, factors, None if on_cpu else finite, **rest)


def _factors(
    step: Any,
    eligibility_unit: Any,
    magnitude_unit: Any,
    *,
    lr: Any,
    trace_decay: float,
    plasticity_k: float,
    warmup_steps: int,
    eps: float,
    smallest: float,
    momentum: float,
    normalisation: str,
    base: str,
    **_: Any,
) -> tuple[Any, ...]:
    """The numbers of a step that differ from tensor to tensor, each a number or a vector with one for each tensor.

    With them the traces need no correction of their own: size of the step, strength of the gate (0 in the warm-up),
    units of the trace and of the gradient, what is added to the scale, and whether the warm-up is over.
    """
    corrected = 1 - trace_decay**step
    size = lr / (1 - momentum**step) * (corrected if base == "adam" else 1)
    late = 1.0 * (step > warmup_steps)
    strength = plasticity_k * late
    unit = eligibility_unit * (corrected if normalisation == "percentile" else 1)
    return size, strength, unit, magnitude_unit, eps * corrected + smallest, late


def _reciprocal(size: Any, strength: Any, unit: Any, magnitude_unit: Any, eps: Any, late: Any) -> tuple[Any, ...]:
    """What `_factors` gives as factors to multiply with."""
    return size, strength, strength / unit, 1 / magnitude_unit, eps, late


def _move_traces(
    gradients: list[Tensor],
    eligibilities: list[Tensor],
    momenta: list[Tensor],
    finite: Tensor | None,
    *,
    trace_decay: float,
    momentum: float,
) -> list[Tensor]:
    """Both traces, in place; returns the magnitudes of the gradients. ``finite`` None: they are known to be finite."""
    magnitudes = torch._foreach_abs(gradients)
    if finite is not None:
        magnitudes = [torch.where(finite, x, e) for x, e in zip(magnitudes, eligibilities, strict=True)]
        gradients = [torch.where(finite, g, m) for g, m in zip(gradients, momenta, strict=True)]
    torch._foreach_lerp_(eligibilities, magnitudes, 1 - trace_decay)
    torch._foreach_lerp_(momenta, gradients, 1 - momentum)
    return magnitudes


def _move_block(
    parameters: list[Tensor],
    gradients: list[Tensor],
    eligibilities: list[Tensor],
    momenta: list[Tensor],
    factors: list[tuple[float, ...]],
    *,
    traced: bool,
    trace_decay: float,
    momentum: float,
    adam: bool,
    gate_min: float,
) -> None:
    """A step of a block in as few passes as there can be; the gate's constants wait for the last one that scales."""
    sizes, strengths, units, magnitude_units, eps, _ = zip(*factors, strict=True)
    if traced:
        magnitudes = torch._foreach_abs(gradients)
    else:
        magnitudes = _move_traces(gradients, eligibilities, momenta, None, trace_decay=trace_decay, momentum=momentum)
    updates = momenta
    if any(strengths):
        # protected = unit e_norm (1 - g_norm), cut where the gate reaches its floor, so that the update is
        # m gate = m - m protected strength / unit
        protected = torch._foreach_clamp_max(eligibilities, units)
        torch._foreach_clamp_max_(magnitudes, magnitude_units)
        torch._foreach_addcmul_(protected, protected, magnitudes, [-1 / unit for unit in magnitude_units])
        scales = [strength / unit for strength, unit in zip(strengths, units, strict=True)]
        room = 1 - gate_min
        floors = [room / c if c and s > room else math.inf for c, s in zip(scales, strengths, strict=True)]
        torch._foreach_clamp_max_(protected, floors)
        updates = torch._foreach_addcmul(momenta, protected, momenta, [-scale for scale in scales])
    if adam:
        torch._foreach_addcdiv_(parameters, updates, torch._foreach_add(eligibilities, eps), [-size for size in sizes])
    else:
        torch._foreach_sub_(parameters, torch._foreach_mul(updates, sizes))


def _move_tensors(
    parameters: list[Tensor],
    gradients: list[Tensor],
    eligibilities: list[Tensor],
    momenta: list[Tensor],
    activations: list[Tensor | None],
    factors: Tensor,
    finite: Tensor | None,
    *,
    traced: bool,
    trace_decay: float,
    momentum: float,
    adam: bool,
    gate_min: float,
) -> None:
    """The same with nothing but tensors, for an accelerator and for the compiler, which merges all into one pass.

    ``activations``: what the presynaptic side gives to each (P8), or None. ``factors``: (n, 6), those of `_factors`
    through `_reciprocal`. ``finite`` None: the gradients are known to be.
    """
    for i, (w, g, e, m) in enumerate(zip(parameters, gradients, eligibilities, momenta, strict=True)):
        size, strength, per_unit, per_magnitude, eps, late = factors[i].unbind()
        magnitude = g.abs()
        if finite is not None:  # a mean moves nowhere when it is fed with itself
            magnitude, g = torch.where(finite, magnitude, e), torch.where(finite, g, m)
        if not traced:  # written out, because the compiler makes two cases of a lerp
            e.copy_(e + (1 - trace_decay) * (magnitude - e))
            m.copy_(m + (1 - momentum) * (g - m))
        used = torch.minimum(e * per_unit, strength)
        gradient_norm = (magnitude * per_magnitude).clamp(max=1)
        gate = (1 - used * (1 - gradient_norm)).clamp(min=gate_min)
        if activations[i] is not None:
            gate = (gate * (1 - late * (1 - rules.coincidence(activations[i], gradient_norm)))).clamp(min=gate_min)
        w.sub_(size * gate * m / (e + eps) if adam else size * gate * m)
