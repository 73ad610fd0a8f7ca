"""Memories of the directions in which a layer's inputs lie, or the errors that come back to it.

Each keeps a weighted sum A of ``x x'`` over rows x, in tensors of a dict (a parameter's state), and multiplies a matrix
by ``(I + A / a)^-power``. There are two: the exact one, and a sketch of the heaviest directions, which costs less time
and space. Neither waits for the device: what is done when follows a count of steps in Python.
"""

import torch
from torch import Tensor

from sp import rules

EARLY = 20  # in the first steps everything is new, and the memory is looked at every fourth
ROWS = 5  # of each batch that a sketch takes in; fewer cost accuracy, more hardly help
SMALLEST = 1e-30  # in place of zero in a denominator


class Memory:
    """What the two kinds share.

    Args:
        name: prefix of the tensors in the state.
        strength: a > 0; with ``relative`` in units of the trace of A.
        power: how often the inverse is applied, a whole number >= 1.
        refresh_every: steps between two looks at what was taken in.
        decay: share of A that is kept from one step to the next; 1 forgets nothing.
    """

    def __init__(
        self, name: str, strength: float, power: int, refresh_every: int, decay: float = 1.0, relative: bool = False
    ):
        self.name, self.strength, self.power, self.relative = name, strength, power, relative
        self.refresh_every, self.decay = refresh_every, decay

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
        rows = torch.where(finite, x, 0) * torch.where(finite, weight, 0).sqrt()
        if self.decay < 1:
            memory.mul_(torch.where(finite, self.decay, 1.0))
        memory.addmm_(rows.T, rows)
        if self.due(count):
            inverse = (rules.equaliser if self.relative else rules.novelty)(memory, self.strength)
            state[f"{self.name}_inverse"].copy_(torch.linalg.matrix_power(inverse, self.power))

    def multiply(self, state: dict[str, Tensor], matrix: Tensor) -> Tensor:
        """``matrix (I + A/a)^-power`` for a matrix of shape (n, d)."""
        return matrix @ state[f"{self.name}_inverse"]

    def diagonal(self, state: dict[str, Tensor]) -> Tensor:
        """How much of each input A holds, (d,)."""
        return state[f"{self.name}_memory"].diagonal()

    def shares(self, state: dict[str, Tensor]) -> Tensor:
        """Diagonal of ``(I + A/a)^-power``: what passes of a change along one input alone, (d,), in (0, 1]."""
        return state[f"{self.name}_inverse"].diagonal()


class SketchedMemory(Memory):
    """A as ``rank`` directions V with the excess e of their weight over that of all others, rho::

        A = V' diag(e) V + rho I,   V V' = I      =>      (I + A/a)^-n = b I - V' diag(b - (1 + (rho + e)/a)^-n) V

    with ``b = (1 + rho/a)^-n``. A few rows of each batch are buffered, and merged at each look: of the old directions
    and the buffered rows together the ``rank`` heaviest stay, and the weight of the others goes to rho, as in frequent
    directions (Ghashami et al. 2016). The mean of all rows is kept exactly; the sampled rows are the scatter around it.
    """

    def __init__(self, *arguments, rank: int, **options):
        super().__init__(*arguments, **options)
        self.rank = rank

    def initialise(self, state: dict[str, Tensor], width: int, **number) -> None:
        rank = min(self.rank, width)
        state[f"{self.name}_directions"] = torch.zeros(rank, width, **number)
        state[f"{self.name}_excess"] = torch.zeros(rank, **number)
        state[f"{self.name}_remainder"] = torch.zeros((), **number)
        # Eigenvalues of the inverse since the last look: off the directions, and along them less that.
        state[f"{self.name}_off"] = torch.ones((), **number)
        state[f"{self.name}_along"] = torch.zeros(rank, **number)
        # The last row is the sum of all rows, sampled or not, since the last look.
        state[f"{self.name}_buffer"] = torch.zeros(ROWS * self.refresh_every + 1, width, **number)
        state[f"{self.name}_weights"] = torch.zeros(ROWS * self.refresh_every, **number)

    def remember(self, state: dict[str, Tensor], x: Tensor, weight: Tensor, finite: Tensor, count: int) -> None:
        """Take in ``weight`` times the sum of ``x x'`` over the rows of x, (N, d), at the ``count``-th step."""
        buffer, weights = state[f"{self.name}_buffer"], state[f"{self.name}_weights"]
        slots = len(weights)
        size = slots // 4 if count < EARLY else ROWS
        place = ((count - 1) * size) % (slots - slots % size)
        keep = min(len(x), size)
        stride = len(x) // keep
        # Which rows are taken moves from step to step, since batches may be sorted.
        rows = x[count * 7919 % stride :: stride][:keep]
        row_weight = torch.where(finite, weight * (len(x) / keep), 0).sqrt()
        weights[place : place + keep] = row_weight
        buffer[place : place + keep] = torch.where(finite, rows, 0) * row_weight
        buffer[-1] += torch.where(finite, x.sum(0) * weight, 0)
        if self.due(count):
            self._merge(state)

    def _merge(self, state: dict[str, Tensor]) -> None:
        directions, excess, remainder, buffer, weights = (
            state[f"{self.name}_{part}"] for part in ("directions", "excess", "remainder", "buffer", "weights")
        )
        kept = self.decay**self.refresh_every
        mass = weights.square().sum() + SMALLEST
        buffer[:-1] -= weights[:, None] * (buffer[-1] / mass)
        buffer[-1] /= mass.sqrt()
        # In double precision: the heaviest direction outweighs the lightest by more than float32 can tell apart.
        stacked = torch.cat([directions * (kept * excess).sqrt()[:, None], buffer]).double()
        lengths, rotation = torch.linalg.eigh(stacked @ stacked.T)
        heavy, turn = lengths[-len(excess) :].clamp(min=SMALLEST), rotation[:, -len(excess) :]
        directions.copy_(turn.T @ stacked / heavy.sqrt()[:, None])
        others = max(directions.shape[1] - len(excess), 1)
        cut = (stacked.square().sum() - heavy.sum()).clamp(min=0) / others
        excess.copy_((heavy - cut).clamp(min=0))
        remainder.mul_(kept).add_(cut)
        buffer.zero_()
        weights.zero_()
        strength = self.strength
        if self.relative:
            strength = strength * (excess.sum() + remainder * directions.shape[1] + SMALLEST)
        off = (1 + remainder / strength) ** -self.power
        state[f"{self.name}_off"].copy_(off)
        state[f"{self.name}_along"].copy_((1 + (remainder + excess) / strength) ** -self.power - off)

    def multiply(self, state: dict[str, Tensor], matrix: Tensor) -> Tensor:
        """``matrix (I + A/a)^-power`` for a matrix of shape (n, d)."""
        directions = state[f"{self.name}_directions"]
        part = torch.mm(matrix, directions.T).mul_(state[f"{self.name}_along"])
        return torch.mul(matrix, state[f"{self.name}_off"]).addmm_(part, directions)

    def diagonal(self, state: dict[str, Tensor]) -> Tensor:
        """How much of each input A holds, (d,)."""
        directions, excess = state[f"{self.name}_directions"], state[f"{self.name}_excess"]
        return (directions.square() * excess[:, None]).sum(0) + state[f"{self.name}_remainder"]

    def shares(self, state: dict[str, Tensor]) -> Tensor:
        """Diagonal of ``(I + A/a)^-power``: what passes of a change along one input alone, (d,), in (0, 1]."""
        directions, along = state[f"{self.name}_directions"], state[f"{self.name}_along"]
        return (directions.square() * along[:, None]).sum(0) + state[f"{self.name}_off"]
