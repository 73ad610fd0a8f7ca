"""User-supplied arrays make a stream in every scenario, and the ones that cannot be learnt say so."""

from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy.sparse import csr_array
from sklearn.metrics import r2_score
from torch import nn
from torch.utils.data import DataLoader

from sp.lab import Needs, Stream, compare
from sp.lab.experiment import explained_variance
from sp.lab.ledger import Ledger


@pytest.fixture(autouse=True)
def no_figure_is_left():
    yield
    plt.close("all")


@pytest.fixture
def kept(tmp_path):
    return Ledger(tmp_path / "store")


def blobs(number=0, classes=2, rows=60, shape=(4,)):
    """Arrays of one task with classes that a linear network can separate."""
    chance = np.random.default_rng(number)
    centres = chance.normal(size=(classes, *shape)) * 3

    def part():
        y = np.arange(rows) % classes
        return centres[y] + chance.normal(size=(rows, *shape)) * 0.1, y

    return (*part(), *part())


def shifted(task, by):
    x, y, x_test, y_test = task
    return x, y + by, x_test, y_test + by


def linear(inputs, outputs):
    return lambda: nn.Linear(inputs, outputs)


@pytest.mark.parametrize("make", [np.asarray, torch.as_tensor], ids=["arrays", "tensors"])
def test_classes_of_own_images_in_every_scenario(kept, make):
    def conv(outputs):
        return lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, outputs))

    first, second = blobs(0, shape=(1, 4, 4)), blobs(1, shape=(1, 4, 4))
    first, second = tuple(map(make, first)), tuple(map(make, second))
    streams = {
        "class": Stream.from_arrays([first, shifted(second, 2)]),
        "task": Stream.from_arrays([first, shifted(second, 2)], scenario="task"),
        "domain": Stream.from_arrays([first, second], scenario="domain"),
    }
    found = {}
    for name, stream in streams.items():
        outputs, options = 2 if name == "domain" else 4, {"epochs": 20, "workers": 1, "progress": False}
        found[name] = compare(["adam", "chance"], stream, conv(outputs), seeds=1, ledger=kept, **options)
        assert found[name].matrix("Adam").diagonal().tolist() == [1, 1]
    chance = {name: runs.data.average_accuracy.iloc[1] for name, runs in found.items()}
    assert chance == pytest.approx({"class": 1 / 4, "task": 1 / 2, "domain": 1 / 2}, abs=0.1)
    assert len({key for runs in found.values() for key in runs.data.key}) == 6
    usual = compare(["adam"], streams["class"], seeds=1, workers=1, ledger=kept, progress=False)
    assert usual.data.parameters.item() == 17 * 100 + 101 * 100 + 101 * 4


def test_tuning_on_own_arrays_sees_training_rows_alone_and_none_twice():
    task = blobs(0, rows=50)
    stream = Stream.from_arrays([task], scenario="domain")
    (held,) = stream.arrays.tasks_for("validation").tasks
    (x, y), (x_held, _) = held.train(), held.test()
    assert len(x) == 40 and len(x_held) == 10 and y.dtype == torch.int64 and x.dtype == torch.float32
    rows = sorted(map(tuple, torch.cat([x, x_held]).tolist()))
    assert rows == sorted(map(tuple, task[0].astype(np.float32).tolist()))


def test_runs_on_own_arrays_are_committed_while_they_are_shown(kept, tmp_path, monkeypatch):
    monkeypatch.setenv("SP_LEDGER", str(tmp_path / "ledger"))
    stream = Stream.from_arrays([blobs(0)], scenario="domain")
    runs = compare(["sgd"], stream, linear(4, 2), seeds=1, workers=1, ledger=kept, progress=False)
    assert kept.commit(runs.data.key) == kept.commit([]) == 1
    assert (tmp_path / "ledger" / "own.jsonl").read_text() and kept.commit([], instead_of="digits") == 0


def test_other_content_is_another_key(kept):
    def key(task):
        stream = Stream.from_arrays([task], scenario="domain")
        return compare(["sgd"], stream, linear(4, 2), seeds=1, workers=1, ledger=kept, progress=False).data.key.item()

    x, *others = blobs(0)
    other = x.copy()
    other[3, 2] += 0.5
    assert key((x, *others)) == key((x.copy(), *others)) != key((other, *others))


def test_numbers_are_learnt_by_their_squared_error_and_scored_by_r2(kept):
    chance = np.random.default_rng(0)
    x, weights = chance.normal(size=(200, 3)), chance.normal(size=(3, 2))
    y = x @ weights
    stream = Stream.from_arrays([(x[:150], y[:150], x[150:], y[150:])], scenario="domain", target="numbers")
    rate = {"Adam": {"lr": [0.03]}, "Coincidence": {"lr": [0.3]}}
    methods = {"Adam": "adam", "Coincidence": "coincidence"}
    runs = compare(methods, stream, linear(3, 2), 1, rate, epochs=20, workers=1, ledger=kept, progress=False)
    assert (runs.data.average_accuracy > 0.9).all()
    assert runs.table().columns[0] == "final R2 (0 where negative)"
    answers, true = torch.tensor(y + chance.normal(size=y.shape)), torch.tensor(y)
    assert explained_variance(answers, true) == pytest.approx(r2_score(true, answers))
    assert explained_variance(-3 * true, true) == 0 == explained_variance(true * torch.nan, true)


def test_sequences_of_tokens(kept):
    tokens = np.random.default_rng(0).integers(0, 5, (120, 6))
    parts = (tokens[:80], (tokens[:80] + 1) % 5, tokens[80:], (tokens[80:] + 1) % 5)
    stream = Stream.from_arrays([parts], scenario="domain")
    net = partial(nn.Sequential, nn.Embedding(5, 8), nn.Linear(8, 5))
    with pytest.raises(ValueError, match="network must return a new module each time"):
        compare(["adam"], stream, net, workers=1, ledger=kept)

    def fresh():
        return nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 5))

    runs = compare(["adam"], stream, fresh, 1, {"Adam": {"lr": [0.1]}}, workers=1, ledger=kept, progress=False)
    assert runs.data.average_accuracy.item() == 1
    stored = compare(["adam"], stream, fresh, 1, workers=1, ledger=kept, progress=False, replay_capacity=10)
    assert stored.results[0].buffer == {}  # a sequence has no single class
    with pytest.raises(ValueError, match=r"for sequences, network must be your own|x holds whole numbers"):
        compare(["adam"], stream, workers=1, ledger=kept)
    with pytest.raises(ValueError, match="method 'EWC' is only for classes and cross-entropy"):
        compare(["ewc"], stream, fresh, workers=1, ledger=kept)


def test_online_each_batch_is_tested_before_it_is_learnt_and_order_is_kept(kept):
    x = np.eye(10, dtype=np.float32)[np.arange(100) // 10]  # ten equal rows, then ten others, and so on
    y = np.arange(100) // 10
    seen = []

    class Last:
        """Predicts the label that it saw last."""

        needs = Needs()

        def __init__(self, model):
            self.label = 0

        def learn(self, x, y, allowed):
            seen.append(x.argmax(1).tolist())
            self.label = y[-1].item()

        def logits(self, x):
            return nn.functional.one_hot(torch.full((len(x),), self.label), 10).float()

    stream = Stream.online(x, y)
    options = {"batch_size": 5, "workers": 1, "ledger": kept, "progress": False}
    runs = compare({"Last": Last}, stream, linear(10, 10), 1, **options)
    assert seen[-20:] == [[number // 2] * 5 for number in range(20)]
    assert runs.data.average_accuracy.item() == pytest.approx(0.5)  # right on the second of two batches
    assert runs.curve().accuracy.tolist() == [1, 1, *[0, 1] * 9]
    assert runs.plot("curve").axes and stream.is_online
    with pytest.raises(ValueError, match="an online stream has none: use 'accuracy' or 'curve'"):
        runs.plot("matrix")
    tuned = stream.arrays.tasks_for("validation")
    assert len(tuned.tasks[0].train()[1]) == 20 and stream.arrays.tasks_for("test").scored_from == 20
    with pytest.raises(ValueError, match="method 'EWC' must know when a task ends"):
        compare(["ewc"], stream, **options)
    with pytest.raises(ValueError, match="epochs must be 1 for an online stream"):
        compare(["sgd"], stream, epochs=2, **options)
    rate, mixed = {"SGD": {"lr": [0.01, 0.5]}}, np.random.default_rng(0).permutation(100)
    numbers = Stream.online(x[mixed], (x @ np.arange(10))[mixed], target="numbers")
    learnt = compare(["sgd"], numbers, None, 1, rate, **{**options, "batch_size": 1})
    assert learnt.data.average_accuracy.item() > 0.5 and len(learnt.tuning) == 2


X, Y, X_TEST, Y_TEST = blobs()
BROKEN = X.copy()
BROKEN[7, 1] = np.nan


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (
            (X, Y[:-1], X_TEST, Y_TEST),
            {},
            r"x of task 1 and y of task 1 must have the same number .*\(60, 4\) and \(59,\)",
        ),
        ((BROKEN, Y, X_TEST, Y_TEST), {}, r"x of task 1 must be finite in float32, got nan at \[7, 1\]"),
        ((X * 1e300, Y, X_TEST, Y_TEST), {}, r"x of task 1 must be finite in float32, got .*e\+\d* at \[0, 0\]"),
        ((X, Y + 0.5, X_TEST, Y_TEST), {}, "y of task 1 must hold classes.*got 0.5.*or give target='numbers'"),
        ((X, Y[:, None], X_TEST, Y_TEST), {}, r"y of task 1 must have shape \(n,\), one class per .*: give y\[:, 0\]"),
        ((X, Y - 1, X_TEST, Y_TEST), {}, "y of task 1 must hold classes, whole numbers from 0, got -1"),
        ((X, Y, X_TEST, Y_TEST + 5), {}, "y_test of task 1 has class 5, which is not in y of task 1"),
        (
            (X, np.stack([Y, Y], 1), X_TEST, np.stack([Y_TEST, Y_TEST + 5], 1)),
            {"scenario": "task"},
            "y_test of task 1 has class 5, which is not in y of task 1",
        ),
        ((X, Y, X_TEST, Y_TEST), {"outputs": 1}, "outputs must be at least 2, because y has class 1, got 1"),
        ((X, Y, X_TEST[:, :3], Y_TEST), {}, r"rows of x must have the same shape.*\(4,\) of float32 and \(3,\)"),
        ((X, Y.astype(str), X_TEST, Y_TEST), {}, "y of task 1 must hold real numbers.* <U.*turn text into"),
        ((X.astype(object), Y, X_TEST, Y_TEST), {}, "got an array of type object: give all of it one type of numbers"),
        ((np.ma.masked_greater(X, 1), Y, X_TEST, Y_TEST), {}, "x of task 1 has masked values: leave such rows out"),
        (
            (np.full(X.shape, 2**63, np.uint64), Y, X_TEST, Y_TEST),
            {},
            r"x of task 1 must hold whole numbers below 2\*\*63",
        ),
        (
            (X, Y + 10**9, X_TEST, Y_TEST + 10**9),
            {},
            "y has 2 classes with numbers up to 1000000001.*number them from 0",
        ),
        ((X, Y * 0.0, X_TEST, Y_TEST), {"target": "numbers"}, "y of task 1 has only one value in column 0"),
        ((X, Y, X_TEST, Y_TEST), {"scenario": "clas"}, "scenario must be one of .*, got 'clas': did you mean 'class'"),
        ((X, Y, X_TEST, Y_TEST), {"target": "numbers"}, "scenario must be 'domain' when target is 'numbers'"),
        ((X, Y), {}, r"task 1 must be \(x, y, x_test, y_test\), got 2 values"),
        (X, {}, "got 60 values: .* put the tuple in a list"),
        (DataLoader(X), {}, r"task 1 must be a tuple \(x, y, x_test, y_test\), got a DataLoader"),
        ((None, Y, X_TEST, Y_TEST), {}, "x of task 1 must be an array or a tensor, got a NoneType"),
        ((DataLoader(X), Y, X_TEST, Y_TEST), {}, "x of task 1 must be an array or a tensor, got a DataLoader"),
        ((csr_array(X), Y, X_TEST, Y_TEST), {}, r"x of task 1 must be .*, got a csr_array: give .toarray\(\)"),
        ((X, Y, X_TEST, Y_TEST), {"scenario": Y}, "scenario must be text, got a ndarray: tasks is a single list"),
    ],
)
def test_arrays_that_cannot_be_learnt_say_so(task, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Stream.from_arrays([task], **options)


def test_labels_that_do_not_fit_the_scenario_say_how_to_number_them():
    task, other = blobs(0), blobs(1)
    with pytest.raises(ValueError, match=r"class 0 is in task 1 and in another one.*or give scenario='domain'"):
        Stream.from_arrays([task, other])
    with pytest.raises(ValueError, match=r"no other task has those of task 1.*or give scenario='class'"):
        Stream.from_arrays([task, shifted(other, 2)], scenario="domain")


def test_what_tuning_holds_out_is_drawn_from_all_rows_and_the_same_each_time():
    x = np.arange(100.0)[:, None]
    stream = Stream.from_arrays([(x, np.arange(100) % 2, x, np.arange(100) % 2)], scenario="domain")
    held, again = (stream.arrays.tasks_for("validation").tasks[0].test()[0].flatten().tolist() for _ in range(2))
    assert held == again and min(held) < 20 and max(held) >= 80 and len(held) == 20
