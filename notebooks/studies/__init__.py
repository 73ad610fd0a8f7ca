"""What the notebooks compare and how each method was tuned: settings, grids, and the single table of tuned values.

``python notebooks/studies tune STUDY DATASET`` chooses a method's options on the tuning seeds, by accuracy on held-out
training images, and writes them to ``notebooks/studies/tuned.csv``. Reported runs use other seeds and the test images.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pandas as pd

from sp import files
from sp.lab import metrics, tables
from sp.lab.experiment import Experiment
from sp.lab.ledger import Ledger
from sp.lab.networks import mlp_size
from sp.lab.settings import INPUTS, TUNING_SEEDS, base, on_stream, settings
from sp.lab.sweep import run_all
from studies.pattern_search import neighbours

TUNED = Path(__file__).with_name("tuned.csv")

# Every optimizer gets the same number of points.
GRIDS = {
    "consolidating": [{"lr": lr} for lr in (1e-2, 3e-2, 0.1, 0.2, 0.3, 0.5, 1.0)],
    "ridge": [{"penalty": penalty} for penalty in (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)],
    "adam": [{"lr": lr} for lr in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)],
    "selective": [{"lr": lr} for lr in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)],
    "selective_coincidence": [{"lr": lr} for lr in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2)],
    "sgd": [{"lr": lr} for lr in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)],
}


def tuned_options(study: str, dataset: str, method: str) -> dict:
    """The options that tuning chose for a method of a study.

    Raises:
        LookupError: the method was not tuned; the message gives the command.
    """
    table = pd.read_csv(TUNED)
    row = table[(table.study == study) & (table.dataset == dataset) & (table.method == method)]
    if row.empty:
        raise LookupError(
            f"{method!r} of {study!r} is not tuned on {dataset}: run  python notebooks/studies tune {study} {dataset}"
        )
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
    """Methods of notebook 01: the published two-task experiment (P19), with and without replay.

    Arguments that are None take the data set's value in `SETTINGS`. ``lr`` takes its tuned value instead (the
    optimizer's default with ``tuned=False``).
    """
    chosen = settings(dataset)
    plain = base(dataset, tasks=2, epochs=epochs or chosen["epochs"], curve_points=12)
    rule = {
        "plasticity_k": plasticity_k,
        "trace_decay": trace_decay,
        "threshold_percentile": threshold_percentile,
        "warmup_steps": chosen["warmup_steps"] if warmup_steps is None else warmup_steps,
    }
    methods = {}
    for label, optimizer, options in (
        ("SGD", "sgd", {"lr": 0.1}),
        ("Adam", "adam", {}),
        ("Selective plasticity", "selective", rule),
    ):
        for suffix, capacity in (("", 0), (" + replay", replay_capacity or chosen["replay_capacity"])):
            method = label + suffix
            rate = {"lr": lr} if lr is not None else tuned_options("forgetting", dataset, method) if tuned else {}
            methods[method] = replace(plain, optimizer=optimizer, options={**options, **rate}, replay_capacity=capacity)
    return methods


def nmda_gate(dataset: str, *, tuned: bool = True) -> dict[str, Experiment]:
    """Methods of notebook 04: the published rule on two tasks, with and without NMDA coincidence (P8)."""
    plain = forgetting(dataset, tuned=False)["Selective plasticity"]
    methods = {
        "Selective plasticity": plain,
        "Selective plasticity, NMDA": replace(plain, optimizer="selective_coincidence"),
    }
    if not tuned:
        return methods
    return {
        method: experiment.with_options(**tuned_options("nmda_gate", dataset, method))
        for method, experiment in methods.items()
    }


# P19 as published: final accuracy on task A and on task B of Split MNIST.
PUBLISHED = pd.DataFrame(
    [
        ("Adam", 0.0, 0.9328),
        ("Selective plasticity", 0.0, 0.9266),
        ("Adam + replay", 0.0282, 0.9311),
        ("Selective plasticity + replay", 0.8655, 0.9216),
    ],
    columns=["method", "final_1", "final_2"],
)


def forgetting_verdicts(rows: pd.DataFrame, replayed: pd.DataFrame) -> list[str]:
    """What notebook 01 found, in sentences.

    Args:
        rows: `sp.lab.sweep.paired_runs` of the methods of `forgetting`.
        replayed: the same for "ARM + replay, reservoir" and "ARM + replay, first in first out".
    """
    rows = pd.concat([rows, replayed])
    rule = "Selective plasticity"
    alone = metrics.bootstrap_interval(rows[rows.method == rule].final_1)
    kept = "keeps" if alone.low > 0.5 else "does not keep"
    lines = [f"Without replay, selective plasticity {kept} task A: accuracy {alone}."]
    for suffix in ("", " + replay"):
        gain = metrics.difference(rows, rule + suffix, "Adam" + suffix)
        lines.append(f"{rule}{suffix} against Adam{suffix}, average accuracy of both tasks: {gain}.")
    for method in ("Adam", rule):
        one, other = (f"{method} + replay, {policy}" for policy in ("reservoir", "first in first out"))
        gain = metrics.difference(rows, one, other, "final_1")
        lines.append(f"{method} + replay, task A, reservoir against first in first out: {gain}.")
    return lines


def equal_features(inputs: int, hidden: tuple[int, int], outputs: int = 10) -> int:
    """Number of random features for which ridge regression has as many numbers as a perceptron with two hidden layers.

    The projection, its offsets and the readout are counted, like the perceptron's weights and biases.
    """
    return round(mlp_size(inputs, hidden, outputs) / (inputs + 1 + outputs))


def equal_memory(inputs: int, hidden: tuple[int, int], outputs: int = 10) -> int:
    """Number of random features for which ridge regression keeps as many bytes as coincidence does in a perceptron.

    Coincidence keeps 16 bytes for each pair of a layer's inputs and 8 for each pair of its outputs, besides weights.
    Ridge regression keeps its projection and readout, and sums of products in double precision.
    """
    layers = [(width + 1, following) for width, following in pairwise((inputs, *hidden, outputs))]
    kept = sum(4 * width * out + 16 * width**2 + 8 * out**2 for width, out in layers)
    linear = 4 * (inputs + 1) + (4 + 8) * outputs  # 8 n^2 + linear n = kept
    return round(((linear**2 + 4 * 8 * kept) ** 0.5 - linear) / (2 * 8))


def retention(
    stream: str, dataset: str, *, tuned: bool = True, names: Sequence[str] | None = None
) -> dict[str, Experiment]:
    """Methods of notebooks 02, 03 and 08: how much of a stream is retained, without replay and without task boundaries.

    Args:
        stream: a name in `sp.lab.settings.STREAMS`.
        dataset: a name in `SETTINGS`.
        tuned: True gives every method its tuned options, and adds the coincidence form with its defaults. False returns
            only the methods that are tuned, with default options.
        names: the methods to return, in this order. None returns all.
    """
    chosen = settings(dataset)
    plain = on_stream(stream, dataset)
    methods = {
        "SGD": replace(plain, optimizer="sgd", options={"lr": 0.1}),
        "Adam": replace(plain, optimizer="adam"),
        "Selective plasticity": replace(plain, optimizer="selective", options={"warmup_steps": chosen["warmup_steps"]}),
        "Consolidation": replace(plain, optimizer="consolidating"),
        "Ridge": replace(plain, optimizer="ridge", hidden=(equal_features(INPUTS[dataset], plain.hidden),)),
    }
    if not tuned:
        return methods
    # Tuning on thirty tasks takes long, so they use the options tuned on ten.
    study = f"retention_{stream}" if stream != "permuted30" else "retention_permuted10"

    def made(method: str) -> Experiment:
        if method == "Coincidence":
            return replace(plain, optimizer="coincidence")
        return methods[method].with_options(**tuned_options(study, dataset, method))

    return {method: made(method) for method in (names or [*methods, "Coincidence"])}


STUDIES: dict[str, Callable[..., dict[str, Experiment]]] = {
    "forgetting": forgetting,
    "nmda_gate": nmda_gate,
    **{f"retention_{stream}": partial(retention, stream) for stream in ("split5_class", "permuted10")},
}


def tuning_seeds(study: str) -> tuple[int, ...]:
    """Seeds on which a study is tuned; the long permuted streams get one."""
    return TUNING_SEEDS[:1] if "permuted" in study else TUNING_SEEDS


Trial = tuple[str, dict, Experiment]  # method, point of its grid, what to run


def trials(methods: dict[str, Experiment], grids: dict[str, list[dict]], seeds: Sequence[int]) -> list[Trial]:
    """Every point of each method's grid with every seed, on held-out training images."""
    return [
        (method, point, replace(experiment.with_options(**point), seed=seed, **_TUNING))
        for method, experiment in methods.items()
        for point in grids[experiment.optimizer]
        for seed in seeds
    ]


def trials_of_studies(dataset: str) -> dict[str, list[Trial]]:
    """The trials of each of `STUDIES`."""
    return {name: trials(study(dataset, tuned=False), GRIDS, tuning_seeds(name)) for name, study in STUDIES.items()}


def tune_methods(
    study: str,
    dataset: str,
    trials: Sequence[Trial],
    ledger: Ledger | None = None,
    workers: int | None = None,
    further: int = 0,
    searches: dict[str, str] | None = None,
) -> pd.DataFrame:
    """Run trials and keep the best point of each method in the table of tuned values.

    A point is judged by its mean final average accuracy over all tasks, on held-out training images.

    Args:
        further: how many more points a method may try, each a neighbour of its best one (`studies.pattern_search`). The
            search stops when no neighbour is better.
        searches: maps a method to what its choice depends on. A column stores it, to recognise outdated choices.

    Returns:
        One row per point: ``study, dataset, method, options, accuracy`` and ``chosen``.
    """
    points = _judged(trials, ledger, workers)
    allowed = points.groupby("method").size() + further
    while more := _further(points, trials, allowed):
        points = pd.concat([points, _judged(more, ledger, workers)], ignore_index=True)
    points["chosen"] = points.index.isin(points.groupby("method").accuracy.idxmax())
    points.insert(0, "study", study)
    points.insert(1, "dataset", dataset)
    best = points[points.chosen].drop(columns="chosen").round({"accuracy": 4})
    best["search"] = best.method.map(searches or {})
    if TUNED.exists():
        old = pd.read_csv(TUNED)
        again = (old.study == study) & (old.dataset == dataset) & old.method.isin(best.method)
        best = pd.concat([old[~again], best])
    files.write_atomically(TUNED, best.sort_values(["study", "dataset", "method"]).to_csv(index=False))
    return points


def _judged(trials: Sequence[Trial], ledger: Ledger | None, workers: int | None) -> pd.DataFrame:
    """One row per point: ``method, options`` and ``accuracy``, the mean over its seeds."""
    frame = tables.table(run_all([experiment for *_, experiment in trials], ledger, workers))
    frame = pd.DataFrame(
        {
            "method": [method for method, *_ in trials],
            "options": [json.dumps(point) for _, point, _ in trials],
            "accuracy": frame.average_accuracy,
        }
    )
    return frame.groupby(["method", "options"], sort=False, as_index=False).accuracy.mean()


def _further(points: pd.DataFrame, trials: Sequence[Trial], allowed: pd.Series) -> list[Trial]:
    """Trials of the untried neighbours of each method's best point, up to the number of points it is allowed."""
    found = []
    for method, tried in points.groupby("method", sort=False):
        best = json.loads(tried.options[tried.accuracy.idxmax()])
        new = [point for point in neighbours(best) if json.dumps(point) not in set(tried.options)]
        own = [experiment for name, _, experiment in trials if name == method]
        found += [
            (method, point, replace(own[0].with_options(**point), seed=seed))
            for point in new[: allowed[method] - len(tried)]
            for seed in dict.fromkeys(experiment.seed for experiment in own)
        ]
    return found


_TUNING = {"evaluation": "validation", "curve_points": 0}
