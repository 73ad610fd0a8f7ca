"""What makes a step fast: pieces that stay in the cache, and shards instead of distributed tensors."""

from collections.abc import Iterator, Sequence
from typing import Any

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


def summed_over_shards(values: Tensor, parameter: Tensor) -> Tensor:
    """Sums over the processes that hold the shards of a parameter; the values themselves where there is only one."""
    if not isinstance(parameter, DTensor):
        return values
    values = values.clone()
    for dimension, placement in enumerate(parameter.placements):
        if placement.is_shard():
            torch.distributed.all_reduce(values, group=parameter.device_mesh.get_group(dimension))
    return values


def alike(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Parameters in lists that the foreach functions can take at once: of one device, one dtype and one sharding."""
    lists: dict[Any, list[Tensor]] = {}
    for p in parameters:
        sharding = (p.device_mesh, p.placements) if isinstance(p, DTensor) else None
        lists.setdefault((p.device, p.dtype, sharding), []).append(p)
    return list(lists.values())


def blocks(*lists: Sequence[Tensor], scratch: int) -> Iterator[tuple[list[int], list[list[Tensor]]]]:
    """Cut lists of tensors of equal shapes into blocks, one after another, along the tensors' first dimension.

    A rule is a dozen elementwise operations. Over whole tensors each of them reads and writes memory; over a block the
    intermediate results never leave the cache, and all blocks write theirs in the same place. An accelerator, where a
    kernel costs more to start than it saves, gets everything as one block.

    Args:
        lists: of equal length; the tensors at one place have one shape and lie on one device.
        scratch: how many lists of tensors to write intermediate results to are wanted, of the last list's dtype.

    Yields:
        For each piece in the block which place it is from; and the pieces of each list, followed by the scratch ones.
    """
    cut: list[list[tuple[int, tuple[Tensor, ...]]]] = [[]]
    sizes = [0]
    for place, tensors in enumerate(zip(*lists, strict=True)):
        for pieces in _pieces(tensors):
            count = pieces[0].numel()
            if sizes[-1] and sizes[-1] + count > BLOCK and pieces[0].device.type == "cpu":
                cut.append([])
                sizes.append(0)
            cut[-1].append((place, pieces))
            sizes[-1] += count
    rooms = [lists[-1][0].new_empty(max(sizes)) for _ in range(scratch)]
    for block, size in zip(cut, sizes, strict=True):
        places, pieces = zip(*block, strict=True)
        counts = [first.numel() for first, *_ in pieces]
        results = [
            [part.view(first.shape) for part, (first, *_) in zip(room[:size].split(counts), pieces, strict=True)]
            for room in rooms
        ]
        yield list(places), [*map(list, zip(*pieces, strict=True)), *results]


def _pieces(tensors: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, ...]]:
    first = tensors[0]
    if first.device.type != "cpu" or first.numel() <= BLOCK:
        return iter((tensors,))
    rows = max(1, BLOCK * len(first) // first.numel())
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)
