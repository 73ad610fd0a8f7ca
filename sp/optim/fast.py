"""Tools for fast steps: blocks that stay in the cache, and shards instead of distributed tensors."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

BLOCK = 262_144  # elements; weights, gradients, state and intermediate results of this size fit in a CPU's cache


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor in this process: all of it, or its shard if ``fully_shard`` has distributed it."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered from the other processes if ``fully_shard`` has distributed it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def summed_over_shards(values: Tensor, parameter: Tensor) -> Tensor:
    """Sum values over the processes that hold a parameter's shards; without shards, the values are unchanged."""
    if not isinstance(parameter, DTensor):
        return values
    values = values.clone()
    for dimension, placement in enumerate(parameter.placements):
        if placement.is_shard():
            torch.distributed.all_reduce(values, group=parameter.device_mesh.get_group(dimension))
    return values


def alike(parameters: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group parameters for the foreach functions: each list has one device, one dtype and one sharding."""
    lists: dict[Any, list[Tensor]] = {}
    for p in parameters:
        sharding = (p.device_mesh, p.placements) if isinstance(p, DTensor) else None
        lists.setdefault((p.device, p.dtype, sharding), []).append(p)
    return list(lists.values())


class Blocks:
    """Cuts lists of tensors of equal shapes into blocks, one after another, along the tensors' first dimension.

    A rule is a dozen elementwise operations. Over whole tensors, each of them reads and writes memory. Over a block,
    the intermediate results never leave the cache, and all blocks write them to the same place. On an accelerator, a
    kernel costs more to start than it saves, so everything is one block. In a small network, cutting takes as much time
    as the arithmetic, so tensors that have not moved in memory are not cut again.

    Args:
        scratch: number of tensors for intermediate results that come with each piece.
    """

    def __init__(self, scratch: int):
        self.scratch = scratch
        self._rooms: dict[torch.dtype, list[Tensor]] = {}
        self._kept: dict[Any, tuple[list[int], list[tuple]]] = {}

    def cut(self, key: Any, gradients: Sequence[Tensor], *lists: Sequence[Tensor]) -> Iterator[tuple]:
        """Blocks of tensors.

        Args:
            key: identifies the lists from one step to the next.
            gradients: may be elsewhere in memory in each step.
            lists: lists as long as ``gradients``. Tensors at the same index have the same shape and device. Scratch
                tensors have the dtype of the last list.

        Yields:
            For each block, the index that each piece is from, and the pieces of ``gradients`` and of each list,
            followed by the scratch tensors.
        """
        if gradients[0].device.type != "cpu":
            results = [[torch.empty_like(t) for t in lists[-1]] for _ in range(self.scratch)]
            yield range(len(gradients)), [gradients, *lists, *results]
            return
        where = [t.data_ptr() for tensors in lists for t in tensors]
        if key not in self._kept or self._kept[key][0] != where:
            self._kept[key] = where, [self._block(block, lists) for block in _blocks(lists[0])]
        for places, rows, pieces in self._kept[key][1]:
            parts = [gradients[i] if r is None else gradients[i][r] for i, r in zip(places, rows, strict=True)]
            yield places, [parts, *pieces]

    def _block(self, block: list[tuple[int, slice | None]], lists: Sequence[Sequence[Tensor]]) -> tuple:
        """The indices that a block is from, their rows, and the pieces of the lists and of the scratch tensors."""
        pieces = [[ts[place] if rows is None else ts[place][rows] for place, rows in block] for ts in lists]
        counts = [piece.numel() for piece in pieces[-1]]
        dtype = pieces[-1][0].dtype
        rooms = self._rooms.get(dtype, [])
        if not rooms or len(rooms[0]) < sum(counts):
            rooms = self._rooms[dtype] = [
                torch.empty(sum(counts), dtype=dtype, device="cpu") for _ in range(self.scratch)
            ]
        for room in rooms:
            parts = room[: sum(counts)].split(counts)
            pieces.append([part.view(piece.shape) for part, piece in zip(parts, pieces[0], strict=True)])
        return *zip(*block, strict=True), pieces


def _blocks(tensors: Sequence[Tensor]) -> list[list[tuple[int, slice | None]]]:
    """For each block, the index and the rows of each piece (None means all rows)."""
    blocks: list[list[tuple[int, slice | None]]] = [[]]
    size = 0
    for place, tensor in enumerate(tensors):
        if tensor.numel() <= BLOCK:
            pieces = [(None, tensor.numel())]
        else:
            step = max(1, BLOCK * len(tensor) // tensor.numel())
            parts = [slice(start, start + step) for start in range(0, len(tensor), step)]
            pieces = [(rows, tensor[rows].numel()) for rows in parts]
        for rows, count in pieces:
            if size and size + count > BLOCK:
                blocks.append([])
                size = 0
            blocks[-1].append((place, rows))
            size += count
    return blocks
