"""Dendrites and plasticity rules (P23, notebook 13): the published table, and whether the two add to each other.

Coincidence runs with its defaults. Every other method has its own learning rate, chosen from seven on the tuning seeds.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

import studies
from sp.lab import metrics, sweep
from sp.lab.data import Tasks, load, make_stream
from sp.lab.experiment import Experiment, stream_of
from sp.lab.networks import mlp, mlp_size
from sp.lab.sweep import with_seeds
from sp.rivals import make_learner
from sp.rivals.active_dendrites import ActiveDendrites, k_winners

# P23 as published: final accuracy on both tasks of Split MNIST, and number of parameters; one run each.
PUBLISHED = pd.DataFrame(
    [
        ("Adam", 0.0, 0.9813, 269_322),
        ("Adam + replay", 0.0282, 0.9811, 269_322),
        ("Adam, dendrites", 0.0, 0.9817, 538_644),
        ("Adam, dendrites + replay", 0.0296, 0.9835, 538_644),
        ("Selective plasticity", 0.0, 0.8840, 269_322),
        ("Selective plasticity, dendrites", 0.0002, 0.8869, 538_644),
    ],
    columns=["method", "task A", "task B", "parameters"],
)
LOOP = " + replay, published loop"  # which re-adds replayed images to a buffer that drops the oldest
BASES = {"Adam": "adam", "Consolidation": "consolidating", "Coincidence": "coincidence"}
STREAMS = {
    "split5_class": {"tasks": 5},
    "permuted": {"stream": "permuted", "scenario": "domain", "tasks": 10, "samples_per_task": 12_000},
}
SHORT = {"permuted": {"tasks": 5, "samples_per_task": None}}  # on digits
CHECK_EVERY = 5  # steps between two validations, so that each task has nine or more
OUTPUTS = 10
VALUES = ["average_accuracy", "learning_accuracy", "backward_transfer", "parameters"]

Methods = dict[str, Experiment]


def published_methods(dataset: str, tuned: bool = True) -> Methods:
    """Methods of the published table: Adam and the published rule, alone, with dendrites, and in a wider network.

    Each also comes with replay from a fair buffer (a reservoir), and those of Adam with the published loop as well.
    """
    methods = {}
    for name, plain in studies.forgetting(dataset, tuned=tuned).items():
        if name.startswith("SGD"):
            continue
        plain = replace(plain, curve_points=0)
        rule, replay = name.removesuffix(" + replay"), " + replay" * name.endswith(" + replay")
        methods[name] = plain
        for variant, experiment in {"wide": _wide(plain), "dendrites": _grown(plain)}.items():
            method = f"{rule}, {variant}{replay}"
            methods[method] = _tuned(experiment, "dendrites_split2", method) if tuned else experiment
    if tuned:
        loop = {"replay_adds": "whole", "replay_policy": "fifo", "replay_distinct": False}
        for rule in ("Adam", "Adam, dendrites"):
            methods[rule + LOOP] = replace(methods[f"{rule} + replay"], **loop)
    return methods


def titles(dataset: str) -> dict[str, str]:
    """Titles of the streams in figures and tables."""
    tasks = {name: _tasks(name, dataset)["tasks"] for name in STREAMS}
    return {name: f"{'Split' if name.startswith('split') else 'Permuted'}, {n} tasks" for name, n in tasks.items()}


def _tasks(stream: str, dataset: str) -> dict:
    return {**STREAMS[stream], **(SHORT.get(stream, {}) if dataset == "digits" else {})}


def stream_methods(stream: str, dataset: str, tuned: bool = True) -> Methods:
    """Methods of a stream of `STREAMS`: three rules, each alone, in a wider network and with two kinds of dendrites."""
    base = studies.base(dataset, **_tasks(stream, dataset))
    methods = {}
    for rule, optimizer in BASES.items():
        plain = replace(base, optimizer=optimizer)
        variants = {
            rule: plain,
            f"{rule}, wide": _wide(plain),
            f"{rule}, dendrites": _grown(plain),
            f"{rule}, active dendrites": _active(plain),
            f"{rule}, active dendrites, told": _active(plain, told=True),
        }
        if tuned and rule != "Coincidence":
            variants = {
                method: _tuned(experiment, f"dendrites_{stream}", method) for method, experiment in variants.items()
            }
        methods |= variants
    return methods


def _tuned(experiment: Experiment, study: str, method: str) -> Experiment:
    return experiment.with_options(**studies.tuned_options(study, experiment.dataset, method))


def _without_rate(experiment: Experiment) -> dict:
    return {name: value for name, value in experiment.options if name != "lr"}


def _grown(plain: Experiment) -> Experiment:
    options = {**_without_rate(plain), "base": plain.optimizer, "check_every": CHECK_EVERY}
    return replace(plain, optimizer="dendrites", options=options)


def _active(plain: Experiment, **options) -> Experiment:
    options = {**_without_rate(plain), "base": plain.optimizer, "contexts": plain.tasks, **options}
    return replace(plain, optimizer="active_dendrites", options=options)


def _wide(plain: Experiment) -> Experiment:
    inputs = studies.INPUTS[plain.dataset]
    width = equal_width(grown_size(inputs, plain.hidden, OUTPUTS), inputs, OUTPUTS)
    return replace(plain, hidden=(width, width), options=_without_rate(plain))


def grown_size(inputs: int, hidden: tuple[int, ...], outputs: int) -> int:
    """Number of parameters of a perceptron in which every unit has grown one dendrite."""
    return 2 * mlp_size(inputs, hidden, outputs) + sum(hidden) + outputs


def equal_width(parameters: int, inputs: int, outputs: int) -> int:
    """Width of the two hidden layers that gives a perceptron about this many parameters."""
    linear = inputs + 2 + outputs  # coefficient of w in (inputs + 1) w + (w + 1) w + (w + 1) outputs
    return round((np.sqrt(linear**2 + 4 * (parameters - outputs)) - linear) / 2)


def trials(dataset: str) -> dict[str, list[studies.Trial]]:
    """For each study: every method that is tuned here, at seven rates, on the tuning seeds."""
    found = {"dendrites_split2": _trials(published_methods(dataset, tuned=False), studies.TUNING_SEEDS, new_only=True)}
    for stream in STREAMS:
        seeds = studies.tuning_seeds(stream)
        found[f"dendrites_{stream}"] = _trials(stream_methods(stream, dataset, tuned=False), seeds)
    return found


def _trials(methods: Methods, seeds: Sequence[int], new_only: bool = False) -> list[studies.Trial]:
    found = []
    for method, experiment in methods.items():
        base = dict(experiment.options).get("base", experiment.optimizer)
        if base == "coincidence" or (new_only and "," not in method):  # tuned as part of notebook 01
            continue
        found += studies.trials({method: experiment}, {experiment.optimizer: studies.GRIDS[base]}, seeds)
    return found


def beside_published(rows: pd.DataFrame) -> pd.DataFrame:
    """The published table next to the measurements: accuracy on both tasks with intervals, and active parameters."""
    table = metrics.interval_table(rows, ["method"], ["old", "new"])
    beside = metrics.readable(table, 2).rename(columns={"old": "task A", "new": "task B"})
    beside["parameters"] = rows.groupby("method").parameters.mean().round().astype(int).map("{:,}".format)
    published = PUBLISHED.set_index("method")
    beside["published A"] = published["task A"].map("{:.2%}".format)
    beside["published B"] = published["task B"].map("{:.2%}".format)
    beside["published parameters"] = published.parameters.map("{:,}".format)
    return beside.fillna("")


def additions(rows: pd.DataFrame, value: str = "average_accuracy") -> pd.DataFrame:
    """How dendrites and width change a measure, compared seed by seed with the same rule alone.

    Args:
        rows: runs of one stream, from `sp.lab.sweep.runs`. value: one of its columns.

    Returns:
        One row per rule and what it is combined ``with``: the paired difference with its interval, and the verdict.
    """
    found = []
    for method in dict.fromkeys(rows.method):
        replay = next((ending for ending in (LOOP, " + replay") if method.endswith(ending)), "")
        rule, _, variant = method.removesuffix(replay).partition(", ")
        if variant:
            difference = metrics.difference(rows, method, rule + replay, value)
            interval = metrics.interval_text(*difference[:3], "+.3f")
            found.append((rule + replay, variant, interval, difference.verdict))
    return pd.DataFrame(found, columns=["rule", "with", value.replace("_", " "), "verdict"])


def small_stream(tasks: int = 4, seed: int = 0) -> Tasks:
    """Permuted digits, to see which units are active in which task."""
    return make_stream(load("digits"), "permuted", tasks, "domain", seed)


def learnt(stream: Tasks, active: bool, epochs: int = 5, seed: int = 0) -> torch.nn.Module:
    """A small network, with active dendrites or plain, that has learnt a stream with Adam, task by task."""
    torch.manual_seed(seed)
    sizes = (stream.inputs, (100,), stream.outputs)
    method, options = ("active_dendrites", {"contexts": len(stream.tasks)}) if active else ("adam", {})
    learner = make_learner(method, lambda: mlp(*sizes), sizes, torch.device("cpu"), {**options, "lr": 3e-3})
    for task in stream.tasks:
        x, y = task.train()
        for _ in range(epochs):
            for index in torch.randperm(len(x)).split(32):
                learner.learn(x[index], y[index], None)
        if active:
            learner.end_task(x, y, None)
    return learner.model


@torch.no_grad()
def shared_units(model: torch.nn.Module, stream: Tasks) -> np.ndarray:
    """How far two tasks activate the same hidden units: overlap of their mean activities, in [0, 1]; (T, T).

    The overlap of rates p and q over units is ``sum min(p, q) / sum max(p, q)``. A unit's rate is how often it is above
    zero.
    """
    rates = []
    for number, task in enumerate(stream.tasks):
        x, _ = task.test()
        if isinstance(model, ActiveDendrites):
            context = torch.nn.functional.one_hot(torch.full((len(x),), number), len(model.seen)).to(x.dtype)
            hidden = k_winners(model.hidden[0](x, context), model.winners)
        else:
            hidden = model[1](model[0](x))
        rates.append((hidden > 0).float().mean(0))
    return np.array([[float(torch.minimum(p, q).sum() / torch.maximum(p, q).sum()) for q in rates] for p in rates])


def inferred(experiment: Experiment) -> float:
    """Share of test images whose task the prototypes, taken over all training images, infer correctly at the end."""
    stream = stream_of(experiment)
    model = ActiveDendrites(mlp(stream.inputs, (1,), stream.outputs), contexts=len(stream.tasks), segments=1)
    for task in stream.tasks:
        model.observe(task.train()[0])
        model.end_task()
    right = [model.infer(task.test()[0]) == number for number, task in enumerate(stream.tasks)]
    return torch.cat(right).float().mean().item()


def runs(dataset: str, part: str, seeds: int, **options) -> pd.DataFrame:
    """Rows of a part of the notebook ("two_tasks" or a name in `STREAMS`), read or run as in `sp.lab.sweep.runs`."""
    methods = published_methods(dataset) if part == "two_tasks" else stream_methods(part, dataset)
    return sweep.runs(with_seeds(methods, range(seeds)), carried=True, **options)
