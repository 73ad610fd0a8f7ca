"""Stationary problems are learnt, and the committed table says how well."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from studies import stationary

KEPT = Path(stationary.__file__).with_name("stationary.csv")


def test_depthwise_convolutions_whose_first_steps_amplify_each_other_are_learnt():
    problem = replace(stationary.PROBLEMS["depthwise"], epochs=(2,))
    ((_, loss),), _ = stationary.run(problem, stationary.METHODS["coincidence"], seed=0)
    assert loss < 1


@pytest.mark.parametrize("name", ["eight layers", "weight norm"])
def test_the_committed_runs_are_of_this_optimizer(name):
    scores, _ = stationary.run(stationary.PROBLEMS[name], stationary.METHODS["coincidence"], seed=0)
    rows = pd.read_csv(KEPT).query("problem == @name and method == 'coincidence' and seed == 0")
    assert dict(scores) == pytest.approx(dict(zip(rows.budget, rows.value, strict=True)), rel=0.25)


def test_the_table_on_the_page_is_that_of_the_committed_runs():
    kept = pd.read_csv(KEPT.with_stem("stationary_table"))
    pd.testing.assert_frame_equal(kept, stationary.intervals(pd.read_csv(KEPT)), rtol=1e-4)
    assert kept.n.min() >= 6 and set(kept.metric) == {"Adam", "Coincidence"}


def test_r2_is_a_share_of_the_variance_and_no_mean_over_seeds_hides_a_divergence():
    targets = torch.tensor([[0.0], [4.0]])
    assert stationary.r2(targets + 1, targets).item() == 0.75
    case = {"problem": "p", "budget": "b", "measure": "R2"}
    rows = [{**case, "method": m, "value": v} for m, v in (("a", 0.5), ("a", 0.7), ("b", 0.5), ("b", np.nan))]
    (found,) = stationary.intervals(pd.DataFrame(rows)).itertuples()
    assert (found.method, found.metric, found.n) == ("p, b, R2", "a", 2) and found.mean == pytest.approx(0.6)
