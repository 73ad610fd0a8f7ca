"""The commands, but for those that draw stored figures again (`sp.paper`): arguments, and what each calls."""

import argparse
import difflib
import random
import shlex
import sys
import warnings
from pathlib import Path

from sp import studies
from sp.files import folder, write_atomically
from sp.lab import choices, tables
from sp.lab.experiment import Experiment
from sp.lab.ledger import Ledger, opened
from sp.lab.sweep import SweepError, check_options, plan, points_of, run_all, with_seeds
from sp.rivals import METHODS

# What only one command needs is imported by it, for it takes seconds.

RECORDED = ("06_ablation", "07_hyperparameters", "08_permuted", "13_dendrites")
VALUES = "v1,v2,... or, with --sample, a range low:high or low:high:log"


def add_commands(commands) -> None:
    """All of them."""
    studied = (add_compare, add_notebook_runs, add_bench, add_tune, add_results, add_comparison, add_recipes)
    for add in (*studied, add_sweep, add_notebooks, add_record, add_audit):
        add(commands)


def add_notebook_runs(commands) -> None:
    """``figures``, ``refresh``, ``check-notebooks`` and ``html``."""
    parser = commands.add_parser(
        "figures",
        help="run every notebook and leave its figures in figures/",
        description="Run notebooks side by side. With SP_FRESH=1 in the environment no committed run is read.",
    )
    _add_dataset(parser)
    _add_which(parser)
    parser.set_defaults(run=_figures)
    parser = commands.add_parser(
        "refresh", help="run every notebook afresh in place, with the outputs that the tests compare"
    )
    _add_which(parser)
    parser.set_defaults(run=_refresh)
    for name, run, help in (
        ("check-notebooks", _check, "run every notebook and compare with its stored outputs"),
        ("html", _html, "write every notebook, and the documentation, as static pages into build/html"),
    ):
        commands.add_parser(name, help=help).set_defaults(run=run)


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


def _html(_: argparse.Namespace) -> None:
    from sp import pages

    pages.make_all()


def add_bench(commands) -> None:
    """``bench``: what a step and a sweep cost."""
    parser = commands.add_parser(
        "bench", help="time and memory of a step beside Adam, kept in sp/bench.csv, and what a sweep costs"
    )
    parser.add_argument("--parts", nargs="+", help="size, width, batch; default: all")
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--dry", action="store_true", help="print only, and leave sp/bench.csv as it is")
    parser.set_defaults(run=_bench)


def _bench(chosen: argparse.Namespace) -> None:
    from sp import bench, bench_sweep

    table = bench.bench(chosen.parts or tuple(bench.PARTS), chosen.rounds)
    print(table.round(2).to_string(index=False))
    table = bench.beside_known(table)
    if not chosen.dry:
        write_atomically(bench.MEASURED, table.to_csv(index=False, float_format="%.5g"))
    if set(bench.PARTS) <= set(table.part):
        print("\n".join(bench.verdicts(table)))
    print(bench_sweep.bench_sweep().round(3).to_string(index=False))


def add_tune(commands) -> None:
    """``tune``: the options of a study."""
    parser = commands.add_parser("tune", help="choose the options of a study's arms on the tuning seeds")
    parser.add_argument("study", choices=sorted(studies.STUDIES))
    parser.add_argument("dataset", choices=sorted(studies.SETTINGS))
    parser.add_argument("--arms", nargs="+", default=[], help="which ones; default: all")
    parser.add_argument("--workers", type=positive, help="processes (default: one a core)")
    parser.set_defaults(run=_tune)


def _tune(chosen: argparse.Namespace) -> None:
    table = studies.tune(chosen.study, chosen.dataset, chosen.arms, workers=chosen.workers)
    print(table.to_string(index=False))


def add_results(commands) -> None:
    """``results``: the retention studies."""
    parser = commands.add_parser("results", help="run the retention studies and keep their table in figures/")
    _add_dataset(parser)
    parser.add_argument("--seeds", type=positive, default=10)
    parser.add_argument(
        "--long-seeds", type=positive, default=5, help="seeds of permuted streams and of wide or convolutional networks"
    )
    parser.add_argument("--streams", nargs="+", default=list(studies.STREAMS), choices=sorted(studies.STREAMS))
    parser.set_defaults(run=_results)


def _results(chosen: argparse.Namespace) -> None:
    from sp.lab import metrics

    table = studies.retention_results(chosen.dataset, chosen.seeds, chosen.long_seeds, chosen.streams)
    print(metrics.readable(table).to_string())


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
    _add_dataset(parser)
    parser.set_defaults(run=_compare)


def _compare(chosen: argparse.Namespace) -> None:
    from sp.lab import shell

    shell.run(chosen, shlex.join(["python", "-m", "sp", *chosen.arguments]))


def add_comparison(commands) -> None:
    """``comparison``: the rivals of notebook 09."""
    parser = commands.add_parser(
        "comparison",
        help="run the comparison of notebook 09 and keep its tables in figures/",
        description="Runs that the ledger has are not run again; SP_FRESH=1 leaves the committed ones out.",
    )
    _add_dataset(parser)
    parser.add_argument(
        "--scenarios",
        nargs="+",
        metavar="SCENARIO",
        help="split5_class, permuted10, ... (a wrong name lists them); default: all",
    )
    parser.add_argument("--seeds", type=positive, default=10)
    parser.add_argument("--no-replay", action="store_true", help="only the arms without replay")
    parser.add_argument("--workers", type=positive, help="processes (default: one a core)")
    parser.add_argument("--estimate", action="store_true", help="only say how long it will take")
    parser.set_defaults(run=_comparison)


def _comparison(chosen: argparse.Namespace) -> None:
    from sp import comparison

    scenarios = chosen.scenarios or list(comparison.SCENARIOS)
    planned = (chosen.dataset, scenarios, chosen.seeds, not chosen.no_replay)
    costs = comparison.known_costs(chosen.dataset)
    seconds = comparison.estimate(chosen.dataset, comparison.planned(*planned), costs)
    print(f"About {seconds / 60:.0f} minutes of CPU time; what is finished is kept.", flush=True)
    if not chosen.estimate:
        comparison.results(*planned, workers=chosen.workers)


def add_recipes(commands) -> None:
    """``recipes``: what others published."""
    parser = commands.add_parser("recipes", help="run published recipes on MNIST and say by how much they differ")
    parser.add_argument("--seeds", type=positive, default=5)
    parser.add_argument("--workers", type=positive, help="processes (default: one a core)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="of recipes as in the table; default: all")
    parser.set_defaults(run=_recipes)


def _recipes(chosen: argparse.Namespace) -> None:
    from sp import recipes

    names = chosen.only or list(recipes.RECIPES)
    print(recipes.reproduce(names, chosen.seeds, workers=chosen.workers).round(3).to_string(index=False))


def add_audit(commands) -> None:
    """``audit``: a random sample of the committed runs, computed anew."""
    parser = commands.add_parser(
        "audit",
        help="compute a random sample of the committed runs anew, and fail where one differs",
        description="One of each method in turn. A run may differ by 0.1 in average accuracy, the sample by 0.01 "
        "in the mean: processors round differently.",
    )
    _add_dataset(parser)
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


def _add_dataset(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dataset", default="digits", choices=sorted(studies.SETTINGS))


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
    _add_dataset(parser)
    parser.add_argument(
        "--stream",
        default="split2_class",
        choices=sorted(studies.STREAMS),
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
            studies.on_stream(chosen.stream, chosen.dataset),
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


def add_record(commands) -> None:
    """``record``: the runs of a notebook, kept in ``figures/`` so that it need not run them."""
    parser = commands.add_parser(
        "record",
        help="run what a long notebook shows, and keep the table of its runs in figures/",
        description="What the ledger has is not run again. Arms whose learning rate is to be tuned and is not, are "
        "tuned first. The runs are written into the committed layer of the ledger, figures/ledger/DATASET.jsonl.",
        epilog="example: python -m sp record 06_ablation --dataset mnist",
    )
    parser.add_argument("notebook", choices=RECORDED)
    _add_dataset(parser)
    parser.add_argument("--seeds", type=positive, default=6, help="how many seeds (default: 6)")
    parser.add_argument("--points", type=positive, default=24, help="07: points for each arm (default: 24)")
    parser.add_argument("--tasks", type=positive, nargs="+", default=[10, 30], help="08: numbers of tasks")
    parser.add_argument(
        "--long-seeds", type=positive, default=3, help="08: seeds with more than ten tasks; 13: permuted"
    )
    parser.add_argument("--workers", type=positive, help="processes (default: one a core)")
    parser.add_argument("--dry-run", action="store_true", help="say how long it should take")
    parser.set_defaults(run=_record)


def _record(chosen: argparse.Namespace) -> int:
    from sp import ablation, dendrite_study

    study = {"06_ablation": ablation, "13_dendrites": dendrite_study}.get(chosen.notebook)
    if study is not None and not study.is_tuned(chosen.dataset):
        if chosen.dry_run:
            planned = plan([experiment for *_, experiment in study.trials(chosen.dataset)])
            print(f"Tuning: {planned.describe(chosen.workers)}")
        else:
            study.tune(chosen.dataset, workers=chosen.workers)
    named = _runs_of(chosen)
    if chosen.dry_run:
        print(plan([experiment for _, experiment in named]).describe(chosen.workers))
        return 0
    run_all([experiment for _, experiment in named], workers=chosen.workers, carried=True)
    opened().commit(experiment.key() for _, experiment in named)
    print(f"{len(named)} runs are in {folder('ledger') / chosen.dataset}.jsonl.")
    return 0


def _runs_of(chosen: argparse.Namespace) -> list[tuple[str, Experiment]]:
    from sp import ablation, dendrite_study, permuted, search

    seeds, long_seeds = range(chosen.seeds), range(chosen.long_seeds)
    if chosen.notebook == "06_ablation":
        return ablation.all_runs(chosen.dataset, seeds, tuned=not chosen.dry_run)
    if chosen.notebook == "07_hyperparameters":
        searched = search.search_runs(chosen.dataset, chosen.points, len(studies.TUNING_SEEDS))
        return [*searched, *search.advice_runs(chosen.dataset, seeds)]
    if chosen.notebook == "13_dendrites":
        return dendrite_study.all_runs(chosen.dataset, seeds, long_seeds, tuned=not chosen.dry_run)
    named = []
    for tasks in chosen.tasks:
        named += with_seeds(permuted.arms(chosen.dataset, tasks), long_seeds if tasks > 10 else seeds)
    return named


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
