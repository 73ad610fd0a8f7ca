"""The memories of the coincidence form: a sketch against the exact matrix, and both against their equations."""

import math
from functools import partial

import pytest
import torch

from sp.optim.memory import Counts, ExactMemory, SketchedMemory, sampled

WIDE = {"dtype": torch.float64}


def filled(memory, rows, weights, kept=1.0, like=None):
    """The state of a memory that took in batches of rows, (steps, N, d)."""
    state = {}
    memory.initialise(state, 1, rows.shape[-1], rows.new_zeros(()) if like is None else like)
    for x, weight in zip(rows, weights, strict=True):
        memory.remember(state, x if isinstance(memory, Counts) else x[None], weight, kept)
        memory.look(state)
    return state


def low_rank(steps, width, rank, seed=0, noise=0.0):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(rank, width, generator=generator, **WIDE)
    x = torch.randn(steps, 16, rank, generator=generator, **WIDE) @ basis / (rank * width) ** 0.5
    return x + noise * torch.randn(steps, 16, width, generator=generator, **WIDE) / width**0.5


@pytest.mark.parametrize("kept", [1.0, 0.9])
@pytest.mark.parametrize("relative", [False, True])
def test_both_kinds_follow_their_equations(relative, kept):
    """``A <- kept A + weight X'X``, ``(I + c A)^-1``; relative: c over the mean of the diagonal, and tr QSQ kept."""
    rows = torch.randn(40, 5, 9, generator=torch.Generator().manual_seed(0), **WIDE) + 1
    A = torch.zeros(9, 9, **WIDE)
    for x in rows:
        A = kept * A + 0.3 * x.T @ x
    strength = 0.7 / A.diagonal().mean() if relative else 0.7
    inverse = torch.linalg.inv(torch.eye(9, **WIDE) + strength * A)
    if relative:
        inverse *= A.trace() / (inverse @ A).trace()
    matrix = torch.randn(4, 9, generator=torch.Generator().manual_seed(1), **WIDE)
    for memory in (ExactMemory("m", 0.7, relative), SketchedMemory("m", 0.7, relative, rank=9)):
        state = filled(memory, rows, torch.full((40,), 0.3, **WIDE), kept)
        close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-3)  # a sketch adds what float32 can resolve
        close(memory.matrix(state)[0], A)
        close(memory.multiply(state, matrix[None])[0], matrix @ inverse)
        close(memory.diagonal(state)[0], A.diagonal())
        close(memory.shares(state)[0], inverse.diagonal())


def test_counts_are_the_exact_memory_of_one_hot_inputs():
    indices = torch.randint(7, (20, 12), generator=torch.Generator().manual_seed(0))
    hot, weights = torch.nn.functional.one_hot(indices, 7).double(), torch.full((20,), 0.1, **WIDE)
    exact, counts = ExactMemory("m", 50.0), Counts("m", 50.0)
    expected, found = filled(exact, hot, weights, 0.95), {}
    counts.initialise(found, 1, 7, torch.zeros((), **WIDE))
    for x in indices:
        counts.remember(found, x, 0.1, 0.95)
    counts.look(found)
    matrix = torch.randn(1, 4, 7, generator=torch.Generator().manual_seed(1), **WIDE)
    torch.testing.assert_close(counts.multiply(found, matrix), exact.multiply(expected, matrix))
    torch.testing.assert_close(counts.diagonal(found), exact.diagonal(expected))
    torch.testing.assert_close(counts.shares(found), exact.shares(expected))


def test_a_sketch_in_double_is_close_as_well():
    rows, weights = low_rank(60, 80, 6), torch.ones(60, **WIDE)
    exact, sketch = ExactMemory("m", 3.0), SketchedMemory("m", 3.0, rank=20)
    matrix = torch.randn(1, 4, 80, generator=torch.Generator().manual_seed(5), **WIDE)
    expected = exact.multiply(filled(exact, rows, weights), matrix)
    torch.testing.assert_close(sketch.multiply(filled(sketch, rows, weights), matrix), expected, rtol=0, atol=0.01)


@pytest.mark.parametrize(("noise", "error"), [(0.0, 1e-3), (0.02, 0.03)])
@pytest.mark.parametrize("relative", [False, True])
def test_a_sketch_is_close_where_inputs_lie_in_few_directions(relative, noise, error):
    rows, weights = low_rank(60, 80, 6, noise=noise).float(), torch.ones(60)
    exact, sketch = ExactMemory("m", 3.0, relative), SketchedMemory("m", 3.0, relative, rank=20)
    matrix = torch.cat([rows[0, :4], torch.randn(4, 80, generator=torch.Generator().manual_seed(5))])[None]
    expected = exact.multiply(filled(exact, rows, weights), matrix)
    found = sketch.multiply(filled(sketch, rows, weights), matrix)
    assert (found - expected).norm() < error * expected.norm()
    ignorant = matrix * (expected.norm() / matrix.norm())
    assert (ignorant - expected).norm() > 8 * error * expected.norm()


def test_a_sketch_takes_the_space_of_its_rank():
    state = {}
    SketchedMemory("m", 1.0, rank=8).initialise(state, 1, 1000, torch.zeros(()))
    assert sum(value.numel() for value in state.values()) < 2.1 * 8 * 1000


def test_a_long_training_leaves_room_for_what_is_new():
    memory = ExactMemory("m", 1e4)
    rows = (low_rank(3000, 64, 8) + low_rank(1, 64, 1)[0, :1]).float()
    known, new = rows[0], torch.linalg.svd(rows[:30].flatten(0, 1)).Vh[-4:]
    state = filled(memory, rows, torch.full((3000,), 1 / 16))
    passed = memory.multiply(state, torch.cat([new, known])[None])[0]
    torch.testing.assert_close(passed[:4], new, rtol=0, atol=0.1)
    assert passed[4:].norm() < 0.01 * known.norm()


@pytest.mark.parametrize("heavy", [1e3, 1e20, math.inf])
@pytest.mark.parametrize("rank", [4, None])
@pytest.mark.parametrize("relative", [False, True])
def test_a_memory_that_grows_beyond_all_bounds_breaks_nothing(relative, rank, heavy):
    memory = ExactMemory("x", 1.0, relative) if rank is None else SketchedMemory("x", 1.0, relative, rank=rank)
    rows = low_rank(1, 30, 5).float()
    state = filled(memory, rows, torch.tensor([heavy]))
    passed = memory.multiply(state, torch.eye(30)[None])
    assert passed.isfinite().all()
    if not relative:
        assert torch.linalg.matrix_norm(passed[0], 2) < 1.001
        assert (rows[0] @ passed[0]).norm() < (0.01 if rank is None else 1) * rows[0].norm()


def test_a_memory_that_saw_nothing_lets_everything_pass():
    matrix = torch.randn(1, 3, 12, generator=torch.Generator().manual_seed(0))
    for memory in (ExactMemory("m", 2.0), SketchedMemory("m", 2.0, rank=4)):
        state = {}
        memory.initialise(state, 1, 12, torch.zeros(()))
        torch.testing.assert_close(memory.multiply(state, matrix), matrix)
        memory.look(state)
        torch.testing.assert_close(memory.multiply(state, matrix), matrix)


def test_a_sample_of_rows_stands_for_all_and_is_another_in_every_step():
    x = torch.arange(1000.0)[None, :, None]
    seen = set()
    for step in range(60):
        chosen, each = sampled(x, step, 20)
        assert 20 <= chosen.shape[1] <= 21 and each * chosen.shape[1] == 1000
        seen |= set(chosen.flatten().tolist())
    assert len(seen) > 900
    assert torch.equal(sampled(x, 3, 1000)[0], x)


@pytest.mark.parametrize("kept", [1.0, 0.9])
@pytest.mark.parametrize("relative", [False, True])
def test_each_group_has_a_memory_of_its_own(relative, kept):
    rows = torch.randn(12, 2, 5, 9, generator=torch.Generator().manual_seed(0), **WIDE) + 1
    memory, together = ExactMemory("m", 0.7, relative), {}
    memory.initialise(together, 2, 9, rows)
    for x in rows:
        memory.remember(together, x, 0.3, kept)
        memory.look(together)
    for group in range(2):
        alone = filled(memory, rows[:, group], torch.full((12,), 0.3, **WIDE), kept)
        torch.testing.assert_close(memory.matrix(together)[group], memory.matrix(alone)[0])
        torch.testing.assert_close(together["m_inverse"][group], alone["m_inverse"][0])


@pytest.mark.parametrize("kept", [1.0, 0.9])
def test_rows_that_are_multiplied_in_double_precision_count_as_much(kept):
    rows = torch.randn(40, 5, 9, generator=torch.Generator().manual_seed(0), **WIDE) + 1
    memory, A = ExactMemory("m", 1e6), torch.zeros(9, 9, **WIDE)
    state = filled(memory, rows, torch.full((40,), 0.3, **WIDE), kept)
    assert memory._needs_double(state["m_before"])
    for x in rows:
        A = kept * A + 0.3 * x.T @ x
    torch.testing.assert_close(memory.matrix(state)[0], A)


def test_strong_memories_of_inputs_that_are_alike_pass_what_never_occurred():
    """Rows of length 30 differ by 0.3 in half of the directions; in single precision, most of the rest would close."""
    basis = torch.linalg.qr(torch.randn(30, 30, generator=torch.Generator().manual_seed(0), **WIDE))[0].float()
    varied = torch.tensor([0.3] * 15 + [0.0] * 15)
    rows = 30 * basis[0] + varied * torch.randn(400, 16, 30, generator=torch.Generator().manual_seed(1))
    memory, state = ExactMemory("m", 1e4), {}
    memory.initialise(state, 1, 30, torch.zeros(()))
    for number, x in enumerate(rows):
        memory.remember(state, x[None], 1 / 240, 1.0)
        if number % 5 == 4:
            memory.look(state)
    passed = torch.linalg.eigvalsh(memory.multiply(state, torch.eye(30)[None])[0])
    assert (passed[-14:] > 0.75).all()


@pytest.mark.parametrize("relative", [False, True])
def test_what_a_sketch_lacks_counts_in_all_directions(relative):
    """What 8 directions lack of the trace is shared by the 32 others; relative: the power of what it holds is kept."""
    rows = low_rank(20, 40, 30, noise=0.3)
    sketch = SketchedMemory("m", 3.0, relative, rank=8)
    state = filled(sketch, rows, torch.ones(20, **WIDE))
    one, trace = torch.eye(40, **WIDE), rows.square().sum()
    A, inverse = sketch.matrix(state)[0], sketch.multiply(state, one[None])[0]
    held, strength = torch.linalg.eigvalsh(A), 3.0 * 40 / trace if relative else 3.0
    torch.testing.assert_close(held[31], held[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(held[32:].sum() + 24 * held[0], trace, rtol=1e-4, atol=0)
    expected = torch.linalg.inv(one + strength * A)
    if relative:
        expected *= 1 + strength * held[0]
        expected *= trace / (trace - ((one - expected) @ A).trace())
    torch.testing.assert_close(inverse, expected, rtol=1e-4, atol=1e-4)
