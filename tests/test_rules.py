"""The formulas of the optimizers, against values computed by hand."""

import math

import torch

from sp import rules


def test_coincidence_is_zero_where_either_is_absent_and_one_where_both_are_full():
    a, g = torch.meshgrid(torch.linspace(0, 1, 11), torch.linspace(0, 1, 11), indexing="ij")
    both = rules.coincidence(a, g)
    assert (both[0] == 0).all() and (both[:, 0] == 0).all() and both[-1, -1] == 1
    assert (both <= torch.minimum(a, g)).all()


def test_activation_is_in_units_of_the_layer_and_scale_free():
    x = torch.tensor([[3.0, -4.0, 0.0], [-3.0, 4.0, 0.0]])
    norm = rules.activation_norm(x)
    torch.testing.assert_close(norm, torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(rules.activation_norm(1e3 * x), norm)
    assert (rules.activation_norm(torch.zeros(4, 3)) == 0).all()


def test_the_gate_falls_from_one_to_zero_with_use_and_is_a_half_at_the_threshold():
    gates = rules.consolidation_gate(torch.tensor([0.0, 1e-3, 2.0, 1e3]), 2.0)
    assert (gates.diff() < 0).all() and gates[0] == 1 and gates[2] == 0.5 and gates[1] > 0.99 > 0.01 > gates[-1]


def test_a_step_is_bounded_by_what_it_does_and_left_alone_below_the_bound():
    moved = [0.0, 1.9, 2.0, 4.0, math.inf]
    assert [rules.bounded(m, 2.0) for m in moved] == [1.0, 1.0, 1.0, 0.5, 0.0]


def test_novelty_has_the_eigenvectors_of_the_memory_and_falls_with_use():
    """``(I + r A)^-1``: a direction of variance v passes ``1 / (1 + r v)``, in each group by itself."""
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(3, 6, 6, generator=generator, dtype=torch.float64)).Q
    variances = 10 * torch.rand(3, 6, generator=generator, dtype=torch.float64)
    memory = (directions * variances[:, None]) @ directions.mT
    novelty = rules.novelty(memory, 0.7)
    torch.testing.assert_close(novelty @ directions, directions / (1 + 0.7 * variances[:, None]))
    assert torch.equal(rules.novelty(0 * memory, 0.7), torch.eye(6, dtype=torch.float64).expand(3, -1, -1))
    torch.testing.assert_close(novelty[1], rules.novelty(memory[1], 0.7))


def test_the_equaliser_keeps_the_power_of_all_errors_and_makes_them_more_equal():
    x = torch.randn(3, 50, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    errors = (x * torch.tensor([5.0, 1, 1, 0.5, 0.1, 0])).mT @ (x * torch.tensor([5.0, 1, 1, 0.5, 0.1, 0]))
    equaliser = rules.equaliser(errors, 0.4)
    power = errors.diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close((equaliser @ errors).diagonal(dim1=-2, dim2=-1).sum(-1), power)
    fair = torch.linalg.eigvalsh(errors)
    passed = torch.linalg.eigvalsh(equaliser)
    # A direction of k times its fair share is divided by 1 + 0.4 k, up to a factor that all have.
    expected = (1 / (1 + 0.4 * fair / (power[:, None] / 6))).flip(-1)
    torch.testing.assert_close(passed / passed[:, -1:], expected / expected[:, -1:])
    torch.testing.assert_close(rules.equaliser(100 * errors, 0.4), equaliser)
    torch.testing.assert_close(rules.equaliser(errors[2], 0.4), equaliser[2])
    one = torch.eye(6, dtype=torch.float64).expand(3, -1, -1)
    torch.testing.assert_close(rules.equaliser(errors, 0.0), one)
    assert torch.equal(rules.equaliser(0 * errors, 0.4), one)


def test_a_gradient_is_absorbed_beyond_its_mean_and_whole_where_there_is_none():
    norms, means = [3.0, 3.0, 1.0, 0.0], [1.0, 0.0, 1.0, 1.0]
    found = [rules.absorbed(norm, mean, 2.0) for norm, mean in zip(norms, means, strict=True)]
    assert found == [2.0, 3.0, 1.0, 0.0]
    as_tensors = [
        float(rules.absorbed(torch.tensor(n), torch.tensor(m), 2.0)) for n, m in zip(norms, means, strict=True)
    ]
    assert as_tensors == found


def test_a_sample_holds_each_tensor_in_proportion_to_its_size():
    drawn = rules.sampled([torch.zeros(90_000), torch.ones(10_000)], seed=0)
    assert abs(float(drawn.mean()) - 0.1) < 1e-3


def test_activation_is_a_root_mean_square():
    x = torch.tensor([[2.0, 1.0], [0.0, 1.0]])  # inputs of equal mean magnitude
    torch.testing.assert_close(rules.activation_norm(x), torch.tensor([1.0, 1.5**-0.5]))
