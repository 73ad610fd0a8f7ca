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


def test_matrices_and_curves_say_after_which_task_and_on_which():
    curve = [{"step": 3, "training": 1, "task": 0, "accuracy": 0.25}]
    result = Result(SMALL, np.array([[0.9, 0.1], [0.4, 0.8]]), np.zeros(2), curve)
    rows = tables.matrices([("m", result)])
    assert rows[["after", "on", "accuracy"]].to_numpy().tolist() == [[1, 1, 0.9], [2, 1, 0.4], [2, 2, 0.8]]
    (point,) = tables.curves([result]).itertuples()
    assert (point.step, point.training, point.task, point.accuracy) == (3, 2, 1, 0.25)


def test_each_row_has_its_own_transfer_and_each_task_right_after_it_was_learnt():
    R = np.array([[0.4, 0.3], [0.9, 0.8]])
    rows = tables.table(Result(SMALL, R, np.array([0.1, start])) for start in (0.1, 0.2))
    assert rows.learned_1.tolist() == [0.4, 0.4] and rows.learned_2.tolist() == [0.8, 0.8]
    assert rows.forward_transfer.tolist() == pytest.approx([0.2, 0.1])


def test_shares_of_the_buffer_are_those_of_the_tasks_whose_classes_it_holds():
    held = {"buffer": {"0": 1, "1": 2, "9": 5}}
    row = tables.table([Result(replace(SMALL, tasks=5), np.full((5, 5), 0.5), np.zeros(5), **held)]).iloc[0]
    assert [row[f"buffer_share_{task}"] for task in range(1, 6)] == [3 / 8, 0, 0, 0, 5 / 8]
