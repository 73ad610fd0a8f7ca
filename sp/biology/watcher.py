"""Watching a network: which layers are active, and which errors come back to them.

An NMDA receptor opens only when two things coincide: glutamate from the presynaptic side and depolarisation of the
postsynaptic side (Mayer, Westbrook & Guthrie 1984; Nowak et al. 1984). A gradient alone cannot distinguish them.
`NMDACoincidence` sees both sides of every synapse: the activity that enters a layer, and the error that comes back.
"""

import math
import warnings
import weakref
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from sp.biology.hooks import Hooked, weakly
from sp.biology.layers import Kind, Sides, watchable


@dataclass
class Activity:
    """What a layer saw in the passes that made its current gradient.

    Attributes:
        presynaptic: inputs, (g, N, d) for g groups of channels (1 in most layers), with a last column of ones if the
            layer has a bias. A convolution gives one row per patch, and an input of shape (B, T, d) one for each of
            the B T vectors. An embedding gives indices, (N,).
        postsynaptic: gradient of the loss with respect to the layer's outputs, (g, N, out), with the same rows as
            `presynaptic`; None if it cannot be seen (recurrent layers, the input projection of attention).
        rows: number of inputs, N, or more if only some of them were taken.
        examples: size B of the batch or batches that the rows came from.
        terms: number of terms that the loss is a mean of: tokens if every token is predicted, else examples.
        readout: whether the error reached this layer before all other watched layers, in every pass.
    """

    presynaptic: Tensor
    postsynaptic: Tensor | None
    rows: int
    examples: int
    terms: int
    readout: bool = False

    @property
    def each(self) -> float:
        """How many rows each of the given ones stands for."""
        return self.rows / self.presynaptic.shape[0 if self.presynaptic.dim() == 1 else 1]

    @property
    def several(self) -> bool:
        """Whether an example has several rows, such as patches or time steps."""
        return self.rows > self.examples


@dataclass(eq=False)
class Call:
    """A forward pass of a layer: the layer, and what its kind keeps of the pass until a step has used it."""

    module: weakref.ref
    kept: Any


@dataclass
class Pass:
    """The errors that came back to a call.

    Attributes:
        errors: gradient of the layer's outputs.
        backward: number of the backward pass that produced them. inner: of the one that runs inside that for a
            checkpoint with ``use_reentrant=True``, else the same.
        terms: number of terms of the loss in that pass so far: the rows, over all calls, of the watched layer that the
            error reached first.
        readout: whether this layer was reached first.
    """

    call: Call
    errors: Tensor
    backward: int
    inner: int
    terms: int
    readout: bool


@dataclass
class Synapses:
    """The matrix of a watched layer, its bias, and what was recorded of it. Tied layers share one instance."""

    name: str
    weight: nn.Parameter
    bias: nn.Parameter | None
    kind: Kind
    bias_name: str = ""
    synchronise: bool = True  # whether activity is gathered from all processes in distributed training
    passes: list[Pass] = field(default_factory=list, repr=False)  # those that made the current gradient
    arrived: list[Pass] = field(default_factory=list, repr=False)  # those whose gradient has not reached the weight
    seen_gradient: Callable[[], Tensor | None] = field(default=lambda: None, repr=False)
    warned: bool = False

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, outputs, and inputs (plus one for a bias), as in `matrix`."""
        groups, out, inputs = self.kind.matrix(self.weight).shape
        return groups, out, inputs + (self.bias is not None)

    def matrix(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Weights, or their gradients, as one matrix per group with the bias as its last column, (g, out, d)."""
        matrix = self.kind.matrix(weight)
        if self.bias is None:
            return matrix
        column = torch.zeros_like(self.bias) if bias is None else bias
        return torch.cat([matrix, column.reshape(len(matrix), -1, 1)], 2)

    def gradient(self, bias: bool = True) -> Tensor:
        """The gradients in the layout of `matrix`; the bias has none if ``bias`` is False."""
        return self.matrix(self.weight.grad, self.bias.grad if bias and self.bias is not None else None)

    def by_input(self, values: Tensor, parameter: Tensor) -> Tensor:
        """Expand one value per input, (g, d), to the shape of the weight or the bias."""
        groups, out, _ = self.shape
        if parameter is not self.weight:
            return values[:, -1:].expand(groups, out).reshape(parameter.shape)
        inputs = values if self.bias is None else values[:, :-1]
        return self.kind.unmatrix(inputs[:, None].expand(-1, out, -1), parameter.shape)

    def subtract_(self, change: Tensor, size: float, bias: bool = True) -> None:
        """Subtract ``size`` times a change, shaped like `gradient`, from the weight and, if ``bias`` is True, from a
        bias that has a gradient."""
        if self.weight.dtype == torch.float16:  # where the size may be too large even if the product is not
            change, size = size * change, 1.0
        change = change.to(self.weight.dtype)
        of_weight = change if self.bias is None else change[..., :-1]
        self.weight.sub_(self.kind.unmatrix(of_weight, self.weight.shape), alpha=size)
        if bias and self.bias is not None and self.bias.grad is not None:
            self.bias.sub_(change[..., -1].reshape(self.bias.shape), alpha=size)

    def record(self, use: Pass) -> None:
        """Record an error that came back. Whether it makes a gradient is not known until one reaches the weight."""
        gradient = self.weight.grad
        if self.passes and (gradient is None or self.seen_gradient() is not gradient or not gradient.any()):
            self.passes = []  # the gradient that they made was cleared
        self.arrived = [other for other in self.arrived if other.backward == use.backward] + [use]

    def gradient_made(self, weight: Tensor) -> None:
        """A gradient reached the weight. The errors of the same backward pass made it, and nothing else."""
        gradient = weight.grad
        now = [use for use in self.arrived if use.inner == backward_pass()]
        # If there are errors, `record` has checked this, before a gradient was added to another.
        if not now and self.seen_gradient() is not gradient:
            self.passes = []
        for use in now:
            self._add(use)
        self.arrived = [use for use in self.arrived if use.inner != backward_pass()]
        self.seen_gradient = weakref.ref(gradient)

    def _add(self, use: Pass) -> None:
        """Add a pass. The errors of several backward passes through the same call add up, as gradients do."""
        for other in self.passes:
            if other.call is use.call:
                if self.kind.errors:
                    other.errors = other.errors + use.errors
                other.readout = other.readout and use.readout
                return
        self.passes.append(use)

    def clear(self) -> None:
        """Forget what was recorded since the last step."""
        self.passes, self.arrived = [], []

    def warn_of_missing_activity(self) -> None:
        """Warn, once, that there is a gradient but no activity that could have made it."""
        if not self.warned:
            warnings.warn(
                f"coincidence: {self.name!r} has a gradient, but no forward pass of its layer in training mode was "
                "recorded, so it stays as it is: call model.train() before the forward pass, and make the watcher "
                "before it. A weight that is used without calling its layer, as in F.linear(x, layer.weight), cannot "
                "be watched, nor a gradient that no error at the layer's output made, as that of a gradient penalty in "
                "a backward pass of its own.",
                stacklevel=2,
            )
            self.warned = True

    def take(self, most: int | None = None, seed: int = 0) -> Activity | None:
        """Return the activity recorded since the last call and forget it; None if there was none.

        Args:
            most: if examples have several rows, such as patches or time steps, take about this many of them, of all
                processes together, drawn at random with this seed. Indices are always taken whole.
        """
        passes, self.passes = self.passes, []
        alive = [use for use in passes if use.call.module() is not None and use.errors.numel()]
        with torch.no_grad():
            sides = [self.kind.sides(use.call.module(), use.call.kept, use.errors.detach()) for use in alive]
        for use in passes:
            use.call.kept = None  # the call itself lives as long as the graph of a loss that somebody holds
        counts = [math.prod(x.shape[: self.kind.axes]) for x, _, _ in sides]
        rows, examples = sum(counts), _examples(alive, [size for _, _, size in sides])
        shared = self.synchronise and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        stride = 1
        if most is not None and not self.kind.indices:
            rows_of_all, examples_of_all = _summed(rows, examples, self.weight.device) if shared else (rows, examples)
            stride = max(1, rows_of_all // most) if rows_of_all > examples_of_all else 1
        activity = None
        if alive:
            chosen = [_drawn(count, stride, seed, x.device) for count, (x, _, _) in zip(counts, sides, strict=True)]
            terms = {use.backward: use.terms for use in alive}
            readout = all(use.readout for use in alive)
            activity = Activity(*self._rows(sides, chosen), rows, examples, sum(terms.values()), readout)
        return _gathered(activity, self) if shared else activity

    def _rows(self, sides: list[Sides], chosen: list[Tensor | None]) -> tuple[Tensor, Tensor | None]:
        """The chosen inputs, with a column of ones if there is a bias, and their errors if they can be seen."""
        kind, dtype = self.kind, self.weight.dtype
        pairs = list(zip(sides, chosen, strict=True))
        presynaptic = _joined([kind.rows(x, numbers) for (x, _, _), numbers in pairs])
        if not kind.indices:
            presynaptic = presynaptic.to(dtype)
            if self.bias is not None:
                presynaptic = F.pad(presynaptic, (0, 1), value=1.0)
        if not kind.errors:
            return presynaptic, None
        return presynaptic, _joined([kind.rows(d, numbers) for (_, d, _), numbers in pairs]).to(dtype)


def _examples(passes: list[Pass], sizes: list[int]) -> int:
    """Number of examples in passes with these batch sizes. Batches of several backward passes add up; a layer used
    twice in one pass still saw each example once."""
    examples: dict[int, int] = {}
    for use, size in zip(passes, sizes, strict=True):
        examples[use.backward] = max(examples.get(use.backward, 0), size)
    return sum(examples.values())


def _summed(rows: int, examples: int, device: torch.device) -> list[int]:
    """The sums of both over all processes."""
    numbers = torch.tensor([rows, examples], device=device)
    dist.all_reduce(numbers)
    return numbers.tolist()


def _drawn(count: int, stride: int, seed: int, device: torch.device) -> Tensor | None:
    """About one random number for each ``stride`` of the numbers below ``count``, evenly spread; None for all of them.

    Every ``stride``-th patch might be one column of all images, which may always be dark.
    """
    if stride == 1:
        return None
    generator = torch.Generator("cpu").manual_seed(seed)
    parts = math.ceil(count / stride)
    offsets = torch.rand(parts, generator=generator, device="cpu", dtype=torch.float32)
    places = torch.arange(parts, dtype=torch.double, device="cpu") + offsets
    return (places * (count / parts)).long().to(device)


def _joined(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows, max(rows[0].dim() - 2, 0))  # cat copies even a single tensor


def backward_pass() -> int:
    """A number that identifies the running backward pass; -1 if there is none."""
    return torch._C._current_graph_task_id()  # PyTorch has no public name for it


def _gathered(activity: Activity | None, synapses: Synapses) -> Activity | None:
    """The activity of all processes, in order of rank, as one process would have seen it on the whole batch.

    Gradients are averaged over W processes, so the errors are divided by W to match them.
    """
    world = dist.get_world_size()
    weight, (groups, out, inputs) = synapses.weight, synapses.shape
    if activity is None:
        rows = weight.new_empty(0, dtype=torch.long) if synapses.kind.indices else weight.new_empty(groups, 0, inputs)
        errors = weight.new_empty(groups, 0, out) if synapses.kind.errors else None
        activity = Activity(rows, errors, 0, 0, 0)
    mine = [t for t in (activity.presynaptic, activity.postsynaptic) if t is not None]
    rows = [t.transpose(0, 1) if t.dim() == 3 else t for t in mine]  # (N, ...)
    numbers = [len(rows[0]), activity.rows, activity.examples, activity.terms, activity.readout]
    own = torch.tensor(numbers, device=weight.device)
    sizes = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(sizes, own)
    counts, totals, examples, terms, readout = zip(*(size.tolist() for size in sizes), strict=True)
    if not any(counts):
        return None
    gathered = []
    for part in rows:
        padded = torch.cat([part, part.new_zeros(max(counts) - len(part), *part.shape[1:])]).contiguous()
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        whole = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
        gathered.append(whole.transpose(0, 1) if whole.dim() == 3 else whole)
    postsynaptic = gathered[1] / world if len(gathered) == 2 else None
    return Activity(gathered[0], postsynaptic, sum(totals), sum(examples), sum(terms), any(readout))


class NMDACoincidence(Hooked):
    """Watches the layers of a model through hooks: what enters them, and the errors that come back.

    Layers that can be watched are Linear, Conv1d to Conv3d and their transposes (also grouped), Embedding,
    MultiheadAttention, and single-layer RNN, GRU and LSTM. This includes tied weights and layers whose weight is
    computed from a parameter of the same shape, as in weight normalisation. A subclass of these with a custom
    ``forward`` is not watched. `covered` lists what is watched; all other parameters follow the diagonal rule.

    A pass counts if it made the gradient of a step: a forward pass in training mode whose backward pass reached the
    layer's weight. Passes under ``no_grad`` or in ``eval()`` leave no trace, nor does a gradient that was cleared or
    only computed by ``torch.autograd.grad``. Several backward passes before a step add up, as gradients do.

    The watcher does not keep the model alive, nor the model the watcher, and its hooks are removed with it. A copy of
    both (by ``deepcopy`` or ``pickle`` of model and optimizer together) watches the copied model. A copy of the model
    alone is not watched.

    Args:
        model: any module; its layers are watched from now on.
        synchronise: gather the activity of all processes if ``torch.distributed`` runs with several, so that they keep
            equal memories, as `DistributedDataParallel` keeps their gradients equal. This costs an exchange of each
            layer's inputs and errors. Use False for processes that train separate networks.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: ``model`` has no layer that can be watched.
    """

    def __init__(self, model: nn.Module, synchronise: bool = True):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got a {type(model).__name__}")
        self._model, self._synchronise = weakref.ref(model), synchronise
        self.users: weakref.WeakSet[Optimizer] = weakref.WeakSet()  # each forgets only layers that no other one steps
        self._backward, self._terms, self._first = -1, 0, None
        by_weight: dict[int, Synapses] = {}
        handles = []
        names = {id(p): name for name, p in model.named_parameters()}
        for name, module, kind, weight, bias in watchable(model):
            synapses = by_weight.get(id(weight))
            if synapses is None:
                synapses = by_weight[id(weight)] = Synapses(
                    name, weight, bias, kind, names.get(id(bias), ""), synchronise
                )
                handles.append(_when_gradient_arrives(weight, weakly(synapses.gradient_made)))
            elif type(synapses.kind) is not type(kind):
                # Two memories of one weight cannot both decide: the layer that comes first in the model does.
                continue
            elif synapses.bias is not bias:
                synapses.bias = None  # tied weights with separate biases, which follow the diagonal rule
            hook = _Hook(self, synapses, kind, module)
            # First, since another hook may replace the output.
            handles.append(module.register_forward_hook(hook, prepend=True, with_kwargs=True))
            # This only shows `torch.compile` that this instance differs from others of its class, whose compiled code
            # would leave out the hook.
            module.forward = module.forward
        self.synapses = list(by_weight.values())
        if not self.synapses:
            raise ValueError(
                f"model ({type(model).__name__}) has no layer that can be watched; use the optimizer without "
                "coincidence"
            )
        self._hold(handles)

    def __reduce__(self):
        if self._model() is None:
            raise RuntimeError(
                "a watcher whose model is gone cannot be copied: keep what you pass to NMDACoincidence, as in  "
                "model = nn.ModuleList([encoder, head])"
            )
        return type(self), (self._model(), self._synchronise)

    def covered(self) -> dict[str, nn.Parameter]:
        """The watched parameters by name; frozen ones are not watched."""
        names = {id(p): name for name, p in self._model().named_parameters()} if self._model() is not None else {}
        return {
            names.get(id(p), name).removeprefix("_orig_mod."): p
            for synapses in self.synapses
            for p, name in zip(synapses.parameters, (synapses.name, synapses.bias_name), strict=False)
            if p.requires_grad and synapses.weight.requires_grad
        }

    def misses(self, parameters: Iterable[nn.Parameter]) -> bool:
        """Whether one of the parameters is the matrix of a layer that was added after the watcher was made.

        Of the model's own parameters, those of watchable layers count; of others, any with two or more dimensions.
        """
        watched = {id(synapses.weight) for synapses in self.synapses}
        new = {id(p) for p in parameters if p.dim() > 1} - watched
        if (model := self._model()) is not None:
            could_be = {id(layer.weight) for layer in watchable(model)}
            new -= {id(p) for p in model.parameters()} - could_be
        return bool(new)

    def reached(self, synapses: Synapses, backward: int, rows: int) -> tuple[int, bool]:
        """Number of rows so far of the layer that this backward pass's error reached first, and whether it is this."""
        if backward != self._backward or not self._terms:  # an empty batch has no terms
            self._backward, self._terms, self._first = backward, rows, weakref.ref(synapses)
        elif self._first() is synapses:  # it was called several times, as when the losses of two batches are added
            self._terms += rows
        return self._terms, self._first() is synapses

    def clear(self, keep: Collection[Synapses] = ()) -> None:
        """Forget what was recorded since the last step, as when gradients are cleared, but not for ``keep``."""
        kept = {id(synapses) for synapses in keep}
        for synapses in self.synapses:
            if id(synapses) not in kept:
                synapses.clear()

    def remove(self) -> None:
        """Stop watching: remove all hooks from the model. A second call does nothing."""
        super().remove()
        self.clear()


def _when_gradient_arrives(weight: nn.Parameter, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Register a hook on a weight, which may be frozen now and unfrozen later."""
    trained = weight.requires_grad
    handle = weight.requires_grad_(True).register_post_accumulate_grad_hook(hook)
    weight.requires_grad_(trained)
    return handle


class _NoHook:
    """Placeholder for a hook in a model that was copied or read from a file, until that model is watched."""

    __name__ = "no_hook"  # torch.jit.script reads it

    def __call__(self, *_) -> None:
        """Record nothing."""


class _Hook:
    """A forward hook that keeps neither module nor watcher alive, and records nothing for copies of the module."""

    def __init__(self, watcher: NMDACoincidence, synapses: Synapses, kind: Kind, module: nn.Module):
        self.watcher, self.synapses, self.module = weakref.ref(watcher), weakref.ref(synapses), weakref.ref(module)
        self.kind = kind

    def __reduce__(self):
        return _NoHook, ()

    @property
    def __name__(self) -> str:
        # torch.jit.script reads it, and would otherwise fail without saying what to do.
        raise AttributeError("a watched model cannot be scripted: call watcher.remove() before torch.jit.script(model)")

    @torch.compiler.disable
    def __call__(self, module: nn.Module, inputs: tuple, named: dict[str, Any], output: Any) -> None:
        synapses = self.synapses()
        if getattr(module, "_is_replica", False):
            raise RuntimeError(
                "coincidence: nn.DataParallel runs copies of the model that cannot be watched: use "
                "torch.nn.parallel.DistributedDataParallel, or one device"
            )
        if module is not self.module() or synapses is None or not module.training or not torch.is_grad_enabled():
            return
        kept, follow = self.kind.keep(module, inputs, named, output)
        # Transforms of torch.func make no gradient.
        follow = [t for t in follow if isinstance(t, Tensor) and t.requires_grad and torch.func.debug_unwrap(t) is t]
        if not follow:
            return

        # A frozen readout still counts as the readout, but what no step will use is not kept.
        trained = synapses.weight.requires_grad
        call = Call(self.module, kept if trained else None)
        around = backward_pass()  # a checkpoint with use_reentrant=True runs forward and backward inside another pass
        last = None  # last backward pass that reached one of them

        def record(errors: Tensor) -> None:
            nonlocal last
            if (synapses := self.synapses()) is not None and (watcher := self.watcher()) is not None:
                inner = backward_pass()
                if inner == last:
                    return
                last = inner
                backward = inner if around < 0 else around
                terms, readout = watcher.reached(synapses, backward, self.kind.count(errors))
                if call.kept is not None:
                    synapses.record(Pass(call, errors, backward, inner, terms, readout))

        for output in follow:
            output.register_hook(record)
