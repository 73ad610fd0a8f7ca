"""Results as tidy tables: a row a run, or a row a measurement."""

import numpy as np
import pandas as pd

from sp import metrics
from sp.experiment import Result


def results_frame(results: list[Result]) -> pd.DataFrame:
    """One row a result: every choice of the experiment (options as ``option_NAME``), and the metrics of `sp.metrics`.

    ``final_1``, ``final_2``, ... are the accuracies on each task at the end, ``learned_1``, ... right after it. On
    split class-incremental streams, ``buffer_share_1``, ... are the tasks' shares of the replay buffer at the end.
    """
    measured = _metrics(results)
    rows = []
    for result, values in zip(results, measured, strict=True):
        choices = result.experiment.as_dict()
        options = {f"option_{name}": value for name, value in choices.pop("options").items()}
        rows.append(
            {
                **choices,
                "hidden": "-".join(map(str, result.experiment.hidden)),
                **options,
                **values,
                **_buffer_shares(result),
                **{f"final_{j}": value for j, value in enumerate(result.accuracy[-1].tolist(), 1)},
                **{f"learned_{j}": value for j, value in enumerate(result.accuracy.diagonal().tolist(), 1)},
                "seconds": result.seconds,
                "key": result.experiment.key(),
            }
        )
    return pd.DataFrame(rows)


def _metrics(results: list[Result]) -> list[dict[str, float]]:
    """Of each result; those with as many tasks are computed at once."""
    measured: list[dict[str, float]] = [{} for _ in results]
    lengths = [len(result.accuracy) for result in results]
    for length in set(lengths):
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


def _buffer_shares(result: Result) -> dict[str, float]:
    chosen = result.experiment
    if not result.buffer or (chosen.stream, chosen.scenario) != ("split", "class"):
        return {}
    counts = np.zeros(chosen.tasks)
    for label, count in result.buffer.items():
        counts[int(label) * chosen.tasks // 10] += count
    return {f"buffer_share_{j + 1}": share for j, share in enumerate(counts / counts.sum())}


def curves_frame(results: list[Result]) -> pd.DataFrame:
    """One row a measurement inside a task: ``key`` and ``seed`` of the experiment, ``step``, ``training``, ``task`` and
    ``accuracy`` (tasks are numbered from 1)."""
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
