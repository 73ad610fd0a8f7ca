"""Consolidation: what was used is captured for good, and plasticity falls with it. No boundaries, no stored data."""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from sp import rules
from sp.biology import NMDACoincidence, Synapses
from sp.checks import check_integer, check_number
from sp.optim.coincidence import FLOOR, REFERENCE_BATCH, SCALE_STEPS, WatchedLayer, decay, memories, new_state
from sp.optim.common import Calls, Groups, PlasticityOptimizer, scalar_dtype, signed_rate
from sp.optim.fast import Blocks, alike, local, summed_over_shards, whole
from sp.optim.memory import Memory

_OF_ALL_GROUPS = ("absorber", "threshold_quantile", "warmup_steps")
ODD = 50.0  # of a first gradient so many times the second nothing is kept
UNWATCHED = 0.1  # steps of 128 examples after which parameters that are not watched take half their step
SMALLEST, LARGEST = 1e-30, 1e37  # of a threshold; the first in place of zero in a denominator, too


class ConsolidatingPlasticityOptimizer(PlasticityOptimizer):
    r"""Learns a stream of tasks without forgetting, without task boundaries and without stored examples.

    By itself, for any parameter :math:`w` with gradient :math:`g` (*diagonal form*)::

        C <- C + g^2                                     consolidated eligibility: accumulates, never decays
        theta = quantile of C over all parameters        measured in the warm-up, then fixed
        w <- w - lr (g / sqrt(theta)) theta / (theta + C)

    With ``coincidence=NMDACoincidence(model)``, for the matrix W of every layer that is watched, its bias the last
    column (*coincidence form*), with inputs X, of variance v (that of all of them together, over all steps so far) and
    mean squared length m in the first ten steps, errors D, and the gradient G = D'X in units of sqrt(m) times
    its norm at the beginning, in batches of 128::

        A <- A + X'X / v B          P = (I + r A)^-1                        presynaptic memory: what of an input is new
        S <- mean of D'D            Q ~ (I + c S / mean(diag S))^-1         postsynaptic scaling: a running mean
        W <- W - k lr / sqrt(n T) y r (m / v)^1.25 Q G P

    Q is scaled so that it leaves the power of all errors together as it is; y is the root mean square of what the layer
    answers, n the number of matrices that are watched, and B the number of terms of the loss, for each of which the
    layer saw T inputs: 1, or as many as there are time steps or patches. The curvature of a softmax over k outputs is
    about 1 / k: in the readout, which the error reaches first, k is the number of outputs, from 3 to 100; in other
    layers it is at most 10. Where n is more than 3, the readout's step grows with m / v as well, up to twice its
    length: from inputs that are much alike it would learn too slowly. A batch of b examples counts for
    ``sqrt(b / 128)`` of one of 128, in A and in the step. All layers follow this one rule. A synapse moves only along
    what is new in its input. What differs between inputs that share a large mean would soon count as known if it were
    measured by their length, and so v stands in A. Parameters that are not watched follow the diagonal form, and count
    besides as having a constant input: their step is multiplied by ``1 / (1 + 10 t)``, t the number of examples so far
    in units of 128.

    The norm of the gradient (in the coincidence form, of each layer's) is held to ``absorber`` times its own running
    mean, or half the norm at the beginning, where that is more. Multiplying the loss by a constant changes nothing.

    Args:
        params: parameters, or dicts of parameters with options of their own; a watched layer's bias follows the options
            of its weight, but for ``weight_decay``.
        lr: learning rate, >= 0; 0.1 served nearly every stream that was tried.
        threshold_quantile: diagonal form: share of synapses that the warm-up leaves less than half consolidated, in
            (0, 1).
        warmup_steps: diagonal form: steps in which the threshold is measured, >= 1.
        retention: coincidence form: r > 0; the larger, the sooner what was seen counts as known.
        horizon: coincidence form: examples after which a third is left of a memory, > 0. Infinite: it never lets go.
            Shorter keeps less of the old and stays more plastic, on streams without an end.
        rank: coincidence form: how many combinations of its inputs a layer's memory keeps, >= 1. A layer of no more
            inputs remembers exactly. None: 128 in layers of more than 1,024 inputs, and all others remember exactly,
            which takes more time and space.
        refresh_every: coincidence form: steps between two looks at a memory, >= 1; None: one for every 80 inputs.
        equalisation: coincidence form: c >= 0; 0 leaves Q out.
        response_bound: coincidence form: largest change of what a layer answers in one step, in units of what it
            answers, > 0; None: no bound.
        memory_strength: the old name of ``1 / retention``, which is taken with a warning.
        absorber: largest gradient norm in units of its running mean, >= 1. It, ``threshold_quantile`` and
            ``warmup_steps`` are of all groups together: one group may not have others.
        coincidence: a watcher of the model, or None.
        foreach: diagonal form: True: all tensors at once. False: the reference, one tensor at a time.
        weight_decay, maximize, on_nonfinite: as in `SelectivePlasticityOptimizer`. A gradient whose
            squared norm overflows counts as one that is not finite.

    A step in which every gradient is zero changes nothing (but by ``weight_decay``) and does not count for any of the
    means and thresholds (under ``on_nonfinite="ignore"`` on an accelerator it does, since that is not asked there).

    Raises:
        ValueError, TypeError: an argument is outside its range or of the wrong type; the message names it.
    """

    group_state = ("step_count", "shared")

    def __init__(
        self,
        params: Iterable,
        lr: float | Tensor = 0.1,
        threshold_quantile: float = 0.85,
        warmup_steps: int = 100,
        *,
        retention: float = 200.0,
        horizon: float = math.inf,
        rank: int | None = None,
        refresh_every: int | None = None,
        equalisation: float = 0.12,
        response_bound: float | None = 0.3,
        absorber: float = 1.25,
        coincidence: NMDACoincidence | None = None,
        weight_decay: float = 0.0,
        maximize: bool = False,
        foreach: bool = True,
        on_nonfinite: str = "skip",
        memory_strength: float | None = None,
    ):
        if memory_strength is not None:
            check_number("memory_strength", memory_strength, 0, low_open=True)
            warnings.warn(
                f"memory_strength is now 1 / retention: give retention={1 / memory_strength:g}",
                FutureWarning,
                stacklevel=2,
            )
            retention = 1 / memory_strength
        of_coincidence = {
            "retention": (retention, 200.0),
            "horizon": (horizon, math.inf),
            "rank": (rank, None),
            "refresh_every": (refresh_every, None),
            "equalisation": (equalisation, 0.12),
            "response_bound": (response_bound, 0.3),
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
        check_number("retention", options["retention"], 0, low_open=True)
        if options["horizon"] != math.inf:
            check_number("horizon", options["horizon"], 0, low_open=True)
        for name in ("rank", "refresh_every"):
            if options[name] is not None:
                check_integer(name, options[name], 1)
        check_number("equalisation", options["equalisation"], 0)
        if options["response_bound"] is not None:
            check_number("response_bound", options["response_bound"], 0, low_open=True)
        check_number("absorber", options["absorber"], 1)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of every optimizer here; what all parameters share may be numbers that are no tensors."""
        super().load_state_dict(state_dict)
        shared, device = self.param_groups[0]["shared"], self.param_groups[0]["params"][0].device
        for name in ("mean_norm", "scale", "threshold"):
            shared[name] = torch.as_tensor(shared[name], device=device)

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        synapses = self.layers().get(id(parameter))
        alone = synapses is not None and parameter.requires_grad and not synapses.weight.requires_grad  # a bias
        if synapses is None or alone:  # a sum of squares would be lost in float16, and stand still in bfloat16
            options = {"dtype": scalar_dtype(parameter), "memory_format": torch.preserve_format}
            return {"consolidated": torch.zeros_like(parameter, **options)}
        if parameter is not synapses.weight:  # memories lie with the weight; PyTorch's checkpoints want no empty state
            return {"step": torch.zeros((), dtype=scalar_dtype(parameter), device="cpu")}
        return new_state(synapses, self.group_of(parameter))

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

    def calls(self, groups: Groups, measured: Tensor) -> Calls:
        """Make the watched parameters' step; the functions that make that of the others, with their arguments."""
        covered = self.watched()
        for p in (p for _, members in groups for p in members):
            if ("consolidated" in self.state[p]) == (id(p) in covered):  # a bias, whose weight was frozen or thawed
                self.state[p] = self.new_state(p)
        rest = [(group, [p for p in members if id(p) not in covered]) for group, members in groups]
        examples = self._coincident(groups, covered, measured) if covered else REFERENCE_BATCH
        if covered:
            chosen = [id(p) not in covered for _, members in groups for p in members]
            measured = measured[torch.tensor(chosen, device=measured.device)]
        norm = measured.sum().sqrt()
        if (self.asks or norm.device.type == "cpu") and not norm:
            return []
        shared = self.param_groups[0]["shared"]
        shared = {name: v.to(norm.device) if isinstance(v, Tensor) else v for name, v in shared.items()}
        shared["steps"] = int(shared["steps"]) + 1
        shared["age"] = float(shared["age"]) + examples / REFERENCE_BATCH
        self.param_groups[0]["shared"] = shared
        if shared["steps"] == 2:  # later, a task may have been learnt to the end
            self._forget_odd(shared, norm, [p for _, members in rest for p in members])
        factor = self._absorb(shared, norm, decay(examples))
        return self._diagonal(rest, shared, factor)

    def _absorb(self, shared: dict[str, Any], norm: Tensor, keep: float) -> Tensor:
        """Move the running mean of the gradient's norm, and return the factor that the absorber leaves of it."""
        mean = torch.maximum(shared["mean_norm"], FLOOR * shared["scale"])
        kept = rules.absorbed(norm, mean, self.param_groups[0]["absorber"])
        moved = keep * shared["mean_norm"] + (1 - keep) * kept
        shared["mean_norm"] = torch.where(shared["mean_norm"] > 0, moved, kept)
        if shared["steps"] <= SCALE_STEPS:
            shared["scale"] = shared["mean_norm"]
        return kept / (norm + SMALLEST)

    def _forget_odd(self, shared: dict[str, Any], norm: Tensor, parameters: list[Tensor]) -> None:
        """Measure and consolidate anew where the first gradient was far larger than this one."""
        kept = (shared["mean_norm"] <= ODD * norm).to(norm.dtype)
        shared["mean_norm"], shared["scale"] = kept * shared["mean_norm"], kept * shared["scale"]
        for p in parameters:
            local(self.state[p]["consolidated"]).mul_(kept.to(p.device))

    def _coincident(self, groups: Groups, covered: dict[int, Synapses], measured: Tensor) -> int:
        """The step of the watched parameters; how many examples it was made from."""
        squares: dict[int, float] = {}  # of the gradient of each layer, by the id of its weight
        for p, square in zip((p for _, members in groups for p in members), measured.tolist(), strict=True):
            if id(p) in covered:
                weight = id(covered[id(p)].weight)
                squares[weight] = squares.get(weight, 0.0) + square
        matrices = sum(id(synapses.weight) == key for key, synapses in covered.items())
        weights = [(group, p) for group, members in groups for p in members if id(p) in squares]
        # All before any of them moves, since what enters the last projection of attention is computed again.
        activities = [covered[id(p)].take() for _, p in weights]
        seen = 0
        for (group, p), activity in zip(weights, activities, strict=True):
            synapses = covered[id(p)]
            if not squares[id(p)]:  # it changes nothing, and counts for nothing
                continue
            if activity is None:
                synapses.warn_of_missing_activity()
                continue
            seen = max(seen, activity.examples)
            layer = WatchedLayer(synapses, self.state[p], group, activity)
            layer.update(squares[id(p)], matrices, bias=all(id(q) in covered for q in synapses.parameters))
        return seen or REFERENCE_BATCH

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
                size = size * self._novelty(group)
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

    def _novelty(self, group: dict[str, Any]) -> float:
        """What is left of the steps of a group's parameters that are not watched, which may be younger than others."""
        age = self.param_groups[0]["shared"]["age"] - group.get("born", 0)
        return 1 / (1 + age / UNWATCHED)

    def get_param_eligibility(self, param: Tensor) -> Tensor | None:
        """How much each synapse has consolidated, shaped like the parameter; None where there is nothing yet.

        Diagonal form: C, in squared units of the gradient. Coincidence form: the variance of the synapse's input that
        the layer's memory holds, in units of the variance of all inputs; equal for all synapses of one input.
        """
        state, synapses, inputs = self._kept_for(param)
        if not state:
            return None
        return state["consolidated"] if synapses is None else synapses.by_input(inputs.diagonal(state), param)

    @torch.no_grad()
    def get_param_gate(self, param: Tensor) -> Tensor | None:
        """The gate of each synapse now, in (0, 1], shaped like the parameter; None where there is no state yet.

        Diagonal form: ``theta / (theta + C)``. The coincidence form is a projection and has no gate of single synapses;
        what comes nearest is the share that passes of a change at this synapse alone: the diagonal of P, equal for all
        synapses of one input. Synapses that change together may pass more or less than that.
        """
        state, synapses, inputs = self._kept_for(param)
        if not state:
            return None
        if synapses is not None:
            return synapses.by_input(inputs.shares(state), param)
        shared = self.param_groups[0]["shared"]
        gate = rules.consolidation_gate(state["consolidated"], shared["threshold"].to(param.device))
        if self.coincidence is not None:
            gate = gate * self._novelty(self.group_of(param))
        return gate

    @torch.no_grad()
    def usual_gate(self, param: Tensor) -> float | Tensor:
        """The median over the inputs of a watched layer: what was seen has a small share, and which of them are open
        can only be told beside each other. 1 for parameters that are not watched."""
        state, synapses, inputs = self._kept_for(param)
        return inputs.shares(state).median() if synapses is not None and state else 1.0

    def _kept_for(self, param: Tensor) -> tuple[dict[str, Tensor], Synapses | None, Memory | None]:
        """The state that a parameter's step reads; for a watched one its layer and the memory of its inputs as well."""
        state = self.state.get(param, {})
        synapses = self.layers().get(id(param))
        if synapses is None or "consolidated" in state:
            return state, None, None
        inputs, _ = memories(synapses, self.group_of(synapses.weight))
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
