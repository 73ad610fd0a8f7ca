"""The memories of the coincidence form: a sketch against the exact matrix."""

import math

import pytest
import torch

from sp.optim import memory as memories


def product(memory, state, matrix):
    result, factor = memory.multiply(state, matrix.clone())
    return result * factor


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("options", [{}, {"decay": 0.95, "relative": True}])
def test_a_sketch_of_full_rank_is_the_exact_memory(power, options):
    exact = memories.ExactMemory("m", 0.7, power, 10, **options)
    sketch = memories.SketchedMemory("m", 0.7, power, 10, rank=9, **options)
    number = {"dtype": torch.float64}
    states = ({}, {})
    for kind, state in zip((exact, sketch), states, strict=True):
        kind.initialise(state, 9, **number)
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(4, 9, generator=generator, **number)
    for count in range(1, 61):
        x = torch.randn(5, 9, generator=generator, **number) + 1
        for kind, state in zip((exact, sketch), states, strict=True):
            kind.remember(state, x, torch.tensor(0.3, **number), torch.tensor(True), count)
        if count % 10 == 0:
            products = [product(k, s, gradient) for k, s in zip((exact, sketch), states, strict=True)]
            torch.testing.assert_close(*products)
            torch.testing.assert_close(exact.diagonal(states[0]), sketch.diagonal(states[1]))
            torch.testing.assert_close(exact.shares(states[0]), sketch.shares(states[1]))


def test_a_sketch_keeps_the_heavy_directions_and_the_trace():
    sketch = memories.SketchedMemory("m", 1.0, 1, 20, rank=16)
    state = {}
    sketch.initialise(state, 60, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(60, 60, generator=generator))[0]
    scales = torch.cat([torch.full((5,), 3.0), torch.full((55,), 0.05)])
    for count in range(1, 401):
        x = torch.randn(64, 60, generator=generator) * scales @ basis.T
        sketch.remember(state, x, torch.tensor(1 / 64), torch.tensor(True), count)
    held = sketch.matrix(state)
    torch.testing.assert_close(held, held.T)
    assert (torch.linalg.eigvalsh(held) > 0).all()
    heavy, light = basis[:, :5].T, basis[:, 20:25].T
    share = lambda v: (product(sketch, state, v) * v).sum(1)  # noqa: E731
    assert (share(heavy) < 2 / 3600).all() and (share(light) > 0.3).all()
    assert 0.8 < sketch.diagonal(state).sum() / (400 * scales.square().sum()) < 1.2


@pytest.mark.parametrize("heavy", [1e6, 1e20, 1e38, math.inf])
@pytest.mark.parametrize("rank", [4, None])
def test_a_memory_that_grows_beyond_all_bounds_breaks_nothing(heavy, rank):
    width = 30
    memory = memories.ExactMemory("x", 1.0, 1, 1)
    if rank is not None:
        memory = memories.SketchedMemory("x", 1.0, 1, 1, rank=rank)
    state = {}
    memory.initialise(state, width, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 5, generator=generator) @ torch.randn(5, width, generator=generator)
    memory.remember(state, rows, torch.tensor(heavy), torch.tensor(True), 1)
    passed, factor = memory.multiply(state, torch.eye(width))
    assert torch.linalg.matrix_norm(passed * factor, 2) < 1.001
    known = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    assert (known @ (passed * factor)).abs().max() < (0.02 if rank is None or heavy == math.inf else 1)
