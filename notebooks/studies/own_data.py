"""What studies on data of other kinds share: streams that are made when a run needs them, tuning, one way to run.

A run is known by the names and versions of its data and its network and not by their content, so that a kept run can be
read where the data, or the package that they come from, are not there. Who changes what is made raises the version;
``tests/studies/test_own_data.py`` tells when that was forgotten.
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
    """A stream that is made when a run needs it: ``make`` gives the tasks of an evaluation."""

    make: Callable[[Evaluation], Tasks]

    def tasks_for(self, evaluation: Evaluation) -> Tasks:
        """The tasks as a run takes them."""
        return self.make(evaluation)


def named(name: str, version: int, content: Any) -> Own:
    """A `Source`, or what makes a network or a learner, that counts by its name and its version."""
    return Own(name, f"{name}, version {version}", content)


class Tuning:
    """What methods are tuned on: points of their options, as many for each, tuning seeds, data that were held out.

    Args:
        methods: those to tune and others. grids: of a method, its points.
        seeds, seeded: as in `sp.lab.sweep.with_seeds`.
        score: of an accuracy matrix, what a point is judged by.
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
        """A row a point: ``method``, ``options``, its mean score ``accuracy``, and whether it is ``chosen``."""
        scores = [self.score(result.accuracy) for result in results(self.experiments)]
        return judged(self.grids, scores, self.seeds).drop(columns="point")

    def chosen(self) -> dict[str, Experiment]:
        """All methods, those that were tuned with the point that held-out data chose."""
        best = {row.method: row.options for row in self.table().itertuples() if row.chosen}
        return {method: experiment.with_options(**best.get(method, {})) for method, experiment in self.methods.items()}


def results(experiments: Sequence[Experiment], measure: Callable[[Experiment], Result] | None = None) -> list[Result]:
    """Of experiments in their order: read from the ledger, or run one after another and kept.

    Args:
        experiments: what to run. measure: runs one, and notes more than `sp.lab.experiment.run` does.

    Raises:
        ImportError, DataError: a run is not kept, and its data are not there; the message says what brings them.
    """
    ledger = opened()
    left = missing(experiments, ledger)
    if left:
        stream_of(left[0])  # what is missing is said here, and not in a worker's traceback
    if measure is None:
        return run_all(experiments, ledger, workers=1)
    for experiment in left:
        ledger.put(measure(experiment))
    return [ledger.get(experiment) for experiment in experiments]


@dataclass(frozen=True)
class Part:
    """A part of a study.

    Attributes:
        runs: of the methods, tuned or not yet, everything that is run. tuning: of the methods.
        measure: as in `results`.
    """

    runs: Callable[[dict[str, Experiment]], Named]
    tuning: Tuning
    measure: Callable[[Experiment], Result] | None = None

    def results(self) -> list[tuple[str, Result]]:
        """Its runs by the names of their methods, each read or run."""
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
            without: methods that are left for another time. dry: only say how long it should take.
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
    """As text, a row for each method: final and learning accuracy, and both beside those of ``base``.

    Args:
        rows: `Part.table`, of which every method has the seeds of the ``base``.
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
