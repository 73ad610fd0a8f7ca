"""A run that is killed goes on to the same end, and what is read from disk is right or is refused."""

import os
import pickle
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sp import checkpoint
from sp.experiment import Experiment, run
from sp.store import Store
from tests.test_experiment import same

BASE = Experiment(tasks=2, hidden=(24,), epochs=2, batch_size=64, curve_points=3)
ARMS = {
    "selective": replace(BASE, optimizer="selective", options={"warmup_steps": 10}, replay_capacity=60),
    "coincidence": replace(BASE, optimizer="coincidence", options={"rank": 4, "refresh_every": 7}),
    "ridge": replace(BASE, optimizer="ridge"),
    "active_dendrites": replace(BASE, optimizer="active_dendrites", options={"lr": 1e-3}),
    "dendrites": replace(BASE, optimizer="dendrites", options={"base": "selective", "check_every": 3}),
}


class Killed(Exception):
    """Stands for the end of a process."""


def killed_at(step, weights=None):
    def look(moment):
        if moment.step == step:
            raise Killed
        if moment.last and weights is not None:
            weights[moment.task] = [p.detach().clone() for p in moment.learner.model.parameters()]

    return look


@pytest.mark.parametrize("name", ARMS)
@pytest.mark.parametrize("at", [5, 11, 23, 30])
def test_a_run_goes_on_to_the_same_weights_and_the_same_result(name, at, tmp_path):
    if name == "dendrites":
        pytest.importorskip("perforatedai")
    experiment, path = ARMS[name], tmp_path / "run.checkpoint"
    expected, found = {}, {}
    keep = name != "ridge"
    straight = run(experiment, look=killed_at(-1, expected if keep else None))
    with pytest.raises(Killed):
        run(experiment, look=killed_at(at), checkpoint_path=path, checkpoint_every=4)
    torch.manual_seed(5)  # whatever the process did meanwhile
    again = run(experiment, look=killed_at(-1, found if keep else None), checkpoint_path=path, checkpoint_every=4)
    assert same(straight, again)
    assert keep is False or all(torch.equal(p, q) for p, q in zip(expected[2], found[2], strict=True))
    assert not path.exists()


VICTIM = """
import sys, time
from sp.experiment import Experiment
from sp.store import Store
import sp.experiment
experiment = Experiment.from_dict({experiment!r})
step = sp.experiment._Run._train_batch
def slow(*arguments):
    time.sleep(0.02)
    step(*arguments)
sp.experiment._Run._train_batch = slow
Store({folder!r}).run(experiment, checkpoint_every=3)
"""


def test_a_run_killed_by_the_system_resumes_from_the_store(tmp_path):
    experiment, store = ARMS["coincidence"], Store(tmp_path)
    script = VICTIM.format(experiment=experiment.as_dict(), folder=str(tmp_path))
    victim = subprocess.Popen([sys.executable, "-c", script])
    path = store.path(experiment).with_suffix(".checkpoint")
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    victim.send_signal(signal.SIGKILL)
    assert victim.wait() == -signal.SIGKILL and store.get(experiment) is None and path.exists()
    assert checkpoint.load(path, experiment.key())["steps"] >= 3
    assert same(store.run(experiment, checkpoint_every=3), run(experiment))
    assert [file.suffix for file in tmp_path.rglob("*") if file.is_file()] == [".json"]


def test_the_checkpoint_of_another_experiment_is_kept_and_refused(tmp_path):
    path = tmp_path / "run.checkpoint"
    with pytest.raises(Killed):
        run(BASE, look=killed_at(9), checkpoint_path=path, checkpoint_every=4)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="another experiment"):
        run(replace(BASE, seed=1), checkpoint_path=path)
    assert path.read_bytes() == before
    with pytest.raises(ValueError, match="checkpoint_every must be a whole number >= 1, got 0"):
        run(BASE, checkpoint_path=path, checkpoint_every=0)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint") / "run.checkpoint"
    checkpoint.save(path, {"key": BASE.key(), "x": torch.arange(5.0), "place": {"task": 1}})
    return path


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_a_damaged_checkpoint_is_never_loaded(written, data):
    content = bytearray(written.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    damaged = written.with_name("damaged")
    damaged.write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert checkpoint.load(damaged, BASE.key()) is None
    assert "begins again" in str(caught[0].message)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("writer", ["checkpoint", "pickle"])
def test_no_file_in_the_store_can_run_code(writer, tmp_path):
    store, trap = Store(tmp_path / "store"), tmp_path / "ran"
    content = pickle.dumps(Payload(str(trap)))
    for path in (store.path(BASE), store.path(BASE).with_suffix(".checkpoint")):
        path.parent.mkdir(parents=True, exist_ok=True)
        if writer == "checkpoint":
            checkpoint.save(path, {"key": BASE.key(), "x": Payload(str(trap))})
        else:
            path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        assert store.get(BASE) is None
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoint.load(store.path(BASE).with_suffix(".checkpoint"), BASE.key()) is None
    assert not trap.exists()
