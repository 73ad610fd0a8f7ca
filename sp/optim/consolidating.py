"""Consolidation: what was used is captured for good, and plasticity falls with it. No boundaries, no stored data."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from sp import rules
from sp.biology import NMDACoincidence, Synapses
from sp.checks import check_integer, check_number
from sp.optim.coincidence import REFERENCE_BATCH, SCALE_STEPS, WatchedLayer, horizon, memories
from sp.optim.common import Groups, PlasticityOptimizer, scalar_dtype, signed_rate
from sp.optim.fast import Blocks, alike, local, summed_over_shards, whole
from sp.optim.memory import Memory

_OF_ALL_GROUPS = ("absorber", "threshold_quantile", "warmup_steps")
FLOOR = 0.5  # of the norm at the beginning: a task learnt to the end must not leave the absorber shut for the next
SMALLEST, LARGEST = 1e-30, 1e37  # of a threshold; the first in place of zero in a denominator, too

Calls = list[tuple[Callable[..., None], tuple]]


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
            ``warmup_steps`` are of all groups together: one group may not have others.
        coincidence: a watcher of the model, or None.
        foreach: diagonal form: True: all tensors at once. False: the reference, one tensor at a time.
        weight_decay, maximize, differentiable, on_nonfinite: as in `SelectivePlasticityOptimizer`. A gradient whose
            squared norm overflows counts as one that is not finite.

    A step in which every gradient is zero changes nothing and does not count for any of the means and thresholds
    (under ``on_nonfinite="ignore"`` on an accelerator it does, since that is not asked there).

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
        differentiable: bool = False,
        on_nonfinite: str = "skip",
    ):
        of_coincidence = {
            "memory_strength": (memory_strength, 0.4),
            "rank": (rank, None),
            "refresh_every": (refresh_every, 20),
            "equalisation": (equalisation, 30.0),
            "response_bound": (response_bound, None),
        }
        unused = [name for name, (value, usual) in of_coincidence.items() if value != usual]
        defaults = {
            "lr": lr,
            "threshold_quantile": threshold_quantile,
            "warmup_steps": warmup_steps,
            **{name: value for name, (value, _) in of_coincidence.items()},
            "absorber": absorber,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "on_nonfinite": on_nonfinite,
        }
        super().__init__(params, defaults, coincidence)
        if unused and coincidence is None:
            warnings.warn(f"{', '.join(unused)} has no effect without coincidence=NMDACoincidence(model)", stacklevel=2)
        device = self.param_groups[0]["params"][0].device
        # Of all parameters together: steps and batches (of 128) that moved them, and numbers on the device.
        self.param_groups[0]["shared"] = {
            "steps": 0,
            "age": 0.0,
            "mean_norm": torch.zeros((), device=device),
            "scale": torch.zeros((), device=device),
            "threshold": torch.ones((), device=device),
        }

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own, but for those that all groups share (a ValueError)."""
        for name in _OF_ALL_GROUPS if self.param_groups else ():
            shared, own = self.param_groups[0][name], param_group.get(name, self.defaults[name])
            if own != shared:
                raise ValueError(
                    f"{name} must be that of all groups, {shared!r}, got {own!r} for one of them: give it to the "
                    "optimizer, not to a group"
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
        kept = [state[name] for name in ("inputs_memory", "inputs_sketch") if isinstance(state.get(name), Tensor)]
        if not kept or not isinstance(state.get("input_power"), Tensor):
            return "lacks the memory of its inputs"
        width = parameter[0].numel() + (synapses.bias is not None)
        return None if len(kept[0]) == width else f"has a memory of {len(kept[0])} inputs in place of {width}"

    def initialise(self, parameters: list[Tensor]) -> None:
        covered = self.watched()  # whose memories lie with the layer's weight, and whose shapes its first step shows
        for p in parameters:
            if id(p) not in covered:
                # A sum of squares would be lost in float16, and stand still in bfloat16.
                options = {"dtype": scalar_dtype(p), "memory_format": torch.preserve_format}
                self.state[p] = {"consolidated": torch.zeros_like(p, **options)}

    def measure(self, parameters: list[Tensor]) -> Tensor:
        """The squared norm of each parameter's gradient, in their order, (n,)."""
        sharded = [s.name for s in self.watched().values() if isinstance(s.weight, DTensor)]
        if sharded:
            raise TypeError(
                f"coincidence: the layer {sharded[0]!r} is sharded by fully_shard, and a memory needs all of a layer's "
                "gradient; nothing was changed. Use DistributedDataParallel, or the optimizer without coincidence."
            )
        lists = alike(parameters)
        found = [_squared_norms(members).to(parameters[0].device, torch.float32) for members in lists]
        if len(lists) == 1:
            return found[0]
        squares = {id(p): s for ps, norms in zip(lists, found, strict=True) for p, s in zip(ps, norms, strict=True)}
        return torch.stack([squares[id(p)] for p in parameters])

    @torch.compiler.disable(recursive=False)
    def update(self, groups: Groups, measured: Tensor) -> None:
        for function, arguments in self._calls(groups, measured):
            function(*arguments)

    @torch.compiler.disable
    def _calls(self, groups: Groups, measured: Tensor) -> Calls:
        """Make the watched parameters' step; the functions that make that of the others, with their arguments."""
        covered = self.watched()
        layers = self._layers(groups, covered) if covered else []
        norm = self._norm(groups, covered, layers, measured) if covered else measured.sum().sqrt()
        if (self.asks or norm.device.type == "cpu") and not norm:
            return []
        examples = max([layer.examples for layer in layers], default=REFERENCE_BATCH)
        shared = self.param_groups[0]["shared"]
        shared = {name: v.to(norm.device) if isinstance(v, Tensor) else v for name, v in shared.items()}
        shared["steps"] = int(shared["steps"]) + 1
        shared["age"] = float(shared["age"]) + examples / REFERENCE_BATCH
        self.param_groups[0]["shared"] = shared
        factor = self._absorb(shared, norm, horizon(examples))
        self._coincident(layers, covered, shared, factor)
        rest = [(group, [p for p in members if id(p) not in covered]) for group, members in groups]
        return self._diagonal(rest, shared, factor)

    def _norm(
        self, groups: Groups, covered: dict[int, Synapses], layers: list[WatchedLayer], measured: Tensor
    ) -> Tensor:
        """Of the gradient, in which that of a watched layer is in units of its inputs."""
        parameters = [p for _, members in groups for p in members]
        squares = [square for p, square in zip(parameters, measured, strict=True) if id(p) not in covered]
        squares += [layer.squared_norm().to(measured.device, torch.float32) for layer in layers]
        return torch.stack(squares).sum().sqrt() if squares else measured.new_zeros(())

    def _absorb(self, shared: dict[str, Any], norm: Tensor, keep: float) -> Tensor:
        """Move the running mean of the gradient's norm, and return the factor that the absorber leaves of it."""
        mean = torch.maximum(shared["mean_norm"], FLOOR * shared["scale"])
        kept = rules.absorbed(norm, mean, self.param_groups[0]["absorber"])
        moved = keep * shared["mean_norm"] + (1 - keep) * kept
        shared["mean_norm"] = torch.where(shared["mean_norm"] > 0, moved, kept)
        if shared["steps"] <= SCALE_STEPS:
            shared["scale"] = shared["mean_norm"]
        return kept / (norm + SMALLEST)

    def _layers(self, groups: Groups, covered: dict[int, Synapses]) -> list[WatchedLayer]:
        """The watched layers whose weights have a gradient."""
        steps = self.param_groups[0]["shared"]["steps"]
        return [
            WatchedLayer(
                covered[id(p)],
                self.state[p],
                group,
                torch.ones((), dtype=torch.bool, device=p.device),
                torch.full((), steps + 1.0, device=p.device),
            )
            for group, parameters in groups
            for p in parameters
            if id(p) in covered and covered[id(p)].weight is p
        ]

    def _coincident(
        self, layers: list[WatchedLayer], covered: dict[int, Synapses], shared: dict[str, Any], factor: Tensor
    ) -> None:
        """The step of the watched parameters."""
        unit = factor / (shared["scale"] + SMALLEST)
        for layer in layers:
            learns = [id(p) in covered for p in layer.synapses.parameters]
            bound = layer.group["response_bound"]
            bound = 1.0 if bound is None and self.coincidence.convolutional else bound
            layer.update(factor, unit, learns, bound)

    def _diagonal(self, rest: Groups, shared: dict[str, Any], factor: Tensor) -> Calls:
        """The step of the parameters that are not watched."""
        steps, warmup = shared["steps"], self.param_groups[0]["warmup_steps"]
        measuring = steps <= warmup and (steps <= 10 or steps % 10 == 0 or steps == warmup)
        members = [(group, same) for group, parameters in rest for same in alike(parameters)]
        if measuring and members:  # a threshold of what is captured in this step
            for p in (p for _, parameters in members for p in parameters):
                c, g = local(self.state[p]["consolidated"]), local(p.grad)
                c.copy_(rules.consolidated_eligibility(c, factor.to(c.device) * g.to(c.dtype)))
            shared["threshold"] = self._threshold(steps).to(factor.device)
        calls = []
        for number, (group, parameters) in enumerate(members):
            size = signed_rate(group) * shared["threshold"].sqrt()  # theta / sqrt(theta)
            if self.coincidence is not None:
                size = size * self._novelty(group, shared)
            numbers = [x.to(parameters[0].device) for x in (factor, shared["threshold"], size)]
            consolidated = [self.state[p]["consolidated"] for p in parameters]
            tensors = [[local(t) for t in ts] for ts in (parameters, [p.grad for p in parameters], consolidated)]
            arguments = (*tensors, *numbers, measuring)
            if group["foreach"] and (self.asks or factor.device.type == "cpu"):  # else the device would be waited for
                calls.append((_multi_tensor, (self.blocks, number, *arguments)))
            else:
                calls.append((_single_tensor, arguments))
        return calls

    def _threshold(self, steps: int) -> Tensor:
        """The quantile over all parameters together, scaled to what it will be when the warm-up ends."""
        options = self.param_groups[0]
        states = [self.state.get(p, {}) for group in self.param_groups for p in group["params"] if p.numel() > 0]
        values = [whole(state["consolidated"]) for state in states if "consolidated" in state]
        seen = rules.sampled_quantile(values, options["threshold_quantile"], seed=steps)
        return (seen * (options["warmup_steps"] / steps)).clamp(SMALLEST, LARGEST).float()

    def _novelty(self, group: dict[str, Any], shared: dict[str, Any]) -> float:
        """What is left of the steps of parameters that are not watched beside those that are."""
        age = max(shared["age"] - group.get("born", 0), 1 / REFERENCE_BATCH)
        return rules.novelty_of_constant(age, group["memory_strength"])

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
            gate = gate * self._novelty(self.group_of(param), shared)
        return gate

    def _kept_for(self, param: Tensor) -> tuple[dict[str, Tensor], Synapses | None, Memory | None]:
        """The state that a parameter's step reads; for a watched one its layer and the memory of its inputs as well."""
        synapses = self.watched().get(id(param))
        if synapses is None:
            return self.state.get(param, {}), None, None
        _, inputs, _ = memories(synapses, self.group_of(synapses.weight))
        return self.state.get(synapses.weight, {}), synapses, inputs


def _squared_norms(members: list[Tensor]) -> Tensor:
    """Of the gradients of parameters that are alike, (n,)."""
    norms = torch._foreach_norm([local(p.grad) for p in members], 2, scalar_dtype(members[0]))
    return summed_over_shards(torch.stack(norms).square(), members[0])


def _single_tensor(
    parameters: list[Tensor],
    gradients: list[Tensor],
    consolidated: list[Tensor],
    factor: Tensor,
    threshold: Tensor,
    size: Tensor,
    captured: bool,
) -> None:
    """The reference: one tensor at a time, as in the equations; ``size``: lr sqrt(theta)."""
    for w, g, c in zip(parameters, gradients, consolidated, strict=True):
        g = factor * g.to(c.dtype)
        if not captured:
            c.copy_(rules.consolidated_eligibility(c, g))
        w.sub_(size * (g / threshold) * rules.consolidation_gate(c, threshold))


def _multi_tensor(
    blocks: Blocks,
    key: int,
    parameters: list[Tensor],
    gradients: list[Tensor],
    consolidated: list[Tensor],
    factor: Tensor,
    threshold: Tensor,
    size: Tensor,
    captured: bool,
) -> None:
    """The same for all tensors at once, in three passes."""
    if torch.compiler.is_compiling():  # the compiler makes of the reference what is done by hand here
        return _single_tensor(parameters, gradients, consolidated, factor, threshold, size, captured)
    share, theta, rate = torch.stack([factor, threshold, size]).tolist()
    for _, (g, w, c, scale) in blocks.cut(key, gradients, parameters, consolidated):
        if not captured:
            torch._foreach_addcmul_(c, g, g, share**2)
        for out, x in zip(scale, c, strict=True):
            torch.add(x, theta, out=out)
        torch._foreach_addcdiv_(w, g, scale, -rate * share)
