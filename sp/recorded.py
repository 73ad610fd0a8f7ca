"""Runs that take long, kept with the repository: a table of them in ``figures/``, which notebooks read before they run.

``python -m sp record STUDY --dataset mnist`` makes the table. A row is taken for an experiment only where its key says
that it is the same experiment under the same rules; what is not in the table is run.
"""

from typing import Any

import numpy as np
import pandas as pd

from sp import files, metrics
from sp.experiment import Result
from sp.store import Store
from sp.sweep import Named, run_all


def measures(result: Result) -> dict[str, float]:
    """What the notebooks on ablations, hyper-parameters and permuted images compare.

    ``average_accuracy``, ``learning_accuracy``, ``backward_transfer``: as in `sp.metrics`. ``old``: final accuracy on
    all tasks but the last, ``new``: on the last. ``instability``: of the accuracy on the task that is being learnt, the
    mean fall from one point of the curve to the next, 0 where it only rises; NaN without a curve. ``after_N``: mean
    accuracy on the first N tasks right after they were learnt. All in [0, 1], the transfer in [-1, 1]. Where it is
    known, ``parameters``: how many were trained at the end.
    """
    R = result.accuracy
    return {
        "average_accuracy": metrics.average_accuracy(R),
        "learning_accuracy": metrics.learning_accuracy(R),
        "backward_transfer": metrics.backward_transfer(R),
        "old": R[-1, :-1].mean() if len(R) > 1 else np.nan,
        "new": R[-1, -1],
        "instability": instability(result),
        **({} if result.parameters is None else {"parameters": result.parameters}),
        **{f"after_{i + 1}": R[i, : i + 1].mean() for i in range(len(R))},
    }


def instability(result: Result) -> float:
    """Mean fall of the accuracy on the task being learnt, from one point of the curve to the next."""
    falls = []
    for task in range(len(result.accuracy)):
        curve = [point["accuracy"] for point in result.curve if point["training"] == point["task"] == task]
        falls += list(np.clip(-np.diff(curve), 0, None))
    return float(np.mean(falls)) if falls else np.nan


def runs(name: str, named: Named, store: Store | None = None, **options: Any) -> pd.DataFrame:
    """One row a run: ``arm``, ``seed``, ``key``, and its `measures`; those that ``figures/NAME.csv`` holds are not run.

    Args:
        name: of the table.
        named: arm and experiment of each run.
        store: of those that are not in the table. options: for `sp.sweep.run_all`.
    """
    rows = recorded(name)
    missing = [experiment for _, experiment in named if experiment.key() not in rows]
    for result in run_all(missing, store, **options):
        rows[result.experiment.key()] = measures(result)
    return pd.DataFrame(
        [
            {"arm": arm, "seed": experiment.seed, "key": experiment.key(), **rows[experiment.key()]}
            for arm, experiment in named
        ]
    )


def holds(name: str, named: Named) -> bool:
    """Whether all these runs are recorded."""
    rows = recorded(name)
    return all(experiment.key() in rows for _, experiment in named)


def recorded(name: str) -> dict[str, dict[str, float]]:
    """The rows of a recorded table by their key; none where there is no table."""
    try:
        table = pd.read_csv(files.committed(f"{name}.csv"))
    except FileNotFoundError:
        return {}
    rows = table.drop(columns=["arm", "seed", "key"]).to_dict("records")
    # Streams of fewer tasks than others in the table have empty columns.
    return dict(zip(table.key, ({k: v for k, v in row.items() if not _absent(k, v)} for row in rows), strict=True))


def _absent(name: str, value: float) -> bool:
    return name.startswith("after_") and np.isnan(value)
