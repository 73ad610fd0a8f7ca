"""Memories of the directions in which a layer's inputs lie, or the errors that come back to it.

Each keeps a weighted sum A of ``x x'`` over rows x, as tensors in a dict (a parameter's state), and multiplies a matrix
by ``(I + c A)^-1``. The exact memory keeps A. A sketch costs less time and space. The inputs of an embedding are
one-hot, so A is diagonal and holds counts.
"""

from functools import lru_cache

import torch
from torch import Tensor

from sp import rules

SMALLEST = 1e-30  # instead of zero in a denominator
MOST_SHIFTS = 12  # times that a sketch is shifted further, if it is not positive definite
ROUNDING = 0.5  # rounding that c A may have; the inverse is ``(I + c A)^-1``, so one would be too much


class Memory:
    """Base class of the memories. Each defines

    ``shape(groups, width)``: the shape of what it keeps of A;
    ``initialise(state, groups, width, like)``: create the tensors of an empty memory, for g groups of ``width`` inputs,
    with the dtype and device of ``like``;
    ``remember(state, x, weight, kept)``: keep the share ``kept`` of A, and add ``weight`` times the sum of ``x x'``
    over the rows of x, (g, N, d); for `Counts`, x holds indices, (N,);
    ``look(state)``: recompute the inverse;
    ``multiply(state, matrix)``: ``matrix (I + c A)^-1`` for a matrix of shape (g, n, d);
    ``matrix(state)``: A, (g, d, d); `Counts` has only its diagonal;
    ``shares(state)``: the diagonal of ``(I + c A)^-1``, (g, d): what share of a change along one input passes.

    Args:
        name: name of the tensors in the state.
        strength: c > 0.
        relative: if True, c is in units of the mean of the diagonal of A, and the inverse is scaled to preserve the
            power of what A has seen: directions become more equal, and none of them is lost.
    """

    def __init__(self, name: str, strength: float, relative: bool = False):
        self.name, self.strength, self.relative = name, strength, relative

    def begin(self, state: dict[str, Tensor], groups: int, width: int, like: Tensor) -> bool:
        """Create the memory's tensors if there are none, and return whether it did.

        Raises:
            ValueError: the state holds the tensors of another kind of memory.
        """
        if self.name not in state:
            self.initialise(state, groups, width, like)
            return True
        self.check(state, groups, width)
        return False

    def check(self, state: dict[str, Tensor], groups: int, width: int) -> None:
        """Raise ValueError if the state holds the tensors of another kind of memory."""
        if state[self.name].shape != self.shape(groups, width):
            raise ValueError(
                f"rank must stay as it was in a layer's first step, which made its memory of shape "
                f"{tuple(state[self.name].shape)}, not {self.shape(groups, width)}; nothing was changed in it. "
                "Make a new optimizer with the new rank."
            )

    def diagonal(self, state: dict[str, Tensor]) -> Tensor:
        """The diagonal of A: how much it holds of each input, (g, d)."""
        return self.matrix(state).diagonal(dim1=-2, dim2=-1)


def sampled(x: Tensor, step: int, rows: int) -> tuple[Tensor, float]:
    """At most about ``rows`` rows of x, (g, N, d), different ones in each step; and how many rows each stands for."""
    stride = x.shape[-2] // rows
    if stride <= 1:
        return x, 1.0
    chosen = x[..., step * 7919 % stride :: stride, :]  # a prime, since batches may be sorted
    return chosen, x.shape[-2] / chosen.shape[-2]


def product(one: Tensor, other: Tensor) -> Tensor:
    """The product of two batches of matrices; a single matrix product takes less time than a batch of one."""
    return (one[0] @ other[0])[None] if len(one) == 1 else one @ other


class ExactMemory(Memory):
    """A, and the inverse computed from it at the last look, (g, d, d) each.

    A memory that never forgets grows until new rows are lost to rounding. So at each look, what came since the last one
    is added to a sum in double precision. Errors are forgotten, so they need no such sum. Once even the rounding of the
    products ``x x'`` could reach one in c A, as it soon does for inputs that differ little compared with their length,
    they are computed in double precision: else directions that never occurred could get a negative weight.
    """

    def shape(self, groups: int, width: int) -> tuple[int, ...]:
        return groups, width, width

    def initialise(self, state: dict[str, Tensor], groups: int, width: int, like: Tensor) -> None:
        one = torch.eye(width, dtype=like.dtype, device=like.device)
        state[self.name] = like.new_zeros(groups, width, width)
        state[f"{self.name}_inverse"] = one.expand(groups, -1, -1).clone()
        if not self.relative:
            state[f"{self.name}_before"] = like.new_zeros(groups, width, width, dtype=torch.double)

    def remember(self, state: dict[str, Tensor], x: Tensor, weight: float, kept: float) -> None:
        recent, before = state[self.name], state.get(f"{self.name}_before")
        if kept < 1 and before is not None:
            before.mul_(kept)
        if before is not None and self._needs_double(before):
            recent.mul_(kept)
            x = x.double()
            before.baddbmm_(x.mT, x, alpha=weight)
        elif len(x) == 1:
            recent[0].addmm_(x[0].T, x[0], beta=kept, alpha=weight)
        else:
            recent.baddbmm_(x.mT, x, beta=kept, alpha=weight)

    def _needs_double(self, before: Tensor) -> bool:
        trace = float(before.diagonal(dim1=-2, dim2=-1).sum(-1).max())
        return self.strength * torch.finfo(torch.float32).eps * trace > ROUNDING

    def look(self, state: dict[str, Tensor]) -> None:
        inverse = state[f"{self.name}_inverse"]
        if self.relative:
            inverse.copy_(rules.equaliser(state[self.name], self.strength))
        else:
            memory = state[f"{self.name}_before"].add_(state[self.name])
            state[self.name].zero_()
            inverse.copy_(rules.novelty(memory, self.strength))

    def multiply(self, state: dict[str, Tensor], matrix: Tensor) -> Tensor:
        return product(matrix, state[f"{self.name}_inverse"])

    def matrix(self, state: dict[str, Tensor]) -> Tensor:
        recent = state[self.name]
        return recent if self.relative else (state[f"{self.name}_before"] + recent).to(recent.dtype)

    def shares(self, state: dict[str, Tensor]) -> Tensor:
        return state[f"{self.name}_inverse"].diagonal(dim1=-2, dim2=-1)


class Counts(Memory):
    """A diagonal A: how often each of d inputs occurred, (d,)."""

    def shape(self, groups: int, width: int) -> tuple[int, ...]:
        return (width,)

    def initialise(self, state: dict[str, Tensor], groups: int, width: int, like: Tensor) -> None:
        state[self.name] = like.new_zeros(width)

    def remember(self, state: dict[str, Tensor], x: Tensor, weight: float, kept: float) -> None:
        """Remember rows given as indices, (N,)."""
        memory = state[self.name]
        memory.mul_(kept).index_add_(0, x, memory.new_ones(x.shape), alpha=weight)

    def look(self, state: dict[str, Tensor]) -> None:
        """There is nothing to recompute."""

    def multiply(self, state: dict[str, Tensor], matrix: Tensor) -> Tensor:
        return matrix * self.shares(state)

    def diagonal(self, state: dict[str, Tensor]) -> Tensor:
        return state[self.name][None]

    def shares(self, state: dict[str, Tensor]) -> Tensor:
        return 1 / (1 + self.strength * state[self.name])[None]


class SketchedMemory(Memory):
    """Keeps ``rank`` combinations of A's columns: the Nystroem sketch of Tropp et al. 2017, updated as rows arrive.

    With a fixed test matrix T, (d, rank), the sketch is ``Y = A T``, and with ``b = 1 + c rho``::

        A = Y C^-1 Y' + rho I,  C = T'Y    =>    (I + c A)^-1 = (I - V'V) / b
        V = F^-1 Y',  F F' = (1/c + rho) C + Y'Y

    with a triangular F. rho is the part of A's trace that ``Y C^-1 Y'`` lacks, divided by the number of directions
    that it does not hold, d - rank. T adds each input, with a random sign, to one of ``rank`` sums, so it needs no
    space. Y is linear in A, so it grows and decays as A does, and only (rank, rank) matrices are ever decomposed. There
    is only one group.
    """

    def __init__(self, name: str, strength: float, relative: bool = False, *, rank: int):
        super().__init__(name, strength, relative)
        self.rank = rank

    def shape(self, groups: int, width: int) -> tuple[int, ...]:
        return width, self.rank

    def initialise(self, state: dict[str, Tensor], groups: int, width: int, like: Tensor) -> None:
        state[self.name] = like.new_zeros(width, self.rank)
        state[f"{self.name}_trace"] = like.new_zeros(())
        # Results of the last look: V, and 1 / b.
        state[f"{self.name}_known"] = like.new_zeros(self.rank, width)
        state[f"{self.name}_rest"] = like.new_ones(())

    def remember(self, state: dict[str, Tensor], x: Tensor, weight: float, kept: float) -> None:
        state[self.name].addmm_(x[0].T, self._tested(x[0]), beta=kept, alpha=weight)
        state[f"{self.name}_trace"].mul_(kept).add_(x.square().sum(), alpha=weight)

    def _tested(self, rows: Tensor) -> Tensor:
        """``rows T`` for rows of shape (N, d)."""
        sums, signs = _test_matrix(rows.shape[1], self.rank, rows.device)
        return rows.new_zeros(len(rows), self.rank).index_add_(1, sums, rows * signs.to(rows.dtype))

    def _shifted(self, state: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Y and C, with A's diagonal raised by just over the float32 resolution; a root of ``Y C^-1 Y'``; and rho.

        They are in double precision, which can distinguish the heaviest direction from the lightest.
        """
        sketch = state[self.name]
        width, rank = sketch.shape
        sums, signs = _test_matrix(width, rank, sketch.device)
        shift = 4 * torch.finfo(torch.float32).eps * sketch.double().norm() + SMALLEST
        for _ in range(MOST_SHIFTS):
            shifted = sketch.scatter_add(1, sums[:, None], (shift * signs).to(sketch.dtype)[:, None])
            core, shifted = self._tested(shifted.T).double(), shifted.double()
            factor, failed = torch.linalg.cholesky_ex(core)
            if not failed:
                break
            shift = 4 * shift  # the rounding of many rows adds up
        root = torch.linalg.solve_triangular(factor, shifted.T, upper=False)
        rest = (state[f"{self.name}_trace"] - root.square().sum()).clamp(min=0) / max(width - rank, 1)
        return shifted, core, root, rest

    def look(self, state: dict[str, Tensor]) -> None:
        shifted, core, root, rest = self._shifted(state)
        trace = state[f"{self.name}_trace"].double()
        strength = self.strength * len(shifted) / (trace + SMALLEST) if self.relative else self.strength
        factor, _ = torch.linalg.cholesky_ex(core * (1 / strength + rest) + shifted.T @ shifted)
        known = torch.linalg.solve_triangular(factor, shifted.T, upper=False)
        share = 1 / (1 + strength * rest)
        if self.relative:
            passed = trace - (known @ root.T).square().sum() - rest * known.square().sum()
            share = trace / passed.clamp(min=SMALLEST * trace)
        resolved = known.isfinite().all() & share.isfinite()  # else A has overflowed, and nothing is new any more
        state[f"{self.name}_known"].copy_(torch.where(resolved, known, 0))
        state[f"{self.name}_rest"].copy_(torch.where(resolved, share, 0))

    def multiply(self, state: dict[str, Tensor], matrix: Tensor) -> Tensor:
        known = state[f"{self.name}_known"]
        return (matrix - (matrix @ known.T) @ known) * state[f"{self.name}_rest"]

    def matrix(self, state: dict[str, Tensor]) -> Tensor:
        """A as approximated by the sketch, (1, d, d)."""
        _, _, root, rest = self._shifted(state)
        identity = torch.eye(root.shape[1], dtype=root.dtype, device=root.device)
        return (root.T @ root + rest * identity).to(state[self.name].dtype)[None]

    def shares(self, state: dict[str, Tensor]) -> Tensor:
        return (state[f"{self.name}_rest"] * (1 - state[f"{self.name}_known"].square().sum(0)))[None]


@lru_cache(maxsize=64)
def _test_matrix(width: int, rank: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """T, as the sum to which each input is added and its sign. Equal networks get the same T."""
    generator = torch.Generator().manual_seed(width)
    signs = torch.randint(2, (width,), generator=generator, device="cpu") * 2.0 - 1
    return (torch.randperm(width, generator=generator, device="cpu") % rank).to(device), signs.to(device)
