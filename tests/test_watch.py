"""Looking inside a training changes nothing, and what is seen there is what the optimizer holds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from sp import rules, watch
from sp.experiment import Experiment, run

SMALL = Experiment(stream="permuted", tasks=3, scenario="domain", hidden=(16,), samples_per_task=200, seed=1)
COINCIDENCE = replace(SMALL, optimizer="coincidence")


def test_a_followed_training_is_the_one_that_run_makes():
    for experiment in (SMALL, replace(COINCIDENCE, stream="split", scenario="class", tasks=5, samples_per_task=None)):
        rows = watch.follow(experiment, watch.accuracies)
        seen = watch.mean_matrices(rows.assign(arm=""))[""]
        lower = np.tril_indices(len(seen))
        np.testing.assert_allclose(seen[lower], run(experiment).accuracy[lower], atol=1e-6)


def test_following_stops_after_the_task_that_was_asked_for():
    rows = watch.follow(SMALL, lambda moment: [{"last": moment.last}], until=2)
    assert rows.task.unique().tolist() == [1, 2] and rows["last"].sum() == 2
    assert rows.step.tolist() == list(range(1, len(rows) + 1))


@pytest.mark.parametrize("change", [{"optimizer": "ridge"}, {"replay_capacity": 10}])
def test_what_cannot_be_followed_is_an_error(change):
    with pytest.raises(ValueError, match="experiment must train a network without replay"):
        watch.follow(replace(SMALL, **change), watch.accuracies)


def test_a_fixed_threshold_never_unmarks_and_a_trace_that_decays_at_once_follows_the_newest_batch():
    rows = watch.follow(replace(SMALL, tasks=2), watch.Traces(decay=0.0, every=1)).set_index("step")
    fixed = rows[rows.trace == "Accumulating trace, fixed threshold"].share
    assert (fixed.diff().dropna() >= 0).all() and fixed.iloc[0] > 0.5
    assert rows.share.between(0, 1).all()
    last = rows[rows.index == rows.index.max()].set_index("trace").share
    assert last["Decaying trace"] < last["Accumulating trace"]


def test_gates_fall_and_lie_between_zero_and_one():
    gates = watch.follow(
        replace(SMALL, optimizer="consolidating", epochs=3, options={"warmup_steps": 5}), watch.gate_quantiles
    )
    assert gates.gate.between(0, 1).all() and set(gates.layer) == {1, 2}
    late = gates[gates.step >= 20].sort_values("step")
    assert (late.groupby(["layer", "quantile"]).gate.apply(lambda gate: gate.diff().dropna().max()) <= 1e-6).all()


@pytest.mark.parametrize("options", [{"rank": None}, {"rank": 8, "refresh_every": 5}])
def test_the_memory_is_a_positive_matrix_that_knows_the_tasks_that_were_learnt(options):
    experiment = replace(COINCIDENCE, options=options, epochs=2)

    def look(moment):
        synapses = moment.optimizer.coincidence.synapses[0]
        A = watch.memory(moment.optimizer, synapses)
        assert A.shape == (65, 65)
        torch.testing.assert_close(A, A.T)
        assert torch.linalg.eigvalsh(A.double()).min() > -1e-4
        assert watch.memory_strength(moment.optimizer, synapses) == watch.default("memory_strength")
        return watch.spectrum(moment) + watch.input_novelty(moment)

    rows = watch.follow(experiment, look)
    trace = rows.groupby("task").weight.sum()
    assert trace.is_monotonic_increasing
    new = rows.dropna(subset="novelty").pivot(index="task", columns="on", values="novelty").to_numpy()
    assert ((new > 0) & (new <= 1)).all()
    assert new[0, 0] < new[0, 1:].min() and new[2].max() < new[0, 1:].min()


def test_the_projected_gradient_spares_old_inputs():
    found = watch.first_gradient(replace(COINCIDENCE, epochs=3), task=3)
    assert found.raw.shape == found.projected.shape == (16, 64) and found.mean_image.shape == (64,)
    change = found.effects.pivot(index="step", columns="inputs", values="change")
    assert change.loc["raw", "new task"] == pytest.approx(1)
    spared = change["old tasks"] / change["new task"]
    assert spared["projected"] < spared["raw"]


def test_a_network_whose_memory_is_wiped_learns_and_forgets():
    whole = replace(COINCIDENCE, stream="split", scenario="class", tasks=5, samples_per_task=None, epochs=2)
    wiped = watch.without_memory({"wiped": (whole, "all")}, [0]).iloc[0]
    kept = run(replace(whole, seed=0)).accuracy
    assert wiped.learning_accuracy > 0.8 and wiped.average_accuracy < 0.4 < kept[-1].mean()
    with pytest.raises(ValueError, match="layers must be 'hidden', 'readout' or 'all', got 'first'"):
        watch.forgets("first", watch.accuracies)


def test_accuracies_by_task_and_by_number_of_tasks_agree_with_the_matrix(tmp_path, monkeypatch):
    monkeypatch.setenv("SP_STORE", str(tmp_path))
    rows = watch.accuracy_by_task({"Adam": SMALL}, [1])
    R = run(SMALL).accuracy
    lower = np.tril_indices(3)
    np.testing.assert_allclose(watch.mean_matrices(rows)["Adam"][lower], R[lower])
    counted = watch.by_number_of_tasks(rows)
    np.testing.assert_allclose(counted.newest, np.diag(R))
    np.testing.assert_allclose(counted.average, [R[i, : i + 1].mean() for i in range(3)])


def test_novelty_of_a_memory_is_the_rules():
    optimizer_novelty = watch.follow(COINCIDENCE, _novelty_by_hand)
    assert (optimizer_novelty.by_hand - optimizer_novelty.novelty).abs().max() < 1e-5


def _novelty_by_hand(moment):
    if not moment.last:
        return []
    synapses = moment.optimizer.coincidence.synapses[0]
    P = rules.novelty(watch.memory(moment.optimizer, synapses), watch.default("memory_strength"))
    rows = pd.DataFrame(watch.input_novelty(moment))
    x = moment.stream.tasks[0].test()[0]
    x = torch.cat([x, torch.ones(len(x), 1)], 1)
    by_hand = torch.stack([row @ P @ row / (row @ row) for row in x]).mean().item()
    return [{"novelty": rows.novelty[0], "by_hand": by_hand}]
