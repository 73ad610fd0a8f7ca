"""Adding outputs to a layer during training, as when new classes arrive."""

import math
from numbers import Number
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from sp.biology import Synapses
from sp.checks import check_integer, check_number
from sp.optim.coincidence import gain_of, memories
from sp.optim.common import PlasticityOptimizer
from sp.optim.consolidating import ConsolidatingPlasticityOptimizer

# How far below zero a new output starts, in units of the root mean square of the layer's outputs. With an output for
# every class from the start, outputs whose class has not appeared learn to stay below the others. From zero, new
# classes take over old ones (digits, five tasks of two classes, ten seeds: final accuracy .928 from 0, .955 from -2,
# .962 with all outputs from the start).
BELOW = 2.0


@torch.no_grad()
def grow_outputs(layer: nn.Linear, out_features: int, optimizer: Optimizer, bias: float | None = None) -> None:
    """Add outputs to the last layer of a network, in place, between two steps.

    The existing outputs stay as they were. Parameters remain the same objects, so hooks, watchers and counters that
    hold them keep working. The weights of new outputs are zero, so they do not outvote what the network knows.

    The optimizer's state is kept as well. What it holds for each synapse (momentum, eligibility, what has consolidated)
    is zero for the new ones, as before their first step. The step count is that of the layer. In the coincidence form,
    the memory of inputs stays as it is, and the memory of errors gets outputs without errors so far. Steps do not get
    longer, although the gain of a readout is its number of outputs. Other optimizers, such as ``torch.optim.Adam``,
    are supported if everything they hold for a parameter has its shape or is a number.

    The layer's gradients are cleared. If the model was wrapped before (``DistributedDataParallel``,
    ``torch.compile``), it has to be wrapped again, and averaged copies of it (``AveragedModel``) have to be made again.

    Args:
        layer: a layer with or without a bias. Its weight must be a parameter of its own, not computed from others.
        out_features: the new number of outputs; the current number changes nothing.
        optimizer: the optimizer that trains the layer.
        bias: bias of the new outputs, any finite number. None means minus twice the root mean square of the layer's
            outputs in the coincidence form, which measures them; this suits class logits. In other forms, before the
            layer's first step, or if it has no bias, None means 0. Pass 0 if the outputs are not logits.

    Raises:
        TypeError: ``layer`` is not an ``nn.Linear``, ``optimizer`` not an optimizer, or another argument not a number.
        ValueError: fewer outputs than now; a bias for a layer without one; a weight that the optimizer does not train,
            or that is computed, sharded or shared with an embedding; or a state that cannot grow. Nothing was changed.
    """
    _check(layer, out_features, optimizer, bias)
    more = out_features - layer.out_features
    if not more:
        return
    synapses = _synapses(optimizer, layer.weight)
    remembers = synapses is not None and isinstance(optimizer, ConsolidatingPlasticityOptimizer)
    parameters = [p for p in (layer.weight, layer.bias) if p is not None]
    padded = [p for p in parameters if p is not layer.weight or not remembers]
    grown = [(p, _grown_state(p, optimizer.state[p], more)) for p in padded if optimizer.state.get(p)]
    errors = _errors(optimizer, synapses) if remembers and optimizer.state.get(layer.weight) else None
    if bias is None:
        bias = -BELOW * float(optimizer.state[layer.weight]["spread"]) if errors is not None else 0.0
    for p in parameters:
        _grow(p, more)
    if layer.bias is not None:
        layer.bias[layer.out_features :] = bias
    layer.out_features = out_features
    for p, state in grown:
        optimizer.state[p].update(state)
    if errors is not None:
        _remember(optimizer, synapses, F.pad(errors, (0, more, 0, more)))
        # The gain grows with the number of outputs, but the scale is that of a gradient with the old number.
        optimizer.state[layer.weight]["scale"] *= gain_of(out_features, True) / gain_of(out_features - more, True)
    if synapses is not None:
        synapses.clear()


def _check(layer: nn.Linear, out_features: int, optimizer: Optimizer, bias: float | None) -> None:
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"layer must be a torch.nn.Linear, got a {type(layer).__name__}")
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must be a torch.optim.Optimizer, got a {type(optimizer).__name__}")
    check_integer("out_features", out_features, layer.out_features)
    if bias is not None:
        check_number("bias", bias, -math.inf)
        if layer.bias is None:
            raise ValueError(f"bias must be None for a layer without one, got {bias!r}")
    if "weight" not in dict(layer.named_parameters(recurse=False)):
        raise ValueError(
            "layer must have its weight as a parameter, got one whose weight is computed from others: remove the "
            "parametrisation first"
        )
    if isinstance(layer.weight, DTensor):
        raise ValueError("layer must be whole, got one that fully_shard has sharded: grow it before sharding")
    trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, p in layer.named_parameters(recurse=False):
        if id(p) not in trained:
            raise ValueError(
                f"layer must be one that optimizer trains, got one whose {name} is in none of its parameter groups: "
                "pass the optimizer that holds all of the layer"
            )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ValueError(
            "optimizer must hold one state for each parameter, got LBFGS, whose state is that of all together: grow "
            "the layer by hand and make a new optimizer"
        )
    synapses = _synapses(optimizer, layer.weight)
    if synapses is not None and synapses.kind.indices:
        raise ValueError(
            "layer must have a weight of its own, got one that shares it with an embedding: make a larger embedding "
            "and a new optimizer"
        )


def _synapses(optimizer: Optimizer, weight: Tensor) -> Synapses | None:
    """What the optimizer's watcher recorded of a layer, frozen or not; None if it does not watch the layer."""
    watcher = optimizer.coincidence if isinstance(optimizer, PlasticityOptimizer) else None
    return next((s for s in watcher.synapses if s.weight is weight), None) if watcher is not None else None


def _padded(tensor: Tensor, more: int) -> Tensor:
    """A tensor with ``more`` rows of zeros appended."""
    return F.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, more))


def _grown_state(parameter: Tensor, state: dict[str, Any], more: int) -> dict[str, Tensor]:
    """The tensors of a parameter's state that have its shape, with ``more`` rows appended."""
    for name, value in state.items():
        single = value is None or isinstance(value, Number) or (isinstance(value, Tensor) and value.numel() == 1)
        if not single and getattr(value, "shape", None) != parameter.shape:
            raise ValueError(
                f"optimizer holds {name!r} for a parameter of shape {tuple(parameter.shape)}, which neither has that "
                "shape nor is a number, so it cannot be grown; nothing was changed. Grow the layer by hand and "
                "make a new optimizer."
            )
    return {
        name: _padded(value, more) for name, value in state.items() if getattr(value, "shape", None) == parameter.shape
    }


def _grow(parameter: nn.Parameter, more: int) -> None:
    parameter.grad = None
    grown = _padded(parameter.data, more)
    # If the loss of an earlier step is still held, it keeps the parameter's autograd node, which expects gradients of
    # the old shape. A parameter that changes its dtype gets a new node.
    parameter.data = parameter.data.new_empty(0, dtype=torch.float16 if grown.dtype == torch.float32 else torch.float32)
    parameter.data = grown


def _errors(optimizer: ConsolidatingPlasticityOptimizer, synapses: Synapses) -> Tensor:
    """The running mean of products of errors that a layer's memory holds, (out, out); zero if it holds none."""
    _, memory = memories(synapses, optimizer.group_of(synapses.weight))
    _, out, _ = synapses.shape
    state, like = optimizer.state[synapses.weight], synapses.weight.new_zeros(out, out, dtype=torch.double)
    if memory is None or memory.name not in state:
        return like
    memory.begin(state, 1, out, like)  # raises if an option has changed and no longer fits
    return memory.matrix(state)[0].double()


def _remember(optimizer: ConsolidatingPlasticityOptimizer, synapses: Synapses, errors: Tensor) -> None:
    """Recreate a layer's memory of errors so that it holds these, (out, out)."""
    state = optimizer.state[synapses.weight]
    for name in [name for name in state if name.startswith("errors")]:
        del state[name]
    _, memory = memories(synapses, optimizer.group_of(synapses.weight))
    if memory is None:
        return
    like = torch.empty((), dtype=state["squared_length"].dtype, device=errors.device)
    memory.begin(state, 1, len(errors), like)
    if errors.any():
        values, vectors = torch.linalg.eigh(errors)
        rows = (vectors * values.clamp(min=0).sqrt()).mT.to(like.dtype)
        memory.remember(state, rows[None], 1.0, 0.0)
        memory.look(state)
