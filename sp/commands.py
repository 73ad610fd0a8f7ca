"""The commands but those of `sp.figures.commands`, which draw stored figures again: arguments, and what each calls."""

import argparse
import difflib
import random
import shlex
import sys
import warnings
from pathlib import Path

from sp.files import folder, write_atomically
from sp.lab import choices, tables
from sp.lab.experiment import Experiment
from sp.lab.ledger import Ledger, opened
from sp.lab.settings import SETTINGS, STREAMS, on_stream
from sp.lab.sweep import SweepError, check_options, plan, points_of, run_all
from sp.rivals import METHODS

# What only one command needs is imported by it, for it takes seconds.

VALUES = "v1,v2,... or, with --sample, a range low:high or low:high:log"


def add_commands(commands) -> None:
    """All of them."""
    for add in (add_compare, add_notebook_runs, add_sweep, add_notebooks, add_audit):
        add(commands)


def add_notebook_runs(commands) -> None:
    """``figures``, ``refresh`` and ``check-notebooks``."""
    parser = commands.add_parser(
        "figures",
        help="run every notebook and leave its figures in figures/",
        description="Run notebooks side by side. With SP_FRESH=1 in the environment no committed run is read.",
    )
    add_dataset(parser)
    _add_which(parser)
    parser.set_defaults(run=_figures)
    parser = commands.add_parser(
        "refresh", help="run every notebook afresh in place, with the outputs that the tests compare"
    )
    _add_which(parser)
    parser.set_defaults(run=_refresh)
    parser = commands.add_parser("check-notebooks", help="run every notebook and compare with its stored outputs")
    parser.set_defaults(run=_check)


def _add_which(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("notebooks", nargs="*", type=Path, help="which ones; default: all")


def _which(chosen: argparse.Namespace) -> list[Path]:
    from sp import notebooks

    for path in chosen.notebooks:
        if not path.is_file():
            near = difflib.get_close_matches(path.stem, [one.stem for one in notebooks.all_notebooks()], 1, 0)
            hint = f": did you mean notebooks/{near[0]}.ipynb?" if near else ""
            raise FileNotFoundError(f"{path} is not there{hint}")
    return chosen.notebooks


def _figures(chosen: argparse.Namespace) -> int:
    from sp import notebooks

    return notebooks.make_figures(chosen.dataset, _which(chosen))


def _refresh(chosen: argparse.Namespace) -> int:
    from sp import notebooks

    return notebooks.refresh(_which(chosen))


def _check(_: argparse.Namespace) -> int:
    from sp import notebooks

    return notebooks.check()


def add_compare(commands) -> None:
    """``compare``: anybody's methods on one stream."""
    parser = commands.add_parser(
        "compare",
        help="compare methods, your own among them, on one stream",
        description="Methods are paired by seed, and tuned with as many points each on other seeds and held-out data. "
        "Runs that the ledger has are read. FILE.py:NAME is a callable, or a stream, in a file of yours.",
        epilog="example: python -m sp compare --method adam --method mine.py:lion --stream split5 "
        f"--tune lr=1e-4,3e-4,1e-3 --figure lion. Methods: {', '.join(METHODS)}.",
    )
    add = parser.add_argument
    add("--method", action="append", required=True, metavar="NAME|FILE.py:NAME", help="once for each; first: baseline")
    add(
        "--stream",
        default="split5",
        metavar="NAME|FILE.py:NAME",
        help="split5, split5_domain, permuted10, rotated5, ...",
    )
    add("--samples-per-task", type=positive, help="training images of each task; default: all")
    add("--network", metavar="NAME|FILE.py:NAME", help="default: a perceptron")
    add("--tune", action="append", default=[], metavar="[METHOD:]OPTION=v1,v2,...", help="of one method, or of each")
    add("--seeds", type=positive, default=6, help="how many seeds (default: 6; below six no verdict is given)")
    add("--epochs", type=positive, help="passes over each task")
    add("--batch-size", type=positive)
    add("--replay-capacity", type=int, default=0, help="examples in a buffer of every method (default: 0)")
    add("--baseline", metavar="METHOD", help="default: the first method")
    add("--device", default="cpu", help="such as cuda (default: cpu)")
    add("--workers", type=positive, help="processes (default: one a core)")
    add("--cluster", metavar="tcp://HOST:PORT", help="a dask scheduler on whose workers to run")
    add("--figure", metavar="NAME", help="draw the figure figures/NAME")
    add("--kind", default="accuracy", choices=("accuracy", "matrix", "curve"), help="of figure (default: accuracy)")
    add("--csv", type=Path, help="write the table of all runs to this file")
    add_dataset(parser)
    parser.set_defaults(run=_compare)


def _compare(chosen: argparse.Namespace) -> None:
    from sp.lab import shell

    shell.run(chosen, shlex.join(["python", "-m", "sp", *chosen.arguments]))


def add_audit(commands) -> None:
    """``audit``: a random sample of the committed runs, computed anew."""
    parser = commands.add_parser(
        "audit",
        help="compute a random sample of the committed runs anew, and fail where one differs",
        description="One of each method in turn. A run may differ by 0.1 in average accuracy, the sample by 0.01 "
        "in the mean: processors round differently.",
    )
    add_dataset(parser)
    parser.add_argument("--sample", type=positive, default=20, help="how many runs (default: 20)")
    parser.add_argument("--seed", type=int, help="of the draw, to make it again; default: another one each time")
    parser.add_argument("--workers", type=positive, help="processes (default: one a core)")
    parser.set_defaults(run=_audit)


def _audit(chosen: argparse.Namespace) -> int:
    from sp.lab import audit
    from sp.rivals import dendrites

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # that a row is damaged
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
    seed = random.randrange(10**6) if chosen.seed is None else chosen.seed
    try:
        rows = audit.audit(results, chosen.sample, seed, chosen.workers)
    except audit.AuditError as error:
        print(error, file=sys.stderr)
        return 1
    print(audit.describe(rows, results, seed))
    return 0


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """``--dataset``, digits by default."""
    parser.add_argument("--dataset", default="digits", choices=sorted(SETTINGS))


def add_sweep(commands) -> None:
    """``sweep``: a grid or a sample of experiments times seeds."""
    parser = commands.add_parser(
        "sweep",
        help="run a grid or a sample of experiments, with every seed",
        description="Run experiments that differ in what -p names, with every seed, in parallel. What is kept is not "
        "run again: after a crash the same command goes on. Exit status: 0, 1 when runs failed, 2 when it cannot run.",
        epilog="example: python -m sp sweep --stream permuted10 -p optimizer adam,sgd -p option_lr 1e-3,1e-2. "
        f"Choices: {', '.join(Experiment.__dataclass_fields__)}. Optimizers: {', '.join(METHODS)}.",
    )
    add_dataset(parser)
    parser.add_argument(
        "--stream",
        default="split2_class",
        choices=sorted(STREAMS),
        help="tasks of a study (default: %(default)s)",
    )
    _add_parameters(parser, f"a choice of Experiment, or option_NAME for an argument of the optimizer; {VALUES}")
    parser.add_argument("--sample", choices=choices.SAMPLES, help="draw points instead of taking every combination")
    parser.add_argument("--count", type=positive, default=50, help="how many points to draw (default: 50)")
    parser.add_argument("--seeds", type=positive, default=3, help="how many seeds (default: 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="tuning takes seeds from 100 (default: 0)")
    parser.add_argument("--ledger", type=Path, help="folder of the results (default: $SP_STORE, else .ledger)")
    parser.add_argument("--workers", type=positive, help="processes (default: one a core)")
    parser.add_argument("--cluster", metavar="tcp://HOST:PORT", help="a dask scheduler on whose workers to run")
    parser.add_argument("--csv", type=Path, help="write the table of all runs to this file")
    parser.add_argument("--dry-run", action="store_true", help="say what would run and how long it should take")
    parser.set_defaults(run=_sweep)


def _sweep(chosen: argparse.Namespace) -> int:
    from sp.lab import metrics

    varied = _parameters(chosen.p)
    if "seed" in varied:
        raise ValueError("every point gets every seed: give --seeds and --first-seed in place of -p seed")
    try:
        experiments = points_of(
            on_stream(chosen.stream, chosen.dataset),
            choices.sample(varied, chosen.count, chosen.sample) if chosen.sample else choices.grid(varied),
            range(chosen.first_seed, chosen.first_seed + chosen.seeds),
        )
        check_options(experiments)
    except TypeError as error:  # a value of the wrong type, which was typed and is no fault of the program
        raise ValueError(str(error)) from error
    ledger = Ledger(chosen.ledger) if chosen.ledger else opened()
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


def add_notebooks(commands) -> None:
    """``notebooks``: a parameterised notebook over a grid."""
    parser = commands.add_parser(
        "notebooks",
        help="run a notebook with every combination of parameters",
        description="Execute a notebook with papermill once for each combination of the parameters, in parallel, and "
        "put the tables of all copies into one. What is finished is not run again. Exit status: 0, 1 when notebooks "
        "failed, 2 when it cannot run.",
        epilog="example: python -m sp notebooks notebooks/01_forgetting.ipynb -p seeds 3 -p plasticity_k 1.0,5.0,10.0",
    )
    parser.add_argument("notebook", type=Path)
    _add_parameters(parser, "a name in the notebook's `parameters` cell; v1,v2,...")
    parser.add_argument(
        "--to",
        type=Path,
        help="copies and their figures go to its folder NOTEBOOK (default: $SP_FIGURES, else build/figures)",
    )
    parser.add_argument("--workers", type=positive, help="notebooks at a time (default: one a core)")
    parser.set_defaults(run=_notebooks)


def _notebooks(chosen: argparse.Namespace) -> int:
    from sp import notebook_grid

    points = choices.grid(_parameters(chosen.p))
    grid = notebook_grid.execute_grid(chosen.notebook, points, chosen.to, chosen.workers)
    for failure in grid.failures:
        print(f"FAILED {failure}", file=sys.stderr)
    made = f"{grid.copies - len(grid.failures)} of {grid.copies} notebooks"
    print(f"{made} are in {grid.folder}.")
    for table in grid.tables:
        print(f"One table over {made}: {table}")
    return 1 if grid.failures else 0


def _add_parameters(parser: argparse.ArgumentParser, help: str) -> None:
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUES"), help=help)


def _parameters(pairs: list[list[str]]) -> dict[str, choices.Values]:
    varied = {}
    for name, text in pairs:
        if name in varied:
            raise ValueError(f"-p {name} is given twice: put all its values into one, v1,v2,...")
        try:
            varied[name] = choices.parse(text)
        except ValueError as error:
            raise ValueError(f"-p {name}: {error}") from error
    return varied


def positive(text: str) -> int:
    """A whole number >= 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)
