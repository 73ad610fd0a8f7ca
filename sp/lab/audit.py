"""Audit of kept runs: a random sample is recomputed to tell whether the rest can be trusted."""

import math
import random
from collections.abc import Mapping
from itertools import chain, zip_longest

import numpy as np
import pandas as pd

from sp.lab.experiment import Result, run
from sp.lab.metrics import average_accuracy
from sp.lab.parallel import Failed, call_all

# Processors round differently. With the plainest code paths of ATen and MKL instead of those for AVX-512, 2 of 89 runs
# of all methods on digits gave different accuracies, one by 0.02, its average by 0.013.
MOST_IN_AVERAGE = 0.10  # difference in the average accuracy of a run
MOST_IN_MEAN = 0.01  # the same, averaged over the sample
MOST_IN_ONE = 0.15  # difference in any single accuracy: on one task, after training on one task


class AuditError(Exception):
    """Kept runs do not match what their experiments give. ``rows``: the runs in question."""

    def __init__(self, message: str, rows: pd.DataFrame):
        super().__init__(f"{message}\n{rows.to_string(index=False)}")
        self.rows = rows


def audit(results: Mapping[str, Result], sample: int, seed: int, workers: int | None = None) -> pd.DataFrame:
    """Recompute a random sample of kept runs.

    Args:
        results: kept runs, by the key under which each is kept.
        sample: number of runs to recompute, >= 1; all of them if there are fewer. One run of each method is drawn
            before a second one of any method, and the methods come in random order.
        seed: seed of the draw. workers: as in `sp.lab.parallel.call_all`.

    Returns:
        One row per run: ``key``, ``method``, ``dataset``, ``stream``, ``seed``; its average accuracy as ``kept`` and as
        ``computed`` now, in [0, 1]; their ``difference``, computed minus kept; the ``largest`` absolute difference in
        a single accuracy, or in the average if no other is kept. `describe` sums this up in a sentence.

    Raises:
        AuditError: the key of any result is not that of its experiment; a run of the sample fails, or differs by more
            than `MOST_IN_AVERAGE` or `MOST_IN_ONE`; the mean absolute difference of averages is above `MOST_IN_MEAN`.
    """
    if not results:
        raise ValueError("results is empty: there is nothing to audit")
    if foreign := [key for key, result in results.items() if key != result.experiment.key()]:
        rows = pd.DataFrame([_row(key, results[key]) for key in foreign])
        raise AuditError("These kept runs do not have the key of their experiment:", rows)
    kept = {results[key].experiment: results[key] for key in draw(results, sample, seed)}
    computed = dict(call_all(run, kept, workers))
    if failed := [experiment for experiment in kept if isinstance(computed[experiment], Failed)]:
        reasons = [computed[experiment].reason.strip().splitlines()[-1] for experiment in failed]
        rows = pd.DataFrame([_row(experiment.key(), kept[experiment]) for experiment in failed])
        raise AuditError(f"These kept runs cannot be recomputed (seed {seed}):", rows.assign(reason=reasons))
    rows = pd.DataFrame([_row(experiment.key(), result) for experiment, result in kept.items()])
    rows["computed"] = [_average(computed[experiment]) for experiment in kept]
    rows["difference"] = rows["computed"] - rows["kept"]
    rows["largest"] = [_largest(result, computed[experiment]) for experiment, result in kept.items()]
    # Written as a negation so that NaN counts as wrong too.
    wrong = rows[~((rows["difference"].abs() <= MOST_IN_AVERAGE) & (rows["largest"] <= MOST_IN_ONE))]
    if len(wrong):
        limits = f"{MOST_IN_AVERAGE} in average accuracy, or by more than {MOST_IN_ONE} in a single one"
        raise AuditError(f"These kept runs differ from the recomputed ones by more than {limits} (seed {seed}):", wrong)
    if (mean := rows["difference"].abs().mean()) > MOST_IN_MEAN:
        message = f"Average accuracies of kept and recomputed runs differ by {mean:.4f} on average, more than"
        raise AuditError(f"{message} {MOST_IN_MEAN} (seed {seed}):", rows)
    return rows


def draw(results: Mapping[str, Result], sample: int, seed: int) -> list[str]:
    """Keys of the sample that `audit` recomputes."""
    chance = random.Random(seed)
    by_method: dict[str, list[str]] = {}
    for key in sorted(results):
        by_method.setdefault(results[key].experiment.optimizer, []).append(key)
    columns = [chance.sample(by_method[method], len(by_method[method])) for method in sorted(by_method)]
    turns = chain.from_iterable(chance.sample(turn, len(turn)) for turn in zip_longest(*columns))
    return [key for key in turns if key is not None][:sample]


def describe(rows: pd.DataFrame, results: Mapping[str, Result], seed: int) -> str:
    """Summarise what `audit` found in a sentence."""
    methods = {result.experiment.optimizer for result in results.values()}
    size = rows["difference"].abs()
    return (
        f"{len(rows)} of {len(results)} kept runs, from {rows['method'].nunique()} of {len(methods)} methods, were "
        f"recomputed (seed {seed}): average accuracies differ by {size.mean():.4f} on average and {size.max():.4f} at "
        "most."
    )


def _row(key: str, result: Result) -> dict[str, str | int | float]:
    experiment = result.experiment
    choices = {"method": experiment.optimizer, "dataset": experiment.dataset, "stream": experiment.stream}
    return {"key": key, **choices, "seed": experiment.seed, "kept": _average(result)}


def _average(result: Result) -> float:
    if result.accuracy is None:
        return float(result.measures["average_accuracy"])
    return float(average_accuracy(result.accuracy))


def _largest(kept: Result, made: Result) -> float:
    if kept.accuracy is None:
        return abs(_average(made) - _average(kept))
    if kept.accuracy.shape != made.accuracy.shape:
        return math.inf
    tested = ~(np.isnan(kept.accuracy) & np.isnan(made.accuracy))
    return float(np.abs(kept.accuracy - made.accuracy)[tested].max())
