"""Many runs: experiments times seeds, in parallel, each stored as soon as it is finished."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace

import joblib
import pandas as pd

from sp.experiment import Experiment, Result, Store, curves_frame, results_frame
from sp.files import bar


def run_all(
    experiments: Iterable[Experiment], store: Store | None = None, workers: int | None = None, progress: bool = True
) -> list[Result]:
    """The results of experiments, in their order: read where they are stored, else run and stored.

    Args:
        experiments: what to run; one that occurs twice runs once.
        store: where results are kept; default `Store()`.
        workers: processes, one thread each; default: as many as there are cores.
        progress: show a bar.
    """
    store = store or Store()
    experiments = list(experiments)
    results = {experiment: store.get(experiment) for experiment in dict.fromkeys(experiments)}
    missing = [experiment for experiment, result in results.items() if result is None]
    workers = min(workers or os.cpu_count() or 1, max(len(missing), 1))
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered")
    finished = parallel(joblib.delayed(store.run)(experiment) for experiment in missing)
    for result in bar(finished, total=len(missing), unit="run", progress=progress and bool(missing)):
        results[result.experiment] = result
    return [results[experiment] for experiment in experiments]


def compare(
    arms: dict[str, Experiment],
    seeds: Sequence[int],
    store: Store | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run every arm with every seed.

    Returns:
        `results_frame` and `curves_frame` of the runs, each with a first column ``arm``. Rows with one seed are paired:
        their networks began with the same weights and saw the same data in the same order.
    """
    named = [(arm, replace(experiment, seed=seed)) for arm, experiment in arms.items() for seed in seeds]
    results = run_all([experiment for _, experiment in named], store, workers, progress)
    rows = results_frame(results)
    rows.insert(0, "arm", [arm for arm, _ in named])
    curves = [curves_frame([result]).assign(arm=arm) for (arm, _), result in zip(named, results, strict=True)]
    points = pd.concat(curves, ignore_index=True)
    return rows, points[["arm", *points.columns.drop("arm")]]
