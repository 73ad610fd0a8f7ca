"""A run is what its experiment says, to the last bit, in any process."""

import json
import random
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from sp.lab.experiment import Experiment, run
from sp.lab.ledger import Ledger
from sp.lab.own import Own
from sp.lab.sweep import run_all
from sp.replay import ReplayBuffer
from sp.rivals import GradientLearner

SMALL = Experiment(hidden=(32,), options={"lr": 1e-2}, epochs=2, curve_points=2)


def same(first, second):
    return (
        first.experiment == second.experiment
        and np.array_equal(first.accuracy, second.accuracy, equal_nan=True)
        and first.curve == second.curve
        and first.buffer == second.buffer
    )


@pytest.fixture(scope="module")
def result():
    return run(SMALL)


def test_experiments_are_hashable_and_equal_by_their_choices():
    again = Experiment(hidden=[32], options=(("lr", 1e-2),), epochs=2, curve_points=2)
    assert again == SMALL and hash(again) == hash(SMALL) and again.key() == SMALL.key()
    keys = {replace(SMALL, **change).key() for change in ({}, {"seed": 1}, {"options": {"lr": 1e-3}}, {"epochs": 3})}
    assert len(keys) == 4
    assert Experiment.from_dict(json.loads(json.dumps(SMALL.as_dict()))) == SMALL


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"optimizer": "adamm"}, "optimizer must be one of .*'adam'.*, got 'adamm'"),
        ({"model": "cnnn"}, "model must be one of"),
        (
            {"dataset": "mnists"},
            "dataset must be one of 'digits', 'mnist', .*, got 'mnists'",
        ),
        ({"stream": "splitted"}, "stream must be one of"),
        ({"scenario": "clas"}, "scenario must be one of"),
        ({"evaluation": "train"}, "evaluation must be one of"),
        ({"replay_policy": "lifo"}, "replay_policy must be one of"),
        ({"options": {"lr": torch.tensor(0.1)}}, r"option lr must be a number, .*got tensor\(0.1"),
        ({"seed": -1}, "seed must be a whole number >= 0, got -1"),
        ({"epochs": 0}, "epochs must be a whole number >= 1, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number >= 1, got 2.5"),
        ({"replay_adds": "all"}, "replay_adds must be one of 'current', 'whole', got 'all'"),
    ],
)
def test_wrong_choices_are_named(choice, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Experiment(**choice)


def test_an_option_that_is_a_list_is_found_again(tmp_path):
    experiment = Experiment(hidden=(4,), options={"betas": [0.8, 0.9], "lr": np.float32(0.5)})
    ledger = Ledger(tmp_path)
    (first,) = run_all([experiment], ledger, 1, False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(ledger.get(experiment), first)
    assert hash(ledger.results()[0].experiment) == hash(experiment)
    assert dict(experiment.options) == {"betas": (0.8, 0.9), "lr": 0.5}


@pytest.mark.parametrize("until", [0, -1, 3])
def test_until_is_the_number_of_a_task(until):
    with pytest.raises(ValueError, match="until must be a whole number from 1 to 2, got"):
        run(Experiment(tasks=2), until=until)


def test_a_run_repeats_itself_whatever_the_threads_and_the_global_random_state(result):
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    torch.manual_seed(987)
    torch.set_num_threads(2)
    again = run(SMALL)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    torch.set_rng_state(state)
    assert same(result, again)


def test_a_run_seeds_what_an_own_method_may_draw_from_and_leaves_it_as_it_was():
    drawn = []

    def noisy(model, lr):
        drawn.append((random.random(), np.random.random()))
        return torch.optim.SGD(model.parameters(), lr)

    random.seed(3)
    np.random.seed(3)
    before = random.getstate(), np.random.get_state()[1].tolist()
    for seed in (0, 0, 1):
        run(replace(SMALL, optimizer=Own.of("noisy", noisy), seed=seed))
    assert drawn[0] == drawn[1] != drawn[2]
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


def test_a_run_repeats_itself_in_a_new_process(result, tmp_path):
    names = {"experiment": "Experiment", "ledger": "Ledger", "sweep": "run_all"}
    imports = "; ".join(f"from sp.lab.{module} import {name}" for module, name in names.items())
    script = f"{imports}; run_all([Experiment.from_dict({SMALL.as_dict()!r})], Ledger({str(tmp_path)!r}), 1)"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert same(result, Ledger(tmp_path).get(SMALL))


def test_accuracy_is_of_task_j_after_training_on_task_i(result):
    R = result.accuracy
    assert R.shape == (2, 2)
    assert R[0, 0] > 0.8 and R[0, 1] == 0  # after the first task, the second one's labels were never seen
    assert R[1, 1] > 0.6 and R[1, 0] < R[0, 0]
    final = [point["accuracy"] for point in result.curve if point["training"] == 1][-2:]
    assert final == R[1].tolist()


def test_methods_with_one_seed_share_weights_order_and_buffer():
    with_replay = replace(SMALL, replay_capacity=50)
    adam, sgd = run(with_replay), run(replace(with_replay, optimizer="sgd"))
    assert adam.buffer == sgd.buffer and sum(adam.buffer.values()) == 50
    assert adam.initial.tolist() == sgd.initial.tolist()
    assert run(replace(SMALL, seed=1)).accuracy.tolist() != run(SMALL).accuracy.tolist()


def test_replay_keeps_the_first_task_and_a_flushed_buffer_does_not():
    base = replace(SMALL, epochs=3, replay_capacity=100, replay_batch=32)
    published = replace(base, replay_policy="fifo", replay_adds="whole", replay_distinct=False)
    kept, flushed = run(base), run(published)
    first = lambda r: sum(n for label, n in r.buffer.items() if int(label) < 5) / 100  # noqa: E731
    assert 0.3 < first(kept) < 0.7 and first(flushed) < 0.05
    assert kept.accuracy[-1, 0] > flushed.accuracy[-1, 0] + 0.3


@pytest.mark.parametrize("replay_capacity", [0, 100])
def test_a_task_incremental_stream_only_asks_for_the_labels_of_the_task(replay_capacity):
    known = run(replace(SMALL, scenario="task", tasks=5, epochs=3, replay_capacity=replay_capacity))
    assert known.accuracy[-1].mean() > 0.8
    assert 0.2 < known.initial.mean() < 0.8  # chance is one in two, not one in ten


@pytest.mark.parametrize("stream", ["permuted", "rotated"])
def test_other_streams_run(stream):
    outcome = run(replace(SMALL, stream=stream, scenario="domain", tasks=3, optimizer="selective"))
    assert (np.diag(outcome.accuracy) > 0.5).all()


@pytest.mark.parametrize("optimizer", ["gpm", "ncl", "ewc"])
def test_a_network_that_diverges_ends_with_a_result(optimizer):
    result = run(replace(SMALL, optimizer=optimizer, options={"lr": 1e30}))
    assert result.accuracy[1].max() < 0.6


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss": len}, TypeError, "loss must be None or an Own, got .*len.*: give the function to sp.lab.compare"),
        ({"replay_distinct": "false"}, TypeError, "replay_distinct must be True or False, got 'false'"),
        ({"samples_per_task": 0}, ValueError, "samples_per_task must be a whole number >= 1, got 0"),
        (
            {"optimizer": "active_dendrites", "replay_capacity": 5},
            ValueError,
            "'active_dendrites' .* replay_capacity 0, got 5",
        ),
    ],
)
def test_a_choice_that_would_do_something_else_is_refused(change, error, message):
    with pytest.raises(error, match=message):
        replace(SMALL, **change)


def test_whole_numbers_of_numpy_are_those_of_python():
    changed = {"seed": 3, "hidden": (32,), "samples_per_task": 50}
    numpy = {"seed": np.int64(3), "hidden": np.int64(32), "samples_per_task": np.int32(50)}
    assert replace(SMALL, **numpy).key() == replace(SMALL, **changed).key()


def test_the_key_knows_a_correction_of_one_method(monkeypatch):
    keys = [replace(SMALL, optimizer=optimizer).key() for optimizer in ("adam", "si")]
    monkeypatch.setattr("sp.lab.experiment.METHOD_VERSIONS", {"si": 99})
    assert replace(SMALL, optimizer="adam").key() == keys[0] and replace(SMALL, optimizer="si").key() != keys[1]
    images = [replace(SMALL, model=model, hidden=(2, 3, 4)) for model in ("convolutional", "residual")]
    keys = [experiment.key() for experiment in images]
    monkeypatch.setattr("sp.lab.experiment.METHOD_VERSIONS", {f"{SMALL.optimizer}, convolutional": 2})
    assert [experiment.key() == key for experiment, key in zip(images, keys, strict=True)] == [False, True]
    monkeypatch.setattr("sp.lab.experiment.METHOD_VERSIONS", {"coincidence": 8, "coincidence, mlp": 6})
    perceptrons = [replace(SMALL, optimizer="coincidence", hidden=(8,) * depth) for depth in (1, 2, 3)]
    assert [experiment.method_version for experiment in perceptrons] == [6, 6, 8]
    bases = [replace(SMALL, optimizer="active_dendrites", options={"base": base}) for base in ("coincidence", "adam")]
    keys = [experiment.key() for experiment in bases]
    monkeypatch.setattr("sp.lab.experiment.METHOD_VERSIONS", {"active_dendrites, coincidence": 99})
    assert [experiment.key() == key for experiment, key in zip(bases, keys, strict=True)] == [False, True]


def test_the_order_of_the_data_is_that_of_the_seed_whatever_a_method_draws(monkeypatch):
    def order(seed, draws):
        seen = []

        def learn(self, x, y, allowed):
            seen.append(y.tolist())
            torch.rand(draws)

        monkeypatch.setattr(GradientLearner, "learn", learn)
        run(replace(SMALL, seed=seed))
        return seen

    assert order(0, 0) == order(0, 3) != order(1, 0)


@pytest.mark.parametrize("optimizer", ["sgd", "er_ace"])
def test_the_buffer_is_the_one_that_was_chosen(optimizer, monkeypatch):
    asked, sample = set(), ReplayBuffer.sample

    def seen(buffer, n):
        asked.add((buffer.capacity, buffer.policy, buffer.distinct, buffer.seed, n))
        return sample(buffer, n)

    monkeypatch.setattr(ReplayBuffer, "sample", seen)
    buffer = {"replay_capacity": 60, "replay_policy": "class_balanced", "replay_distinct": False, "replay_batch": 7}
    run(replace(SMALL, optimizer=optimizer, seed=3, **buffer))
    assert {one for one in asked if one[-1] > 1} == {(60, "class_balanced", False, 3, 7)}


@pytest.mark.parametrize(("added", "diverged"), [(np.inf, True), (-np.inf, False), (0.0, False)])
def test_infinite_answers_are_a_divergence_and_a_class_that_is_ruled_out_is_none(added, diverged):
    class Network(torch.nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y if self.training else torch.cat([y[:, :1] + added, y[:, 1:]], 1)

    result = run(replace(SMALL, model=Own.of("network", lambda: Network(64, 10))))
    assert result.diverged == diverged


def test_every_choice_counts_in_the_key_also_one_that_is_nothing():
    changes = [
        *({"dataset": "mnist"}, {"stream": "permuted"}, {"tasks": 5}, {"scenario": "domain"}, {"samples_per_task": 9}),
        *({"evaluation": "validation"}, {"model": "residual"}, {"hidden": ()}, {"optimizer": "sgd"}, {"options": ()}),
        *({"epochs": 3}, {"batch_size": 1}, {"replay_capacity": 1}, {"replay_policy": "fifo"}, {"replay_batch": 1}),
        *({"replay_distinct": False}, {"replay_distinct": True}, {"replay_adds": "whole"}, {"seed": 1}),
        *({"curve_points": 0}, {"loss": Own.of("loss", torch.nn.functional.mse_loss)}, {"hidden": (100, 100)}),
    ]
    assert {name for change in changes for name in change} == set(Experiment.__dataclass_fields__)
    assert len({replace(SMALL, **change).key() for change in [{}, *changes]}) == 1 + len(changes)
