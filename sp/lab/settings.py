"""Default settings of a comparison: networks, batch sizes, training lengths, seeds."""

import re
from typing import get_args

from sp.checks import check_choice, did_you_mean
from sp.lab.data import Kind, Scenario
from sp.lab.experiment import Experiment

TUNING_SEEDS = (100, 101, 102)  # reported seeds start at 0

# The buffer for digits holds the same share of its training images as 2,000 of 14,000.
SETTINGS = {
    "digits": {"hidden": (100, 100), "batch_size": 32, "epochs": 5, "replay_capacity": 200, "warmup_steps": 50},
    "mnist": {"hidden": (256, 256), "batch_size": 128, "epochs": 1, "replay_capacity": 2000, "warmup_steps": 100},
}
SETTINGS["fashion_mnist"] = SETTINGS["mnist"]
SETTINGS["cifar10"] = {**SETTINGS["mnist"], "batch_size": 32}
SETTINGS["cifar10_features"] = SETTINGS["cifar10_maps"] = SETTINGS["cifar10"]

# The streams of the retention studies, on MNIST-like data and on digits, which has fewer images per permutation.
STREAMS = {
    "split2_class": {"tasks": 2},
    "split5_class": {"tasks": 5},
    "split5_domain": {"tasks": 5, "scenario": "domain"},
    "permuted10": {"stream": "permuted", "tasks": 10, "scenario": "domain"},
    "permuted30": {"stream": "permuted", "tasks": 30, "scenario": "domain", "samples_per_task": 20_000},
}

_PATTERN = re.compile(rf"({'|'.join(get_args(Kind))})(\d+)(?:_({'|'.join(get_args(Scenario))}))?")

INPUTS = {"digits": 64, "mnist": 784, "fashion_mnist": 784, "cifar10": 3072}  # pixels


def settings(dataset: str) -> dict:
    """The `SETTINGS` of a data set; raises ValueError for an unknown one, listing those that are known."""
    check_choice("dataset", dataset, SETTINGS)
    return SETTINGS[dataset]


def base(dataset: str, **choices) -> Experiment:
    """An experiment with a data set's `SETTINGS` and the given choices; on digits, every task has all images."""
    usual = {name: settings(dataset)[name] for name in ("hidden", "batch_size", "epochs")}
    every = {"samples_per_task": None} if dataset == "digits" else {}
    return Experiment(dataset=dataset, **{**usual, **choices, **every})


def on_stream(stream: str, dataset: str) -> Experiment:
    """An experiment on a stream given by name; everything else is left at its default.

    Args:
        stream: one of `STREAMS`, or kind, number of tasks and scenario, such as ``rotated5_task``. Without a scenario,
            ``split5`` is class-incremental and the other kinds are domain-incremental.
    """
    if stream in STREAMS:
        return base(dataset, **STREAMS[stream])
    match = _PATTERN.fullmatch(stream)
    if match is None:
        near = did_you_mean(stream, [*STREAMS, "split5", "permuted10", "rotated5"])
        raise ValueError(
            f"stream must be one of {', '.join(STREAMS)}, or a name like split5, rotated5_task, got {stream!r}{near}"
        )
    kind, tasks, scenario = match.groups()
    usual = "class" if kind == "split" else "domain"
    return base(dataset, stream=kind, tasks=int(tasks), scenario=scenario or usual)
