"""The commands that run many things: ``sweep``, ``notebooks`` and ``record``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from sp import ablation, choices, dendrite_study, figures, metrics, notebook_grid, permuted, recorded, search, studies
from sp.experiment import Experiment, Store, results_frame
from sp.files import write_atomically
from sp.sweep import SweepError, plan, points_of, run_all

VALUES = "v1,v2,... or, with --sample, a range low:high or low:high:log"


def add_sweep(commands) -> None:
    """``sweep``: a grid or a sample of experiments times seeds."""
    parser = commands.add_parser(
        "sweep",
        help="run a grid or a sample of experiments, with every seed",
        description="Run experiments that differ in what -p names, with every seed, in parallel. What is stored is not "
        "run again: after a crash the same command goes on. Exit status: 0, 1 when runs failed, 2 when it cannot run.",
        epilog="example: python -m sp sweep --stream permuted10 -p optimizer adam,sgd -p option_lr 1e-3,1e-2 --seeds 5",
    )
    parser.add_argument("--dataset", default="digits", choices=sorted(studies.SETTINGS))
    parser.add_argument("--stream", default="split2_class", choices=sorted(studies.STREAMS), help="tasks of a study")
    _add_parameters(parser, f"a choice of Experiment, or option_NAME for an argument of the optimizer; {VALUES}")
    parser.add_argument("--sample", choices=choices.SAMPLES, help="draw points instead of taking every combination")
    parser.add_argument("--count", type=_positive, default=50, help="how many points to draw (default: 50)")
    parser.add_argument("--seeds", type=_positive, default=3, help="how many seeds (default: 3)")
    parser.add_argument("--first-seed", type=int, default=0, help="tuning takes seeds from 100 (default: 0)")
    parser.add_argument("--store", type=Path, help="folder of the results (default: $SP_STORE, else .store)")
    parser.add_argument("--workers", type=_positive, help="processes (default: one a core)")
    parser.add_argument("--cluster", metavar="tcp://HOST:PORT", help="a dask scheduler on whose workers to run")
    parser.add_argument("--csv", type=Path, help="write the table of all runs to this file")
    parser.add_argument("--dry-run", action="store_true", help="say what would run and how long it should take")
    parser.set_defaults(run=_sweep)


def _sweep(chosen: argparse.Namespace) -> int:
    try:
        varied = _parameters(chosen.p)
        if "seed" in varied:
            raise ValueError("every point gets every seed: give --seeds and --first-seed in place of -p seed")
        experiments = points_of(
            studies.on_stream(chosen.stream, chosen.dataset),
            choices.sample(varied, chosen.count, chosen.sample) if chosen.sample else choices.grid(varied),
            range(chosen.first_seed, chosen.first_seed + chosen.seeds),
        )
    except ValueError as error:
        return _refuse(error)
    store = Store(chosen.store)
    if chosen.dry_run:
        planned = plan(experiments, store)
        for experiment in planned.missing:
            print(_differences(experiment, varied))
        print(planned.describe(chosen.workers))
        return 0
    status = 0
    try:
        results = run_all(experiments, store, chosen.workers, cluster=chosen.cluster)
    except SweepError as error:
        print(error, file=sys.stderr)
        results, status = error.results, 1
    except (OSError, ImportError) as error:
        return _refuse(error)
    except KeyboardInterrupt:
        print("Stopped. What is finished is stored: the same command goes on.", file=sys.stderr)
        return 130
    if results:
        table = results_frame(results)
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
        description="Execute a notebook with papermill once for each combination of the parameters, in parallel. What "
        "is finished is not run again. Exit status: 0, 1 when notebooks failed, 2 when it cannot run.",
        epilog="example: python -m sp notebooks notebooks/01_forgetting.ipynb -p seeds 3 -p plasticity_k 1.0,5.0,10.0",
    )
    parser.add_argument("notebook", type=Path)
    _add_parameters(parser, "a name in the notebook's `parameters` cell; v1,v2,...")
    parser.add_argument("--to", type=Path, help="folder of the executed copies (default: build/notebooks/NOTEBOOK)")
    parser.add_argument("--workers", type=_positive, help="notebooks at a time (default: one a core)")
    parser.set_defaults(run=_notebooks)


def _notebooks(chosen: argparse.Namespace) -> int:
    try:
        points = choices.grid(_parameters(chosen.p))
        failures, folder = notebook_grid.execute_grid(chosen.notebook, points, chosen.to, chosen.workers)
    except (ValueError, OSError) as error:
        return _refuse(error)
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    print(f"{len(points) - len(failures)} of {len(points)} notebooks are in {folder}.")
    return 1 if failures else 0


def add_record(commands) -> None:
    """``record``: the runs of a notebook, kept in ``figures/`` so that it need not run them."""
    parser = commands.add_parser(
        "record",
        help="run what a long notebook shows, and keep the table of its runs in figures/",
        description="What is stored is not run again. Arms whose learning rate is to be tuned and is not, are tuned "
        "first. The notebook then reads figures/NOTEBOOK_DATASET_runs.csv.",
        epilog="example: python -m sp record 06_ablation --dataset mnist",
    )
    parser.add_argument("notebook", choices=sorted(RECORDED))
    parser.add_argument("--dataset", default="digits", choices=sorted(studies.SETTINGS))
    parser.add_argument("--seeds", type=_positive, default=6, help="how many seeds (default: 6)")
    parser.add_argument("--points", type=_positive, default=24, help="07: points for each arm (default: 24)")
    parser.add_argument("--tasks", type=_positive, nargs="+", default=[10, 30], help="08: numbers of tasks")
    parser.add_argument(
        "--long-seeds", type=_positive, default=3, help="08: seeds with more than ten tasks; 13: permuted"
    )
    parser.add_argument("--workers", type=_positive, help="processes (default: one a core)")
    parser.add_argument("--dry-run", action="store_true", help="say how long it should take")
    parser.set_defaults(run=_record)


def _record(chosen: argparse.Namespace) -> int:
    seeds = range(chosen.seeds)
    try:
        study = TUNED_FIRST.get(chosen.notebook)
        if study is not None and not study.is_tuned(chosen.dataset):
            if chosen.dry_run:
                planned = plan([experiment for *_, experiment in study.trials(chosen.dataset)])
                print(f"Tuning: {planned.describe(chosen.workers)}")
            else:
                study.tune(chosen.dataset, workers=chosen.workers)
        named = RECORDED[chosen.notebook](chosen, seeds)
        if chosen.dry_run:
            print(plan([experiment for _, experiment in named]).describe(chosen.workers))
            return 0
        name = f"{chosen.notebook}_{chosen.dataset}_runs"
        path = figures.save_table(recorded.runs(name, named, workers=chosen.workers), name)
    except SweepError as error:
        print(error, file=sys.stderr)
        return 1
    except (OSError, LookupError, ValueError) as error:
        return _refuse(error)
    print(f"{len(named)} runs are in {path}.")
    return 0


def _permuted_runs(chosen: argparse.Namespace, seeds: Sequence[int]) -> recorded.Named:
    counts = {tasks: range(chosen.long_seeds) if tasks > 10 else seeds for tasks in chosen.tasks}
    return [
        pair
        for tasks, those in counts.items()
        for pair in recorded.with_seeds(permuted.arms(chosen.dataset, tasks), those)
    ]


RECORDED = {
    "06_ablation": lambda chosen, seeds: ablation.all_runs(chosen.dataset, seeds, tuned=not chosen.dry_run),
    "07_hyperparameters": lambda chosen, seeds: [
        *search.search_runs(chosen.dataset, chosen.points, len(studies.TUNING_SEEDS)),
        *search.advice_runs(chosen.dataset, seeds),
    ],
    "08_permuted": _permuted_runs,
    "13_dendrites": lambda chosen, seeds: dendrite_study.all_runs(
        chosen.dataset, seeds, range(chosen.long_seeds), tuned=not chosen.dry_run
    ),
}
TUNED_FIRST = {"06_ablation": ablation, "13_dendrites": dendrite_study}


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


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def _refuse(error: Exception) -> int:
    print(f"python -m sp: {error}", file=sys.stderr)
    return 2
