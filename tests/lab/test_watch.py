"""Looking inside a training changes nothing, and what is seen there is what the optimizer holds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sp.lab import watch
from sp.lab.experiment import Experiment, run
from sp.lab.ledger import Ledger

SMALL = Experiment(stream="permuted", tasks=3, scenario="domain", hidden=(16,), samples_per_task=200, seed=1)
COINCIDENCE = replace(SMALL, optimizer="coincidence")


def test_following_changes_nothing():
    weights = []

    def look(moment):
        weights.append(sum(p.detach().sum().item() for p in moment.learner.model.parameters()))
        return []

    for experiment in (SMALL, COINCIDENCE):
        watch.follow(experiment, look)
        followed = weights[-1]
        outcome = run(experiment, look=look)
        assert weights[-1] == followed
        np.testing.assert_array_equal(outcome.accuracy, run(experiment).accuracy)


def test_following_stops_after_the_task_that_was_asked_for():
    rows = watch.follow(SMALL, lambda moment: [{"last": moment.last}], until=2)
    assert rows.task.unique().tolist() == [1, 2] and rows["last"].sum() == 2
    assert rows.step.tolist() == list(range(1, len(rows) + 1))


def test_what_cannot_be_followed_is_an_error():
    with pytest.raises(ValueError, match="experiment must train a network, got optimizer='ridge'"):
        watch.follow(replace(SMALL, optimizer="ridge"), lambda moment: [])


def test_accuracies_by_task_agree_with_the_matrix(tmp_path, monkeypatch):
    monkeypatch.setenv("SP_STORE", str(tmp_path))
    rows = watch.accuracy_by_task({"Adam": SMALL}, [1])
    R = run(SMALL).accuracy
    lower = np.tril_indices(3)
    np.testing.assert_allclose(rows.pivot(index="after", columns="on", values="accuracy").to_numpy()[lower], R[lower])


def test_plasticity_is_seen_task_by_task_and_kept(tmp_path):
    ledger = Ledger(tmp_path)
    experiment = replace(SMALL, tasks=2, optimizer="selective", options={"warmup_steps": 1})
    assert watch.observe(experiment, ledger, missing_too=False) is None
    seen = watch.observe(experiment, ledger)
    again = watch.observe(experiment, Ledger(tmp_path), missing_too=False)
    pd.testing.assert_frame_equal(again.events, seen.events)
    pd.testing.assert_frame_equal(again.gates, seen.gates)
    np.testing.assert_array_equal(again.accuracy, run(experiment).accuracy)
    assert set(seen.events.task) == {1, 2} and (seen.events.looks == seen.events.looks.iloc[0]).all()
    assert (seen.events.ltp + seen.events.ltd + seen.events.shut <= seen.events.synapses * seen.events.looks).all()
    shapes = seen.gates[seen.gates.task == 2].groupby("parameter")[["row", "column"]].max() + 1
    assert shapes.to_numpy().tolist() == [[16, 25], [10, 16]] and seen.gates.gate.between(0, 1).all()
    assert watch.observe(replace(experiment, optimizer="sgd", options={}), ledger).gates.empty
