"""Results as tidy tables with consistent names: one row per run, or one row per measurement within a run."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from sp.lab import metrics
from sp.lab.experiment import Result


def table(results: Iterable[Result]) -> pd.DataFrame:
    """One row per result: every choice of the experiment (options as ``option_NAME``), the measurements, and ``key``.

    The measurements are ``average_accuracy``, ``backward_transfer``, ``forward_transfer``, ``forgetting``,
    ``learning_accuracy`` and ``anytime_accuracy``, as in `sp.lab.metrics`; the accuracy on each task at the end,
    ``final_1``, ``final_2``, ..., and right after learning it, ``learned_1``, ...; ``old``, the final accuracy on all
    tasks but the last, and ``new``, that on the last; ``after_N``, the mean accuracy on the first N tasks right after
    they were learnt; `instability`; the number of ``parameters`` trained at the end; whether the run ``diverged``; and
    ``seconds``. On split class-incremental streams, ``buffer_share_1``, ... are the tasks' shares of the replay buffer
    at the end. Runs that were carried over have only some of these.
    """
    results = list(results)
    rows = []
    for result, averages in zip(results, _metrics(results), strict=True):
        choices = {**result.experiment.as_dict(), **{k: own.title for k, own in result.experiment.own.items()}}
        options = {f"option_{name}": value for name, value in choices.pop("options").items()}
        rows.append(
            {
                **choices,
                "hidden": "-".join(map(str, result.experiment.hidden)),
                **options,
                **result.measures,
                **averages,
                **({} if result.accuracy is None else _by_task(result)),
                **_buffer_shares(result),
                **({} if result.parameters is None else {"parameters": result.parameters}),
                "diverged": result.diverged,
                "seconds": result.seconds,
                "key": result.experiment.key(),
            }
        )
    return pd.DataFrame(rows)


def matrices(named: Iterable[tuple[str, Result]]) -> pd.DataFrame:
    """R[i, j] of results with the names of their methods: ``method``, ``seed``, ``after`` (tasks learnt), ``on`` (task)
    and ``accuracy``; one row per task learnt so far, j <= i."""
    rows = [
        {"method": method, "seed": result.experiment.seed, "after": i + 1, "on": j + 1, "accuracy": accuracy}
        for method, result in named
        for (i, j), accuracy in np.ndenumerate(result.accuracy)
        if j <= i
    ]
    return pd.DataFrame(rows)


def _metrics(results: list[Result]) -> list[dict[str, float]]:
    """Metrics of each result; results with the same number of tasks are computed together."""
    measured: list[dict[str, float]] = [{} for _ in results]
    lengths = [0 if result.accuracy is None else len(result.accuracy) for result in results]
    for length in set(lengths) - {0}:
        places = [place for place, own in enumerate(lengths) if own == length]
        R = np.stack([results[place].accuracy for place in places])
        initial = np.stack([results[place].initial for place in places])
        columns = {
            "average_accuracy": metrics.average_accuracy(R),
            "backward_transfer": metrics.backward_transfer(R),
            "forward_transfer": metrics.forward_transfer(R, initial),
            "forgetting": metrics.forgetting(R),
            "learning_accuracy": metrics.learning_accuracy(R),
            "anytime_accuracy": metrics.anytime_accuracy(R),
        }
        for place, values in zip(places, zip(*columns.values(), strict=True), strict=True):
            measured[place] = dict(zip(columns, map(float, values), strict=True))
    return measured


def _by_task(result: Result) -> dict[str, float]:
    R = result.accuracy
    return {
        **{f"final_{j}": value for j, value in enumerate(R[-1].tolist(), 1)},
        **{f"learned_{j}": value for j, value in enumerate(R.diagonal().tolist(), 1)},
        **{f"after_{i + 1}": R[i, : i + 1].mean() for i in range(len(R))},
        "old": R[-1, :-1].mean() if len(R) > 1 else np.nan,
        "new": R[-1, -1],
        "instability": instability(result),
    }


def instability(result: Result) -> float:
    """Mean drop in accuracy on the task being learnt, from one point of the curve to the next.

    0 if the accuracy only rises; NaN without a curve.
    """
    falls = []
    for task in range(len(result.accuracy)):
        curve = [point["accuracy"] for point in result.curve if point["training"] == point["task"] == task]
        falls += list(np.clip(-np.diff(curve), 0, None))
    return float(np.mean(falls)) if falls else np.nan


def _buffer_shares(result: Result) -> dict[str, float]:
    chosen = result.experiment
    if not result.buffer or (chosen.stream, chosen.scenario) != ("split", "class"):
        return {}
    counts = np.zeros(chosen.tasks)
    for label, count in result.buffer.items():
        counts[int(label) * chosen.tasks // 10] += count
    return {f"buffer_share_{j + 1}": share for j, share in enumerate(counts / counts.sum())}


def curves(results: Iterable[Result]) -> pd.DataFrame:
    """One row per measurement within a task: ``key`` and ``seed`` of the experiment, ``step``, ``training``, ``task``
    and ``accuracy`` (tasks are numbered from 1)."""
    rows = [
        {
            "key": result.experiment.key(),
            "seed": result.experiment.seed,
            **point,
            "training": point["training"] + 1,
            "task": point["task"] + 1,
        }
        for result in results
        for point in result.curve
    ]
    return pd.DataFrame(rows, columns=["key", "seed", "step", "training", "task", "accuracy"])
