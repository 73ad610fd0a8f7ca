"""Many runs at once give what single runs give, and tuning never sees a test image."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from sp import studies
from sp.experiment import Experiment, Store, run
from sp.sweep import compare, run_all

SMALL = Experiment(hidden=(8,), options={"lr": 1e-3}, curve_points=1)


def test_parallel_runs_equal_single_ones_in_order_and_are_stored(tmp_path):
    experiments = [replace(SMALL, seed=seed) for seed in (2, 0, 1, 0)]
    results = run_all(experiments, Store(tmp_path), workers=2, progress=False)
    assert [r.experiment for r in results] == experiments
    assert results[1].accuracy.tolist() == run(experiments[1]).accuracy.tolist()
    assert len(list(tmp_path.rglob("*.json"))) == 3


def test_compare_gives_every_arm_and_seed(tmp_path):
    arms = {"slow": SMALL, "fast": replace(SMALL, options={"lr": 1e-2})}
    rows, curves = compare(arms, [0, 1], Store(tmp_path), workers=1, progress=False)
    assert list(rows.arm) == ["slow", "slow", "fast", "fast"] and list(rows.seed) == [0, 1, 0, 1]
    assert set(curves.arm) == {"slow", "fast"} and len(curves) == 2 * 2 * 2 * 2


def test_tuning_takes_held_out_images_and_seeds_that_are_not_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(studies, "TUNED", tmp_path / "tuned.csv")
    monkeypatch.setattr(studies, "GRIDS", {"adam": [{"lr": 1e-5}, {"lr": 3e-3}]})
    monkeypatch.setitem(studies.STUDIES, "toy", lambda dataset, tuned: {"Adam": SMALL})
    points = studies.tune("toy", "digits", store=Store(tmp_path / "store"), workers=1)
    assert points.chosen.tolist() == [False, True]
    assert studies.tuned_options("toy", "digits", "Adam") == {"lr": 3e-3}
    stored = [json.loads(json.loads(p.read_text())["result"])["experiment"] for p in tmp_path.rglob("*.json")]
    assert {e["evaluation"] for e in stored} == {"validation"}
    assert {e["seed"] for e in stored} == set(studies.TUNING_SEEDS)
    with pytest.raises(LookupError, match="python -m sp tune toy digits"):
        studies.tuned_options("toy", "digits", "SGD")


def test_every_arm_of_every_study_has_a_grid_of_one_size_and_tuned_values():
    assert len({len(points) for points in studies.GRIDS.values()}) == 1
    for name, arms in studies.STUDIES.items():
        for dataset in ("digits", "mnist"):
            for arm, experiment in arms(dataset, tuned=False).items():
                point = studies.tuned_options(name, dataset, arm)
                assert point in studies.GRIDS[experiment.optimizer]


def test_the_table_of_tuned_values_is_sorted_and_has_no_doubles():
    table = pd.read_csv(studies.TUNED)
    names = table[["study", "dataset", "arm"]]
    assert not names.duplicated().any()
    assert names.equals(names.sort_values(["study", "dataset", "arm"]).reset_index(drop=True))
