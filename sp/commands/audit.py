"""Recompute a random sample of the committed runs, and fail if one differs.

One run of each method is drawn in turn. A run may differ by 0.1 in average accuracy, and the sample by 0.01 on average,
as processors round differently.
"""

import argparse
import random
import sys
import warnings

from sp.commands import add_dataset, positive
from sp.files import folder
from sp.lab import audit
from sp.lab.ledger import Ledger
from sp.rivals import METHODS, dendrites


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: how many runs, and which."""
    add_dataset(parser)
    parser.add_argument("--sample", type=positive, default=20, help="how many runs (default: 20)")
    parser.add_argument("--seed", type=int, help="seed of the draw, to repeat it; default: a new one each time")
    parser.add_argument("--workers", type=positive, help="processes (default: one per core)")


def run(chosen: argparse.Namespace) -> int:
    """Recompute and compare; exit status 1 if a run differs or a row is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # raised for a damaged row
            committed = Ledger(folder("ledger")).by_key()
    except UserWarning as damage:
        print(damage, file=sys.stderr)
        return 1
    can_run = [method for method in METHODS if method != "dendrites" or dendrites.installed()]
    results = {
        key: result
        for key, result in committed.items()
        if result.experiment.dataset == chosen.dataset
        and result.experiment.optimizer in can_run
        and not result.experiment.own
    }
    if not results:
        raise FileNotFoundError(
            f"{folder('ledger')} has no runs on {chosen.dataset} to audit: go to the project's folder, or set SP_LEDGER"
        )
    seed = random.randrange(10**6) if chosen.seed is None else chosen.seed
    try:
        rows = audit.audit(results, chosen.sample, seed, chosen.workers)
    except audit.AuditError as error:
        print(error, file=sys.stderr)
        return 1
    print(audit.describe(rows, results, seed))
    return 0
