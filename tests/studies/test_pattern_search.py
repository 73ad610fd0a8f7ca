"""The steps of a pattern search, and the search that takes them."""

import json

import numpy as np
import pandas as pd
import pytest
import studies
from studies import comparison
from studies.pattern_search import DECADES, LADDERS, neighbours

from sp.lab.experiment import Experiment


def test_neighbours_are_one_rung_away_in_one_option():
    assert neighbours({"lr": 0.3, "prior": 1e-3}) == [
        {"lr": 1.0, "prior": 1e-3},
        {"lr": 0.1, "prior": 1e-3},
        {"lr": 0.3, "prior": 3e-3},
        {"lr": 0.3, "prior": 3e-4},
    ]
    assert neighbours({"lr": 0.2}) == [{"lr": 0.3}, {"lr": 0.1}]  # between two rungs
    assert neighbours({"decay": 1.0}) == [{"decay": 0.9}] and neighbours({"dropout": 0.0}) == [{"dropout": 0.1}]


def test_every_point_of_the_grids_has_neighbours_that_can_be_built():
    for points in comparison.GRIDS.values():
        for point in points:
            found = neighbours(point)
            assert len(found) >= len(point) and all(sum(n[k] != point[k] for k in point) == 1 for n in found)
    assert all(list(ladder) == sorted(ladder) for ladder in (*LADDERS.values(), DECADES))


@pytest.mark.parametrize(("further", "lr"), [(0, 0.3), (1, 1.0), (6, 10.0)])
def test_tuning_goes_on_past_the_edge_of_a_grid_as_far_as_it_may(monkeypatch, tmp_path, further, lr):
    def judged(trials, store, workers):
        rows = [
            (method, json.dumps(point), -abs(np.log10(point["lr"]) - 1)) for method, point, _ in trials
        ]  # best at 10
        seen.extend(options for _, options, _ in rows)
        return pd.DataFrame(rows, columns=["method", "options", "accuracy"]).drop_duplicates("options")

    seen = []
    monkeypatch.setattr(studies, "_judged", judged)
    monkeypatch.setattr(studies, "TUNED", tmp_path / "tuned.csv")
    trials = studies.trials({"SGD": Experiment(optimizer="sgd")}, {"sgd": [{"lr": 0.1}, {"lr": 0.3}]}, (100, 101))
    points = studies.tune_methods("toy", "digits", trials, further=further, searches={"SGD": "abc"})
    assert json.loads(points.options[points.chosen].item()) == {"lr": lr}
    assert len(points) == len(set(seen)) <= 2 + further
    assert seen.count(json.dumps({"lr": lr})) == 2  # each point on both seeds
    assert pd.read_csv(tmp_path / "tuned.csv").search.tolist() == ["abc"]


def test_options_are_those_of_the_stream_and_no_warm_up_is_one_of_no_steps():
    with pytest.raises(LookupError, match="'Adam' of 'retention_split5_domain' is not tuned"):
        studies.retention("split5_domain", "digits", names=["Adam"])
    assert studies.retention("permuted30", "digits", names=["Adam"])["Adam"].options
    found = studies.forgetting("digits", warmup_steps=0, tuned=False)["Selective plasticity"]
    assert dict(found.options)["warmup_steps"] == 0


def test_what_was_tuned_on_other_data_stays_in_the_table(monkeypatch, tmp_path):
    monkeypatch.setattr(studies, "TUNED", tmp_path / "tuned.csv")
    points = pd.DataFrame({"method": ["Adam"], "options": ['{"lr": 0.1}'], "accuracy": [0.5]})
    monkeypatch.setattr(studies, "_judged", lambda *_: points.copy())
    for dataset in ("mnist", "digits", "digits"):
        studies.tune_methods("toy", dataset, [("Adam", {"lr": 0.1}, Experiment())])
    assert pd.read_csv(studies.TUNED).dataset.tolist() == ["digits", "mnist"]
