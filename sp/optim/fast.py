"""What makes a step fast: pieces that stay in the cache, a compiled form, and shards instead of distributed tensors."""

import types
import warnings
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

BLOCK = 131_072  # elements: so many of weights, gradients, state and intermediate results fit a CPU's cache


def local(tensor: Tensor) -> Tensor:
    """What of a tensor lies in this process: itself, or its shard where ``fully_shard`` has distributed it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered from the other processes where ``fully_shard`` has distributed it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def summed_over_shards(value: Tensor, parameter: Tensor) -> Tensor:
    """The sum of a number over the processes that hold the shards of a parameter; itself where there is only one."""
    if not isinstance(parameter, DTensor):
        return value
    value = value.clone()
    for dimension, placement in enumerate(parameter.placements):
        if placement.is_shard():
            torch.distributed.all_reduce(value, group=parameter.device_mesh.get_group(dimension))
    return value


def blocks(lists: Sequence[Sequence[Tensor]]) -> Iterator[tuple[list[int], list[list[Tensor]]]]:
    """Cut lists of tensors of equal shapes into blocks, one after another, along the tensors' first dimension.

    A rule is a dozen elementwise operations. Over whole tensors each of them reads and writes memory; over a block the
    intermediate results never leave the cache, and no large ones are ever there. An accelerator, where a kernel costs
    more to start than it saves, gets everything as one block.

    Args:
        lists: of equal length; the tensors at one place have one shape and lie on one device.

    Yields:
        For each piece in the block which place it is from, and the pieces of each list.
    """
    places: list[int] = []
    block: list[list[Tensor]] = [[] for _ in lists]
    size = 0
    for place, tensors in enumerate(zip(*lists, strict=True)):
        for pieces in _pieces(tensors):
            if size and size + pieces[0].numel() > BLOCK and pieces[0].device.type == "cpu":
                yield places, block
                places, block, size = [], [[] for _ in lists], 0
            places.append(place)
            size += pieces[0].numel()
            for members, piece in zip(block, pieces, strict=True):
                members.append(piece)
    if places:
        yield places, block


def _pieces(tensors: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    first = tensors[0]
    if first.device.type != "cpu" or first.numel() <= BLOCK:
        return iter((tensors,))
    rows = max(1, BLOCK * len(first) // first.numel())
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)


class Compiled:
    """A function under ``torch.compile(fullgraph=True)``, or as it is where compiling turns out to be impossible.

    Compiling takes some 20 s the first time on a machine, and a few from its cache, at the first call and whenever
    other shapes come.
    """

    def __init__(self, function: Callable):
        # Dynamo counts how often a piece of code was compiled and gives up at a limit: each optimizer gets a copy.
        code, name = function.__code__.replace(), function.__name__
        own = types.FunctionType(code, function.__globals__, name, function.__defaults__)
        own.__kwdefaults__ = function.__kwdefaults__
        self.plain, self.call = function, torch.compile(own, fullgraph=True, dynamic=False)

    def __call__(self, *arguments, **options):
        if self.call is self.plain:
            return self.plain(*arguments, **options)
        try:
            return self.call(*arguments, **options)
        except (torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit) as error:
            # Raised before the compiled code ran, so nothing was changed yet.
            reason = " ".join(str(error).split())[:300]
            warnings.warn(
                "compile=True: this step cannot be compiled here, and the optimizer goes on without, more slowly and "
                "with the same results. On a CPU a C++ compiler is needed (Debian: apt-get install g++). The reason: "
                f"{type(error).__name__}: {reason}",
                RuntimeWarning,
                stacklevel=2,
            )
            self.call = self.plain
            return self.plain(*arguments, **options)
