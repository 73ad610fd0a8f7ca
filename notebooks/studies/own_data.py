"""What studies on other kinds of data share: streams that are made when a run needs them, tuning, one way to run.

A run is identified by the names and versions of its data and its network, not by their content, so that a kept run can
be read without the data or the package that they come from. Raise the version when the content changes;
``tests/studies/test_own_data.py`` fails if that was forgotten.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from sp.lab import metrics, tables
from sp.lab.comparing import judged
from sp.lab.data import Evaluation, Tasks
from sp.lab.experiment import Experiment, Result, stream_of
from sp.lab.ledger import opened
from sp.lab.own import Own
from sp.lab.settings import TUNING_SEEDS
from sp.lab.sweep import Named, Seeded, missing, plan, run_all, with_seed


@dataclass(frozen=True)
class Source:
    """A stream that is made when a run needs it: ``make`` returns the tasks for an evaluation."""

    make: Callable[[Evaluation], Tasks]

    def tasks_for(self, evaluation: Evaluation) -> Tasks:
        """The tasks in the form that a run takes."""
        return self.make(evaluation)


def named(name: str, version: int, content: Any) -> Own:
    """A `Source`, or a factory of a network or learner, that is identified by its name and version."""
    return Own(name, f"{name}, version {version}", content)


class Tuning:
    """What methods are tuned on: the same number of points for each, tuning seeds, and held-out data.

    Args:
        methods: the methods to tune, and others. grids: method -> its points.
        seeds, seeded: as in `sp.lab.sweep.with_seeds`.
        score: what a point is judged by, computed from an accuracy matrix.
    """

    def __init__(
        self,
        methods: Mapping[str, Experiment],
        grids: Mapping[str, Sequence[Mapping[str, Any]]],
        seeds: Sequence[int] = TUNING_SEEDS,
        seeded: Seeded = with_seed,
        score: Callable[[np.ndarray], float] = metrics.average_accuracy,
    ):
        self.methods, self.grids, self.seeds, self.score = methods, grids, seeds, score
        self.experiments = [
            seeded(replace(methods[method].with_options(**point), evaluation="validation"), seed)
            for method, points in grids.items()
            for point in points
            for seed in seeds
        ]

    def table(self) -> pd.DataFrame:
        """One row per point: ``method``, ``options``, its mean score ``accuracy``, and whether it is ``chosen``."""
        scores = [self.score(result.accuracy) for result in results(self.experiments)]
        return judged(self.grids, scores, self.seeds).drop(columns="point")

    def chosen(self) -> dict[str, Experiment]:
        """All methods; the tuned ones have the point that was best on held-out data."""
        best = {row.method: row.options for row in self.table().itertuples() if row.chosen}
        return {method: experiment.with_options(**best.get(method, {})) for method, experiment in self.methods.items()}


def results(experiments: Sequence[Experiment], measure: Callable[[Experiment], Result] | None = None) -> list[Result]:
    """Results of experiments, in order: read from the ledger, or run one after another and kept.

    Args:
        experiments: what to run. measure: runs one experiment and records more than `sp.lab.experiment.run` does.

    Raises:
        ImportError, DataError: a run is not kept and its data are missing; the message says how to get them.
    """
    ledger = opened()
    left = missing(experiments, ledger)
    if left:
        stream_of(left[0])  # reports missing data here rather than in a worker's traceback
    if measure is None:
        return run_all(experiments, ledger, workers=1)
    for experiment in left:
        ledger.put(measure(experiment))
    return [ledger.get(experiment) for experiment in experiments]


@dataclass(frozen=True)
class Part:
    """A part of a study.

    Attributes:
        runs: gives all runs of the methods, tuned or not. tuning: how the methods are tuned.
        measure: as in `results`.
    """

    runs: Callable[[dict[str, Experiment]], Named]
    tuning: Tuning
    measure: Callable[[Experiment], Result] | None = None

    def results(self) -> list[tuple[str, Result]]:
        """Its results with the names of their methods, each read or run."""
        named = self.runs(self.tuning.chosen())
        found = results([experiment for _, experiment in named], self.measure)
        return [(method, result) for (method, _), result in zip(named, found, strict=True)]

    def table(self) -> pd.DataFrame:
        """`sp.lab.tables.table` of its runs, with a first column ``method``."""
        found = self.results()
        rows = tables.table(result for _, result in found)
        rows.insert(0, "method", [method for method, _ in found])
        return rows

    def matrices(self) -> pd.DataFrame:
        """`sp.lab.tables.matrices` of its runs."""
        return tables.matrices(self.results())

    def carry_out(self, without: Sequence[str] = (), dry: bool = False) -> list[str]:
        """Run everything, tuning first, and return the keys of all runs that are kept.

        Args:
            without: methods to leave for another time. dry: only say how long it should take.
        """
        tried, tuned = self.tuning.experiments, not missing(self.tuning.experiments, opened())
        if not dry:
            print(f"Tuning: {plan(tried, opened()).describe(1)}", flush=True)
            results(tried)
        named = self.runs(self.tuning.chosen() if tuned or not dry else self.tuning.methods)
        found = [experiment for method, experiment in named if not method.startswith(tuple(without))]
        print(plan([*tried, *found], opened()).describe(1), flush=True)
        if not dry:
            results(found, self.measure)
        return [experiment.key() for experiment in (*tried, *found) if opened().get(experiment) is not None]


def beside(rows: pd.DataFrame, base: str = "Adam") -> pd.DataFrame:
    """A table as text, one row per method: final and learning accuracy, and both compared with those of ``base``.

    Args:
        rows: a `Part.table` in which every method has the seeds of ``base``.
    """
    names = {"average_accuracy": "final accuracy", "learning_accuracy": "learning accuracy"}
    shown = metrics.readable(metrics.interval_table(rows, ["method"], list(names))).rename(columns=names)
    means = rows.groupby("method", sort=False)[list(names)].mean()
    shown[f"final, times {base}'s"] = (means.average_accuracy / means.average_accuracy[base]).map("{:.2f}".format)
    shown[f"learning, less {base}'s"] = [
        metrics.interval_text(*metrics.difference(rows, method, base, "learning_accuracy")[:3], "+.3f")
        for method in means.index
    ]
    return shown
