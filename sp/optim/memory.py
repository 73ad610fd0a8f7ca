"""Memories of the directions in which a layer's inputs lie, or the errors that come back to it.

Each keeps a weighted sum A of ``x x'`` over rows x, in tensors of a dict (a parameter's state), and multiplies a matrix
by ``(I + A / a)^-power``. There are two: the exact one, and a sketch, which costs less time and space. Neither waits
for the device: what is done when follows a count of steps in Python.
"""

import torch
from torch import Tensor

from sp import rules

EARLY = 20  # in the first steps everything is new, and the memory is looked at every fourth
ROWS = 64  # of each batch that are taken in where space and time count; more hardly help
SMALLEST = 1e-30  # in place of zero in a denominator


def zero_unless(finite: Tensor, values: Tensor) -> Tensor:
    """``values`` where the tensor ``finite`` is True, else zeros, in which no NaN is left.

    A CPU's flag is there to be looked at. An accelerator is not waited for: there the bits are masked, since a NaN
    times zero is still NaN.
    """
    if values.device.type == "cpu":
        return values if finite else torch.zeros_like(values)
    integer = {2: torch.int16, 4: torch.int32, 8: torch.int64}[values.element_size()]
    return torch.bitwise_and(values.view(integer), -finite.to(integer)).view(values.dtype)


class Memory:
    """What the two kinds share.

    Args:
        name: prefix of the tensors in the state.
        strength: a > 0; with ``relative`` in units of the trace of A.
        power: how often the inverse is applied, a whole number >= 1.
        refresh_every: steps between two looks at what was taken in.
        decay: share of A that is kept from one step to the next; 1 forgets nothing.
        rows: how many rows of a batch are taken in, in place of all; None: all.
    """

    def __init__(
        self,
        name: str,
        strength: float,
        power: int,
        refresh_every: int,
        decay: float = 1.0,
        relative: bool = False,
        rows: int | None = None,
    ):
        self.name, self.strength, self.power, self.relative = name, strength, power, relative
        self.refresh_every, self.decay, self.rows = refresh_every, decay, rows

    def sample(self, x: Tensor, weight: Tensor, finite: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The rows of x that are taken in at the ``count``-th step, and the same times the weight that they then have.

        Which ones are taken moves from step to step, since batches may be sorted.
        """
        stride = 1 if self.rows is None else max(len(x) // self.rows, 1)
        rows = zero_unless(finite, x[count * 7919 % stride :: stride])
        return rows, rows * (weight * (len(x) / len(rows)))

    def due(self, count: int) -> bool:
        return count % self.refresh_every == 0 or (count < EARLY and count % 4 == 1)


class ExactMemory(Memory):
    """A and the inverse made of it at the last look, (d, d) each."""

    def initialise(self, state: dict[str, Tensor], width: int, **number) -> None:
        state[f"{self.name}_memory"] = torch.zeros(width, width, **number)
        state[f"{self.name}_inverse"] = torch.eye(width, **number)

    def remember(self, state: dict[str, Tensor], x: Tensor, weight: Tensor, finite: Tensor, count: int) -> None:
        """Take in ``weight`` times the sum of ``x x'`` over the rows of x, (N, d), at the ``count``-th step."""
        memory = state[f"{self.name}_memory"]
        rows, weighted = self.sample(x, weight, finite, count)
        if self.decay < 1:
            memory.mul_(torch.where(finite, self.decay, 1.0))
        memory.addmm_(rows.T, weighted)
        if self.due(count):
            inverse = (rules.equaliser if self.relative else rules.novelty)(memory, self.strength)
            state[f"{self.name}_inverse"].copy_(torch.linalg.matrix_power(inverse, self.power))

    def multiply(self, state: dict[str, Tensor], matrix: Tensor) -> tuple[Tensor, Tensor | float]:
        """``matrix (I + A/a)^-power`` for a matrix of shape (n, d), as a matrix and a number to multiply it by."""
        return matrix @ state[f"{self.name}_inverse"], 1.0

    def matrix(self, state: dict[str, Tensor]) -> Tensor:
        """A, (d, d)."""
        return state[f"{self.name}_memory"]

    def diagonal(self, state: dict[str, Tensor]) -> Tensor:
        """How much of each input A holds, (d,)."""
        return state[f"{self.name}_memory"].diagonal()

    def shares(self, state: dict[str, Tensor]) -> Tensor:
        """Diagonal of ``(I + A/a)^-power``: what passes of a change along one input alone, (d,), in (0, 1]."""
        return state[f"{self.name}_inverse"].diagonal()


class SketchedMemory(Memory):
    """A through ``rank`` combinations of its columns: the Nystroem sketch of Tropp et al. 2017, updated as rows arrive.

    With a fixed test matrix T, (d, rank), the sketch is ``Y = A T``, and with ``b = 1 + rho / a``::

        A = Y C^-1 Y' + rho I,  C = T'Y    =>    (I + A/a)^-n = b^-n (I - V'V)
        V = L'F^-1 Y',  F F' = a b C + Y'Y,  L L' = sum of (I - R)^j for j < n,  R = F^-1 Y'Y F^-T

    with triangular F and L. rho spreads over all directions what the trace of A has more than ``Y C^-1 Y'``. T adds
    each input, with a random sign, to one of ``rank`` sums, so that it needs no space. Y is linear in A: it grows and
    decays as A does, and nothing is ever decomposed but (rank, rank) matrices.
    """

    def __init__(self, *arguments, rank: int, **options):
        super().__init__(*arguments, rows=ROWS, **options)
        self.rank = rank

    def initialise(self, state: dict[str, Tensor], width: int, **number) -> None:
        rank, device = min(self.rank, width), number.get("device")
        # Equal networks get equal signs: the global generator is left alone.
        generator = torch.Generator().manual_seed(width)
        signs = torch.randint(2, (width,), generator=generator) * 2 - 1
        state[f"{self.name}_signs"] = signs.to(**number)
        state[f"{self.name}_sums"] = (torch.randperm(width, generator=generator) % rank).to(device)
        state[f"{self.name}_sketch"] = torch.zeros(width, rank, **number)
        state[f"{self.name}_trace"] = torch.zeros((), **number)
        # What the last look made: V, and the power of b.
        state[f"{self.name}_known"] = torch.zeros(rank, width, **number)
        state[f"{self.name}_off"] = torch.ones((), **number)

    def remember(self, state: dict[str, Tensor], x: Tensor, weight: Tensor, finite: Tensor, count: int) -> None:
        """Take in ``weight`` times the sum of ``x x'`` over the rows of x, (N, d), at the ``count``-th step."""
        sketch, trace = state[f"{self.name}_sketch"], state[f"{self.name}_trace"]
        rows, weighted = self.sample(x, weight, finite, count)
        if self.decay < 1:
            kept = torch.where(finite, self.decay, 1.0)
            sketch.mul_(kept)
            trace.mul_(kept)
        sketch.addmm_(weighted.T, self._tested(state, rows))
        trace.add_(torch.dot(weighted.flatten(), rows.flatten()))
        if self.due(count):
            self._look(state)

    def _tested(self, state: dict[str, Tensor], rows: Tensor) -> Tensor:
        """``rows T`` for rows of shape (N, d)."""
        sums = rows.new_zeros(len(rows), state[f"{self.name}_known"].shape[0])
        return sums.index_add_(1, state[f"{self.name}_sums"], rows * state[f"{self.name}_signs"])

    def _shifted(self, state: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Y and C of A with a little more than float32 can resolve added to its diagonal, a root of ``Y C^-1 Y'``, rho.

        They are in double precision, in which the heaviest direction and the lightest can be told apart.
        """
        sketch, sums = state[f"{self.name}_sketch"], state[f"{self.name}_sums"]
        width, rank = sketch.shape
        shift = 4 * torch.finfo(sketch.dtype).eps * sketch.norm() + SMALLEST
        shifted = sketch.scatter_add(1, sums[:, None], (shift * state[f"{self.name}_signs"])[:, None])
        core, shifted = self._tested(state, shifted.T).double(), shifted.double()
        factor, _ = torch.linalg.cholesky_ex(core)
        root = torch.linalg.solve_triangular(factor, shifted.T, upper=False)
        rest = (state[f"{self.name}_trace"] - root.square().sum()).clamp(min=0) / max(width - rank, 1)
        return shifted, core, root, rest if width > rank else torch.zeros_like(rest)

    def _look(self, state: dict[str, Tensor]) -> None:
        shifted, core, _, rest = self._shifted(state)
        strength = self.strength
        if self.relative:
            strength = strength * (state[f"{self.name}_trace"].double() + SMALLEST)
        factor, _ = torch.linalg.cholesky_ex(core * (strength + rest) + shifted.T @ shifted)
        known = torch.linalg.solve_triangular(factor, shifted.T, upper=False)
        identity = torch.eye(len(known), dtype=known.dtype, device=known.device)
        left, powers = identity - known @ known.T, identity
        for _ in range(self.power - 1):
            powers = identity + left @ powers
        factor, _ = torch.linalg.cholesky_ex(powers)
        known, off = factor.T @ known, (1 + rest / strength) ** -self.power
        resolved = known.isfinite().all() & off.isfinite()  # else A has overflowed, and nothing is new any more
        state[f"{self.name}_known"].copy_(torch.where(resolved, known, 0))
        state[f"{self.name}_off"].copy_(torch.where(resolved, off, 0))

    def multiply(self, state: dict[str, Tensor], matrix: Tensor) -> tuple[Tensor, Tensor | float]:
        """``matrix (I + A/a)^-power`` as in `ExactMemory`; it is made in the place of ``matrix``."""
        known = state[f"{self.name}_known"]
        # The number is left out of the matrix, because a pass over a matrix costs more than all that is done here.
        return matrix.addmm_(torch.mm(matrix, known.T), known, alpha=-1), state[f"{self.name}_off"]

    def matrix(self, state: dict[str, Tensor]) -> Tensor:
        """A as the sketch has it, (d, d)."""
        _, _, root, rest = self._shifted(state)
        identity = torch.eye(root.shape[1], dtype=root.dtype, device=root.device)
        return (root.T @ root + rest * identity).to(state[f"{self.name}_sketch"].dtype)

    def diagonal(self, state: dict[str, Tensor]) -> Tensor:
        """How much of each input A holds, (d,)."""
        return self.matrix(state).diagonal()

    def shares(self, state: dict[str, Tensor]) -> Tensor:
        """Diagonal of ``(I + A/a)^-power``: what passes of a change along one input alone, (d,), in (0, 1]."""
        return state[f"{self.name}_off"] * (1 - state[f"{self.name}_known"].square().sum(0))
