"""What notebooks 02 to 04 look at is what the optimizer holds."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from studies import looks

from sp import rules
from sp.lab import watch
from sp.lab.experiment import Experiment, run

SMALL = Experiment(stream="permuted", tasks=3, scenario="domain", hidden=(16,), samples_per_task=200, seed=1)
COINCIDENCE = replace(SMALL, optimizer="coincidence")


def test_by_number_of_tasks_counts_what_was_learnt_so_far():
    rows = pd.DataFrame(
        [("Adam", 0, 1, 1, 0.9), ("Adam", 0, 2, 1, 0.5), ("Adam", 0, 2, 2, 0.7)],
        columns=["method", "seed", "after", "on", "accuracy"],
    )
    counted = looks.by_number_of_tasks(rows)
    assert counted.tasks.tolist() == [1, 2] and counted.newest.tolist() == [0.9, 0.7]
    np.testing.assert_allclose(counted.average, [0.9, 0.6])


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


def test_a_network_whose_memory_is_wiped_learns_and_forgets(tmp_path, monkeypatch):
    monkeypatch.setenv("SP_STORE", str(tmp_path))
    whole = replace(COINCIDENCE, stream="split", scenario="class", tasks=5, samples_per_task=None, epochs=2)
    wiped = looks.without_memory({"wiped": whole}, [0]).iloc[0]
    kept = run(replace(whole, seed=0)).accuracy
    assert wiped.learning_accuracy > 0.8 and wiped.average_accuracy < 0.4 < kept[-1].mean()


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


def test_the_published_threshold_is_seen_once_it_is_set():
    table = watch.follow(replace(SMALL, tasks=1, optimizer="selective", options={"warmup_steps": 3}), looks.thresholds)
    assert table.step.min() == 3 and set(table.layer) == {"Layer 1", "Layer 2"} and (table.threshold > 0).all()
