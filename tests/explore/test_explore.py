"""The panels, without a browser: what they answer, for which position, and what they do with errors."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from functools import partial

import matplotlib.pyplot as plt
import pandas as pd
import psutil
import pytest
import torch

from sp import explore, figures
from sp.explore import code, gate, learning, results, training
from sp.explore.panel import Answer, Panel
from sp.lab import methods
from sp.lab.experiment import Experiment, run
from sp.lab.ledger import Ledger
from sp.lab.own import Own

FAST = {"epochs": 1, "samples_per_task": 100, "hidden": (8,), "curve_points": 2}


def make_panel(make, controls=None):
    import ipywidgets as widgets

    controls = controls or {"height": widgets.IntSlider(1, min=0, max=5, description="height")}
    return Panel("test", "Title <b>", "Look here", controls, make, lambda choices: f"draw({choices['height']})")


def draw(choices):
    if choices["height"] == 4:
        raise ValueError("height must not be 4 <script>")
    data = pd.DataFrame({"method": "Adam", "x": [0, 1], "height": [0, choices["height"]]})
    options = {"x": "x", "panels": {"height": ""}, "labels": ["x", "y"], "limits": [0, 5]}
    yield Answer("line_panels", data, f"height {choices['height']}", data.set_index("method"), options)


def test_only_the_newest_choice_that_waits_is_answered():
    begun, go = [], threading.Event()

    def slowly(choices):
        begun.append(choices["height"])
        go.wait(10)
        yield from draw(choices)

    panel = make_panel(slowly)
    while not begun:
        time.sleep(0.001)
    for height in (2, 3, 5):
        panel.controls["height"].value = height
    assert not panel.wait(0.01)
    go.set()
    assert panel.wait(30) and begun == [1, 5] and panel._readout.value == "height 5"


def test_a_panel_shows_recovers_resets_and_saves(tmp_path, monkeypatch):
    monkeypatch.setenv("SP_FIGURES", str(tmp_path))
    plt.close("all")  # of other tests in this process
    panel = make_panel(draw)
    assert panel.wait(30)
    first = bytes(panel._image.value)
    assert first.startswith(b"\x89PNG") and "up to date" in panel._status.value
    panel.controls["height"].value = 4
    assert panel.wait(30)
    assert "ValueError: height must not be 4 &lt;script&gt;" in panel._error.value
    assert "sp-stale" in panel._image._dom_classes and panel._image.value == first
    panel.controls["height"].value = 3
    assert panel.wait(30)
    assert panel._error.value == "" and panel._readout.value == "height 3" and "draw(3)" in panel._text.value
    panel._text_as.value = "CSV"
    assert "method,x,height\nAdam,0,0\nAdam,1,3" in panel._text.value
    panel._text_as.value = "LaTeX"
    assert "\\toprule" in panel._text.value and "Adam &amp; 1 &amp; 3" in panel._text.value
    assert "sp-stale" not in panel._image._dom_classes
    panel.save()
    (csv,) = tmp_path.rglob("*.csv")
    provenance = json.loads(csv.with_suffix(".json").read_text())["provenance"]
    assert provenance["choices"] == {"height": 3} and provenance["versions"]["torch"] == torch.__version__
    assert pd.read_csv(csv).height.tolist() == [0, 3]
    picture = csv.with_suffix(".png").read_bytes()
    assert b"height" in picture and csv.with_suffix(".pdf").exists()
    plt.close(figures.redraw(csv.stem))
    assert csv.with_suffix(".png").read_bytes() == picture
    panel.reset()
    assert panel.wait(30)
    assert panel.controls["height"].value == 1 and panel._image.value == first
    assert not plt.get_fignums()  # nothing is left for the next cell to show


def test_better_answers_follow_the_first_until_a_newer_choice_waits():
    shown, closed, go = [], [], threading.Event()

    def better_and_better(choices):
        try:
            for number in range(3):
                (answer,) = draw(choices)
                yield dataclasses.replace(
                    answer, text=f"{choices['height']}, {number}", pending="more" if number < 2 else ""
                )
                go.wait(10)
        finally:
            closed.append(choices["height"])

    panel = make_panel(better_and_better)
    panel._readout.observe(lambda change: shown.append(change["new"]), "value")
    while not shown:
        time.sleep(0.001)
    panel.controls["height"].value = 2
    go.set()
    assert panel.wait(30) and closed == [1, 2] and "up to date" in panel._status.value
    assert "1, 2" not in shown and shown[-3:] == ["2, 0", "2, 1", "2, 2"]


def test_a_folder_that_cannot_be_written_is_a_message(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SP_FIGURES", str(tmp_path / "file"))
    panel = make_panel(draw)
    panel.wait(30)
    panel.save()
    assert "cannot write" in panel._error.value and "SP_FIGURES" in panel._error.value


def test_the_gate_closes_with_k_and_opens_at_the_switch():
    mean = {
        name: gate.gate_answer(**choices).data.query("part == 'synapse'").gate.mean()
        for name, choices in {
            "off": {"plasticity_k": 0.0},
            "lenient": {"plasticity_k": 1.0},
            "strict": {"plasticity_k": 10.0},
            "floor": {"plasticity_k": 10.0, "gate_min": 0.5},
            "max": {"plasticity_k": 5.0, "normalisation": "max"},
            "switch": {"steps_into_b": 1},
        }.items()
    }
    plt.close("all")
    assert mean["off"] == 1 > mean["lenient"] > mean["strict"] and mean["floor"] >= 0.5
    begin, switch = (gate.gate_answer(steps_into_b=step).text for step in (0, 1))
    assert "Task A ends: the gate is below one half for 66%" in begin and "times those at the end of task A" in switch
    assert mean["max"] > 0.6 > mean["strict"] and mean["switch"] > 0.8


def test_the_gate_panel_redraws_fast_and_as_if_drawn_anew():
    panel = explore.gate_panel()
    assert panel.wait(60)
    begin = bytes(panel._image.value)
    panel.controls["plasticity_k"].value = 9.0
    panel.wait(60)
    assert panel._image.value != begin and "plasticity_k=9.0" in panel._text.value
    used = time.thread_time()
    panel._answer(panel.choices(), panel._asked)
    assert time.thread_time() - used < 0.2
    panel.reset()
    panel.wait(60)
    assert panel._image.value == begin


def test_learning_answers_for_two_methods_with_one_seed_and_is_kept(tmp_path):
    ledger = Ledger(tmp_path)
    answer = learning.learning_answer(ledger)
    assert set(answer.data.quantity) == {"accuracy", "ltp", "ltd", "shut", "gate"}
    assert set(answer.data.method) == {"Coincidence", "Adam"}
    of_a = answer.table["A after B"].astype(float)
    assert of_a["Coincidence"] > 0.7 > 0.2 > of_a["Adam"]
    before = {path: path.stat().st_size for path in tmp_path.iterdir()}
    again = learning.learning_answer(ledger)
    pd.testing.assert_frame_equal(again.data, answer.data, check_dtype=False)
    early = learning.learning_answer(ledger, step=120)
    assert {path: path.stat().st_size for path in tmp_path.iterdir()} == before  # nothing was trained again
    assert early.data.step.max() <= 120 and set(early.data[early.data.quantity == "gate"].task) == {1}
    assert early.table["A after A"].all() and not early.table["A after B"].any()  # B has not ended yet
    for step in (0, 8):  # before anything has been tested
        begun = learning.learning_answer(ledger, step=step)
        assert "nothing has been tested" in begun.text and not begun.table.any(axis=None)
        figures.picture(begun.kind, begun.data, {})
    for wrong, message in (
        ({"retntion": 1.0}, "choices must be one of .*did you mean 'retention'"),
        ({"method": "foo"}, "method must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            learning.learning_answer(ledger, **wrong)
    methods = learning.experiments(learning.RULES, **{**learning.DEFAULTS, "seed": 3, "replay_capacity": 50})
    assert {e.seed for e in methods.values()} == {3} and {e.replay_capacity for e in methods.values()} == {50}


def test_the_code_for_a_comparison_does_what_the_panel_shows(tmp_path, monkeypatch):
    monkeypatch.setenv("SP_STORE", str(tmp_path))
    rules, choices = learning._rules({"EWC": "ewc"}), {**learning.DEFAULTS, "method": "EWC", "replay_capacity": 100}
    names = {}
    exec(learning._code(rules, choices), names)
    shown = learning.learning_answer(Ledger(tmp_path), {"EWC": "ewc"}, method="EWC", replay_capacity=100).table
    for method in ("EWC", "Adam"):
        assert [f"{value:.2f}" for value in names["runs"].matrix(method)[-1]] == [
            *shown.loc[method, ["A after B", "B after B"]]
        ]


def shown_by(panel):
    """The answers shown with the pictures from now on, one per picture."""
    texts = []
    panel._image.observe(lambda _: texts.append(panel.answer), "value")
    return texts


def test_learning_shows_a_glimpse_then_the_training_as_it_goes(tmp_path):
    panel = explore.learning_panel(Ledger(tmp_path))
    shown = shown_by(panel)
    assert panel.wait(120) and panel._error.value == ""
    stages = list(dict.fromkeys(answer.pending for answer in shown))
    assert stages == [training.GLIMPSE, training.UNDER_WAY, ""]
    whole = learning.learning_answer(Ledger(tmp_path))  # as computed in one go
    pd.testing.assert_frame_equal(panel.answer.data, whole.data, check_dtype=False)
    lengths = [(answer.data.quantity == "accuracy").sum() for answer in shown if answer.pending != training.GLIMPSE]
    assert lengths[-1] == 96 and lengths[0] < 96  # two methods, two tasks, 24 points
    assert all(answer.data.step.max() == pytest.approx(learning.STEPS, abs=1) for answer in (shown[0], shown[-1]))


def test_what_is_shown_up_to_a_step_begins_no_training_anew(tmp_path, monkeypatch):
    trained = []
    submit = training._submit
    monkeypatch.setattr(training, "_submit", lambda *call: trained.append(call) or submit(*call))
    panel = explore.learning_panel(Ledger(tmp_path))
    for step in (0, 50, 100, 150, 200):  # as the play button moves it
        panel.controls["step"].value = step
        time.sleep(0.2)
    assert panel.wait(120) and panel._error.value == ""
    assert [call[0] for call in trained] == [os.getpid, training._train, training._train]


def test_processes_end_soon_after_the_one_that_began_them_was_killed():
    code = """
import time
from sp.explore import training
pids = {training._submit(training.os.getpid).result() for _ in range(4)}
print(*pids, flush=True)
time.sleep(1000)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in parent.stdout.readline().split()]
    parent.kill()
    parent.wait(30)
    deadline = time.monotonic() + 60
    while any(psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie" for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_learning_shows_the_controls_that_have_an_effect(tmp_path):
    panel = explore.learning_panel(Ledger(tmp_path))

    def seen():
        return {name for name, control in panel.controls.items() if control.layout.display != "none"}

    always = {"method", "replay_capacity", "seed", "step"}
    assert seen() == {*always, "lr", "retention"}
    panel.controls["method"].value = "Selective plasticity"
    assert panel.controls["lr"].value == pytest.approx(1e-3)
    assert seen() == {*always, *learning.OPTIONS["Selective plasticity"]}
    panel.reset()
    assert seen() == {*always, "lr", "retention"} and panel.controls["lr"].value == pytest.approx(0.1)
    assert panel.wait(120)


def test_ones_own_rule_stands_in_the_list(tmp_path, monkeypatch):
    monkeypatch.setattr(methods, "_registered", {})

    def mine(model, lr=0.05):
        return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.5)

    methods.register("fixed", lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    panel = explore.learning_panel(Ledger(tmp_path), methods={"Mine": mine, "EWC": "ewc"})
    assert panel.controls["method"].options == (*learning.RULES, "fixed", "Mine", "EWC")
    panel.controls["method"].value = "Mine"
    assert panel.controls["lr"].value == 0.05 and panel.controls["lr"].layout.display != "none"
    assert panel.wait(120) and panel._error.value == "" and list(panel.answer.table.index) == ["Mine", "Adam"]
    assert panel.answer.data[panel.answer.data.quantity == "gate"].empty
    names = {}
    exec(panel._texts["Code"].split("runs =")[0], names)
    assert "'Mine': partial(own, lr=0.05)" in panel._texts["Code"] and names["own"] is ...
    panel.controls["method"].value = "EWC"
    assert panel.wait(120) and panel._error.value == "" and "'EWC': 'ewc'," in panel._texts["Code"]
    panel.controls["method"].value = "fixed"
    assert panel.controls["lr"].layout.display == "none"
    with pytest.raises(ValueError, match="titles that the panel does not use itself, got 'Adam'"):
        explore.learning_panel(Ledger(tmp_path), methods={"Adam": mine})
    with pytest.raises(ValueError, match=r"methods must train a network.* got 'Ridge'"):
        explore.learning_panel(Ledger(tmp_path), methods={"Ridge": "ridge"})
    assert panel.wait(120) and panel._error.value == ""


@pytest.mark.parametrize("optimizer", code.NAMES)
def test_the_code_of_every_optimizer_runs(optimizer):
    text = code.optimizer_code(optimizer, {"lr": 0.01}, replay_capacity=50, seed=1)
    names = {"model": torch.nn.Linear(2, 2)}
    exec(text, names)
    assert names["optimizer"].param_groups[0]["lr"] == 0.01 and names["buffer"].capacity == 50


def test_results_are_grouped_by_what_differs_and_by_an_axis(tmp_path):
    ledger = Ledger(tmp_path)
    with pytest.raises(LookupError, match="holds no finished runs"):
        results.finished_runs(ledger)
    for seed in (0, 1):
        for optimizer, options in (("sgd", {"lr": 0.1}), ("sgd", {"lr": 0.01}), ("adam", {})):
            ledger.put(run(Experiment(optimizer=optimizer, options=options, seed=seed, **FAST)))
    rows = results.finished_runs(ledger)
    (stream,) = rows.stream_name.unique()
    assert stream == "digits, split, 2 tasks, class-incremental, 100 images a task"
    assert set(results.labels(rows)) == {"Adam", "SGD (lr 0.1)", "SGD (lr 0.01)"}
    answer = results.results_answer(rows, stream, "average_accuracy", "methods", ("SGD (lr 0.1)", "Adam"))
    assert answer.data.method.tolist() == ["SGD (lr 0.1)", "Adam"] and (answer.data.n == 2).all()
    over_lr = results.results_answer(rows, stream, "forgetting", "option_lr", results.labels(rows, "option_lr"))
    assert over_lr.data.option_lr.tolist() == [0.01, 0.1] and over_lr.data.method.unique().tolist() == ["SGD"]
    plt.close("all")
    with pytest.raises(ValueError, match="choose at least one method"):
        results.results_answer(rows, stream, "forgetting", "methods", ())
    panel = explore.results_panel(ledger)
    assert panel.wait(30) and panel._error.value == "" and "<table" in panel._table.value
    panel.controls["axis"].value = "option_lr"
    assert panel.wait(30) and panel._error.value == "" and panel.controls["methods"].value == ("SGD",)
    panel.reset()
    assert panel.wait(30) and panel._error.value == "" and len(panel.controls["methods"].value) == 3


def test_variants_may_differ_in_options_that_are_no_numbers(tmp_path):
    ledger = Ledger(tmp_path)
    for betas in ((0.9, 0.99), (0.9, 0.999)):
        ledger.put(run(Experiment(optimizer="adam", options={"betas": betas}, **FAST)))
    labels = results.labels(results.finished_runs(ledger))
    assert set(labels) == {"Adam (betas (0.9, 0.99))", "Adam (betas (0.9, 0.999))"}


def test_own_methods_with_one_title_are_told_apart(tmp_path):
    ledger = Ledger(tmp_path)
    for rate in (0.1, 0.2):
        own = Own.of("Mine", partial(torch.optim.SGD, lr=rate))
        ledger.put(run(Experiment(optimizer=own, **FAST)))
    ledger.put(run(Experiment(**FAST)))
    labels = results.labels(results.finished_runs(ledger))
    assert len(labels) == 3 and "Adam" in labels and sum(label.startswith("Mine ") for label in labels) == 2


def test_a_control_that_cannot_be_adjusted_is_a_message_and_saving_waits_for_the_figure(tmp_path, monkeypatch):
    monkeypatch.setenv("SP_FIGURES", str(tmp_path))
    panel = make_panel(lambda choices: time.sleep(0.2) or draw(choices))

    def adjust(name):
        raise LookupError(f"{name} has no place")

    panel.controls["height"].value = 2
    panel.save()
    (csv,) = tmp_path.rglob("*.csv")
    assert pd.read_csv(csv).height.tolist() == [0, 2]
    panel._adjust = adjust
    panel.controls["height"].value = 3
    assert "LookupError" in panel._error.value and "height has no place" in panel._error.value
