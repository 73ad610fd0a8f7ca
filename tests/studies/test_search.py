"""The Pareto front is what its definition says, and a sentence of advice is judged by the side of its interval."""

import numpy as np
import pandas as pd
import pytest
import studies
from hypothesis import given
from hypothesis import strategies as st
from studies import search

from sp.lab.networks import mlp
from sp.rivals import OPTIMIZERS

accuracies = st.integers(0, 5).map(lambda n: n / 5)


@given(st.lists(st.tuples(accuracies, accuracies), min_size=1, max_size=30))
def test_the_front_is_what_nothing_beats(points):
    table = pd.DataFrame(points, columns=["old", "new"])
    front = search.on_front(table)
    for (old, new), on in zip(points, front, strict=True):
        beaten = any(o >= old and n >= new and (o, n) != (old, new) for o, n in points)
        assert on == (not beaten)


def test_sensitivity_tells_what_raises_from_what_does_nothing():
    generator = np.random.default_rng(0)
    choice, other = generator.random((2, 60))
    rate = generator.random(60)
    old = rate + 0.1 * choice  # the choice shows only once the rate is taken out
    table = pd.DataFrame({"choice": choice, "other": other, "option_lr": rate, "old": old, "new": -choice})
    found = search.sensitivity(table, ["choice", "other", "option_lr"]).set_index(["parameter", "value"])
    assert found.verdict["choice", "old"] == "raises" and found.verdict["choice", "new"] == "lowers"
    assert found.verdict["option_lr", "old"] == "raises" and found["mean"]["option_lr", "old"] > 0.9
    assert found["mean"]["choice", "old"] > 0.7 and found.verdict["other", "old"] == "no effect found"


def test_every_point_of_every_space_is_taken_by_its_optimizer():
    named = search.search_runs("digits", 5, 1)
    assert len(named) == 5 * len(search.searched("digits"))
    for method, experiment in named:
        OPTIMIZERS[experiment.optimizer](mlp(2, (2,), 2), **dict(experiment.options))
        assert experiment.evaluation == "validation" and experiment.seed in studies.TUNING_SEEDS, method
    drawn = search.points("digits", 5)
    rows = pd.DataFrame([{"method": method, "seed": e.seed, "old": 0.5, "new": 0.25} for method, e in named])
    found = search.outcomes(rows, drawn)
    assert len(found) == len(named) and set(found.method) == set(search.searched("digits"))
    lr = dict(dict(named)["Adam/3"].options)["lr"]
    assert found[(found.method == "Adam") & (found.point == 3)].option_lr.item() == pytest.approx(lr)


@pytest.mark.parametrize(("change", "verdict"), [(0.2, "holds"), (-0.2, "the opposite"), (0.0, "no difference found")])
def test_a_sentence_holds_when_its_measure_moves_as_promised(change, verdict):
    generator = np.random.default_rng(1)
    for one in search.advice("digits"):
        rows = pd.DataFrame(
            [
                {
                    "method": experiment.key(),
                    "seed": seed,
                    "old": 0.5,
                    "new": 0.5,
                    "instability": 0.5,
                    "learning_accuracy": 0.5,
                }
                | {one.measure: 0.5 + shift + generator.normal(0, 0.01)}
                for experiment, shift in ((one.before, 0.0), (one.after, change * one.better))
                for seed in range(8)
            ]
        )
        assert search.verdict_of(one, rows)["verdict"] == verdict, one.change


def test_recommended_settings_name_the_command_that_chose_them():
    table = search.recommended("digits")
    assert set(table.study) <= set(studies.STUDIES) and len(table) > 10
    assert all(f"python notebooks/studies tune {row.study} digits" == row.command for row in table.itertuples())


def test_a_sentence_says_what_was_before_and_what_the_change_costs():
    one = search.advice("digits")[0]
    assert (one.measure, one.price) == ("old", "new")
    rows = pd.DataFrame(
        {"method": experiment.key(), "seed": seed, "old": old, "new": new}
        for experiment, old, new in ((one.before, 0.2, 0.9), (one.after, 0.5, 0.7))
        for seed in range(8)
    )
    found = search.verdict_of(one, rows)
    assert found["before"] == pytest.approx(0.2) and found["mean"] == pytest.approx(0.3)
    assert found["price"] == "new -0.20"
