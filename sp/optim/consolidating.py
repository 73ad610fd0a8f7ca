"""Consolidation: what was used is captured for good, and becomes less plastic. No boundaries, no stored data."""

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from sp import rules
from sp.biology import Activity, NMDACoincidence, Synapses
from sp.checks import check_integer, check_number
from sp.optim.coincidence import (
    FLOOR,
    PATCHES,
    REFERENCE_BATCH,
    SCALE_STEPS,
    WatchedLayer,
    decay,
    largest_share,
    memories,
    new_state,
)
from sp.optim.common import Calls, Groups, PlasticityOptimizer, scalar_dtype, signed_rate
from sp.optim.fast import Blocks, alike, local, summed_over_shards, whole
from sp.optim.memory import Memory

_OF_ALL_GROUPS = ("absorber", "threshold_quantile", "warmup_steps")
ODD = 50.0  # a first gradient this many times the second is forgotten
UNWATCHED = 0.1  # steps of 128 examples after which unwatched parameters take half their step
SMALLEST, LARGEST = 1e-30, 1e37  # limits of a threshold; the first also replaces zero in a denominator


class ConsolidatingPlasticityOptimizer(PlasticityOptimizer):
    r"""Learns a stream of tasks without forgetting, without task boundaries and without stored examples.

    On its own, for any parameter :math:`w` with gradient :math:`g` (*diagonal form*)::

        C <- C + g^2                                     consolidated eligibility: accumulates, never decays
        theta = quantile of C over all parameters        measured in the warm-up, then fixed
        w <- w - lr (g / sqrt(theta)) theta / (theta + C)

    With ``coincidence=NMDACoincidence(model)``, the *coincidence form* applies to the matrix W of every watched layer,
    with its bias as the last column. The inputs X have variance v (of all of them together, over all steps so far) and
    mean squared length m in the first ten steps. D are the errors. The gradient G = D'X is in units of sqrt(m) times
    its norm at the beginning. For batches of 128::

        A <- A + X'X / v B          P = (I + r A)^-1                        presynaptic memory: what is new in an input
        S <- mean of D'D            Q ~ (I + c S / mean(diag S))^-1         postsynaptic scaling: a running mean
        W <- W - k lr / (sqrt(n) T) y r (m / v)^1.25 Q G P

    y is the root mean square of the layer's outputs (at least ``sqrt(m / 3 d)`` for d inputs, that of a layer as
    PyTorch initialises it; at least 1 for an embedding), n is the number of watched matrices, and B is the number of
    terms of the loss. T is 1 if the layer sees one input for each term, else the number of time steps, or the root of
    the number of patches. The gain k is the number of outputs, from 3 to 100 in the readout, which the error reaches
    first, and at most 10 in other layers: the curvature of a softmax over k outputs is about 1 / k. In a deep network
    (n is more than 3, or layers see several inputs per example, such as patches or time steps), the readout's step also
    grows with m / v, as it would otherwise learn too slowly from very similar inputs: up to twice its length, or, in
    networks with layers that see several time steps, until ``1 / sqrt(n)`` has become 1.5. A batch of b examples counts
    ``sqrt(b / 128)`` times as much as one of 128, in A and in the step.

    All layers follow this one rule. A synapse moves only along what is new in its input. v is in A because differences
    between inputs that share a large mean, if measured by the length of the inputs, would soon count as known. Q is
    scaled to preserve the power of all errors together. Unwatched parameters follow the diagonal form, and also count
    as having a constant input: their step is multiplied by ``1 / (1 + 10 t)``, where t is the number of examples
    since they were added, in units of 128.

    The norm of the gradient (in the coincidence form, of each layer's gradient) is limited to ``absorber`` times its
    own running mean, or times half the norm at the beginning if that is larger. Multiplying the loss by a constant
    changes nothing.

    Args:
        params: parameters, or dicts of parameters with their own options. A watched layer's bias follows the options of
            its weight, except for ``weight_decay``.
        lr: learning rate, >= 0; 0.1 worked for nearly every stream that was tried.
        threshold_quantile: diagonal form: share of synapses that the warm-up leaves less than half consolidated, in
            (0, 1).
        warmup_steps: diagonal form: steps in which the threshold is measured, >= 1.
        retention: coincidence form: r > 0; the larger it is, the sooner inputs count as known.
        horizon: coincidence form: number of examples after which a third of a memory is left, > 0. If infinite, it
            never decays. On endless streams, a shorter horizon keeps less of the old and stays more plastic.
        rank: coincidence form: how many combinations of its inputs a layer's memory keeps, >= 1. A layer with no more
            inputs than that remembers exactly. None means 128 in layers with more than 1,024 inputs; all others
            remember exactly, which takes more time and space. A bias counts as an input.
        refresh_every: coincidence form: steps between updates of P (Q), >= 1; None means one per 80 inputs (outputs).
        equalisation: coincidence form: c >= 0; 0 leaves Q out.
        response_bound: coincidence form: largest change of a layer's outputs in one step, in units of y, > 0; None
            means no bound.
        memory_strength: deprecated name of ``1 / retention``, accepted with a warning.
        absorber: largest gradient norm in units of its running mean, >= 1. Like ``threshold_quantile`` and
            ``warmup_steps``, it applies to all groups together and cannot differ for one of them.
        coincidence: a watcher of the model, or None.
        foreach: diagonal form: if True, update all tensors at once; if False, use the reference, one tensor at a time.
        weight_decay, maximize, on_nonfinite: as in `SelectivePlasticityOptimizer`. A gradient whose
            squared norm overflows counts as not finite.

    A step in which every gradient is zero, or with a learning rate of zero, changes nothing (except by
    ``weight_decay``) and does not count towards memories, means and thresholds. With ``on_nonfinite="ignore"`` on an
    accelerator, zero gradients do, since this is not checked there.

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
        # Shared by all parameters: steps and batches (of 128) that moved them, and numbers on the device.
        self.param_groups[0]["shared"] = {
            "steps": 0,
            "age": 0.0,
            "mean_norm": torch.zeros((), device=device),
            "scale": torch.zeros((), device=device),
            "threshold": torch.ones((), device=device),
        }

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with their own options; ValueError if these change an option that all groups share."""
        for name in _OF_ALL_GROUPS if self.param_groups else ():
            shared, own = self.param_groups[0][name], param_group.get(name, self.defaults[name])
            if own != shared:
                raise ValueError(
                    f"{name} must be that of all groups, {shared!r}, got {own!r} for one of them: give it to the "
                    "optimizer, not to a group"
                )
        # A group that is added later begins with whole steps.
        if self.param_groups and "shared" in self.param_groups[0]:
            param_group = {"born": float(self.param_groups[0]["shared"]["age"]), **param_group}
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
        """Load a state as every optimizer here does; the shared values may be plain numbers instead of tensors."""
        super().load_state_dict(state_dict)
        shared, device = self.param_groups[0]["shared"], self.param_groups[0]["params"][0].device
        for name in ("mean_norm", "scale", "threshold"):
            shared[name] = torch.as_tensor(shared[name], device=device)

    def new_state(self, parameter: Tensor) -> dict[str, Tensor]:
        synapses = self.layers().get(id(parameter))
        alone = synapses is not None and parameter.requires_grad and not synapses.weight.requires_grad  # a bias
        if synapses is None or alone:
            return _diagonal_state(parameter)
        if parameter is not synapses.weight:
            return _bias_state(parameter)
        return new_state(synapses, self.group_of(parameter))

    def state_like(self, parameter: Tensor, saved: dict[str, Any]) -> dict[str, Tensor]:
        synapses = self.layers().get(id(parameter))
        if synapses is None or parameter is synapses.weight:
            return self.new_state(parameter)
        # Of a watched layer's bias: which kind it needs depends on whether the weight is frozen, which may change.
        return _diagonal_state(parameter) if "consolidated" in saved else _bias_state(parameter)

    def measure(self, parameters: list[Tensor]) -> Tensor:
        """The squared norm of each parameter's gradient, in the order of the parameters, (n,)."""
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
        """Step the watched parameters, and return the functions that step the others, with their arguments."""
        covered = self.watched()
        for p in (p for _, members in groups for p in members):
            if ("consolidated" in self.state[p]) == (id(p) in covered):  # a bias, whose weight was frozen or thawed
                self.state[p] = self.new_state(p)
        examples = self._coincident(groups, covered, measured) if covered else REFERENCE_BATCH
        moving = [(group, members) for group, members in groups if not _at_rest(group)]
        rest = [(group, [p for p in members if id(p) not in covered]) for group, members in moving]
        if covered or len(moving) < len(groups):
            stepped = {id(p) for _, members in rest for p in members}
            chosen = [id(p) in stepped for _, members in groups for p in members]
            measured = measured[torch.tensor(chosen, device=measured.device)]
        norm = measured.sum().sqrt()
        if (self.asks or norm.device.type == "cpu") and not norm:
            return []
        shared = self.param_groups[0]["shared"]
        shared = {name: v.to(norm.device) if isinstance(v, Tensor) else v for name, v in shared.items()}
        shared["steps"] = int(shared["steps"]) + 1
        shared["age"] = float(shared["age"]) + examples / REFERENCE_BATCH
        self.param_groups[0]["shared"] = shared
        if shared["steps"] == 2:  # not later, when a task may have been fully learnt
            self._forget_odd(shared, norm, [p for _, members in rest for p in members])
        factor = self._absorb(shared, norm, decay(examples))
        return self._diagonal(rest, shared, factor)

    def _absorb(self, shared: dict[str, Any], norm: Tensor, keep: float) -> Tensor:
        """Update the running mean of the gradient's norm, and return the share of it that the absorber keeps."""
        mean = torch.maximum(shared["mean_norm"], FLOOR * shared["scale"])
        kept = rules.absorbed(norm, mean, self.param_groups[0]["absorber"])
        moved = keep * shared["mean_norm"] + (1 - keep) * kept
        shared["mean_norm"] = torch.where(shared["mean_norm"] > 0, moved, kept)
        if shared["steps"] <= SCALE_STEPS:
            shared["scale"] = shared["mean_norm"]
        return kept / (norm + SMALLEST)

    def _forget_odd(self, shared: dict[str, Any], norm: Tensor, parameters: list[Tensor]) -> None:
        """Restart measurement and consolidation if the first gradient was far larger than this one."""
        kept = (shared["mean_norm"] <= ODD * norm).to(norm.dtype)
        shared["mean_norm"], shared["scale"] = kept * shared["mean_norm"], kept * shared["scale"]
        for p in parameters:
            local(self.state[p]["consolidated"]).mul_(kept.to(p.device))

    def _coincident(self, groups: Groups, covered: dict[int, Synapses], measured: Tensor) -> int:
        """Step the watched parameters, and return the number of examples that the step used."""
        squares: dict[int, float] = {}  # squared norm of each layer's gradient, by the id of its weight
        for p, square in zip((p for _, members in groups for p in members), measured.tolist(), strict=True):
            if id(p) in covered:
                weight = id(covered[id(p)].weight)
                squares[weight] = squares.get(weight, 0.0) + square
        matrices = sum(id(synapses.weight) == key for key, synapses in covered.items())
        weights = [(group, p) for group, members in groups for p in members if id(p) in squares]
        # All are taken before any weight moves, since the input of attention's last projection is recomputed.
        layers = [covered[id(p)] for _, p in weights]
        activities = [covered[id(p)].take(PATCHES, int(self.state[p]["step"])) for _, p in weights]
        _agree_on_batch(layers, activities)
        largest, seen = largest_share(matrices, zip(layers, activities, strict=True)), 0
        for (group, p), synapses, activity in zip(weights, layers, activities, strict=True):
            if not squares[id(p)] or _at_rest(group):  # a step that changes nothing counts for nothing
                continue
            if activity is None:
                synapses.warn_of_missing_activity()
                continue
            seen = max(seen, activity.examples)
            layer = WatchedLayer(synapses, self.state[p], group, activity)
            bias = all(id(q) in covered and q.requires_grad for q in synapses.parameters)
            layer.update(squares[id(p)], matrices, largest, bias)
        return seen or REFERENCE_BATCH

    def _diagonal(self, rest: Groups, shared: dict[str, Any], factor: Tensor) -> Calls:
        """The calls that step the unwatched parameters."""
        steps, warmup = shared["steps"], self.param_groups[0]["warmup_steps"]
        measuring = steps <= warmup and (steps <= 10 or steps % 10 == 0 or steps == warmup)
        members = [(group, same) for group, parameters in rest for same in alike(parameters)]
        if measuring and members:  # the threshold includes what is captured in this step
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
            if group["foreach"] and (self.asks or factor.device.type == "cpu"):  # else this would wait for the device
                calls.append((_multi_tensor, (self.blocks, number, *arguments)))
            else:
                calls.append((_single_tensor, arguments))
        return calls

    def _threshold(self, steps: int) -> Tensor:
        """The quantile over all parameters together, extrapolated to the end of the warm-up."""
        options = self.param_groups[0]
        states = [self.state.get(p, {}) for group in self.param_groups for p in group["params"] if p.numel() > 0]
        values = [whole(state["consolidated"]) for state in states if "consolidated" in state]
        drawn, fraction = rules.sampled(values, seed=steps), options["threshold_quantile"]
        seen = drawn.quantile(fraction)
        # If most synapses have not been used yet, as in a large embedding, the others decide.
        of_used = drawn.where(drawn > 0, torch.nan).nanquantile(fraction).nan_to_num(0)
        seen = torch.where(seen > 0, seen, of_used)
        return (seen * (options["warmup_steps"] / steps)).clamp(SMALLEST, LARGEST).float()

    def _novelty(self, group: dict[str, Any]) -> float:
        """The factor on the steps of a group's unwatched parameters. A group may be younger than others."""
        age = self.param_groups[0]["shared"]["age"] - group.get("born", 0)
        return 1 / (1 + age / UNWATCHED)

    def get_param_eligibility(self, param: Tensor) -> Tensor | None:
        """How much each synapse has consolidated, shaped like the parameter; None if there is nothing yet.

        Diagonal form: C, in squared units of the gradient. Coincidence form: the variance of the synapse's input that
        the layer's memory holds, in units of the variance of all inputs; the same for all synapses of one input.
        """
        state, synapses, inputs = self._kept_for(param)
        if not state:
            return None
        return state["consolidated"] if synapses is None else synapses.by_input(inputs.diagonal(state), param)

    @torch.no_grad()
    def get_param_gate(self, param: Tensor) -> Tensor | None:
        """The gate of each synapse now, in (0, 1], shaped like the parameter; None if there is no state yet.

        Diagonal form: ``theta / (theta + C)``. The coincidence form is a projection and has no gates for single
        synapses. The closest equivalent is the share of a change at this synapse alone that passes: the diagonal of P,
        the same for all synapses of one input. When synapses change together, more or less than that may pass.
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
        """The median over the inputs of a watched layer: inputs that were seen have a small share, and only a
        comparison shows which are open. 1 for unwatched parameters."""
        state, synapses, inputs = self._kept_for(param)
        return inputs.shares(state).median() if synapses is not None and state else 1.0

    def _kept_for(self, param: Tensor) -> tuple[dict[str, Tensor], Synapses | None, Memory | None]:
        """The state that a parameter's step reads; for a watched one, also its layer and the memory of its inputs."""
        state = self.state.get(param, {})
        synapses = self.layers().get(id(param))
        if synapses is None or "consolidated" in state:
            return state, None, None
        inputs, _ = memories(synapses, self.group_of(synapses.weight))
        state = self.state.get(synapses.weight, {})
        if state:
            groups, _, width = synapses.shape
            inputs.check(state, groups, width)
        return state, synapses, inputs


def _diagonal_state(parameter: Tensor) -> dict[str, Tensor]:
    # A sum of squares would be lost in float16, and stop growing in bfloat16.
    options = {"dtype": scalar_dtype(parameter), "memory_format": torch.preserve_format}
    return {"consolidated": torch.zeros_like(parameter, **options)}


def _bias_state(parameter: Tensor) -> dict[str, Tensor]:
    # The layer's weight has the memories, but PyTorch's checkpoints need a state that is not empty.
    return {"step": torch.zeros((), dtype=scalar_dtype(parameter), device="cpu")}


def _at_rest(group: dict[str, Any]) -> bool:
    """Whether a group's learning rate is zero; one that is on an accelerator is not asked."""
    rate = group["lr"]
    return not (isinstance(rate, Tensor) and rate.device.type != "cpu") and float(rate) == 0


def _agree_on_batch(layers: list[Synapses], activities: list[Activity | None]) -> None:
    """Give all layers one number of terms, and one batch size if a layer knows which axis of its input is the batch.

    A layer that was not reached in every backward pass, or in every process, has seen too few terms. A linear layer
    cannot tell time steps that come first, or that were merged with the batch, from examples.
    """
    pairs = [(synapses.kind, seen) for synapses, seen in zip(layers, activities, strict=True) if seen is not None]
    terms = max((seen.terms for _, seen in pairs), default=0)
    known = {seen.examples for kind, seen in pairs if kind.batched}
    for _, seen in pairs:
        seen.terms = terms
        if known and seen.examples not in known:
            seen.examples = max(known)


def _squared_norms(members: list[Tensor]) -> Tensor:
    """Squared gradient norms of parameters from one list of `alike`, (n,)."""
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
    """The reference: one tensor at a time, as in the equations; ``size`` is lr sqrt(theta)."""
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
    if torch.compiler.is_compiling():  # the compiler turns the reference into what is done by hand here
        return _single_tensor(parameters, gradients, consolidated, factor, threshold, size, captured)
    share, theta, rate = torch.stack([factor, threshold, size]).tolist()
    for _, (g, w, c, scale) in blocks.cut(key, gradients, parameters, consolidated):
        if not captured:
            torch._foreach_addcmul_(c, g, g, share**2)
        for out, x in zip(scale, c, strict=True):
            torch.add(x, theta, out=out)
        torch._foreach_addcdiv_(w, g, scale, -rate * share)
