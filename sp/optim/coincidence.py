"""The coincidence form of consolidation: one step of one watched layer, of any kind.

Notebook 03 lists the constants, with what an ablation says about each.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sp import rules
from sp.biology import Activity, Synapses
from sp.optim.common import scalar_dtype, signed_rate
from sp.optim.memory import Counts, ExactMemory, Memory, SketchedMemory, product, sampled

AVERAGE = 0.99  # share of the old value that a running mean keeps in a step of `REFERENCE_BATCH` examples
REFERENCE_BATCH = 128  # batch size that the constants are meant for; others are scaled to it
SCALE_STEPS = 10  # steps over which the scale of a layer's gradient and the length of its inputs are measured
OUTLYING = 10.0  # most that a batch's inputs count for, in units of the mean squared length so far
ODD, ODD_STEPS = 10.0, 4  # in a layer's first steps, gradients this many times a later one are forgotten
FLOOR = 0.5  # share of the norm at the beginning; a fully learnt task must not leave the absorber shut for the next
# The gain of the readout is its number of outputs k, since the curvature of a softmax is about 1 / k. Below
# SMALLEST_GAIN a linear classifier learns too slowly; LARGEST_GAIN is the largest gain that was tried. In other layers
# the gain is at most GAIN.
SMALLEST_GAIN, GAIN, LARGEST_GAIN = 3, 10, 100
# In a deep network, the readout's step grows with (squared length / variance) of its inputs, since it learns too slowly
# from features that hardly distinguish examples: up to LARGEST_STRETCH times, or up to LARGEST_SHARE of the learning
# rate above layers that see several time steps, which take shorter steps. A network is deep if it has more matrices
# than SHALLOW, or layers that see several inputs per example.
SHALLOW, LARGEST_STRETCH, LARGEST_SHARE = 3, 2.0, 1.5
LARGEST = 10.0  # most that a single input counts for, in units of the root mean squared length of a row so far
LEAST_VARIANCE = 3e-5  # share of the squared length; the variance divides steps, and with 1e-5 eight layers diverge
BOOST = 0.25  # steps grow with this power of (squared length / variance) of the inputs
EARLY = 20  # a layer's first steps, in which everything is new and the memory is looked at often
LOOK_WIDTH = 80  # inputs (or outputs) per step between two looks, so that wide layers can afford them
EXACT_WIDTH = 1024  # inputs, or outputs, up to which a layer remembers exactly unless a rank is given
SPREAD_AVERAGE = 0.9  # share of the old value that the spread of a layer's outputs keeps at a look
RANK = 128  # rank of the sketch in wider layers
ROWS = 64  # rows of a batch that a memory takes in; more hardly help
PATCHES = 256  # rows if an example has several
RESPONSE_ROWS = 16  # rows on which a layer's response is measured
# Zero-dimensional entries of a layer's state, never on a device.
NUMBERS = ("step", "measured", "power", "squared_length", "mean", "scale", "spread")


def decay(examples: float) -> float:
    """Share of the old value that a mean keeps in a step, so that it spans equal data at any batch size."""
    return AVERAGE ** (examples / REFERENCE_BATCH)


def batch_factor(examples: int) -> float:
    """How much a batch counts, in steps and in memory: more than a smaller one, but less than proportionally."""
    return (examples / REFERENCE_BATCH) ** 0.5


def gain_of(outputs: int, readout: bool) -> float:
    """The gain of a layer with this many outputs."""
    return min(max(outputs, SMALLEST_GAIN), LARGEST_GAIN if readout else GAIN)


def largest_share(matrices: int, seen: Iterable[tuple[Synapses, Activity | None]]) -> float:
    """Largest share of the learning rate that the readout takes, in a network of this many watched matrices.

    Args:
        seen: the network's watched layers, and what each saw in this step.
    """
    with_several = [synapses.kind for synapses, activity in seen if activity is not None and activity.several]
    if any(not kind.places for kind in with_several):
        return LARGEST_SHARE
    return matrices**-0.5 * (LARGEST_STRETCH if with_several or matrices > SHALLOW else 1.0)


def memories(synapses: Synapses, group: dict[str, Any]) -> tuple[Memory, Memory | None]:
    """The memories of a layer's inputs and of its errors; the latter is None if errors are not seen or not equalised.

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


def new_state(synapses: Synapses, group: dict[str, Any]) -> dict[str, Tensor]:
    """The state of a layer's weight before its first step."""
    dtype, (groups, _, width) = scalar_dtype(synapses.weight), synapses.shape
    state = {name: torch.zeros((), dtype=dtype, device="cpu") for name in NUMBERS}
    state["step"] = torch.zeros((), dtype=torch.float64, device="cpu")  # float32 stops counting at 2^24
    if not synapses.kind.indices:
        state["input_mean"] = torch.zeros(groups, width, dtype=dtype, device=synapses.weight.device)
    _begin(state, synapses, *memories(synapses, group))
    return state


def _begin(state: dict[str, Tensor], synapses: Synapses, inputs: Memory, errors: Memory | None) -> bool:
    """Create the missing memories, and return whether any were missing."""
    groups, out, width = synapses.shape
    like = torch.empty((), dtype=scalar_dtype(synapses.weight), device=synapses.weight.device)
    begun = inputs.begin(state, groups, width, like)
    return (errors is not None and errors.begin(state, groups, out, like)) or begun


class WatchedLayer:
    """A layer's parameters, memories and measurements in one step.

    Args:
        synapses: the layer's parameters and what was recorded of the layer.
        state: the optimizer's state of the layer's weight.
        group: options of the weight's parameter group.
        activity: what the layer saw.
    """

    def __init__(self, synapses: Synapses, state: dict[str, Tensor], group: dict[str, Any], activity: Activity):
        self.synapses, self.state, self.group, self.activity = synapses, state, group, activity
        self.inputs, self.errors = memories(synapses, group)
        self.begun = _begin(state, synapses, self.inputs, self.errors)  # an option may have changed
        groups, self.out, self.width = synapses.shape
        self.outputs = groups * self.out
        self._dtype = scalar_dtype(synapses.weight)
        self.indices = synapses.kind.indices
        self.x = activity.presynaptic if self.indices else activity.presynaptic.to(self._dtype)
        self.d = None if activity.postsynaptic is None else activity.postsynaptic.to(self._dtype)
        self.several = not self.indices and activity.several
        self.factor = batch_factor(activity.examples)
        self.for_each = max(1.0, activity.rows / activity.terms)  # inputs per term of the loss
        self.step = int(state["step"]) + 1
        state["step"].fill_(self.step)
        if self.indices:  # one-hot inputs have length one
            self.seen, self.sample, self.each, self.variance = self.x, self.x, 1.0, 1.0
            state["squared_length"].fill_(1.0)
        else:
            self.seen = self._held(self.x)
            self.sample, self.each = self._sampled(self.seen)
            self.variance = self._variance()
        if self.step <= SCALE_STEPS:
            state["power"].copy_(state["squared_length"])

    def _average(self, name: str, value: float, kept: float) -> None:
        self.state[name].mul_(kept).add_((1 - kept) * value)

    def _sampled(self, rows: Tensor) -> tuple[Tensor, float]:
        """The rows that a memory takes in, and how many rows each stands for. If an example has several, only some of
        them were taken."""
        if self.several:
            return rows, self.activity.each
        return sampled(rows, self.step, ROWS)

    def _held(self, x: Tensor) -> Tensor:
        """Clip inputs that are far out, such as a marker for missing values: one would fill a memory for good.

        A layer's first steps are exempt: in them, the outputs of the layers below may have become far larger.
        """
        length = float(self.state["squared_length"]) ** 0.5
        return x.clamp(-LARGEST * length, LARGEST * length) if self.step > SCALE_STEPS and length > 0 else x

    def _variance(self) -> float:
        """Variance of the inputs over the steps so far: their mean squared length minus that of their mean; infinite if
        one has overflowed.

        As long as the rows of all steps are alike, the variance cannot be determined: they are not counted, and the
        squared length is used instead.
        """
        x = self.sample
        groups, rows, _ = x.shape
        state, measured = self.state, int(self.state["measured"]) + 1
        length, before = float(x.square().sum()) / (groups * rows), float(state["squared_length"])
        if not math.isfinite(length):
            return math.inf
        outlying = self.step > SCALE_STEPS and length > OUTLYING * before > 0
        counted = OUTLYING * before / length if outlying else 1.0
        state["input_mean"].lerp_(counted**0.5 * x.mean(-2), 1 / measured)
        self._average("squared_length", counted * length, 1 - 1 / measured)
        length = float(state["squared_length"])
        variance = length - float(state["input_mean"].square().sum()) / groups
        told = variance > LEAST_VARIANCE * length
        if told or rows == 1:
            state["measured"].fill_(measured)
        return variance * measured * rows / (measured * rows - 1) if told else length

    def update(self, squared_norm: float, matrices: int, largest: float, bias: bool) -> None:
        """Remember the activity, and move the weights along what is new.

        Args:
            squared_norm: squared norm of the layer's gradient.
            matrices: number of watched matrices. largest: as `largest_share` says.
            bias: whether the optimizer may change the bias.
        """
        power = float(self.state["power"])
        if power <= 0 or self.variance == math.inf:  # a layer that was never active stays as it is
            return
        norm = (squared_norm / power) ** 0.5
        absorbed = self._absorbed(norm)
        self._remember(absorbed)
        every = self.group["refresh_every"]
        if self._due(every or max(1, self.width // LOOK_WIDTH)):
            self.inputs.look(self.state)
            self._measure_spread()
        if self.errors is not None and self._due(every or max(1, self.out // LOOK_WIDTH)):
            self.errors.look(self.state)
        scale = float(self.state["scale"])
        if scale <= 0:
            return
        usual = max(float(self.state["spread"]), self._fresh(power))
        # The step is along G (A + I / r)^-1, which is r G P.
        alike = power / self.variance
        gain = gain_of(self.outputs, self.activity.readout)
        gain *= self._share(matrices, largest, alike) * self.group["retention"] * float(signed_rate(self.group))
        size = gain * self.factor * absorbed * usual * alike**BOOST / (scale * self.variance)
        change = self._change(bias)
        self.synapses.subtract_(change, self._bounded(size, change, usual), bias)

    def _share(self, matrices: int, largest: float, alike: float) -> float:
        """This layer's share of the learning rate, for inputs whose ratio of squared length to variance is ``alike``.

        Every input of a term of the loss is remembered, but steps are shorter by the number of these inputs, or by its
        root if they come from different places, whose errors do not all move the outputs in the same direction.
        """
        share = matrices**-0.5
        if self.activity.readout:
            share = min(share * max(alike, 1.0), largest)
        return share / self.for_each ** (0.5 if self.synapses.kind.places else 1.0)

    def _absorbed(self, norm: float) -> float:
        """Update the running mean of the gradient's norm, and return the share of it that the absorber keeps."""
        mean, scale = float(self.state["mean"]), float(self.state["scale"])
        if self.step <= ODD_STEPS and mean > ODD * norm:
            mean = scale = 0.0
            if self.errors is not None:
                self.errors.initialise(self.state, *self.synapses.shape[:2], self.d)
        kept = rules.absorbed(norm, max(mean, FLOOR * scale), self.group["absorber"])
        self._average("mean", kept, decay(self.activity.examples) if mean else 0.0)
        if self.step <= SCALE_STEPS:
            self.state["scale"].copy_(self.state["mean"])
        return kept / norm if norm else 0.0

    def _remember(self, absorbed: float) -> None:
        examples, horizon = self.activity.examples, self.group["horizon"]
        rows = self.sample
        errors, of_errors = (None, 1.0) if self.d is None else self._sampled(self.d)
        if errors is not None:  # padding and examples without a loss have no error, and no part in the gradient
            in_gradient = ((self.d if self.indices else errors) != 0).any(-1)
            if self.indices:
                rows = rows[in_gradient[0]]
            elif self.several or not in_gradient.all():
                rows = rows * in_gradient[..., None]
        weight = self.factor / (self.activity.terms * self.variance)
        self.inputs.remember(self.state, rows, weight * self.each, math.exp(-examples / horizon))
        if self.errors is not None:
            # A decayed sum, not a mean: only the size of directions relative to each other is used.
            self.errors.remember(self.state, errors, examples * absorbed**2 * of_errors, decay(examples))

    def _due(self, every: int) -> bool:
        return self.begun or self.step % every == 0 or (self.step < EARLY and self.step % 4 == 1)

    def _change(self, bias: bool) -> Tensor:
        """The projected gradient, Q G P, (g, out, d); computed as ``(D Q)' (X P)`` if that costs less."""
        gradient = self.synapses.gradient(bias).to(self._dtype)
        factor = self._factor_of_rows(gradient)
        if factor is not None:
            back = self.d if self.errors is None else self.errors.multiply(self.state, self.d)
            return product((factor * back).mT, self.inputs.multiply(self.state, self.x))
        change = self.inputs.multiply(self.state, gradient)
        return change if self.errors is None else self.errors.multiply(self.state, change.mT).mT

    def _factor_of_rows(self, gradient: Tensor) -> float | None:
        """The factor between D'X and the gradient; None if D'X costs more, or the gradient is not a multiple of it.

        The gradient may have been scaled, clipped or changed since it was computed, so two random combinations of its
        outputs are compared with those of ``D'X``; one would not do if the gradients of all outputs are parallel.
        """
        if gradient.device.type != "cpu":  # the numbers below would have to wait for the device
            return None
        if self.d is None or self.indices or self.synapses.weight.dim() > 2 or self.activity.each > 1:
            return None
        x, d = self.x[0], self.d[0]
        if 4 * len(x) > 3 * self.out:
            return None
        generator = torch.Generator("cpu").manual_seed(self.step)
        mixed = torch.randn(2, self.out, generator=generator, dtype=self._dtype, device="cpu")
        made, now = mixed @ d.T @ x, mixed @ gradient[0]
        power = float(made.square().sum())
        factor = float((made * now).sum()) / power if power else 0.0
        alike = power and float((now - factor * made).norm()) <= 1e-3 * abs(factor) * power**0.5
        return factor if alike else None

    def _bounded(self, size: float, change: Tensor, usual: float) -> float:
        """The size of a step, reduced if it would change the layer's outputs by more than is allowed."""
        bound = self.group["response_bound"]
        if bound is None:
            return size
        answers = self._response(self.x, change)
        moved = float(answers.norm()) / answers.numel() ** 0.5
        return 0.0 if math.isnan(moved) else size * rules.bounded(abs(size) * moved, bound * usual)

    def _response(self, x: Tensor, matrix: Tensor) -> Tensor:
        """The outputs, (g, rows, out), of a matrix (g, out, d) for some of the inputs x."""
        if self.indices:
            return matrix[0].T[x[:RESPONSE_ROWS]][None]
        return product(sampled(x, self.step, RESPONSE_ROWS)[0], matrix.mT)

    def _measure_spread(self) -> None:
        weights = self.synapses.matrix(self.synapses.weight, self.synapses.bias).to(self._dtype)
        value = float(self._response(self.seen, weights).square().mean().sqrt())
        self._average("spread", value, SPREAD_AVERAGE if self.state["spread"] > 0 else 0.0)

    def _fresh(self, power: float) -> float:
        """Root mean square of a layer's outputs as PyTorch initialises it; embeddings have standard deviation one."""
        return 1.0 if self.indices else (power / (3 * self.width)) ** 0.5
