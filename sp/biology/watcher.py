"""What watches a network: which layers are active, and what comes back to them.

An NMDA receptor opens only when two things coincide: glutamate from the presynaptic side and depolarisation of the
postsynaptic side (Mayer, Westbrook & Guthrie 1984; Nowak et al. 1984). A gradient alone cannot tell the two apart.
`NMDACoincidence` sees both sides of every synapse: the activity that enters a layer, and the error that comes back.
"""

import warnings
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass
class Activity:
    """What a layer saw in the passes that made its present gradient.

    Attributes:
        presynaptic: inputs, (N, d), with a last column of ones where the layer has a bias. A convolution gives one row
            for each patch, an input of shape (B, T, d) one for each of the B T vectors.
        postsynaptic: gradient of the loss with respect to the layer's outputs, (N, out), row by row to `presynaptic`.
        examples: size B of the batch or batches that the rows came from.
    """

    presynaptic: Tensor
    postsynaptic: Tensor
    examples: int


@dataclass
class Pass:
    """One use of a layer: its inputs, the gradient of its outputs, and which backward pass brought it."""

    module: weakref.ref
    inputs: Tensor
    errors: Tensor
    backward: int


@dataclass
class Synapses:
    """The parameters of a watched layer, and what was recorded of it. Tied layers share one."""

    name: str
    weight: nn.Parameter
    bias: nn.Parameter | None
    passes: list["Pass"] = field(default_factory=list, repr=False)
    readout: bool = False  # whether its error was the first to come back in the last backward pass
    synchronise: bool = True  # whether activity is gathered from all processes of a distributed training
    warned: bool = False

    @property
    def parameters(self) -> tuple[nn.Parameter, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def gradient(self) -> Tensor:
        """Gradient of the weight as a matrix with that of the bias as its last column, (out, d) or (out, d + 1)."""
        matrix = self.weight.grad.flatten(1)
        if self.bias is None:
            return matrix
        bias = torch.zeros_like(self.bias) if self.bias.grad is None else self.bias.grad
        return torch.cat([matrix, bias[:, None]], 1)

    def by_input(self, values: Tensor, parameter: Tensor) -> Tensor:
        """One value for each input, (d,) or (d + 1,), as a view of the shape of the weight or of the bias."""
        if parameter is self.weight:
            return values[: parameter[0].numel()].reshape(1, *parameter.shape[1:]).expand_as(parameter)
        return values[-1:].expand_as(parameter)

    def subtract_(self, change: Tensor, size: Tensor, bias: bool = True) -> None:
        """Subtract ``size``, a number, times a change of the shape of `gradient` from the weight, and with ``bias``
        from a bias that has a gradient."""
        change, size = change.to(self.weight.dtype), size.to(self.weight.dtype)
        columns = self.weight[0].numel()
        self.weight.addcmul_(change[:, :columns].reshape(self.weight.shape), size, value=-1)
        if bias and self.bias is not None and self.bias.grad is not None:
            self.bias.addcmul_(change[:, columns], size, value=-1)

    def warn_of_missing_activity(self) -> None:
        """Say, once, that there is a gradient and no activity that could have made it."""
        if not self.warned:
            warnings.warn(
                f"coincidence: the layer {self.name!r} has a gradient, but no forward pass of it in training mode was "
                "recorded, so its memory learns nothing from this step (and it stays as it is until one was): call "
                "model.train() before the forward pass, and make the watcher before it. A weight that is used without "
                "calling its layer, as in F.linear(x, layer.weight), cannot be watched.",
                stacklevel=2,
            )
            self.warned = True

    def take(self) -> Activity | None:
        """The activity recorded since the last call, which is thereby forgotten; None where there was none."""
        passes, self.passes = self.passes, []
        alive = [(module, p) for p in passes if (module := p.module()) is not None]
        activity = self._activity(alive) if alive else None
        if self.synchronise and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            return _gathered(activity, self.weight, self.bias is not None)
        return activity

    def _activity(self, alive: list[tuple[nn.Module, Pass]]) -> Activity:
        presynaptic = _joined([_presynaptic(module, p.inputs) for module, p in alive]).to(self.weight.dtype)
        postsynaptic = _joined([_postsynaptic(module, p.errors) for module, p in alive]).to(self.weight.dtype)
        if self.bias is not None:
            presynaptic = torch.cat([presynaptic, presynaptic.new_ones(len(presynaptic), 1)], 1)
        # Batches of several backward passes add up; a layer used twice in one pass still saw each example once.
        batches: dict[int, int] = {}
        for module, p in alive:
            batches[p.backward] = max(batches.get(p.backward, 0), _examples(module, p.inputs))
        return Activity(presynaptic, postsynaptic, sum(batches.values()))


def _joined(rows: list[Tensor]) -> Tensor:
    return rows[0] if len(rows) == 1 else torch.cat(rows)  # cat copies even a single one


def _gathered(activity: Activity | None, weight: Tensor, bias: bool) -> Activity | None:
    """The activity of all processes, in their order, as one process would have seen it on the whole batch.

    Gradients are averaged over W processes, and the errors are divided by W to go with them.
    """
    world = dist.get_world_size()
    out, inputs = len(weight), weight[0].numel() + bias
    if activity is None:
        activity = Activity(weight.new_empty(0, inputs), weight.new_empty(0, out), 0)
    own = torch.tensor([len(activity.presynaptic), activity.examples], device=weight.device)
    sizes = [torch.empty_like(own) for _ in range(world)]
    dist.all_gather(sizes, own)
    rows, examples = zip(*(size.tolist() for size in sizes), strict=True)
    if not any(rows):
        return None
    gathered = []
    for mine in (activity.presynaptic, activity.postsynaptic):
        padded = F.pad(mine, (0, 0, 0, max(rows) - len(mine))).contiguous()
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded)
        gathered.append(torch.cat([part[:count] for part, count in zip(parts, rows, strict=True)]))
    return Activity(gathered[0], gathered[1] / world, sum(examples))


class NMDACoincidence:
    """Watches the Linear and Conv2d layers of a model through hooks: their inputs, and the errors that come back.

    A pass counts when it takes part in a step: a forward pass in training mode whose output receives a gradient. What
    runs under ``no_grad`` or in ``eval()`` leaves no trace, nor does a forward pass that is never differentiated.
    Several backward passes before a step add up, as gradients do, and ``optimizer.zero_grad()`` clears both. A model
    that is compiled with ``torch.compile`` is watched all the same, whether it is compiled before or after.

    Not watched, and left to the diagonal rule: grouped convolutions, layers whose weight is not a parameter of their
    own (weight normalisation), the projections inside `nn.MultiheadAttention` (it never calls them), and frozen layers.

    The watcher does not keep the model alive, and the model does not keep the watcher alive. A copy of both (by
    ``deepcopy`` or ``pickle`` of model and optimizer together) watches the copied model; one of the model alone is not
    watched.

    Args:
        model: any module; its layers are watched from now on.
        synchronise: gather the activity of all processes where ``torch.distributed`` runs with several, so that they
            keep equal memories, as `DistributedDataParallel` keeps their gradients equal. It costs the exchange of each
            layer's inputs and errors. False: for processes that train networks of their own.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: it has no layer that can be watched.
    """

    def __init__(self, model: nn.Module, synchronise: bool = True):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got a {type(model).__name__}")
        self.synapses: list[Synapses] = []
        self._handles = []
        self._backward, self._first = None, None
        self._model, self._synchronise = weakref.ref(model), synchronise
        by_weight: dict[int, Synapses] = {}
        for name, module in _watchable(model):
            weight, bias = module.weight, module.bias
            synapses = by_weight.get(id(weight))
            if synapses is None:
                synapses = by_weight[id(weight)] = Synapses(name, weight, bias, synchronise=synchronise)
                self.synapses.append(synapses)
            elif synapses.bias is not bias:
                synapses.bias = None  # tied weights with biases of their own: the biases follow the diagonal rule
            self._handles.append(module.register_forward_hook(_Hook(self, synapses, module), with_kwargs=True))
        self.convolutional = any(synapses.weight.dim() == 4 for synapses in self.synapses)
        if not self.synapses:
            raise ValueError(
                f"model ({type(model).__name__}) has no Linear or Conv2d layer that can be watched; use the optimizer "
                "without coincidence"
            )

    def __reduce__(self):
        return type(self), (self._model(), self._synchronise)

    def covered(self) -> dict[str, nn.Parameter]:
        """The parameters that are watched, by name; frozen ones are not."""
        return {
            f"{synapses.name}.{kind}".removeprefix("_orig_mod.").lstrip("."): parameter
            for synapses in self.synapses
            for kind, parameter in zip(("weight", "bias"), synapses.parameters, strict=False)
            if parameter.requires_grad
        }

    def first_of(self, backward: int, synapses: Synapses) -> bool:
        """Whether these are the first synapses whose error arrived in a backward pass."""
        if backward != self._backward:
            self._backward, self._first = backward, synapses
        return self._first is synapses

    def clear(self) -> None:
        """Forget what was recorded since the last step, as clearing the gradients forgets them."""
        for synapses in self.synapses:
            synapses.passes = []

    def remove(self) -> None:
        """Stop watching: take all hooks off the model. A second call does nothing."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.clear()

    def __enter__(self) -> "NMDACoincidence":
        return self

    def __exit__(self, *_) -> None:
        self.remove()


def remove_all(handles: list) -> None:
    """Remove hooks by their handles, each once."""
    while handles:
        handles.pop().remove()


def _watchable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    never_called = {
        id(child)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        for child in module.modules()
    }
    for name, module in model.named_modules():
        if id(module) in never_called or not isinstance(module._parameters.get("weight"), nn.Parameter):
            continue
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            yield name, module


class _Hook:
    """A forward hook that holds no module and no watcher alive, and records nothing of a module's copies."""

    def __init__(self, watcher: NMDACoincidence, synapses: Synapses, module: nn.Module):
        self.watcher, self.synapses, self.module = weakref.ref(watcher), weakref.ref(synapses), weakref.ref(module)

    def __reduce__(self):
        return _no_hook, ()  # a copy of the model, or one read from a file, is not watched until somebody watches it

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
        if module is not self.module() or self.watcher() is None or not module.training:
            return
        if not torch.is_grad_enabled() or not output.requires_grad or not module.weight.requires_grad:
            return
        x = (inputs[0] if inputs else named["input"]).detach()

        def record(gradient: Tensor) -> None:
            if (synapses := self.synapses()) is not None and (watcher := self.watcher()) is not None:
                backward = torch._C._current_graph_task_id()
                synapses.readout = watcher.first_of(backward, synapses)
                synapses.passes.append(Pass(self.module, x, gradient.detach(), backward))

        output.register_hook(record)


def _no_hook() -> Callable[..., None]:
    return _ignore


def _ignore(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor) -> None:
    """What stands in a copied model in place of a hook."""


def _presynaptic(module: nn.Module, x: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return x.reshape(-1, x.shape[-1])
    x = x if x.dim() == 4 else x[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    patches = F.unfold(padded, module.kernel_size, dilation=module.dilation, stride=module.stride)
    return patches.transpose(1, 2).flatten(0, 1)


def _postsynaptic(module: nn.Module, gradient: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return gradient.reshape(-1, gradient.shape[-1])
    gradient = gradient if gradient.dim() == 4 else gradient[None]
    return gradient.flatten(2).transpose(1, 2).flatten(0, 1)


def _examples(module: nn.Module, x: Tensor) -> int:
    alone = 1 if isinstance(module, nn.Linear) else 3  # dimensions of an input without a batch
    return 1 if x.dim() == alone else len(x)
