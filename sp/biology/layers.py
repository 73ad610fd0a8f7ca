"""Kinds of layers that can be watched: which matrix they hold, and what enters and leaves it, row by row.

Every kind contains a linear map, ``y = W x`` for many rows x. A kind defines where W lies in the layer's parameters,
and which rows x and which errors at y make up one pass of the layer.
"""

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)
TYPES = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED, nn.Embedding, *RECURRENT, nn.MultiheadAttention)


Kept = tuple[Any, tuple[Tensor, ...]]  # as returned by `Kind.keep`
Sides = tuple[Tensor, Tensor | None, int]  # as returned by `Kind.sides`


class Kind:
    """A linear layer, and the base class of all other kinds.

    Args:
        alone: number of dimensions of an unbatched input.
        channels: the dimension of an output that has one entry for each row of the matrix.
    """

    indices = False  # whether rows are indices
    errors = True  # whether errors can be seen
    places = False  # whether the rows of an example come from different places, so that their errors are less alike
    batched = False  # whether the layer itself knows which axis of its input is the batch
    axes = 1  # number of leading axes of `sides`, which together count the rows

    def __init__(self, groups: int = 1, alone: int = 1, channels: int = -1):
        self.groups, self.alone, self.channels = groups, alone, channels

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight, or its gradient, as one matrix per group: (g, out, d)."""
        return weight.reshape(self.groups, len(weight) // self.groups, -1)

    def unmatrix(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `matrix`."""
        return matrix.reshape(shape)

    def keep(self, module: nn.Module, inputs: tuple, named: dict[str, Any], output: Any) -> Kept:
        """What to keep from a forward pass, and the tensors to watch until one of them gets a gradient."""
        return (inputs[0] if inputs else named["input"]).detach(), (output,)

    def sides(self, module: nn.Module, kept: Any, errors: Tensor) -> Sides:
        """Inputs and errors of a pass, (rows ..., C ...), and its batch size; from what was kept of it and the gradient
        that came back. Errors are None if they cannot be seen."""
        return kept.reshape(-1, kept.shape[-1]), errors.reshape(-1, errors.shape[-1]), self.examples(kept)

    def rows(self, side: Tensor, chosen: Tensor | None = None) -> Tensor:
        """All rows of one of the `sides`, or those with the chosen numbers, by group: (g, N, C / g ...)."""
        if chosen is None:
            rows = side.flatten(0, self.axes - 1)
        else:
            rows = side[torch.unravel_index(chosen, side.shape[: self.axes])]
        return rows.flatten(1).unflatten(1, (self.groups, -1)).transpose(0, 1)

    def count(self, errors: Tensor) -> int:
        """Number of rows in a gradient of the layer's outputs."""
        return errors.numel() // errors.shape[self.channels] if errors.numel() else 0

    def examples(self, x: Tensor, axis: int = 0) -> int:
        """Batch size: the length of an axis of the input, or 1 if the input is unbatched."""
        return 1 if x.dim() <= self.alone else x.shape[axis]


class Convolution(Kind):
    """``nn.Conv1d`` to ``nn.Conv3d``, grouped or not: one row per patch."""

    places = True

    def __init__(self, module: nn.Module):
        alone = module.weight.dim() - 1
        super().__init__(module.groups, alone, -alone)
        self.axes = alone

    def sides(self, module: nn.Module, kept: Any, errors: Tensor) -> Sides:
        x, d = (kept, errors) if kept.dim() > self.alone else (kept[None], errors[None])
        return *self.patched(module, x, d), len(x)

    def patched(self, module: nn.Module, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and errors of a batch, (B, places ..., C) each; the side made of patches has the kernel after C."""
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        padded = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
        return _patches(padded, module), d.movedim(1, -1)


class TransposedConvolution(Convolution):
    """``nn.ConvTranspose1d`` to ``3d``: each position of the input adds a patch to the output."""

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.reshape(self.groups, len(weight) // self.groups, -1).mT

    def unmatrix(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        return matrix.mT.reshape(shape)

    def patched(self, module: nn.Module, x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
        room = [reach * (size - 1) for reach, size in zip(module.dilation, module.kernel_size, strict=True)]
        margins = [(pad, pad + more) for pad, more in zip(module.padding, room, strict=True)]
        patches = _patches(F.pad(d, [margin for pair in reversed(margins) for margin in pair]), module)
        for axis, size in enumerate(x.shape[2:], 1):
            patches = patches.narrow(axis, 0, size)
        return x.movedim(1, -1), patches


class Lookup(Kind):
    """``nn.Embedding``: an input is one of many, so its rows are indices."""

    indices = True

    def __init__(self):
        super().__init__(alone=0)

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.T[None]

    def unmatrix(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        return matrix[0].T

    def sides(self, module: nn.Module, kept: Any, errors: Tensor) -> Sides:
        return kept.reshape(-1), errors.reshape(-1, errors.shape[-1]), self.examples(kept)

    def rows(self, side: Tensor, chosen: Tensor | None = None) -> Tensor:
        return side if side.dim() == 1 else super().rows(side, chosen)


class Recurrent(Kind):
    """One matrix of a single-layer ``nn.RNN``, ``nn.GRU`` or ``nn.LSTM``: its inputs can be seen, its errors cannot.

    Args:
        hidden: whether the matrix multiplies the previous state instead of the inputs.
        backwards: whether it belongs to the direction from the end to the beginning.
    """

    errors = False
    batched = True

    def __init__(self, hidden: bool, backwards: bool):
        super().__init__(alone=2)
        self.hidden, self.backwards = hidden, backwards

    def keep(self, module: nn.Module, inputs: tuple, named: dict[str, Any], output: Any) -> Kept:
        x = inputs[0] if inputs else named["input"]
        first = inputs[1] if len(inputs) > 1 else named.get("hx")
        first = first[0] if isinstance(first, tuple) else first
        packed = isinstance(x, nn.utils.rnn.PackedSequence)
        # A network that gives one output for a whole sequence may use only the last state.
        last = output[1] if isinstance(output[1], tuple) else (output[1],)
        if self.hidden:  # a copy of the states, since the network may change them in place
            x = output[0]._replace(data=output[0].data.detach().clone()) if packed else output[0].detach().clone()
        return (x, first), (output[0].data if packed else output[0], *last)

    def sides(self, module: nn.Module, kept: Any, errors: Tensor) -> Sides:
        seen, first = kept
        lengths = None
        if isinstance(seen, nn.utils.rnn.PackedSequence):
            seen, lengths = nn.utils.rnn.pad_packed_sequence(seen, batch_first=True)
        batch = 0 if module.batch_first or lengths is not None else 1
        x = seen.detach()[None] if seen.dim() == 2 else seen.detach().movedim(batch, 0)
        if self.hidden:
            y, width = x, module.hidden_size
            y = y[..., width:] if self.backwards else y[..., :width]
            start = y.new_zeros(len(y), 1, width)
            if first is not None:
                start = first.detach()[int(self.backwards)].reshape(start.shape)
            x = torch.cat([y[:, 1:], start], 1) if self.backwards else torch.cat([start, y[:, :-1]], 1)
            if self.backwards and lengths is not None:
                x[torch.arange(len(x), device="cpu"), lengths - 1] = start[:, 0]
        if lengths is None:
            return x.reshape(-1, x.shape[-1]), None, len(x)
        there = torch.arange(x.shape[1], device="cpu") < lengths[:, None]  # not padding
        return x[there.to(x.device)], None, len(x)


class AttentionInput(Kind):
    """The projections of queries, keys and values in ``nn.MultiheadAttention``: their errors cannot be seen.

    Args:
        part: 0, 1 or 2 for one of them if each has its own weight; None if they share one weight.
    """

    errors = False
    batched = True

    def __init__(self, part: int | None):
        super().__init__(alone=2)
        self.part = part

    def keep(self, module: nn.Module, inputs: tuple, named: dict[str, Any], output: Any) -> Kept:
        given = [inputs[i] if i < len(inputs) else named[name] for i, name in enumerate(("query", "key", "value"))]
        if self.part is not None:
            given = [given[self.part]]
        elif given[1] is given[0] and given[2] is given[0]:
            given = given[:1]
        return given, output[:1]

    def sides(self, module: nn.Module, kept: Any, errors: Tensor) -> Sides:
        x = torch.cat([t.detach().reshape(-1, t.shape[-1]) for t in kept])
        return x, None, self.examples(kept[0], 0 if module.batch_first else 1)


class AttentionOutput(Kind):
    """The output projection of ``nn.MultiheadAttention``, whose input is recomputed without dropout."""

    batched = True

    def __init__(self):
        super().__init__(alone=2)

    def keep(self, module: nn.Module, inputs: tuple, named: dict[str, Any], output: Any) -> Kept:
        kind = output[0].device.type
        cast = torch.autocast(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        return (inputs, named, cast), output[:1]

    def sides(self, module: nn.Module, kept: Any, errors: Tensor) -> Sides:
        inputs, named, cast = kept
        again = copy.copy(module)  # shallow: shares the module's parameters
        vars(again).pop("forward", None)  # would be bound to the original module
        again._forward_hooks, again._forward_pre_hooks = {}, {}  # they have run in the pass itself
        again.dropout = 0.0  # dropout would draw random numbers, and different ones from the pass itself
        width = module.embed_dim
        identity = {"out_proj.weight": torch.eye(width, dtype=errors.dtype, device=errors.device)}
        if module.out_proj.bias is not None:
            identity["out_proj.bias"] = errors.new_zeros(width)
        # With the identity as the projection, the output equals the projection's input.
        with cast:
            x = torch.func.functional_call(again, identity, inputs, named)[0]
        examples = self.examples(x, 0 if module.batch_first else 1)
        return x.reshape(-1, width), errors.reshape(-1, width), examples


def _patches(x: Tensor, module: nn.Module) -> Tensor:
    """All windows of a convolution over padded images (B, C, ...), as (B, places ..., C, kernel ...)."""
    windows = zip(module.kernel_size, module.stride, module.dilation, strict=True)
    for axis, (length, step, spread) in enumerate(windows, 2):
        x = x.unfold(axis, spread * (length - 1) + 1, step)[..., ::spread]
    return x.movedim(1, x.dim() // 2)


class Watchable(NamedTuple):
    """A matrix of a module: the weight's name, the module whose passes are recorded, kind, weight and bias."""

    name: str
    module: nn.Module
    kind: Kind
    weight: nn.Parameter
    bias: nn.Parameter | None


def watchable(model: nn.Module) -> Iterator[Watchable]:
    """Every matrix of a model whose inputs can be seen."""
    inside = {id(part) for m in model.modules() if isinstance(m, nn.MultiheadAttention) for part in m.children()}
    for name, module in model.named_modules():
        for kind, weight, bias in _kinds(module) if id(module) not in inside else ():
            parameter = _parameter(module, weight)
            if parameter is not None:
                yield Watchable(f"{name}.{weight}".lstrip("."), module, kind, parameter, _parameter(module, bias))


def _type_of(module: nn.Module) -> type[nn.Module] | None:
    """Which of the types that can be watched a module is. A custom forward may pad, join or average its inputs."""
    return next((kind for kind in TYPES if isinstance(module, kind) and type(module).forward is kind.forward), None)


def _kinds(module: nn.Module) -> list[tuple[Kind, str, str | None]]:
    """Of each matrix of a module: its kind, and the names of weight and bias."""
    found = _type_of(module)
    if found is nn.MultiheadAttention:
        return _attention(module)
    if found in RECURRENT:
        return _recurrent(module)
    if found is nn.Linear:
        return [(Kind(), "weight", "bias")]
    if found in TRANSPOSED:
        return [(TransposedConvolution(module), "weight", None)]
    if found is nn.Embedding:
        return [(Lookup(), "weight", None)]
    return [(Convolution(module), "weight", "bias")] if found else []


def _recurrent(module: nn.RNNBase) -> list[tuple[Kind, str, str | None]]:
    # What passes between stacked layers, and a projected state, cannot be seen from outside.
    if module.num_layers > 1 or module.proj_size:
        return []
    directions = ("", "_reverse") if module.bidirectional else ("",)
    return [
        (Recurrent(matrix == "hh", bool(way)), f"weight_{matrix}_l0{way}", f"bias_{matrix}_l0{way}")
        for way in directions
        for matrix in ("ih", "hh")
    ]


def _attention(module: nn.MultiheadAttention) -> list[tuple[Kind, str, str | None]]:
    output = (AttentionOutput(), "out_proj.weight", "out_proj.bias")
    if module.in_proj_weight is not None:
        return [(AttentionInput(None), "in_proj_weight", "in_proj_bias"), output]
    parts = [(AttentionInput(i), f"{part}_proj_weight", None) for i, part in enumerate("qkv")]
    return [*parts, output]


def _parameter(module: nn.Module, name: str | None) -> nn.Parameter | None:
    """The parameter of that name. If that is computed from others (weight normalisation, a parametrisation), the one
    that gives it its shape."""
    if name is None:
        return None
    owner = module.get_submodule(name.rpartition(".")[0])
    last = name.rpartition(".")[2]
    if isinstance(owner._parameters.get(last), nn.Parameter):
        return owner._parameters[last]
    if parametrize.is_parametrized(owner, last):
        held = owner.parametrizations[last].parameters(recurse=False)
    else:
        held = (p for given, p in owner._parameters.items() if given.startswith(f"{last}_") and p is not None)
    value = getattr(owner, last, None)
    alike = [p for p in held if isinstance(value, Tensor) and p.shape == value.shape]
    return alike[0] if len(alike) == 1 else None
