"""What the notebooks compare, and how each arm was tuned: settings, grids, and the one table of tuned values.

``python -m sp tune STUDY DATASET`` chooses an arm's options on the tuning seeds, by accuracy on training images that
were held out, and writes them to ``sp/tuned.csv``. Reported runs use other seeds and the test images.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from sp import metrics
from sp.experiment import Experiment, Store, results_frame
from sp.files import write_atomically
from sp.sweep import run_all

TUNED = Path(__file__).with_name("tuned.csv")
TUNING_SEEDS = (100, 101, 102)  # reported seeds count from 0

# Network, batch and length of training that a data set gets wherever a notebook does not say otherwise. The buffer for
# digits holds the same share of the training images as 2,000 would of 14,000.
SETTINGS = {
    "digits": {"hidden": (100, 100), "batch_size": 32, "epochs": 5, "replay_capacity": 200, "warmup_steps": 50},
    "mnist": {"hidden": (256, 256), "batch_size": 128, "epochs": 1, "replay_capacity": 2000, "warmup_steps": 100},
}
SETTINGS["fashion_mnist"] = SETTINGS["mnist"]

# The same number of points for every optimizer.
GRIDS = {
    "adam": [{"lr": lr} for lr in (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)],
    "selective": [{"lr": lr} for lr in (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)],
    "sgd": [{"lr": lr} for lr in (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1e0)],
}


def settings(dataset: str) -> dict:
    """The row of `SETTINGS`; an unknown data set is a ValueError that lists the known ones."""
    if dataset not in SETTINGS:
        raise ValueError(f"dataset must be one of {', '.join(sorted(SETTINGS))}, got {dataset!r}")
    return SETTINGS[dataset]


def tuned_options(study: str, dataset: str, arm: str) -> dict:
    """The options that tuning chose for an arm of a study.

    Raises:
        LookupError: the arm was not tuned; the message gives the command.
    """
    table = pd.read_csv(TUNED)
    row = table[(table.study == study) & (table.dataset == dataset) & (table.arm == arm)]
    if row.empty:
        raise LookupError(f"{arm!r} of {study!r} is not tuned on {dataset}: run  python -m sp tune {study} {dataset}")
    return json.loads(row.options.iloc[0])


def forgetting(
    dataset: str,
    *,
    epochs: int | None = None,
    lr: float | None = None,
    plasticity_k: float = 5.0,
    trace_decay: float = 0.99,
    threshold_percentile: float = 75,
    warmup_steps: int | None = None,
    replay_capacity: int | None = None,
    tuned: bool = True,
) -> dict[str, Experiment]:
    """Arms of notebook 01: the published two-task experiment (P19), with and without replay.

    What is None takes the data set's value in `SETTINGS`, and ``lr`` its tuned one (the optimizer's default with
    ``tuned=False``).
    """
    chosen = settings(dataset)
    base = Experiment(
        dataset=dataset,
        tasks=2,
        hidden=chosen["hidden"],
        batch_size=chosen["batch_size"],
        epochs=epochs or chosen["epochs"],
        curve_points=12,
    )
    rule = {
        "plasticity_k": plasticity_k,
        "trace_decay": trace_decay,
        "threshold_percentile": threshold_percentile,
        "warmup_steps": chosen["warmup_steps"] if warmup_steps is None else warmup_steps,
    }
    arms = {}
    for label, optimizer, options in (
        ("SGD", "sgd", {"lr": 0.1}),
        ("Adam", "adam", {}),
        ("Selective plasticity", "selective", rule),
    ):
        for suffix, capacity in (("", 0), (" + replay", replay_capacity or chosen["replay_capacity"])):
            arm = label + suffix
            rate = {"lr": lr} if lr is not None else tuned_options("forgetting", dataset, arm) if tuned else {}
            arms[arm] = replace(base, optimizer=optimizer, options={**options, **rate}, replay_capacity=capacity)
    return arms


# P19 as published: final accuracy on task A and on task B of Split MNIST.
PUBLISHED = pd.DataFrame(
    [
        ("Adam", 0.0, 0.9328),
        ("Selective plasticity", 0.0, 0.9266),
        ("Adam + replay", 0.0282, 0.9311),
        ("Selective plasticity + replay", 0.8655, 0.9216),
    ],
    columns=["arm", "final_1", "final_2"],
)


def forgetting_verdicts(rows: pd.DataFrame, replayed: pd.DataFrame) -> list[str]:
    """What notebook 01 found, in sentences.

    Args:
        rows: `sp.sweep.compare` of the arms of `forgetting`.
        replayed: the same of "ARM + replay, reservoir" and "ARM + replay, first in first out".
    """
    of = {arm: group.set_index("seed") for arm, group in [*rows.groupby("arm"), *replayed.groupby("arm")]}
    rule = "Selective plasticity"
    alone = metrics.bootstrap_interval(of[rule].final_1)
    kept = "keeps" if alone.low > 0.5 else "does not keep"
    lines = [f"Without replay, selective plasticity {kept} task A: accuracy {alone}."]
    for suffix in ("", " + replay"):
        gain = metrics.paired_difference(of[rule + suffix].average_accuracy, of["Adam" + suffix].average_accuracy)
        lines.append(f"{rule}{suffix} against Adam{suffix}, average accuracy of both tasks: {gain}.")
    for arm in ("Adam", rule):
        pair = (of[f"{arm} + replay, {policy}"].final_1 for policy in ("reservoir", "first in first out"))
        lines.append(
            f"{arm} + replay, task A, reservoir against first in first out: {metrics.paired_difference(*pair)}."
        )
    return lines


STUDIES: dict[str, Callable[..., dict[str, Experiment]]] = {"forgetting": forgetting}


def tune(study: str, dataset: str, store: Store | None = None, workers: int | None = None) -> pd.DataFrame:
    """Try every point of each arm's grid on the tuning seeds and keep the best in the table of tuned values.

    A point is judged by its mean average accuracy over all tasks, at the end, on held-out training images.

    Returns:
        One row a point: ``study, dataset, arm, options, accuracy`` and ``chosen``.
    """
    if study not in STUDIES:
        raise ValueError(f"study must be one of {', '.join(sorted(STUDIES))}, got {study!r}")
    trials = [
        (arm, point, replace(experiment, options={**dict(experiment.options), **point}, seed=seed, **_TUNING))
        for arm, experiment in STUDIES[study](dataset, tuned=False).items()
        for point in GRIDS[experiment.optimizer]
        for seed in TUNING_SEEDS
    ]
    frame = results_frame(run_all([experiment for *_, experiment in trials], store, workers))
    frame = pd.DataFrame(
        {
            "study": study,
            "dataset": dataset,
            "arm": [arm for arm, *_ in trials],
            "options": [json.dumps(point) for _, point, _ in trials],
            "accuracy": frame.average_accuracy,
        }
    )
    points = frame.groupby(["study", "dataset", "arm", "options"], sort=False, as_index=False).accuracy.mean()
    points["chosen"] = points.index.isin(points.groupby("arm").accuracy.idxmax())
    best = points[points.chosen].drop(columns="chosen").round({"accuracy": 4})
    if TUNED.exists():
        old = pd.read_csv(TUNED)
        best = pd.concat([old[(old.study != study) | (old.dataset != dataset)], best])
    write_atomically(TUNED, best.sort_values(["study", "dataset", "arm"]).to_csv(index=False))
    return points


_TUNING = {"evaluation": "validation", "curve_points": 0}
