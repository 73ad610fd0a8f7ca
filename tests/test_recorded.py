"""Recorded runs stand in for the same experiments under the same rules, and for nothing else."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sp import permuted, recorded
from sp.__main__ import main
from sp.experiment import Experiment, Result, run
from sp.store import Store
from sp.sweep import with_seeds

SMALL = Experiment(hidden=(8,), options={"lr": 1e-3}, curve_points=3)


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SP_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("SP_STORE", str(tmp_path / "store"))
    return tmp_path


def test_what_is_recorded_is_taken_and_the_rest_is_run(project, monkeypatch):
    named = with_seeds({"small": SMALL, "slow": replace(SMALL, options={"lr": 1e-4})}, range(2))
    fresh = recorded.runs("toy", named, workers=1, progress=False)
    assert list(fresh.arm) == ["small", "small", "slow", "slow"] and list(fresh.seed) == [0, 1, 0, 1]
    table = fresh.iloc[:3].assign(new=[0.125, 0.25, 0.375])
    (project / "figures").mkdir()
    table.to_csv(project / "figures" / "toy.csv", index=False)
    assert recorded.holds("toy", named[:3]) and not recorded.holds("toy", named)
    again = recorded.runs("toy", named, Store(project / "empty"), workers=1, progress=False)
    assert again.new.tolist() == [0.125, 0.25, 0.375, fresh.new[3]] and again.old.tolist() == fresh.old.tolist()
    assert len(list((project / "empty").rglob("*.json"))) == 1
    monkeypatch.setattr("sp.experiment.RULES_VERSION", -1)
    assert not recorded.holds("toy", named[:3])


def test_measures_are_what_they_say():
    result = run(replace(SMALL, tasks=5))
    found = recorded.measures(result)
    R = result.accuracy
    assert found["old"] == pytest.approx(np.mean(R[-1, :4])) and found["new"] == R[-1, 4]
    assert found["after_2"] == pytest.approx((R[1, 0] + R[1, 1]) / 2) and found["after_5"] == found["average_accuracy"]


def test_instability_counts_falls_of_the_task_in_training_only():
    heights = {(0, 0): [0.2, 0.6, 0.5], (0, 1): [0.9, 0.0, 0.0], (1, 1): [0.5, 0.5, 0.7]}
    curve = [
        {"step": step, "training": training, "task": task, "accuracy": height}
        for (training, task), points in heights.items()
        for step, height in enumerate(points)
    ]
    result = Result(SMALL, np.eye(2), np.zeros(2), curve, {}, 0.0, {})
    assert recorded.instability(result) == pytest.approx(0.1 / 4)
    assert np.isnan(recorded.instability(replace(result, curve=[])))


def test_the_command_records_what_the_notebook_reads(project, capsys):
    command = ["record", "08_permuted", "--tasks", "2", "3", "--seeds", "1", "--workers", "1"]
    assert main(command) == 0
    table = pd.read_csv(project / "figures" / "08_permuted_digits_runs.csv")
    assert len(table) == 2 * len(permuted.arms("digits", 2)) and "14 runs are in" in capsys.readouterr().out
    rows = recorded.runs("08_permuted_digits_runs", with_seeds(permuted.arms("digits", 2), range(1)))
    curves = permuted.averages(rows, 2)
    assert set(curves.tasks) == {1, 2} and len(curves) == 2 * len(rows) and curves.average.notna().all()
    assert "after_3" not in rows


def test_long_streams_are_recorded_with_their_own_number_of_seeds(project, capsys):
    assert main(["record", "08_permuted", "--tasks", "10", "30", "--seeds", "5", "--long-seeds", "2", "--dry-run"]) == 0
    arms = len(permuted.arms("digits", 10))
    assert f"{7 * arms} runs" in capsys.readouterr().out
