"""What a sweep costs beside the training in it, and what reading its results costs."""

import tempfile
import time
from dataclasses import replace

import joblib
import pandas as pd

import studies
from sp.lab.experiment import Experiment, run
from sp.lab.ledger import Ledger
from sp.lab.sweep import run_all
from sp.lab.tables import table

ARMS = ("Adam", "Adam + replay", "Selective plasticity", "Selective plasticity + replay")
ALLOWED = {"overhead": 0.05, "comparison_s": 20.0, "reading_s": 2.0}


def bench_sweep(seeds: int = 20, kept: int = 10_000) -> pd.DataFrame:
    """Time a comparison of four arms on digits (two tasks), and the reading of kept results.

    The worker processes are started before, as they are in a notebook whose first comparison is behind it.

    Returns:
        One row a measurement: ``measurement``, ``value``, ``allowed``, and ``ratio`` of the two. ``overhead``: the time
        of all processes that was not spent in runs, as a share of what was. ``comparison_s``: wall time in seconds of
        all arms with all seeds. ``reading_s``: seconds until that many kept results are one DataFrame.
    """
    arms = studies.forgetting("digits")
    experiments = [replace(arms[arm], seed=seed, curve_points=0) for arm in ARMS for seed in range(seeds)]
    workers = joblib.cpu_count()
    with tempfile.TemporaryDirectory() as folder:
        run_all([Experiment(seed=seed) for seed in range(4 * workers)], Ledger(f"{folder}/warm"), progress=False)
        start = time.perf_counter()
        results = run_all(experiments, Ledger(f"{folder}/compared"))
        comparison = time.perf_counter() - start
        busy = sum(result.seconds for result in results)
        values = {"overhead": comparison * workers / busy - 1, "comparison_s": comparison}
        values["reading_s"] = _reading(Ledger(f"{folder}/read"), kept)
    table = pd.DataFrame({"measurement": values.keys(), "value": values.values()})
    table["allowed"] = table.measurement.map(ALLOWED)
    return table.assign(ratio=table.value / table.allowed)


def _reading(ledger: Ledger, count: int) -> float:
    result = run(Experiment(tasks=5, hidden=(8,), options={"lr": 1e-3}))
    experiments = [replace(result.experiment, seed=seed) for seed in range(count)]
    for experiment in experiments:
        ledger.put(replace(result, experiment=experiment))
    start = time.perf_counter()
    table(run_all(experiments, ledger))
    return time.perf_counter() - start
