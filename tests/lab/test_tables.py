"""Results become tables in one vocabulary."""

from dataclasses import replace

import numpy as np
import pytest

from sp.lab import tables
from sp.lab.experiment import Experiment, Result, run

SMALL = Experiment(hidden=(8,), options={"lr": 1e-3}, curve_points=2, epochs=2)


def test_a_run_is_a_row_and_a_curve_a_row_a_point():
    result = run(SMALL)
    row = tables.table([result]).iloc[0]
    assert row.average_accuracy == pytest.approx(result.accuracy[-1].mean())
    assert row.option_lr == 1e-3 and row.hidden == "8" and row.final_1 == result.accuracy[1, 0]
    curve = tables.curves([result])
    assert len(curve) == 2 * 2 * 2 and set(curve.task) == {1, 2}


def test_measures_are_what_they_say():
    result = run(replace(SMALL, tasks=5))
    found = tables.table([result]).iloc[0]
    R = result.accuracy
    assert found["old"] == pytest.approx(np.mean(R[-1, :4])) and found["new"] == R[-1, 4]
    assert found["after_2"] == pytest.approx((R[1, 0] + R[1, 1]) / 2)
    assert found["after_5"] == pytest.approx(found["average_accuracy"])


def test_instability_counts_falls_of_the_task_in_training_only():
    heights = {(0, 0): [0.2, 0.6, 0.5], (0, 1): [0.9, 0.0, 0.0], (1, 1): [0.5, 0.5, 0.7]}
    curve = [
        {"step": step, "training": training, "task": task, "accuracy": height}
        for (training, task), points in heights.items()
        for step, height in enumerate(points)
    ]
    result = Result(SMALL, np.eye(2), np.zeros(2), curve)
    assert tables.instability(result) == pytest.approx(0.1 / 4)
    assert np.isnan(tables.instability(replace(result, curve=[])))
