"""The formulas and simulations of the biology, against values computed by hand and against what their theory says."""

import math

import pandas as pd
import pytest
import torch

from sp.biology import textbook


def test_magnesium_blocks_at_rest_and_lets_go_at_depolarised_voltages():
    voltage = torch.linspace(-100, 60, 161, dtype=torch.float64)
    unblocked = textbook.magnesium_block(voltage)
    assert ((unblocked > 0) & (unblocked < 1)).all() and (unblocked.diff() > 0).all()
    # Jahr & Stevens: half of the receptors are blocked where [Mg] exp(-0.062 V) = 3.57
    half = torch.tensor(-math.log(3.57) / 0.062, dtype=torch.float64)
    assert textbook.magnesium_block(half).item() == pytest.approx(0.5)
    assert (textbook.magnesium_block(voltage, magnesium=0) == 1).all()
    assert (textbook.magnesium_block(voltage, magnesium=2) < unblocked).all()


def test_the_conductance_needs_glutamate_and_depolarisation():
    s, v = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([0.0, -90.0, 20.0])
    conductance = textbook.nmda_conductance(s, v, largest=2.0)
    assert conductance[0] == 0 and conductance[1] < 0.05 and 1.7 < conductance[2] < 2


def test_bcm_depresses_below_the_threshold_potentiates_above_and_the_threshold_follows():
    rate = torch.tensor([0.0, 2.0, 5.0, 8.0])
    torch.testing.assert_close(textbook.bcm_change(torch.tensor(2.0), rate, 5.0), torch.tensor([0.0, -12.0, 0.0, 48.0]))
    assert (textbook.bcm_change(torch.tensor(0.0), rate, 5.0) == 0).all()
    threshold = torch.tensor(1.0, dtype=torch.float64)
    for _ in range(2000):
        threshold = textbook.bcm_threshold(threshold, torch.tensor(6.0), 0.99, target=6.0)
    assert threshold.item() == pytest.approx(6.0)


def test_scaling_restores_the_rate_and_keeps_the_ratios():
    weights = torch.tensor([0.2, 0.5, 1.0])
    scaled = textbook.synaptic_scaling(weights, rate=2.0, target=5.0)
    torch.testing.assert_close(scaled / weights, torch.full((3,), 2.5))
    table = pd.DataFrame(textbook.scaling())
    ends = table[table.step == 99]
    assert ends.rate.iloc[0] == pytest.approx(5.0, rel=1e-3)
    assert ends.weight.to_numpy() / table[table.step == 0].weight.to_numpy() == pytest.approx(2.0, rel=1e-3)


def test_a_weak_change_lasts_only_if_proteins_come_while_its_tag_is_there():
    table = pd.DataFrame(textbook.tagging())
    late = table[table.minute == table.minute.max()].set_index("stimulus").late
    assert late["weak alone"] == 0 and late["strong one after 30 min"] > 0.5 > 0.1 > late["strong one after 300 min"]
    assert table[table.minute == 0].tag.to_numpy() == pytest.approx(1.0)


def test_a_burst_is_forgotten_with_the_decay_of_the_trace_and_the_bcm_threshold_slides():
    table = pd.DataFrame(textbook.trace_of_a_burst([0.9, 0.99], burst=20, steps=121))
    wide = table.pivot(index="step", columns="decay", values="eligibility")
    assert wide.loc[20, "β = 0.9"] == pytest.approx(1 - 0.9**20)
    assert wide.loc[120, "β = 0.99"] / wide.loc[20, "β = 0.99"] == pytest.approx(0.99**100, rel=1e-3)
    slides = pd.DataFrame(textbook.bcm_slides()).pivot(index="step", columns="quantity", values="value")["threshold θ"]
    assert slides[100] > 12 and slides[200] < 4
    changes = pd.DataFrame(textbook.bcm(thresholds=(5.0,))).set_index("rate").change
    assert changes.idxmin() == pytest.approx(2.5) and changes.max() == 1
    conductance = pd.DataFrame(textbook.nmda()).groupby("glutamate").conductance.max()
    assert conductance["glutamate 1"] == pytest.approx(10 * conductance["glutamate 0.1"])
