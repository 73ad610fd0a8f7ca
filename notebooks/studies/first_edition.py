"""What the change of rule changed: the first edition's runs next to today's, seed by seed (notebook 03).

``notebooks/03_first_edition.csv`` has every run of coincidence without replay that the first edition reported. Back
then, hidden layers had two factors P, and the layer next to the loss had one.
"""

from pathlib import Path

import pandas as pd

from sp.lab import metrics
from sp.lab.ledger import Ledger, opened
from sp.lab.sweep import runs, with_seeds
from studies import comparison

RUNS = Path(__file__).parent.with_name("03_first_edition.csv")


def moved(ledger: Ledger | None = None) -> pd.DataFrame:
    """Final average accuracy of coincidence in the first edition and today, on every stream of the comparison.

    Args:
        ledger: where today's runs are read from; none is run.

    Returns:
        One row per data set and stream for which the ledger has all seeds: the means ``first edition`` and ``today``,
        and ``today - first edition`` with its interval and verdict.
    """
    ledger = ledger or opened()
    found = []
    before = pd.read_csv(RUNS)
    for (dataset, scenario), rows in before.groupby(["dataset", "scenario"], sort=False):
        named = with_seeds(comparison.methods(scenario, dataset, names=["Coincidence"]), rows.seed)
        if any(ledger.get(experiment) is None for _, experiment in named):
            continue
        today = runs(named, ledger, carried=True, progress=False).average_accuracy
        change = metrics.paired_difference(today, rows.average_accuracy)
        means = (f"{values.mean():.3f}" for values in (rows.average_accuracy, today))
        found.append((dataset, scenario, *means, str(change)))
    columns = ["data set", "stream", "first edition", "today", "today - first edition"]
    return pd.DataFrame(found, columns=columns).set_index(columns[:2])
