"""Looking inside a training changes nothing, and what is seen there is what the optimizer holds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from studies import looks

from sp import rules
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


def test_a_fixed_threshold_never_unmarks_and_a_trace_that_decays_at_once_follows_the_newest_batch():
    rows = watch.follow(replace(SMALL, tasks=2), looks.Traces(decay=0.0, every=1)).set_index("step")
    fixed = rows[rows.trace == "Accumulating trace, fixed threshold"].share
    assert (fixed.diff().dropna() >= 0).all() and fixed.iloc[0] > 0.5
    assert rows.share.between(0, 1).all()
    last = rows[rows.index == rows.index.max()].set_index("trace").share
    assert last["Decaying trace"] < last["Accumulating trace"]


def test_gates_fall_and_lie_between_zero_and_one():
    gates = watch.follow(
        replace(SMALL, optimizer="consolidating", epochs=3, options={"warmup_steps": 5}), looks.gate_quantiles
    )
    assert gates.gate.between(0, 1).all() and set(gates.layer) == {1, 2}
    late = gates[gates.step >= 20].sort_values("step")
    assert (late.groupby(["layer", "quantile"]).gate.apply(lambda gate: gate.diff().dropna().max()) <= 1e-6).all()


@pytest.mark.parametrize("options", [{"rank": None}, {"rank": 8, "refresh_every": 5}])
def test_the_memory_is_a_positive_matrix_that_knows_the_tasks_that_were_learnt(options):
    experiment = replace(COINCIDENCE, options=options, epochs=2)

    def look(moment):
        synapses = moment.learner.optimizer.coincidence.synapses[0]
        A = looks.memory(moment.learner.optimizer, synapses)
        assert A.shape == (65, 65)
        torch.testing.assert_close(A, A.T)
        assert torch.linalg.eigvalsh(A.double()).min() > -1e-4
        optimizer = moment.learner.optimizer
        assert looks.retention(optimizer, synapses) == optimizer.defaults["retention"]
        return looks.spectrum(moment) + looks.input_novelty(moment)

    rows = watch.follow(experiment, look)
    trace = rows.groupby("task").weight.sum()
    assert trace.is_monotonic_increasing
    new = rows.dropna(subset="novelty").pivot(index="task", columns="on", values="novelty").to_numpy()
    assert ((new > 0) & (new <= 1)).all()
    assert new[0, 0] < new[0, 1:].min() and new[2].max() < new[0, 1:].min()


def test_the_projected_gradient_spares_old_inputs():
    found = looks.first_gradient(replace(COINCIDENCE, epochs=3), task=3)
    assert found.raw.shape == found.projected.shape == (16, 64) and found.mean_image.shape == (64,)
    change = found.effects.pivot(index="step", columns="inputs", values="change")
    assert change.loc["raw", "new task"] == pytest.approx(1)
    spared = change["old tasks"] / change["new task"]
    assert spared["projected"] < spared["raw"]


def test_a_network_whose_memory_is_wiped_learns_and_forgets():
    whole = replace(COINCIDENCE, stream="split", scenario="class", tasks=5, samples_per_task=None, epochs=2)
    wiped = looks.without_memory({"wiped": whole}, [0]).iloc[0]
    kept = run(replace(whole, seed=0)).accuracy
    assert wiped.learning_accuracy > 0.8 and wiped.average_accuracy < 0.4 < kept[-1].mean()


def test_accuracies_by_task_and_by_number_of_tasks_agree_with_the_matrix(tmp_path, monkeypatch):
    monkeypatch.setenv("SP_STORE", str(tmp_path))
    rows = watch.accuracy_by_task({"Adam": SMALL}, [1])
    R = run(SMALL).accuracy
    lower = np.tril_indices(3)
    np.testing.assert_allclose(rows.pivot(index="after", columns="on", values="accuracy").to_numpy()[lower], R[lower])
    counted = looks.by_number_of_tasks(rows)
    np.testing.assert_allclose(counted.newest, np.diag(R))
    np.testing.assert_allclose(counted.average, [R[i, : i + 1].mean() for i in range(3)])


def test_novelty_of_a_memory_is_the_rules():
    optimizer_novelty = watch.follow(COINCIDENCE, _novelty_by_hand)
    assert (optimizer_novelty.by_hand - optimizer_novelty.novelty).abs().max() < 1e-5


def _novelty_by_hand(moment):
    if not moment.last:
        return []
    synapses = moment.learner.optimizer.coincidence.synapses[0]
    optimizer = moment.learner.optimizer
    P = rules.novelty(looks.memory(optimizer, synapses), optimizer.defaults["retention"])
    rows = pd.DataFrame(looks.input_novelty(moment))
    x = moment.stream.tasks[0].test()[0]
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    by_hand = torch.stack([row @ P @ row / (row @ row) for row in x]).mean().item()
    return [{"novelty": rows.novelty[0], "by_hand": by_hand}]


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


def test_the_published_threshold_is_seen_once_it_is_set():
    table = watch.follow(replace(SMALL, tasks=1, optimizer="selective", options={"warmup_steps": 3}), looks.thresholds)
    assert table.step.min() == 3 and set(table.layer) == {"Layer 1", "Layer 2"} and (table.threshold > 0).all()
