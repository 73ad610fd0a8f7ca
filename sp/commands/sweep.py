"""Run a grid or a sample of experiments, with every seed.

Experiments differ in what -p names, and run in parallel. Stored runs are not repeated: after a crash, the same command
resumes. Exit status: 0; 1 if runs failed; 2 if it cannot run.
"""

import argparse
import sys
from pathlib import Path

from sp.commands import add_dataset, add_values, positive, values_of
from sp.files import write_atomically
from sp.lab import choices, metrics, tables
from sp.lab.checking import check_points
from sp.lab.experiment import Experiment
from sp.lab.ledger import Ledger, opened
from sp.lab.settings import STREAMS, on_stream
from sp.lab.sweep import VARIED, SweepError, missing, plan, points_of, run_all
from sp.rivals import METHODS

VALUES = "v1,v2,... or, with --sample, a range low:high or low:high:log"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: which experiments, and where to store them."""
    parser.epilog = (
        "example: python -m sp sweep --stream permuted10 -p optimizer adam,sgd -p option_lr 1e-3,1e-2. "
        f"Choices: {', '.join(name for name in VARIED if name != 'seed')}. Optimizers: {', '.join(METHODS)}."
    )
    add_dataset(parser)
    add_values(parser, f"a choice of Experiment, or option_NAME for an argument of the optimizer; {VALUES}")
    add = parser.add_argument
    streams = f"{', '.join(STREAMS)}, or a name like split5, rotated5_task (default: %(default)s)"
    add("--stream", default="split2_class", metavar="NAME", help=streams)
    add("--sample", type=positive, metavar="COUNT", help="draw this many points of a Latin hypercube")
    add("--seeds", type=positive, default=3, help="number of seeds (default: 3)")
    add("--ledger", type=Path, help="folder for the results (default: $SP_STORE, else .store)")
    add("--workers", type=positive, help="processes (default: one per core)")
    add("--cluster", metavar="tcp://HOST:PORT", help="dask scheduler whose workers to use")
    add("--csv", type=Path, help="write the table of all runs to this file")
    add("--dry-run", action="store_true", help="say what would run and how long it should take")


def run(chosen: argparse.Namespace) -> int:
    """Run what is missing and print the means; exit status 1 if runs failed."""
    varied = values_of(chosen.p)
    if "options" in varied:
        raise ValueError("options are varied one by one: give -p option_NAME v1,v2,..., such as -p option_lr 1e-3,1e-2")
    if "loss" in varied:
        raise ValueError("a loss is a function, which -p cannot name: give it to sp.lab.compare in Python")
    if "seed" in varied:
        raise ValueError("every point is run with every seed: give --seeds instead of -p seed")
    try:
        experiments = points_of(
            on_stream(chosen.stream, chosen.dataset),
            choices.sample(varied, chosen.sample) if chosen.sample else choices.grid(varied),
            range(chosen.seeds),
        )
        ledger = Ledger(chosen.ledger) if chosen.ledger else opened()
        check_points(missing(experiments, ledger))  # stored runs need no data
    except TypeError as error:  # the user typed a value of the wrong type, which is not a bug
        raise ValueError(str(error)) from error
    if chosen.dry_run:
        planned = plan(experiments, ledger)
        for experiment in planned.missing:
            print(_differences(experiment, varied))
        print(planned.describe(chosen.workers))
        return 0
    status = 0
    try:
        results = run_all(experiments, ledger, chosen.workers, cluster=chosen.cluster)
    except SweepError as error:
        print(error, file=sys.stderr)
        results, status = error.results, 1
    if results:
        table = tables.table(results)
        if chosen.csv:
            write_atomically(chosen.csv, table.to_csv(index=False))
        by = [name for name in varied if name in table] or ["optimizer"]
        print(
            metrics.readable(metrics.interval_table(table, by, ["average_accuracy", "learning_accuracy"])).to_string()
        )
    return status


def _differences(experiment: Experiment, varied: dict) -> str:
    values = {**experiment.as_dict(), **{f"option_{name}": value for name, value in experiment.options}}
    return "  ".join(f"{name}={values[name]!r}" for name in [*varied, "seed"])
