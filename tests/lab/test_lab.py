"""Custom rules, networks and data join one fair comparison, and those that cannot say so before anything runs."""

import importlib
import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from studies import TUNING_SEEDS
from torch import nn

from sp import lab
from sp.__main__ import main
from sp.lab import GradientLearner, Needs, Stream, compare, tables
from sp.lab.experiment import Experiment, Result, run
from sp.lab.ledger import Ledger
from sp.lab.methods import ANY_LOSS
from sp.lab.networks import WIDTHS
from sp.lab.runs import Runs, tuned
from sp.lab.settings import STREAMS, on_stream
from tests.lab import test_arrays, test_sweep
from tests.lab.test_arrays import blobs, linear, shifted

ROOT = Path(__file__).parents[2]
cluster, kept, no_figure_is_left = test_sweep.cluster, test_arrays.kept, test_arrays.no_figure_is_left
LION = """
import torch
from torch import nn


class Lion(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.99)):
        super().__init__(params, {"lr": lr, "betas": betas})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                p.sub_(m.lerp(p.grad, 1 - group["betas"][0]).sign(), alpha=group["lr"])
                m.lerp_(p.grad, 1 - group["betas"][1])


def lion(model, lr=1e-3):
    return Lion(model.parameters(), lr=lr)


def network():
    return nn.Sequential(nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))
"""
exec(compile(LION, "lion", "exec"))
Lion, lion, network = (globals()[name] for name in ("Lion", "lion", "network"))
SMALL = {"network": network, "epochs": 2, "workers": 1, "progress": False}


class Anchored(GradientLearner):
    """A baseline: each weight is pulled to where the last task left it."""

    needs = Needs(boundaries=True)

    def __init__(self, model, strength=0.1):
        super().__init__(model, "sgd", {"lr": 0.1})
        self.strength, self.anchor = strength, None

    def adjust_gradients(self):
        for p, anchor in zip(self.parameters, self.anchor or [], strict=False):
            p.grad += self.strength * (p.detach() - anchor)

    def end_task(self, x, y, allowed):
        self.anchor = [p.detach().clone() for p in self.parameters]


def digits(tasks=2, **choices):
    return Stream.split("digits", tasks, samples_per_task=80, **choices)


def test_lion_beside_adam_and_coincidence_from_tuning_to_the_figure(kept, tmp_path, monkeypatch, capsys):
    methods = {"Adam": "adam", "Coincidence": "coincidence", "Lion": lambda model, lr: Lion(model.parameters(), lr=lr)}
    rates = {"lr": [1e-5, 3e-3]}
    call = partial(compare, methods, digits(), tune={"Adam": rates, "Lion": rates}, ledger=kept, seeds=2)
    runs = call(**{**SMALL, "progress": True})
    assert "18 runs, 0 of them stored, 18 to do: less than a minute" in capsys.readouterr().err
    assert runs.tuning.chosen.tolist() == [False, True, False, True]
    assert runs.data.method.tolist() == ["Adam", "Adam", "Coincidence", "Coincidence", "Lion", "Lion"]
    assert runs.data.option_lr.dropna().tolist() == [3e-3] * 4 and runs.data.seed.tolist() == [0, 1] * 3
    begun = [result.initial.tolist() for result in runs.results]
    assert begun[0] == begun[2] == begun[4] != begun[1] == begun[3] == begun[5]
    tried = [result.experiment for result in kept.results() if result.experiment.evaluation == "validation"]
    assert len(tried) == 12 and {e.seed for e in tried} == set(TUNING_SEEDS)
    assert len(kept.results()) == 18

    table = runs.table()
    assert table.columns.tolist()[2:] == ["n", "minus Adam", "verdict"] and (table.n == 2).all()
    assert table.verdict.tolist() == ["baseline", "too few seeds to tell", "too few seeds to tell"]
    assert table["final accuracy"]["Lion"].startswith(f"{runs.data.average_accuracy[4:].mean():.3f} [")
    assert runs.matrix("Lion").shape == (2, 2)
    curve = runs.curve()
    assert curve[curve.step == 2].accuracy.tolist() == pytest.approx(runs.data.average_accuracy.tolist())
    monkeypatch.setenv("SP_FIGURES", str(tmp_path / "figures"))
    for kind in ("accuracy", "matrix", "curve"):
        assert runs.plot(kind).axes
        runs.save(f"lion_{kind}", kind, formats=["pdf"])
    record = json.loads((tmp_path / "figures" / "lion_curve.json").read_text())
    assert record["provenance"]["experiments"] == sorted(runs.data.key)

    monkeypatch.setattr("sp.lab.sweep.run", None)  # nothing is run again
    assert call(**SMALL).data.drop(columns="seconds").equals(runs.data.drop(columns="seconds"))


def test_runs_that_diverged_are_counted_in_the_table(kept):
    methods = {"Adam": "adam", "Lion": partial(lion, lr=1e30)}
    call = partial(compare, methods, digits(), seeds=2, ledger=kept, **SMALL)
    assert call().table().diverged.to_dict() == call().table().diverged.to_dict() == {"Adam": 0, "Lion": 2}


def keys(kept, method, **choices):
    return compare({"Own": method}, digits(), seeds=1, ledger=kept, **{**SMALL, **choices}).data.key.tolist()


def test_what_is_kept_is_known_by_content_and_not_by_title(kept):
    rate = 1e-3
    first = keys(kept, lambda model: Lion(model.parameters(), lr=rate))
    renamed = compare(
        {"Other": lambda model: Lion(model.parameters(), lr=rate)}, digits(), seeds=1, ledger=kept, **SMALL
    )
    assert renamed.data.key.tolist() == first and renamed.data.optimizer.tolist() == ["Other"]
    rate = 2e-3
    assert keys(kept, lambda model: Lion(model.parameters(), lr=rate)) != first
    (result,) = [result for result in kept.results() if result.experiment.key() == first[0]]
    again = Result.from_row(json.loads(json.dumps(result.as_row()))).experiment
    assert again == result.experiment and again.key() == first[0] and str(again.optimizer) == "Own"
    with pytest.raises(ValueError, match="'Own' was read from a ledger, which has only its digest: give it again"):
        run(again)
    with pytest.raises(ValueError, match="'own network' was read from a ledger"):
        run(replace(again, optimizer="adam"))


def test_a_run_with_own_code_is_no_part_of_an_audit(tmp_path, monkeypatch, capsys):
    keys(Ledger(tmp_path), lion)
    monkeypatch.setenv("SP_LEDGER", str(tmp_path))
    assert main(["audit", "--sample", "1"]) == 2
    assert f"{tmp_path} has no runs on digits to audit" in capsys.readouterr().err


def test_a_class_and_a_partial_of_one_get_the_parameters(kept):
    methods = {"function": lion, "class": Lion, "partial": partial(Lion, lr=1e-3)}
    accuracies = compare(methods, digits(), seeds=1, ledger=kept, **SMALL).data.average_accuracy
    assert accuracies.nunique() == 1


def test_a_rival_stands_under_its_registered_name_or_as_its_class(kept, monkeypatch):
    monkeypatch.setattr("sp.lab.methods._registered", {})
    lab.register("anchored", Anchored)
    runs = compare(
        {"SGD": lambda model: torch.optim.SGD(model.parameters(), 0.1), "name": "anchored", "class": Anchored},
        digits(scenario="domain"),
        tune={"name": {"strength": [0.0]}, "class": {"strength": [2.0]}},
        seeds=1,
        ledger=kept,
        **{**SMALL, "network": linear(64, 5)},
    )
    plain, loose, held = runs.matrix("SGD"), runs.matrix("name"), runs.matrix("class")
    assert plain.tolist() == loose.tolist() and held[1, 0] > loose[1, 0]
    with pytest.raises(ValueError, match=r"method must be one of .*, got 'ancored': did you mean 'anchored'"):
        compare(["ancored"], digits())
    with pytest.raises(ValueError, match="must not be one of this package's own methods, got 'adam'"):
        lab.register("adam", Anchored)


def everything(monkeypatch):
    """Methods and a stream that must reach workers: a lambda, a function of this file, a registered class, arrays."""
    monkeypatch.setattr("sp.lab.methods._registered", {"anchored": Anchored})
    rate = 1e-3
    methods = {"lambda": lambda model: Lion(model.parameters(), lr=rate), "function": lion, "name": "anchored"}
    return methods, Stream.from_arrays([blobs(0), shifted(blobs(1), 2)]), linear(4, 4)


def test_own_things_reach_two_workers_and_give_the_same(tmp_path, monkeypatch):
    methods, stream, net = everything(monkeypatch)
    options = {"seeds": 2, "epochs": 2, "progress": False}
    here = compare(methods, stream, net, workers=1, ledger=Ledger(tmp_path / "one"), **options)
    there = compare(methods, stream, net, workers=2, ledger=Ledger(tmp_path / "two"), **options)
    assert there.data.drop(columns="seconds").equals(here.data.drop(columns="seconds"))
    assert there.results[0].experiment.optimizer.content is methods["lambda"]


EDITED = {
    "edited_helper": "import edited_beside\nRATE = 0.1\ndef rate(): return edited_beside.edited_helper.RATE\n",
    "edited_beside": "import edited_helper\n",
    "edited_rule": "import torch, edited_helper\n"
    "def rule(model): return torch.optim.SGD(model.parameters(), lr=edited_helper.rate())\n",
}


def test_an_edited_and_reloaded_helper_reaches_workers_that_already_imported_it(tmp_path, monkeypatch):
    for name, text in EDITED.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    helper, _, user = [importlib.import_module(name) for name in EDITED]

    def final(workers):
        options = {**SMALL, "workers": workers, "seeds": 2, "ledger": Ledger(tmp_path / str(workers))}
        return compare({"Rule": user.rule}, digits(), **options).data.average_accuracy.tolist()

    before = final(2)
    (tmp_path / "edited_helper.py").write_text(EDITED["edited_helper"].replace("0.1", "0.0001"))
    importlib.reload(helper)
    assert final(2) == final(1) != before


def test_own_things_reach_a_cluster(tmp_path, monkeypatch, cluster):
    methods, stream, net = everything(monkeypatch)
    options = {"seeds": 1, "epochs": 2, "progress": False}
    there = compare(methods, stream, net, cluster=cluster[0], ledger=Ledger(tmp_path / "two"), **options)
    here = compare(methods, stream, net, workers=1, ledger=Ledger(tmp_path / "one"), **options)
    assert there.data.average_accuracy.tolist() == here.data.average_accuracy.tolist()


NOTEBOOK = """
from sp.lab import Stream, compare
from sp.lab.ledger import Ledger

if __name__ == "__main__":
    stream = Stream.split("digits", 2, samples_per_task=40)
    methods = {"Adam": "adam", "Lion": lambda model: lion(model, 1e-3)}
    runs = compare(methods, stream, lambda: network(), seeds=1, workers=2, ledger=Ledger("store"))
    print(*runs.data.average_accuracy, *runs.data.key)
"""


def test_functions_of_a_notebook_s_cell_reach_the_workers_and_keep_their_keys(tmp_path):
    (tmp_path / "cell.py").write_text(LION + NOTEBOOK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def said():
        command = [sys.executable, "cell.py"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done

    first = said()
    again = said()
    assert "2 runs, 0 of them stored" in first.stderr and "of them stored" not in again.stderr
    assert again.stdout == first.stdout


def test_what_has_no_digest_is_computed_and_not_kept_and_one_warning_says_why(kept):
    chance = torch.Generator()

    def noisy(model):
        chance.manual_seed(0)
        return torch.optim.SGD(model.parameters(), lr=0.1)

    with pytest.warns(UserWarning, match="not kept.*chance.*random generator") as caught:
        runs = compare({"SGD": "sgd", "Noisy": noisy}, digits(), seeds=2, ledger=kept, **SMALL)
    assert len(caught) == 1 and len(runs.data) == 4 and len(kept.results()) == 2


def test_an_own_loss_is_learnt_and_part_of_the_key(kept):
    def none(outputs, y):
        return outputs.sum() * 0

    runs = compare(["sgd"], digits(), seeds=1, loss=none, ledger=kept, **SMALL)
    assert runs.matrix("SGD")[1, 0] == runs.results[0].initial[0]
    other = compare(["sgd"], digits(), seeds=1, loss=nn.functional.cross_entropy, ledger=kept, **SMALL)
    plain = compare(["sgd"], digits(), seeds=1, ledger=kept, **SMALL)
    assert other.matrix("SGD").tolist() == plain.matrix("SGD").tolist()
    assert len({one.data.key.item() for one in (runs, other, plain)}) == 3
    assert "loss" not in plain.data
    with pytest.raises(ValueError, match="loss must return one number"):
        compare(["sgd"], digits(), loss=lambda outputs, y: outputs, ledger=kept, **SMALL)


def other_parameters(model):
    return torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)


class Unending(GradientLearner):
    needs = Needs(boundaries=True)


class WithoutStep(torch.optim.Optimizer):
    def __init__(self, params):
        super().__init__(params, {})


def frozen():
    return nn.Linear(64, 10).requires_grad_(False)


def with_batch_norm():
    return nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 10))


def fails(model):
    optimizer = lion(model)
    optimizer.step = lambda: 1 / 0
    return optimizer


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (lambda model: model, {}, "method 'M' cannot be built: it must return a torch.optim.Optimizer, or a learner"),
        (lion, {"tune": {"M": {"lr": [1.0], "decay": [1]}}}, "'M' with options .* cannot be built: .*'decay'"),
        ("adam", {"tune": {"M": {"rate": [1]}}}, r"'M' with options \{'rate': 1\} cannot be built: .*'rate'"),
        ("sgd", {"tune": {"M": {"lr": [-1.0]}}}, "cannot be built: Invalid learning rate: -1.0"),
        (other_parameters, {}, "method 'M' trains none of the network's parameters"),
        (fails, {}, "method 'M' fails at its first step: ZeroDivisionError"),
        (lion, {"device": "cuda:99"}, "device 'cuda:99' cannot be used.*give 'cpu'"),
        (WithoutStep, {}, "method 'M': its optimizer, WithoutStep, has no step method"),
        (
            "adam",
            {"tune": {"M": {"lr": ["abc"]}}},
            "'M' with options .* cannot be built: lr is the string 'abc', not a n",
        ),
        (("adam", {"lr": 1.0}), {}, r"got tuple: give options in that call, or as tune=\{'M': \{'lr': \[0.01\]\}\}"),
        ("coincidence", {"network": frozen}, "network has nothing to train"),
        (
            None,
            {"methods": [lambda model: 1, lambda model: 2]},
            "two methods with the title '<lambda>': give a",
        ),
        (None, {"methods": ["adam", "adam"]}, "two methods with the title 'Adam': give a dict of titles"),
        (None, {"methods": lion}, "methods must be a dict of titles .*got <function lion.*: a single method is"),
        (None, {"methods": {1: lion}}, "the title of a method must be text, got 1: write '1'"),
        (None, {"methods": {"": lion}}, "the title of a method must not be empty"),
        (None, {"methods": {"adam", "sgd"}}, "methods must be in an order, since the first is the baseline, got a set"),
        ("adm", {}, "method must be one of .*, got 'adm': did you mean 'adam'"),
        (3, {}, "method 'M' must be a name or a callable that takes a network"),
        ("agem", {}, "give replay_capacity >= 1"),
        (lion, {"network": nn.Linear(64, 10)}, "network must be a name or a callable that returns a new module"),
        (
            lion,
            {"network": linear(64, 7)},
            r"network must return outputs of shape \(2, 10\) .*got \(2, 7\): make its last .* labels go from 0 to 9$",
        ),
        (lion, {"network": lambda: nn.GRU(64, 10)}, r"got tuple: return one tensor, such as the first part"),
        (lion, {"network": lambda: nn.Unflatten(1, (8, 8))}, "network has nothing to train"),
        (
            lion,
            {"network": lambda: nn.Sequential(nn.Unflatten(1, (8, 8)), nn.Linear(8, 10))},
            r"got \(2, 8, 10\): return one row per example",
        ),
        (lion, {"network": linear(60, 10)}, r"network cannot take x of shape \(2, 64\)"),
        (lion, {"network": lambda: 3}, "network must return a torch.nn.Module, got int"),
        (lion, {"network": "mpl"}, "network must be one of .*, got 'mpl': did you mean 'mlp'"),
        (lion, {"baseline": "L"}, "baseline must be one of 'M', got 'L'"),
        (lion, {"tune": {"N": {"lr": [1.0]}}}, "key of tune, the title of a method, must be one of 'M'"),
        (lion, {"tune": {"M": {"lr": []}}}, r"tune must look like {'M': {'lr': .*got {'lr': \[\]} for 'M'"),
        (lambda model: Unending(model, "sgd", {}), {}, "got Unending without end_task"),
        (lion, {"tune": {"M": {"lr": 1.0}}}, "tune must look like {'M': {'lr': .*got {'lr': 1.0} for 'M'"),
        (lion, {"stream": Stream.named("split2", samples_per_task=0)}, "samples_per_task must be a whole .* got 0"),
        (lion, {"stream": "split5"}, r"stream must be made by Stream.split\(...\).*got 'split5'"),
        (lion, {"tune": {"M": {"lr": [1.0]}}, "stream": Stream.split("digits", 2, samples_per_task=600)}, "at most 5"),
        (lion, {"tune": {"M": {"lr": [1.0]}}, "seeds": [0, 100]}, "that are not tuning seeds"),
        (lion, {"seeds": [1, 1]}, r"distinct whole numbers .*got \[1, 1\]"),
        (lion, {"seeds": 2.0}, "got 2.0"),
        (lion, {"hidden": (9,)}, "hidden is only for networks given by name, got .9,."),
        (
            lion,
            {"network": with_batch_norm, "batch_size": 79},
            "cannot take a batch of one example, and batch_size 79 leaves one at the end of a task",
        ),
        (
            "adam",
            {
                "network": lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)),
                "stream": Stream.from_arrays([(np.eye(3)[[0, 1] * 20], [0, 1] * 20, np.eye(3)[:2], [0, 1])]),
                "batch_size": 31,  # leaves one of the 32 examples that are not held out
                "tune": {"M": {"lr": [1e-3, 1e-2]}},
            },
            "cannot take a batch of one example, and batch_size 31 leaves one at the end of a task",
        ),
    ],
)
def test_what_cannot_run_is_said_before_anything_runs(kept, monkeypatch, method, options, message):
    monkeypatch.setattr("sp.lab.comparing.run_all", None)
    with pytest.raises((ValueError, TypeError), match=message):
        compare(**{"methods": {"M": method}, "stream": digits(), **SMALL, "ledger": kept, **options})


def test_what_cannot_be_sent_to_workers_says_so(kept):
    lock = threading.Lock()

    def locked(model):
        with lock:
            return lion(model)

    with pytest.raises(ValueError, match=r"'Locked' cannot be sent to another process \(.*lock.*or give workers=1"):
        compare({"Locked": locked}, digits(), **{**SMALL, "workers": 2, "ledger": kept})


def test_methods_that_are_tuned_get_as_many_points(kept):
    tune = {"a": {"lr": [1e-3, 1e-2]}, "b": {"lr": [1e-3]}}
    with pytest.raises(ValueError, match="the same number of points for every method, to be fair, got a: 2, b: 1"):
        compare({"a": lion, "b": "adam", "c": "sgd"}, digits(), tune=tune, ledger=kept)


def test_a_value_at_an_end_of_its_list_is_warned_of_once_and_told_in_every_row(kept):
    tune = {"SGD": {"lr": [1e-6, 1e-3, 1e-1]}, "M": {"lr": [1e-6, 1e-2, 1e2]}}
    call = partial(compare, {"SGD": "sgd", "M": "sgd"}, digits(), tune=tune, seeds=1, ledger=kept, **SMALL)
    said = "SGD: lr=0.1, the highest in the list: a longer list may do better"
    with pytest.warns(UserWarning, match=f"tuning chose a value at the end of its list: {said}$"):
        runs = call()
    assert tuned(runs.tuning) == {"SGD": said.removeprefix("SGD: "), "M": "lr=0.01"}
    assert tuned(call().tuning) == tuned(runs.tuning)


@pytest.mark.parametrize("values", [(1, 2), ("a", "b", "c"), (1, 2, math.inf)])
def test_lists_without_an_end(values):
    rows = [{"method": "M", "options": {"k": value}, "chosen": value == values[-1]} for value in values]
    assert tuned(pd.DataFrame(rows)) == {"M": f"k={values[-1]!r}"}


def test_what_is_kept_is_not_said_to_be_done_again(kept, capsys):
    tune = {"SGD": {"lr": [1e-6, 1e-1]}}
    call = partial(compare, ["sgd"], digits(), tune=tune, ledger=kept, **{**SMALL, "progress": True})
    call(seeds=1)
    assert "7 runs, 0 of them stored" in capsys.readouterr().err
    call(seeds=1)
    assert "to do" not in capsys.readouterr().err
    call(seeds=2)
    assert "8 runs, 7 of them stored, 1 to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("split5", Stream.split("mnist", 5)),
        ("split2_task", Stream.split("mnist", 2, "task")),
        ("permuted30", Stream.permuted("mnist", 30, samples_per_task=20_000)),
        ("rotated5", Stream.rotated("mnist")),
        ("half_turn", Stream.rotated("mnist", 2, "task")),
    ],
)
def test_every_command_knows_a_stream_by_the_same_name(monkeypatch, name, same):
    monkeypatch.setitem(STREAMS, "half_turn", {"stream": "rotated", "tasks": 2, "scenario": "task"})
    stream = Stream.named(name, "mnist")
    assert stream.title == same.title and stream.usual == same.usual
    assert replace(Experiment(), **stream.choices) == replace(Experiment(), **same.choices)
    assert on_stream(name, "mnist") == replace(Experiment(), **stream.choices, **stream.usual)


def test_a_name_that_nearly_is_one_is_suggested():
    with pytest.raises(ValueError, match=r"dataset must be one of .*, got 'digit': did you mean 'digits'"):
        Stream.split("digit")


FILE = (
    LION
    + """
from sp.lab import Stream

stream = Stream.split("digits", tasks=2, samples_per_task=40)


def make():
    return stream
"""
)


def test_the_same_from_the_shell(tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SP_STORE", str(tmp_path / "store"))
    command = "compare --method mine.py:lion --method adam --network mine.py:network --seeds 1 --workers 1 --epochs 1"
    words = [*command.split(), "--stream", "mine.py:stream", "--csv", "runs.csv"]
    words += ["--tune", "mine.py:lion:lr=1e-4,3e-3", "--tune", "adam:lr=1e-4,1e-3"]
    assert main([*words, "--baseline", "adam", "--figure", "lion"]) == 0
    out, err = capsys.readouterr()
    assert "lion" in out and "minus Adam" in out and "14 runs, 0 of them stored" in err
    assert "\nlion: lr=" in out and "[nan" not in out and "sign-flip" not in out  # one seed decides nothing
    decided = "compare --method adam --method chance --stream split2 --samples-per-task 200 --epochs 2"
    assert main(decided.split()) == 0
    assert "\nhigher or lower: the interval excludes 0 and a sign-flip test agrees\n" in capsys.readouterr().out
    record = json.loads((tmp_path / "figures" / "lion.json").read_text())
    assert record["provenance"]["command"].startswith("python -m sp compare --method mine.py:lion")
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 3
    (tmp_path / "other.py").write_text(FILE)
    two = "compare --method mine.py:lion --method other.py:lion --stream mine.py:make --epochs 1 --seeds 1"
    assert main([*two.split(), "--network", "mine.py:network", "--baseline", "other.py:lion"]) == 0
    assert "minus other: lion" in capsys.readouterr().out
    chosen = "compare --method adam --stream split2 --network convolutional --hidden 2,3,4 --epochs 1 --seeds 1"
    assert main([*chosen.split(), "--csv", "convolutional.csv"]) == 0
    assert set(pd.read_csv("convolutional.csv").hidden) == {"2-3-4"}
    usual = "compare --method adam --stream split2 --network recurrent --epochs 1 --seeds 1 --csv recurrent.csv"
    assert main(usual.split()) == 0 and set(pd.read_csv("recurrent.csv").hidden) == {64}
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rates.py").write_text("")
        (tmp_path / folder / f"{folder}.py").write_text(f"import rates\n{LION}")
    capsys.readouterr()
    assert main(["compare", "--method", "old/old.py:lion", "--method", "new/new.py:lion"]) == 2
    assert "rates.py has been imported under that name: rename one" in capsys.readouterr().err
    (tmp_path / "broken.py").write_text("import os\nint('a')\n")
    for wrong, message in {
        "broken.py:lion": "broken.py, line 2: ValueError: invalid literal for int() with base 10: 'a'",
        "mine.py:lino": "has no 'lino': did you mean 'lion'?",
        "nowhere.py:lion": "nowhere.py does not exist",
        "adm": "got 'adm': did you mean 'adam'?",
        "lion": "--method, unless it is FILE.py:NAME, must be one of",
        "mine.py": "mine.py is a file: say which object in it, as mine.py:NAME",
    }.items():
        assert main(["compare", "--method", wrong]) == 2
        assert message in capsys.readouterr().err
    for wrong, message in {
        "--tune lr=1e-3,1e-2": "write, say,  --tune adam:lr=1e-3,1e-2 --tune sgd:lr=1e-3,1e-2\n",
        "--tune adam:lr=1e-4:1e-2:log": "--tune adam:lr=1e-4:1e-2:log is a range: list its values, as v1,v2,...\n",
        "--tune adam=1e-3,1e-2": "names a method and no option: write, say,  --tune adam:lr=1e-3,1e-2\n",
        "--tune adam:lr=1e-3,abc": "'abc' is not a number",
        "--kind matrix": "give --figure NAME as well",
        "--figure 01_forgetting/x": "notebooks/01_forgetting.ipynb : give another name",
    }.items():
        command = "compare --method adam --method sgd --method coincidence"
        assert main([*command.split(), *wrong.split()]) == 2
        assert message in capsys.readouterr().err


def test_a_table_says_how_much_higher_than_the_baseline_a_method_is_and_a_matrix_is_a_mean():
    levels = {"Base": [0.1, 0.1, 0.1, 0.1, 0.1, 0.7], "Better": [0.3, 0.3, 0.3, 0.3, 0.3, 0.9]}
    results = [
        Result(replace(Experiment(), seed=seed), np.array([[1.0, 0.0], [level, level]]), np.zeros(2))
        for values in levels.values()
        for seed, level in enumerate(values)
    ]
    rows = tables.table(results)
    rows.insert(0, "method", np.repeat([*levels], 6))
    found = Runs(rows, "Base", digits(), results, pd.DataFrame())
    table = found.table().loc["Better"]
    assert table["minus Base"] == "+0.200 [+0.200, +0.200]" and table.verdict == "higher"
    np.testing.assert_allclose(found.matrix("Base"), [[1.0, 0.0], [0.2, 0.2]])


def test_a_buffer_and_the_usual_widths_of_a_network_reach_every_run(kept):
    choices = {"seeds": 1, "workers": 1, "progress": False, "ledger": kept, "replay_capacity": 20}
    (result,) = compare(["sgd"], digits(), "convolutional", epochs=1, **choices).results
    assert result.experiment.hidden == WIDTHS["convolutional"] and sum(result.buffer.values()) == 20
    with pytest.raises(ValueError, match="epochs must be a whole number >= 1, got 0"):
        compare(["sgd"], digits(), epochs=0, **choices)


def test_every_method_that_takes_any_loss_learns_numbers(kept):
    generator = np.random.default_rng(0)
    x, slope = generator.normal(size=(400, 6)), generator.normal(size=(6, 2))
    stream = Stream.from_arrays([(x[:300], x[:300] @ slope, x[300:], x[300:] @ slope)], "domain", target="numbers")
    rates = {"upgd": 0.1, "online_owm": 0.1, "sgd": 0.1, "momentum": 0.01, "stable_sgd": 0.1, "adagrad": 0.1}
    tune = {method: {"lr": [rate]} for method, rate in rates.items()}
    methods = {method: method for method in ANY_LOSS}
    options = {"seeds": 1, "workers": 1, "progress": False, "ledger": kept, "epochs": 10}
    explained = compare(methods, stream, tune=tune, **options).data.set_index("method").average_accuracy
    assert explained.min() > 0.2, explained.to_dict()
