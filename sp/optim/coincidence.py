"""The coincidence form of consolidation: one step of one watched layer, whichever it is.

The constants, with what an ablation says of each, are in notebook 03.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sp import rules
from sp.biology import Activity, Synapses
from sp.optim.common import scalar_dtype, signed_rate
from sp.optim.memory import Counts, ExactMemory, Memory, SketchedMemory, sampled

AVERAGE = 0.99  # share of the old value that a running mean keeps in a step of `REFERENCE_BATCH` examples
REFERENCE_BATCH = 128  # batch size for which the constants are meant; others are scaled to it
SCALE_STEPS = 10  # steps in which the scales of a layer's gradient and inputs are measured
FLOOR = 0.5  # of the norm at the beginning: a task learnt to the end must not leave the absorber shut for the next
GAIN = 12.0  # so that one learning rate suits both forms of the rule
EARLY = 20  # a layer's first steps, in which everything is new and the memory is looked at often
LOOK_WIDTH = 40  # inputs for which a step passes between two looks: so a look costs a fixed share of a step
EXACT_WIDTH = 1024  # inputs, or outputs, up to which a layer remembers exactly unless a rank is given
SPREAD_AVERAGE = 0.9  # share of the old value that the spread of a layer's outputs keeps at a look
RANK = 128  # of the sketch of wider ones
RESPONSE_ROWS = 16  # rows on which a layer's response is measured
NUMBERS = ("step", "power", "mean", "scale", "spread")  # of a layer's state, without dimensions and never on a device


def decay(examples: float, span: float) -> float:
    """Share of the old value that a mean keeps in a step of so many examples, so that it spans equal data."""
    return AVERAGE ** (examples / span)


def batch_factor(examples: int) -> float:
    """What a batch counts for, in steps and in memory: more than a smaller one, but less than in proportion."""
    return (examples / REFERENCE_BATCH) ** 0.5


def memories(synapses: Synapses, group: dict[str, Any]) -> tuple[Memory, Memory | None]:
    """The memory of a layer's inputs and the one of its errors; None where these are not seen, or not equalised.

    A narrow layer's exact memory takes little more space than a sketch, and less time.
    """
    groups, out, width = synapses.shape
    rank = group["rank"]

    def memory(name: str, width: int, strength: float, rank: int, relative: bool) -> Memory:
        if groups > 1 or width <= (EXACT_WIDTH if group["rank"] is None else rank):
            return ExactMemory(name, strength, relative)
        return SketchedMemory(name, strength, relative, rank=rank)

    rank = RANK if rank is None else rank
    retention = group["retention"]
    inputs = Counts("inputs", retention) if synapses.kind.indices else memory("inputs", width, retention, rank, False)
    if not synapses.kind.errors or not group["equalisation"]:
        return inputs, None
    # Few directions carry much more than their share of the errors, so a third of the rank is enough for them.
    return inputs, memory("errors", out, group["equalisation"], max(rank // 3, 1), True)


class WatchedLayer:
    """A layer's parameters, memories and measures in one step.

    Args:
        synapses: the layer's parameters and what was recorded of it.
        state: the optimizer's state of the layer's weight.
        group: options of its parameter group.
        activity: what the layer saw.
    """

    def __init__(self, synapses: Synapses, state: dict[str, Tensor], group: dict[str, Any], activity: Activity):
        self.synapses, self.state, self.group, self.activity = synapses, state, group, activity
        self.inputs, self.errors = memories(synapses, group)
        self._dtype = dtype = scalar_dtype(synapses.weight)
        x, d = activity.presynaptic, activity.postsynaptic
        self.x = x if synapses.kind.indices else x.to(dtype)
        self.d = None if d is None else d.to(dtype)
        self.step = int(state["step"]) + 1
        state["step"].fill_(self.step)
        self.factor = batch_factor(activity.examples)
        if self.step <= SCALE_STEPS:
            seen = 1.0 if synapses.kind.indices else float(self.x.square().sum()) / self.x[..., 0].numel()
            self._average("power", seen, 1 - 1 / self.step)

    @staticmethod
    def initialise(state: dict[str, Tensor], synapses: Synapses, group: dict[str, Any]) -> None:
        """Make the state of a layer that has seen nothing."""
        groups, out, width = synapses.shape
        like = torch.empty((), dtype=scalar_dtype(synapses.weight), device=synapses.weight.device)
        for name in NUMBERS:
            state[name] = torch.zeros(())
        inputs, errors = memories(synapses, group)
        inputs.initialise(state, groups, width, like)
        if errors is not None:
            errors.initialise(state, groups, out, like)

    def _average(self, name: str, value: float, kept: float) -> None:
        self.state[name].mul_(kept).add_((1 - kept) * value)

    def update(self, squared_norm: float, share: float, bias: bool) -> None:
        """Remember the activity, and move the weights along what is new.

        Args:
            squared_norm: of the layer's gradient.
            share: of the learning rate that this layer has.
            bias: whether a bias is the optimizer's to change.
        """
        power = float(self.state["power"])
        if power <= 0:  # what was never active stays
            return
        norm = (squared_norm / power) ** 0.5
        absorbed = self._absorbed(norm)
        self._remember(absorbed, power)
        if self._due():
            self.inputs.look(self.state)
            if self.errors is not None:
                self.errors.look(self.state)
            self._measure_spread()
        scale = float(self.state["scale"])
        if scale <= 0:
            return
        change = self._projected()
        usual = max(float(self.state["spread"]), self._fresh(power))
        # Of G (A + I / r)^-1, which is r G P.
        size = share * GAIN * self.group["retention"] * self.factor * absorbed * usual / (scale * power)
        rate = signed_rate(self.group)
        change *= size * (float(rate) if not isinstance(rate, Tensor) else rate.to(change))
        if self.group["response_bound"] is not None:
            moved = self._response(change).square().mean()
            change *= rules.bounded(moved, (self.group["response_bound"] * usual) ** 2)
        self.synapses.subtract_(change, bias)

    def _absorbed(self, norm: float) -> float:
        """Move the running mean of the gradient's norm, and return the factor that the absorber leaves of it."""
        mean, scale = float(self.state["mean"]), float(self.state["scale"])
        kept = rules.absorbed(norm, max(mean, FLOOR * scale), self.group["absorber"])
        self._average("mean", kept, decay(self.activity.examples, REFERENCE_BATCH) if mean else 0.0)
        if self.step <= SCALE_STEPS:
            self.state["scale"].copy_(self.state["mean"])
        return kept / norm if norm else 0.0

    def _remember(self, absorbed: float, power: float) -> None:
        weight = self.factor / (self.activity.counted * power)
        kept = 1.0 if self.group["horizon"] == math.inf else math.exp(-self.activity.examples / self.group["horizon"])
        if self.synapses.kind.indices:
            self.inputs.remember(self.state, self.x, self.d.new_full((1,), weight), kept)
        else:
            rows, each = sampled(self.x, self.step)
            if self.d is not None:
                errors, _ = sampled(self.d, self.step)
                rows = rows * (errors != 0).any(-1, keepdim=True)  # what had no error made no gradient
            self.inputs.remember(self.state, rows, weight * each, kept)
        if self.errors is not None:
            errors, each = sampled(self.d, self.step)
            weight = self.activity.examples * absorbed**2 * each
            self.errors.remember(self.state, errors, weight, decay(self.activity.examples, REFERENCE_BATCH))

    def _due(self) -> bool:
        every = self.group["refresh_every"] or max(1, self.synapses.shape[2] // LOOK_WIDTH)
        return self.step % every == 0 or (self.step < EARLY and self.step % 4 == 1)

    def _projected(self) -> Tensor:
        """The gradient G projected: Q G P, (g, out, d)."""
        gradient = self.synapses.gradient().to(self._dtype)
        change = self.inputs.multiply(self.state, gradient)
        return change if self.errors is None else self.errors.multiply(self.state, change.mT).mT

    def _response(self, matrix: Tensor) -> Tensor:
        """What a matrix (g, out, d) makes of some of the layer's inputs, (g, rows, out)."""
        if self.synapses.kind.indices:
            return matrix[0].T[self.x[:RESPONSE_ROWS]][None]
        return sampled(self.x, self.step, RESPONSE_ROWS)[0] @ matrix.mT

    def _measure_spread(self) -> None:
        weights = self.synapses.matrix(self.synapses.weight, self.synapses.bias).to(self._dtype)
        value = float(self._response(weights).square().mean().sqrt())
        self._average("spread", value, SPREAD_AVERAGE if self.state["spread"] > 0 else 0.0)

    def _fresh(self, power: float) -> float:
        """What a layer as PyTorch initialises it answers, root mean square; embeddings are drawn with deviation one."""
        return 1.0 if self.synapses.kind.indices else (power / (3 * self.synapses.shape[2])) ** 0.5
