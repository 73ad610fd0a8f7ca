"""The published rule: an Adam-like step whose size is set by a plasticity gate, synapse by synapse."""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sp import rules
from sp.biology import NMDACoincidence
from sp.checks import check_choice, check_flag, check_integer, check_number
from sp.optim.common import Calls, Groups, PlasticityOptimizer, scalar_dtype, signed_rate
from sp.optim.fast import Blocks, alike, local, summed_over_shards, whole

REFRESH_EVERY = 50  # steps between two looks at the distribution of the eligibility
SMALLEST_THRESHOLD = 1e-30  # for tensors that are mostly unused; its reciprocal is still finite
THRESHOLD_MOMENTUM = 0.9  # share of the old threshold kept at a look, so that one odd batch does not move the gate

State = dict[str, Tensor]


class SelectivePlasticityOptimizer(PlasticityOptimizer):
    r"""Adam with a gate on every synapse: synapses used before but not now are held (P1 to P7).

    For each parameter tensor at its step :math:`t`, with gradient :math:`g`::

        e <- beta e + (1-beta) |g|            e_hat = e / (1 - beta^t)         eligibility trace (P6)
        m <- momentum m + (1-momentum) g      m_hat = m / (1 - momentum^t)
        theta   = the threshold_percentile-th percentile of e_hat
        e_norm  = min(e_hat / theta, 1)       g_norm = min(|g| / theta, 1)
        gate    = clamp(1 - k e_norm (1 - g_norm), gate_min, 1)                (P7); 1 while t <= warmup_steps
        w <- w - lr gate m_hat / (e_hat + eps)

    With ``coincidence``, the gate also requires presynaptic activity (P8, see below).
    The trace is also the scale of the step, so the state is just two tensors per parameter, as in Adam (P15).
    A trace decays within about ``1 / (1 - trace_decay)`` steps, and the protection with it. On its own, this rule does
    not retain an old task, as measured in the notebooks.

    Args:
        params: parameters, or dicts of parameters with their own options.
        lr: learning rate, >= 0. Start from Adam's value, possibly 1.5 to 3 times that.
        trace_decay: decay beta of the eligibility trace, in [0, 1). Published: 0.95-0.99 adapts fast and protects less,
            0.99-0.995 is balanced, 0.995-0.999 protects strongly.
        plasticity_k: sharpness k of the gate, >= 0; 0 switches the gate off. Published: 1-3 is lenient, 3-7
            balanced, 7-10 strict.
        threshold_percentile: percentile of the eligibility that counts as fully used, in [0, 100].
        warmup_steps: steps before the gate takes effect, >= 0.
        adaptive_threshold: if True, the threshold follows the distribution, as an exponential average of measurements
            taken every 50 steps. If False, it is fixed at the end of the warm-up.
        eps: added to the scale of the step, > 0.
        momentum: decay of the averaged gradient, in [0, 1); 0 uses the gradient as it is.
        normalisation: ``"percentile"`` measures both magnitudes in units of theta, as above. ``"max"`` divides each by
            the largest in its tensor, and does not use the percentile and its threshold. This leaves most synapses
            unprotected, since gradients are heavy-tailed.
        base: ``"adam"`` is the step above, ``"sgd"`` is ``w <- w - lr gate m_hat``.
        gate_min: lower bound of the gate, in [0, 1]; above 0, no synapse is ever frozen.
        coincidence: None, or ``NMDACoincidence(model)`` for P8: after the warm-up, the gate of a watched synapse is
            multiplied by ``a_norm g_norm``, where ``a_norm = min(a / rms(a), 1)`` and a is the root mean square of the
            synapse's input in this batch. So it is low if either the gradient or the activation is absent. A bias has a
            constant input, a_norm = 1. What the watcher did not see in a step is gated as it would be without it.
        weight_decay: decoupled weight decay, >= 0: every weight that has a gradient is multiplied by
            ``1 - lr weight_decay`` before the step, as in AdamW. The gate does not reduce this.
        maximize: maximise the objective instead of minimising it.
        foreach: if True, update all tensors at once with ``torch._foreach_*`` functions, in blocks that fit in a CPU's
            cache. If False, use the reference, one tensor at a time, which reads like the equations. Under
            ``torch.compile(optimizer.step)`` both use the reference, which the compiler turns into a fast form.
        on_nonfinite: what to do if a gradient contains NaN or infinity. ``"skip"`` changes nothing and counts the step
            in ``get_diagnostics()["skipped_steps"]``. ``"raise"`` raises FloatingPointError and changes nothing.
            ``"ignore"`` does not check, so an accelerator does not have to wait for the answer.

    Raises:
        ValueError, TypeError: an argument is outside its range or of the wrong type; the message names it.
    """

    scratch = 2

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
        on_nonfinite: str = "skip",
    ):
        defaults = {
            "lr": lr,
            "trace_decay": trace_decay,
            "plasticity_k": plasticity_k,
            "threshold_percentile": threshold_percentile,
            "warmup_steps": warmup_steps,
            "adaptive_threshold": adaptive_threshold,
            "eps": eps,
            "momentum": momentum,
            "normalisation": normalisation,
            "base": base,
            "gate_min": gate_min,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "on_nonfinite": on_nonfinite,
            "calibration_start": 0,
        }
        super().__init__(params, defaults, coincidence)
        if 0 < threshold_percentile < 1:
            warnings.warn(
                f"threshold_percentile is a percentage, and {threshold_percentile:g} is less than 1 %: did you "
                f"mean {100 * threshold_percentile:g}?",
                stacklevel=2,
            )

    def check_options(self, options: dict[str, Any]) -> None:
        super().check_options(options)
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

    def new_state(self, parameter: Tensor) -> State:
        decay, dtype = self.group_of(parameter)["trace_decay"], parameter.dtype
        if 1 - decay < torch.finfo(dtype).eps:
            warnings.warn(
                f"in {dtype}, a trace with trace_decay={decay:g} hardly fades, as small changes are rounded away: give "
                f"trace_decay <= {1 - torch.finfo(dtype).eps:.2g}, or keep the weights in float32",
                stacklevel=2,
            )
        number = {"dtype": scalar_dtype(parameter), "device": parameter.device}
        return {
            "step": torch.zeros((), **number),
            # An infinite threshold protects nothing, which is right until the distribution has been measured.
            "threshold": torch.full((), math.inf, **number),
            "eligibility": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "momentum": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }

    def measure(self, parameters: list[Tensor]) -> Tensor | None:
        """The sums of the gradients, since nothing costs less; None if finiteness is not checked."""
        if not self.asks:
            return None
        sums = []
        for members in alike(parameters):
            half = {"dtype": torch.float32} if members[0].dtype.itemsize == 2 else {}
            seen = torch.stack([local(p.grad).sum(**half) for p in members])
            sums.append(summed_over_shards(seen, members[0]))
        return sums[0] if len(sums) == 1 else torch.cat([s.to(sums[0].device, sums[0].dtype) for s in sums])

    def calls(self, groups: Groups, measured: Tensor | None) -> Calls:
        calls = []
        activations = self._activations()
        for number, (group, with_gradient) in enumerate(groups):
            age = group["step_count"] - group["calibration_start"]
            look = age % REFRESH_EVERY == 0 or age == max(group["warmup_steps"], 1)
            rate = signed_rate(group)
            if not isinstance(rate, Tensor):  # the compiler would specialise on every value of a number
                rate = torch.tensor(rate, dtype=torch.float64, device="cpu")
            for part, parameters in enumerate(alike(with_gradient)):
                p8 = [activations.get(id(p)) for p in parameters]
                by_hand = (
                    group["foreach"]
                    and group["normalisation"] == "percentile"
                    and not look
                    and all(activation is None for activation in p8)
                    and parameters[0].dtype != torch.float16  # in float16, the thresholds of small gradients are zero
                    and (self.asks or parameters[0].device.type == "cpu")  # else this would wait for the device
                )
                gradients, states = [p.grad for p in parameters], [self.state[p] for p in parameters]
                arguments = (parameters, gradients, states, p8, rate, group, look)
                if by_hand:
                    calls.append((_multi_tensor, (self.blocks, (number, part), *arguments)))
                else:
                    calls.append((_single_tensor, arguments))
            if look:  # parameters that are used now and then may never have a gradient in such a step
                used = {id(p) for p in with_gradient}
                resting = [self.state[p] for p in group["params"] if id(p) not in used and p in self.state]
                calls.append((_look, ([state for state in resting if state["step"] > 0], group)))
        return calls

    def _activations(self) -> dict[int, Tensor]:
        """The presynaptic factor of each watched parameter, in [0, 1]; there is none if no pass was recorded."""
        activations = {}
        for synapses in {id(synapses): synapses for synapses in self.watched().values()}.values():
            activity = synapses.take()
            if activity is None or synapses.kind.indices:  # an embedding's inputs are either present or absent
                continue
            _, _, width = synapses.shape
            inputs = activity.presynaptic[..., : width - (synapses.bias is not None)].to(scalar_dtype(synapses.weight))
            seen = F.pad(rules.activation_norm(inputs), (0, synapses.bias is not None), value=1.0)
            seen = seen.to(synapses.weight.dtype)
            for p in synapses.parameters:
                activations[id(p)] = synapses.by_input(seen, p)
        return activations

    def reset_eligibility(self) -> None:
        """Forget what was used, before a very different task (P3): reset every parameter's state to its initial state.

        The warm-up starts again, since the threshold has to be recalibrated. Weights and counts stay.
        """
        for group in self.param_groups:
            group["calibration_start"] = group["step_count"]
            for p in group["params"]:
                if p in self.state:
                    self.state[p] = self.new_state(p)

    def get_param_eligibility(self, param: Tensor) -> Tensor | None:
        """The bias-corrected eligibility of one parameter, shaped like it, in units of its gradient (P4).

        None if there is none: the parameter never had a gradient, or does not belong to this optimizer.
        """
        state = self.state.get(param)
        if not state:
            return None
        decay = self.group_of(param)["trace_decay"]
        return rules.bias_corrected(state["eligibility"], decay, state["step"].clamp(min=1))

    @torch.no_grad()
    def get_param_gate(self, param: Tensor) -> Tensor | None:
        """The gate of each synapse, in [0, 1], shaped like the parameter; None before its first step.

        It is computed from the state and the current gradient. After a step it is the gate of that step, without the
        factor of ``coincidence``, since the activity is gone by then. If the gradient was cleared, it is as if the
        parameter were silent (g = 0).
        """
        eligibility = self.get_param_eligibility(param)
        if eligibility is None:
            return None
        eligibility = whole(eligibility)
        magnitude = torch.zeros_like(eligibility) if param.grad is None else whole(param.grad).abs()
        return _gate(eligibility, magnitude, None, self.state[param], self.group_of(param))


def _gate(
    eligibility: Tensor, magnitude: Tensor, activation: Tensor | None, state: State, options: dict[str, Any]
) -> Tensor:
    """The gate of a tensor, from its bias-corrected eligibility, its gradient's magnitude and, with P8, its inputs."""
    if options["normalisation"] == "max":
        thresholds = [
            whole(t).max().to(state["step"].dtype).clamp(min=SMALLEST_THRESHOLD) for t in (eligibility, magnitude)
        ]
    else:
        thresholds = [state["threshold"]] * 2
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


@torch.compiler.disable
def _look(states: list[State], options: dict[str, Any]) -> None:
    """Metaplasticity (P13): move thresholds towards the percentile of the bias-corrected eligibility."""
    for state in states:
        threshold, step = state["threshold"], state["step"]
        eligibility = rules.bias_corrected(whole(state["eligibility"]), options["trace_decay"], step)
        drawn = rules.sampled([eligibility], seed=options["step_count"])
        seen = drawn.quantile(options["threshold_percentile"] / 100).clamp(min=SMALLEST_THRESHOLD)
        if options["adaptive_threshold"]:
            moved = THRESHOLD_MOMENTUM * threshold + (1 - THRESHOLD_MOMENTUM) * seen
            threshold.copy_(torch.where(threshold.isinf(), seen, moved))
        else:
            due = threshold.isinf() & (step >= options["warmup_steps"])
            threshold.copy_(torch.where(due, seen, threshold))


def _single_tensor(
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: list[State],
    activations: list[Tensor | None],
    rate: Tensor,
    options: dict[str, Any],
    look: bool,
) -> None:
    """The reference: one tensor at a time, as in the equations."""
    decay, momentum = options["trace_decay"], options["momentum"]
    for g, state in zip(gradients, states, strict=True):
        state["step"] += 1
        trace, mean = local(state["eligibility"]), local(state["momentum"])
        trace.copy_(rules.eligibility_trace(trace, local(g), decay))
        mean.lerp_(local(g), 1 - momentum)
    if look:
        _look(states, options)
    for w, g, state, activation in zip(parameters, gradients, states, activations, strict=True):
        eligibility = rules.bias_corrected(state["eligibility"], decay, state["step"])
        mean_gradient = rules.bias_corrected(local(state["momentum"]), momentum, state["step"])
        gate = _gate(eligibility, g.abs(), activation, state, options)
        # In float16 the default eps is zero, and an unused synapse would be moved by 0 / 0.
        eps = max(options["eps"], torch.finfo(w.dtype).tiny)
        scale = local(eligibility) + eps if options["base"] == "adam" else 1
        local(w).sub_(rate * (gate * mean_gradient / scale))  # in this order: float16 rounds small numbers coarsely


def _multi_tensor(
    blocks: Blocks,
    key: tuple[int, int],
    parameters: list[Tensor],
    gradients: list[Tensor],
    states: list[State],
    activations: list[Tensor | None],
    rate: Tensor,
    options: dict[str, Any],
    look: bool,
) -> None:
    """The same for all tensors at once, in place and in as few passes as possible.

    The traces themselves are not corrected: the correction is in the numbers that each tensor is multiplied by. Only
    for steps without activations, with percentile thresholds that stay as they are.
    """
    if torch.compiler.is_compiling():  # the compiler turns the reference into what is done by hand here
        return _single_tensor(parameters, gradients, states, activations, rate, options, look)
    dtype = parameters[0].dtype
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1)
    numbers = torch.stack([*steps, *(state["threshold"] for state in states)]).tolist()
    pairs = zip(numbers[: len(steps)], numbers[len(steps) :], strict=True)
    factors = [_factors(step, threshold, float(rate), dtype, options) for step, threshold in pairs]
    gated = any(scale for *_, scale, _ in factors)
    lists = [gradients, parameters, *([state[name] for state in states] for name in ("eligibility", "momentum"))]
    for places, (g, w, e, m, a, b) in blocks.cut(key, *([local(t) for t in members] for members in lists)):
        sizes, eps, units, thresholds, shares, scales, floors = zip(*[factors[i] for i in places], strict=True)
        # If the result goes into another tensor, a loop is faster than a copy and a foreach function.
        for out, x in zip(a, g, strict=True):
            torch.abs(x, out=out)
        torch._foreach_lerp_(e, a, 1 - options["trace_decay"])
        torch._foreach_lerp_(m, g, 1 - options["momentum"])
        if gated:
            # b = unit e_norm (1 - g_norm), clipped where the gate reaches its floor
            for out, x, unit in zip(b, e, units, strict=True):
                torch.clamp(x, max=unit, out=out)
            torch._foreach_clamp_max_(a, thresholds)
            torch._foreach_addcmul_(b, b, a, shares)
            torch._foreach_clamp_max_(b, floors)
            # a = gate m = m - k / unit b m
            for out, x, y, scale in zip(a, m, b, scales, strict=True):
                torch.addcmul(x, x, y, value=scale, out=out)
        else:
            torch._foreach_copy_(a, m)
        if options["base"] == "adam":
            for out, x, added in zip(b, e, eps, strict=True):
                torch.add(x, added, out=out)
            torch._foreach_addcdiv_(w, a, b, sizes)
        else:
            torch._foreach_mul_(a, sizes)
            torch._foreach_add_(w, a)


def _factors(
    step: float, threshold: float, rate: float, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[float, ...]:
    """The factors of one tensor in one step, for uncorrected traces: minus the size of the step; eps; the largest trace
    that counts; the threshold, and minus its reciprocal; minus k in units of the trace (0 in the warm-up); and the
    value at which the gate reaches its floor."""
    small, adam = torch.finfo(dtype), options["base"] == "adam"
    corrected = 1 - options["trace_decay"] ** step
    size = rate / (1 - options["momentum"] ** step) * (corrected if adam else 1)
    unit = threshold * corrected
    strength = options["plasticity_k"] if step > options["warmup_steps"] else 0.0
    scale, room = strength / unit, 1 - options["gate_min"]
    floor = room / scale if scale and strength > room else math.inf
    eps = max(options["eps"], small.smallest_normal) * corrected + small.smallest_normal * small.eps
    return -size, eps, unit, threshold, -1 / threshold, -scale, floor
