"""The formulas of the optimizers, against values known by hand."""

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
    largest = torch.tensor(4.0)
    moved = torch.tensor([0.0, 3.9, 4.0, 16.0, math.inf, math.nan])
    assert rules.bounded(moved, largest).tolist() == [1.0, 1.0, 1.0, 0.5, 0.0, 1.0]
