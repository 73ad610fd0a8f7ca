"""Permuted images (P20): the published figures next to measured ones, and accuracy against the number of tasks."""

from dataclasses import replace

import pandas as pd

import studies
from sp.lab.experiment import Experiment

# P20: average accuracy and backward transfer after ten tasks of Permuted MNIST; for Adam only the transfer is given.
PUBLISHED = pd.DataFrame(
    [("Adam", float("nan"), -0.56), ("Selective plasticity", 0.7615, -0.07)],
    columns=["method", "average_accuracy", "backward_transfer"],
)

COMPARISONS = [
    ("Selective plasticity", "Adam"),
    ("Selective plasticity, tuned", "Adam, tuned"),
    ("Consolidation, tuned", "Adam, tuned"),
    ("Coincidence", "Adam, tuned"),
    ("Coincidence", "Consolidation, tuned"),
]


def methods(dataset: str, tasks: int = 10) -> dict[str, Experiment]:
    """The two optimizers of P20 at their default rate of 0.001, and the methods of the retention study.

    Args:
        dataset: a name in `sp.lab.settings.SETTINGS`.
        tasks: up to 10 use all images in each task. More use 20,000 in each, if there are that many.
    """
    stream = "permuted10" if tasks <= 10 else "permuted30"
    names = ["SGD", "Adam", "Selective plasticity", "Consolidation", "Coincidence"]
    tuned = {
        method + (", tuned" if method != "Coincidence" else ""): replace(experiment, tasks=tasks)
        for method, experiment in studies.retention(stream, dataset, names=names).items()
    }
    usual = {method: tuned[f"{method}, tuned"].with_options(lr=1e-3) for method in ("Adam", "Selective plasticity")}
    return {**usual, **tuned}


def averages(rows: pd.DataFrame, tasks: int) -> pd.DataFrame:
    """From `sp.lab.sweep.runs`: ``method, seed, tasks, average``, the mean accuracy on the first ``tasks`` tasks."""
    columns = {f"after_{number}": number for number in range(1, tasks + 1)}
    long = rows.melt(["method", "seed"], list(columns), "tasks", "average")
    return long.assign(tasks=long.tasks.map(columns))
