"""The coincidence form of consolidation: one step of one watched layer."""

from typing import Any

import torch
from torch import Tensor

from sp import rules
from sp.biology import Activity, Synapses
from sp.optim.common import scalar_dtype, signed_rate
from sp.optim.memory import ROWS, SMALLEST, ExactMemory, Memory, SketchedMemory, zero_unless

AVERAGE = 0.99  # share of the old value that a running mean keeps in a step of `REFERENCE_BATCH` examples
REFERENCE_BATCH = 128  # batch size for which the constants are meant; others are scaled to it
SCALE_STEPS = 10  # steps in which the scales of gradients and inputs are measured
READOUT_STRENGTH = 0.1  # memory strength of the layer next to the loss
READOUT_LOOKS = 4  # times as often as at a hidden layer's memory, because the readout steps far on what is new
EXACT_UP_TO = 3  # times the rank: the widest layer that remembers exactly all the same
GOLDEN = (5**0.5 - 1) / 2
GAIN = 80  # so that one learning rate suits both forms of the rule


def horizon(examples: int) -> float:
    """Share of the old value that a running mean keeps in a step of so many examples, so that it spans equal data."""
    return AVERAGE ** (examples / REFERENCE_BATCH)


def batch_factor(examples: int) -> float:
    """What a batch counts for, in steps and in memory: more than a smaller one, but less than in proportion."""
    return (examples / REFERENCE_BATCH) ** 0.5


def sampled(rows: Tensor) -> Tensor:
    """At most `ROWS` of the rows (N, d), spread by the golden ratio: a stride may hit one place of all images."""
    if len(rows) <= ROWS:
        return rows
    places = torch.arange(ROWS, device=rows.device) * GOLDEN
    return rows[(places.frac() * len(rows)).long()]


class WatchedLayer:
    """A layer's gradient, activity and memories in one step; nothing changes where ``finite`` is False.

    Args:
        synapses: the layer's parameters and what was recorded of it.
        state: the optimizer's state of the layer's weight.
        group: options of its parameter group.
        finite: whether all gradients of this step are finite.
        steps: how many steps were finite, this one included.
    """

    def __init__(
        self, synapses: Synapses, state: dict[str, Tensor], group: dict[str, Any], finite: Tensor, steps: Tensor
    ):
        self.synapses, self.state, self.group, self.steps = synapses, state, group, steps
        self.finite = finite.to(synapses.weight.device, non_blocking=True)
        dtype = scalar_dtype(synapses.weight)
        self.gradient = zero_unless(self.finite, synapses.gradient()).to(dtype)
        self.activity = synapses.take()
        self.examples = REFERENCE_BATCH if self.activity is None else self.activity.examples
        self.strength, self.inputs, self.errors = memories(synapses, group, self.examples)
        self.fresh = not state
        if self.fresh:
            self._initialise()
        if self.activity is None:
            synapses.warn_of_missing_activity()
        else:
            self._measure_power(self.activity)
        power = self.state["input_power"]
        self.per_power = torch.where(power > 0, 1 / (power + SMALLEST), 0)  # what was never seen active stays

    def _initialise(self) -> None:
        out, inputs = self.gradient.shape
        number = {"dtype": self.gradient.dtype, "device": self.gradient.device}
        self.state["input_power"] = torch.zeros((), **number)
        self.inputs.initialise(self.state, inputs, **number)
        if self.errors is not None:
            self.errors.initialise(self.state, out, **number)

    def _measure_power(self, activity: Activity) -> None:
        power = self.state["input_power"]
        # Some of these steps may have been skipped; a layer that joins later is measured in its first.
        if self.group["step_count"] <= 10 * SCALE_STEPS or self.fresh:
            seen = activity.presynaptic.to(power.dtype).square().sum(1).mean()
            moved = torch.where(power > 0, power + (seen - power) / self.steps.clamp(min=1), seen)
            measuring = self.finite & ((self.steps <= SCALE_STEPS) | (power <= 0))
            power.copy_(torch.where(measuring, moved, power))

    def _remember(self, activity: Activity, absorbed: Tensor) -> None:
        count, dtype = self.group["step_count"], self.gradient.dtype
        weight = self.per_power * (batch_factor(self.examples) / self.examples)
        self.inputs.remember(self.state, activity.presynaptic.to(dtype), weight, self.finite, count)
        if self.errors is not None:
            weight = self.examples * absorbed.to(weight.device, dtype) ** 2
            self.errors.remember(self.state, activity.postsynaptic.to(dtype), weight, self.finite, count)

    def squared_norm(self) -> Tensor:
        """Of the gradient with respect to weights in units of the inputs."""
        flat = self.gradient.flatten()
        return (torch.dot(flat, flat) * self.per_power).to(self.steps.device)

    def update(self, absorbed: Tensor, unit: Tensor, learns: list[bool], bound: float | None) -> None:
        """Remember the activity, and move the weights along what is new.

        Args:
            absorbed: factor that the shock absorber leaves of gradients and errors, in [0, 1].
            unit: the same, in units of the norm that the gradient had when the run began.
            learns: for the weight, and the bias where there is one, whether it is the optimizer's to change.
            bound: largest change of a hidden layer's response, in units of what a fresh layer answers; None: any.
        """
        if self.activity is not None:
            self._remember(self.activity, absorbed)
        change, factor = self.inputs.multiply(self.state, self.gradient)
        if self.errors is not None:
            turned, by_errors = self.errors.multiply(self.state, change.T)
            change, factor = turned.T, factor * by_errors
        size = signed_rate(self.group) * GAIN / self.strength * batch_factor(self.examples)
        size = size * unit.to(change.device) * self.per_power * factor
        # The readout has to step far on what is new. A hidden layer that did so would lose its features.
        if bound is not None and self.activity is not None and not self.synapses.readout:
            size = size * self._bounded(sampled(self.activity.presynaptic), change, size, bound)
        self.synapses.subtract_(change, size, bias=all(learns))

    def _bounded(self, presynaptic: Tensor, change: Tensor, size: Tensor, bound: float) -> Tensor:
        rows = zero_unless(self.finite, presynaptic).to(change.dtype)
        moved = (rows @ change.T).square().mean() * size**2
        # Of a layer as PyTorch initialises it. What it answers at the moment would let it double with every step.
        initial = rows.square().mean() / 3
        return rules.bounded(moved, bound**2 * initial)


def memories(
    synapses: Synapses, group: dict[str, Any], examples: int = REFERENCE_BATCH
) -> tuple[float, Memory, Memory | None]:
    """The strength a of a layer's presynaptic memory, that memory, and the one of its errors (None for the readout).

    The readout, next to the loss, is linear in its weights: one factor P suffices there, as in recursive least squares.
    """
    every, rank = group["refresh_every"], group["rank"]
    if synapses.readout:
        every = max(every // READOUT_LOOKS, 1)

    def memory(name: str, width: int, strength: float, power: int, share: int, **options) -> Memory:
        # A narrow layer's exact memory takes little more space than a sketch, and less time.
        if rank is None or width <= EXACT_UP_TO * (rank // share):
            return ExactMemory(name, strength, power, every, rows=None if rank is None else ROWS, **options)
        return SketchedMemory(name, strength, power, every, rank=max(rank // share, 1), **options)

    strength = READOUT_STRENGTH if synapses.readout else group["memory_strength"]
    width = synapses.weight[0].numel() + (synapses.bias is not None)
    inputs = memory("inputs", width, strength, 1 if synapses.readout else 2, share=1)
    if synapses.readout or not group["equalisation"]:
        return strength, inputs, None
    # Few directions carry more than 1 / equalisation of the errors, so a third of the rank is enough for them.
    options = {"decay": horizon(examples), "relative": True}
    errors = memory("errors", len(synapses.weight), 1 / group["equalisation"], 1, share=3, **options)
    return strength, inputs, errors
