"""Consolidation: what was used is captured for good, and plasticity falls with it. No boundaries, no stored data."""

import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from sp import rules
from sp.biology import NMDACoincidence, Synapses
from sp.checks import check_integer, check_number
from sp.optim.coincidence import REFERENCE_BATCH, SCALE_STEPS, WatchedLayer, horizon, memories
from sp.optim.common import PlasticityOptimizer, by_device_and_dtype, scalar_dtype, signed_rate
from sp.optim.fast import blocks, local, summed_over_shards, whole
from sp.optim.memory import SMALLEST, Memory

_OF_COINCIDENCE = ("memory_strength", "rank", "refresh_every", "equalisation", "response_bound")
FLOOR = 0.5  # of the norm at the beginning: a task learnt to the end must not leave the absorber shut for the next

Groups = list[tuple[dict[str, Any], list[Tensor]]]


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

    A synapse moves only along what is new in its input. The layer next to the loss is linear in its weights: there one
    factor P does, as in recursive least squares, and Q is left out. A hidden layer's step is shortened where it would
    change the layer's response to the batch by more than ``response_bound``. Parameters that are not watched follow the
    diagonal form, and count besides as having a constant input: their step is multiplied by ``1 / (1 + t / a)``, with t
    the number of examples so far, in units of 128.

    In both forms the gradient's norm over all parameters is held to ``absorber`` times its own running mean (or half
    the norm at the beginning, where that is more), and multiplying the loss by a constant changes nothing.

    Args:
        params: parameters, or dicts of parameters with options of their own; a watched layer's bias follows the options
            of its weight.
        lr: learning rate, >= 0; 0.1 served every stream that was tried.
        threshold_quantile: diagonal form: share of synapses that the warm-up leaves less than half consolidated, in
            (0, 1).
        warmup_steps: diagonal form: steps in which the threshold is measured, >= 1.
        memory_strength: coincidence form: a > 0; smaller keeps more of the old and leaves less room for the new.
        rank: coincidence form: how many combinations of its inputs a layer's memory keeps, >= 1; a layer of at most
            three times as many, and with None every layer, remembers exactly, which takes more time and space.
        refresh_every: coincidence form: steps between two looks at the memories, >= 1; the readout's is looked at four
            times as often.
        equalisation: coincidence form: p >= 0; 0 leaves Q out.
        response_bound: coincidence form: largest change of a hidden layer's response to the batch in one step, in units
            of what a freshly initialised layer answers, > 0. None: 1 in a network with a convolution, whose features
            the first long steps would overturn, and no bound in others. Perceptrons of more than three hidden layers
            want 1 as well.
        absorber: largest gradient norm in units of its running mean, >= 1. It, ``threshold_quantile`` and
            ``warmup_steps`` are of all groups together: another group may not have others.
        coincidence: a watcher of the model, or None.
        foreach, compile: diagonal form: True, False: all tensors at once. False, False: the reference, one tensor at a
            time. True, True: under ``torch.compile``, as in `SelectivePlasticityOptimizer`.
        weight_decay, maximize, differentiable, on_nonfinite: as in `SelectivePlasticityOptimizer`.

    Raises:
        ValueError, TypeError: an argument is outside its range or of the wrong type; the message names it.
    """

    parameter_state = wide_state = ("consolidated",)
    group_state = ("step_count", "shared")

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 0.1,
        threshold_quantile: float = 0.85,
        warmup_steps: int = 100,
        *,
        memory_strength: float = 0.4,
        rank: int | None = None,
        refresh_every: int = 20,
        equalisation: float = 30.0,
        response_bound: float | None = None,
        absorber: float = 1.25,
        coincidence: NMDACoincidence | None = None,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool = True,
        compile: bool = False,
        differentiable: bool = False,
        on_nonfinite: str = "skip",
    ):
        options = ConsolidatingPlasticityOptimizer.chosen(locals())
        super().__init__(params, options, coincidence)
        usual = ConsolidatingPlasticityOptimizer.default
        unused = [name for name in _OF_COINCIDENCE if options[name] != usual(name)]
        if unused and coincidence is None:
            warnings.warn(f"{', '.join(unused)} has no effect without coincidence=NMDACoincidence(model)", stacklevel=2)
        device = self.param_groups[0]["params"][0].device
        self.param_groups[0]["shared"] = {
            name: torch.zeros((), device=device) for name in ("steps", "age", "mean_norm", "scale")
        }
        self.param_groups[0]["shared"]["threshold"] = torch.ones((), device=device)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own, but for those that all groups share (a ValueError)."""
        for name in ("absorber", "threshold_quantile", "warmup_steps"):
            shared = self.param_groups[0][name] if self.param_groups else self.defaults[name]
            if param_group.get(name, shared) != shared:
                raise ValueError(
                    f"{name} must be that of all groups, {shared!r}, got {param_group[name]!r} for one of them: give "
                    "it to the optimizer, not to a group"
                )
        super().add_param_group(param_group)

    def check_options(self, options: dict[str, Any]) -> None:
        super().check_options(options)
        check_number("threshold_quantile", options["threshold_quantile"], 0, 1, low_open=True, high_open=True)
        check_integer("warmup_steps", options["warmup_steps"], 1)
        check_number("memory_strength", options["memory_strength"], 0, low_open=True)
        if options["rank"] is not None:
            check_integer("rank", options["rank"], 1)
        check_integer("refresh_every", options["refresh_every"], 1)
        check_number("equalisation", options["equalisation"], 0)
        if options["response_bound"] is not None:
            check_number("response_bound", options["response_bound"], 0, low_open=True)
        check_number("absorber", options["absorber"], 1)

    def misfit(self, parameter: Tensor, state: dict[str, Tensor]) -> str | None:
        synapses = self.watched().get(id(parameter))
        if synapses is None:
            return super().misfit(parameter, state)
        if "input_power" not in state:
            return "lacks 'input_power'"
        width = parameter[0].numel() + (synapses.bias is not None)
        kept = next(state[name] for name in ("inputs_memory", "inputs_sketch") if name in state)
        return None if len(kept) == width else f"has a memory of {len(kept)} inputs in place of {width}"

    def _finite(self, parameters: list[Tensor]) -> Tensor:
        self._squares = []
        sharded = [s.name for s in self.watched().values() if isinstance(s.weight, DTensor)]
        if sharded:
            raise TypeError(
                f"coincidence: the layer {sharded[0]!r} is sharded by fully_shard, and a memory needs all of a layer's "
                "gradient; nothing was changed. Use DistributedDataParallel, or the optimizer without coincidence."
            )
        return super()._finite(parameters)

    def total(self, members: list[Tensor]) -> Tensor:
        if self.coincidence is not None:
            return super().total(members)
        # The norm is needed anyway, and serves as well; one that overflows counts as not finite.
        square = _squared_norm(members)
        self._squares.append(square)
        return square

    def initialise(self, parameters: list[Tensor]) -> None:
        covered = self.watched()  # whose memories lie with the layer's weight, and whose shapes its first step shows
        for p in parameters:
            if id(p) not in covered:
                # A sum of squares would be lost in float16, and stand still in bfloat16.
                options = {"dtype": scalar_dtype(p), "memory_format": torch.preserve_format}
                self.state[p]["consolidated"] = torch.zeros_like(p, **options)

    def update(self, groups: Groups, finite: Tensor) -> None:
        if not any(parameters for _, parameters in groups):
            return
        covered = self.watched()
        shared = {name: value.to(finite.device) for name, value in self.param_groups[0]["shared"].items()}
        shared["steps"] = shared["steps"] + finite
        layers = [
            WatchedLayer(covered[id(p)], self.state[p], group, finite, shared["steps"])
            for group, parameters in groups
            for p in parameters
            if id(p) in covered and covered[id(p)].weight is p
        ]
        rest = [
            (group, members)
            for group, parameters in groups
            for members in by_device_and_dtype([p for p in parameters if id(p) not in covered])
        ]
        squares = [layer.squared_norm() for layer in layers]
        squares += self._squares or [_squared_norm(members) for _, members in rest]
        norm = torch.stack([square.to(finite.device, torch.float32) for square in squares]).sum().sqrt()
        examples = max([layer.examples for layer in layers], default=REFERENCE_BATCH)
        shared["age"] = shared["age"] + finite * (examples / REFERENCE_BATCH)
        absorbed = self._absorb(shared, norm, finite, horizon(examples))
        unit = absorbed / (shared["scale"] + SMALLEST)
        for layer in layers:
            learns = [id(p) in covered for p in layer.synapses.parameters]
            layer.update(absorbed, unit, learns, self._response_bound(layer.group))
        self._diagonal(rest, shared, finite, absorbed)
        self.param_groups[0]["shared"] = shared

    def _response_bound(self, group: dict[str, Any]) -> float | None:
        bound = group["response_bound"]
        return 1.0 if bound is None and self.coincidence.convolutional else bound

    def _absorb(self, shared: dict[str, Tensor], norm: Tensor, finite: Tensor, keep: float) -> Tensor:
        """Move the running mean of the gradient's norm, and return the factor that the absorber leaves of it."""
        first = shared["mean_norm"] <= 0
        mean = torch.maximum(shared["mean_norm"], FLOOR * shared["scale"])
        bound = rules.absorbed(norm, mean, self.param_groups[0]["absorber"])
        kept = torch.where(first, norm, bound)
        moved = torch.where(first, kept, keep * shared["mean_norm"] + (1 - keep) * kept)
        shared["mean_norm"] = torch.where(finite, moved, shared["mean_norm"])
        measuring = finite & ((shared["steps"] <= SCALE_STEPS) | (shared["scale"] <= 0))
        shared["scale"] = torch.where(measuring, shared["mean_norm"], shared["scale"])
        return torch.where(finite, kept / (norm + SMALLEST), 0)

    def _diagonal(self, rest: Groups, shared: dict[str, Tensor], finite: Tensor, factor: Tensor) -> None:
        options = self.param_groups[0]
        count, warmup = options["step_count"], options["warmup_steps"]
        # A little longer than the warm-up, because some steps may have been skipped.
        measuring = bool(rest) and count <= warmup + 10 and (count <= 10 or count % 10 == 0 or count >= warmup)
        if measuring:  # a threshold of what is captured in this step
            for group, members in rest:
                self._move(group, members, finite, factor, move=None)
            self._measure_threshold(shared, finite)
        for group, members in rest:
            size = signed_rate(group) * shared["threshold"].sqrt()  # theta / sqrt(theta)
            if self.coincidence is not None:
                size = size * self._novelty(group, shared)
            self._move(group, members, finite, factor, (shared["threshold"], size), captured=measuring)

    def _novelty(self, group: dict[str, Any], shared: dict[str, Tensor]) -> Tensor:
        """What is left of the steps of parameters that are not watched beside those that are."""
        age = (shared["age"] - group.get("born", 0)).clamp(min=1 / REFERENCE_BATCH)
        return rules.novelty_of_constant(age, group["memory_strength"])

    def _move(
        self,
        group: dict[str, Any],
        members: list[Tensor],
        finite: Tensor,
        factor: Tensor,
        move: tuple[Tensor, Tensor] | None,
        captured: bool = False,
    ) -> None:
        """Capture (unless ``captured``) and step (unless ``move`` is None) for parameters of one device and dtype."""
        device = members[0].device
        if device.type == "cpu" and not finite:  # there, to look at a flag is not to wait
            return
        consolidated = [self.state[p]["consolidated"] for p in members]
        tensors = [[local(t) for t in ts] for ts in (members, [p.grad for p in members], consolidated)]
        numbers = [factor.to(device), *(() if move is None else (x.to(device) for x in move))]
        mask = None if device.type == "cpu" else finite.to(device, non_blocking=True)
        if not group["foreach"]:
            _move_single_tensor(*tensors, mask, *numbers, captured=captured)
        elif group["compile"] and move is not None and not captured:
            self.compiled(_move_multi_tensor)(*tensors, mask, *numbers)
        else:
            for _, block in blocks(tensors):
                _move_multi_tensor(*block, mask, *numbers, captured=captured)

    def _measure_threshold(self, shared: dict[str, Tensor], finite: Tensor) -> None:
        """The quantile over all parameters together, scaled to what it will be when the warm-up ends."""
        options = self.param_groups[0]
        values = [whole(state["consolidated"]) for state in self.state.values() if "consolidated" in state]
        seen = rules.sampled_quantile(values, options["threshold_quantile"], seed=options["step_count"])
        seen = seen.to(finite.device) * (options["warmup_steps"] / shared["steps"].clamp(min=1))
        measuring = finite & (shared["steps"] <= options["warmup_steps"])
        shared["threshold"] = torch.where(measuring, seen.clamp(min=SMALLEST), shared["threshold"]).float()

    def get_param_eligibility(self, param: Tensor) -> Tensor | None:
        """How much each synapse has consolidated, shaped like the parameter; None where there is nothing yet.

        Diagonal form: C, in squared units of the gradient. Coincidence form: the variance of the synapse's input that
        the layer's memory holds, in units of the mean squared length of an input; equal for all synapses of one input.
        """
        state, synapses, inputs = self._kept_for(param)
        if not state:
            return None
        return state["consolidated"] if synapses is None else synapses.by_input(inputs.diagonal(state), param)

    @torch.no_grad()
    def get_param_gate(self, param: Tensor) -> Tensor | None:
        """The gate of each synapse now, in (0, 1], shaped like the parameter; None where there is no state yet.

        Diagonal form: ``theta / (theta + C)``. The coincidence form is a projection and has no gate of single synapses;
        what comes nearest is the share that passes of a change at this synapse alone: the diagonal of P P (of P in the
        readout), equal for all synapses of one input. Synapses that change together may pass more or less than that.
        """
        state, synapses, inputs = self._kept_for(param)
        if not state:
            return None
        if synapses is not None:
            return synapses.by_input(inputs.shares(state), param)
        shared = self.param_groups[0]["shared"]
        gate = rules.consolidation_gate(state["consolidated"], shared["threshold"].to(param.device))
        if self.coincidence is not None:
            gate = gate * self._novelty(self.group_of(param), shared).to(param.device)
        return gate

    def _kept_for(self, param: Tensor) -> tuple[dict[str, Tensor], Synapses | None, Memory | None]:
        """The state that a parameter's step reads; for a watched one its layer and the memory of its inputs as well."""
        synapses = self.watched().get(id(param))
        if synapses is None:
            return self.state.get(param, {}), None, None
        _, inputs, _ = memories(synapses, self.group_of(synapses.weight))
        return self.state.get(synapses.weight, {}), synapses, inputs


def _squared_norm(members: list[Tensor]) -> Tensor:
    """Of the gradients of parameters of one device and dtype."""
    norms = torch.stack(torch._foreach_norm([local(p.grad) for p in members], 2, scalar_dtype(members[0])))
    return summed_over_shards(norms.square().sum(), members[0])


def _move_single_tensor(
    parameters: list[Tensor],
    gradients: list[Tensor],
    consolidated: list[Tensor],
    finite: Tensor | None,
    factor: Tensor,
    threshold: Tensor | None = None,
    size: Tensor | None = None,
    captured: bool = False,
) -> None:
    """The reference: one tensor at a time, as in the equations; ``size``: lr sqrt(theta)."""
    for w, g, c in zip(parameters, gradients, consolidated, strict=True):
        g = factor * (g if finite is None else torch.where(finite, g, 0)).to(c.dtype)
        if not captured:
            c.copy_(rules.consolidated_eligibility(c, g))
        if size is not None:
            w -= size * (g / threshold) * rules.consolidation_gate(c, threshold)


def _move_multi_tensor(
    parameters: list[Tensor],
    gradients: list[Tensor],
    consolidated: list[Tensor],
    finite: Tensor | None,
    factor: Tensor,
    threshold: Tensor | None = None,
    size: Tensor | None = None,
    captured: bool = False,
) -> None:
    """All tensors at once. ``finite`` None: the gradients are known to be."""
    if finite is not None:
        gradients = [torch.where(finite, g, 0) for g in gradients]
    if gradients[0].dtype != consolidated[0].dtype:
        gradients = [g.to(c.dtype) for g, c in zip(gradients, consolidated, strict=True)]
    count = len(gradients)  # lists, because a single tensor would be asked for its value
    gradients = torch._foreach_mul(gradients, [factor] * count)
    if not captured:
        torch._foreach_addcmul_(consolidated, gradients, gradients)
    if size is not None:
        torch._foreach_mul_(gradients, [size] * count)
        scales = torch._foreach_add(consolidated, [threshold] * count)
        torch._foreach_addcdiv_(parameters, gradients, scales, value=-1)
