"""What makes a step fast: pieces that stay in the cache, and shards instead of distributed tensors."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

BLOCK = 262_144  # elements: so many of weights, gradients, state and intermediate results fit a CPU's cache


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


class Blocks:
    """Cuts lists of tensors of equal shapes into blocks, one after another, along the tensors' first dimension.

    A rule is a dozen elementwise operations. Over whole tensors each of them reads and writes memory; over a block the
    intermediate results never leave the cache, and all blocks write theirs in the same place. An accelerator, where a
    kernel costs more to start than it saves, gets everything as one block. To cut costs as much time as the arithmetic
    of a small network, so what lies where it lay before is not cut again.

    Args:
        scratch: how many tensors to write intermediate results to come with each piece.
    """

    def __init__(self, scratch: int):
        self.scratch = scratch
        self._rooms: dict[Any, list[Tensor]] = {}
        self._kept: dict[Any, tuple[list[int], list[_Block]]] = {}

    def cut(
        self, key: Any, gradients: Sequence[Tensor], *lists: Sequence[Tensor]
    ) -> Iterator[tuple[Sequence[int], list[list[Tensor]], list[list[Tensor]]]]:
        """Blocks of tensors.

        Args:
            key: what the lists are known by from one step to the next.
            gradients: may lie elsewhere in each step.
            lists: as long as ``gradients``; tensors at one place have one shape and lie on one device. Scratch tensors
                have the dtype of the last list.

        Yields:
            For each piece in the block which place it is from; the pieces of ``gradients`` and of each list, followed
            by the scratch ones; and the pieces of all but ``gradients`` and the first list once more, where they lie
            side by side (`side_by_side`) joined to one.
        """
        if gradients[0].device.type != "cpu":
            results = [[torch.empty_like(t) for t in lists[-1]] for _ in range(self.scratch)]
            pieces = [*map(list, lists), *results]
            yield range(len(gradients)), [list(gradients), *pieces], pieces[1:]
            return
        where = [t.data_ptr() for tensors in lists for t in tensors]
        known, kept = self._kept.get(key, (None, []))
        if known != where:
            kept = self._cut(lists)
            self._kept[key] = where, kept
        for places, rows, pieces, joined in kept:
            parts = [gradients[i] if r is None else gradients[i][r] for i, r in zip(places, rows, strict=True)]
            yield places, [parts, *pieces], joined

    def _cut(self, lists: Sequence[Sequence[Tensor]]) -> list["_Block"]:
        blocks: list[list[tuple[int, slice | None]]] = []
        room = 0
        for place, tensor in enumerate(lists[0]):
            for rows, count in _rows(tensor):
                if count > room:
                    blocks.append([])
                    room = BLOCK
                blocks[-1].append((place, rows))
                room -= count
        return [self._block(block, lists) for block in blocks]

    def _block(self, block: list[tuple[int, slice | None]], lists: Sequence[Sequence[Tensor]]) -> "_Block":
        pieces = [[ts[place] if rows is None else ts[place][rows] for place, rows in block] for ts in lists]
        counts = [piece.numel() for piece in pieces[-1]]
        dtype = pieces[-1][0].dtype
        rooms = self._rooms.get(dtype, [])
        if not rooms or len(rooms[0]) < sum(counts):
            rooms = self._rooms[dtype] = [torch.empty(sum(counts), dtype=dtype) for _ in range(self.scratch)]
        for room in rooms:
            parts = room[: sum(counts)].split(counts)
            pieces.append([part.view(piece.shape) for part, piece in zip(parts, pieces[0], strict=True)])
        places, rows = zip(*block, strict=True)
        return places, rows, pieces, _joined(pieces[1:])


_Block = tuple[tuple[int, ...], tuple[slice | None, ...], list[list[Tensor]], list[list[Tensor]]]


def side_by_side(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Zeros, shaped like each of some parameters that are alike, one after another in one piece of memory.

    What is done to all of them alike is then one operation: on small tensors every single one costs more to call than
    to do. Parameters that do not lie in memory in the order of their elements, or are sharded, get tensors apart.
    """
    if not all(p.is_contiguous() and not isinstance(p, DTensor) for p in parameters):
        return [torch.zeros_like(p, memory_format=torch.preserve_format) for p in parameters]
    counts = [p.numel() for p in parameters]
    parts = parameters[0].new_zeros(sum(counts)).split(counts)
    return [part.view(p.shape) for part, p in zip(parts, parameters, strict=True)]


def _joined(lists: list[list[Tensor]]) -> list[list[Tensor]]:
    """Each list as one tensor where in every list the tensors lie side by side; the lists themselves elsewhere."""
    for tensors in lists:
        end = tensors[0].data_ptr()
        for t in tensors:
            if t.data_ptr() != end or not t.is_contiguous():
                return lists
            end += t.nbytes
        if tensors[-1].untyped_storage().data_ptr() != tensors[0].untyped_storage().data_ptr():
            return lists
    count = sum(t.numel() for t in lists[0])
    return [[ts[0].as_strided((count,), (1,))] for ts in lists]


def _rows(tensor: Tensor) -> Iterator[tuple[slice | None, int]]:
    """Ranges of rows that a tensor is cut into (None: it stays whole), each with the number of its elements."""
    if tensor.numel() <= BLOCK:
        yield None, tensor.numel()
        return
    width = tensor.numel() // len(tensor)
    step = max(1, BLOCK // width)
    for start in range(0, len(tensor), step):
        yield slice(start, start + step), min(step, len(tensor) - start) * width
