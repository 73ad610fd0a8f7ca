"""Commands of the studies: ``python notebooks/studies --help``."""

import argparse
import sys

import studies
from sp.__main__ import carry_out
from sp.checks import check_choice
from sp.commands import add_dataset, positive
from sp.files import folder, write_atomically
from sp.lab.experiment import Experiment
from sp.lab.ledger import opened
from sp.lab.settings import SETTINGS, STREAMS, TUNING_SEEDS
from sp.lab.sweep import plan, run_all, with_seeds

RECORDED = ("06_ablation", "07_hyperparameters", "08_permuted", "13_dendrites")


def main(arguments: list[str] | None = None) -> int:
    """Run a command of the studies; exit status as `sp.__main__.main`."""
    parser = argparse.ArgumentParser(prog="python notebooks/studies", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (add_bench, add_tune, add_results, add_comparison, add_recipes, add_record, add_long_streams):
        add(commands)
    return carry_out(parser, sys.argv[1:] if arguments is None else arguments)


def add_bench(commands) -> None:
    """``bench``: what a step and a sweep cost."""
    parser = commands.add_parser(
        "bench",
        help="time and memory of a step beside Adam, kept in notebooks/studies/bench.csv, and what a sweep costs",
    )
    parser.add_argument("--parts", nargs="+", help="size, width, batch; default: all")
    parser.add_argument("--rounds", type=positive, default=15)
    parser.add_argument("--dry", action="store_true", help="print only, and leave notebooks/studies/bench.csv as it is")
    parser.set_defaults(run=_bench)


def _bench(chosen: argparse.Namespace) -> None:
    from studies import bench, bench_sweep

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
    parser.add_argument("dataset", choices=sorted(SETTINGS))
    parser.add_argument("--arms", nargs="+", default=[], help="which ones; default: all")
    parser.add_argument("--workers", type=positive, help="processes (default: one a core)")
    parser.set_defaults(run=_tune)


def _tune(chosen: argparse.Namespace) -> None:
    table = studies.tune(chosen.study, chosen.dataset, chosen.arms, workers=chosen.workers)
    print(table.to_string(index=False))


def add_results(commands) -> None:
    """``results``: the retention studies."""
    parser = commands.add_parser("results", help="run the retention studies and keep their table in figures/")
    add_dataset(parser)
    parser.add_argument("--seeds", type=positive, default=10)
    parser.add_argument(
        "--long-seeds", type=positive, default=5, help="seeds of permuted streams and of wide or convolutional networks"
    )
    parser.add_argument("--streams", nargs="+", default=list(STREAMS), choices=sorted(STREAMS))
    parser.set_defaults(run=_results)


def _results(chosen: argparse.Namespace) -> None:
    from sp.lab import metrics

    table = studies.retention_results(chosen.dataset, chosen.seeds, chosen.long_seeds, chosen.streams)
    print(metrics.readable(table).to_string())


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
    parser.add_argument("--no-replay", action="store_true", help="only the arms without replay")
    parser.add_argument("--workers", type=positive, help="processes (default: one a core)")
    parser.add_argument("--estimate", action="store_true", help="only say how long it will take")
    parser.set_defaults(run=_comparison)


def _comparison(chosen: argparse.Namespace) -> None:
    from studies import comparison

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
    from studies import recipes

    names = chosen.only or list(recipes.RECIPES)
    print(recipes.reproduce(names, chosen.seeds, workers=chosen.workers).round(3).to_string(index=False))


def add_record(commands) -> None:
    """``record``: the runs of a notebook, committed to the ledger so that it need not run them."""
    parser = commands.add_parser(
        "record",
        help="run what a long notebook shows, and commit its runs to the ledger",
        description="What the ledger has is not run again. Arms whose learning rate is to be tuned and is not, are "
        "tuned first. The runs are written into the committed layer of the ledger, figures/ledger/DATASET.jsonl.",
        epilog="example: python notebooks/studies record 06_ablation --dataset mnist",
    )
    parser.add_argument("notebook", choices=RECORDED)
    add_dataset(parser)
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
    from studies import ablation, dendrite_study

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
        named += with_seeds(permuted.arms(chosen.dataset, tasks), long_seeds if tasks > 10 else seeds)
    return named


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
        parser.add_argument("--estimate", action="store_true", help="only say how long what is left should take")
        parser.set_defaults(run=_long_streams, study=name)


def _long_streams(chosen: argparse.Namespace) -> None:
    from studies import drift, languages

    study = {"languages": languages, "drift": drift}[chosen.study]
    for name in chosen.parts or study.PARTS:
        check_choice("parts", name, study.PARTS)
        print(f"{name}:", flush=True)
        keys = study.part(name).carry_out(chosen.without, chosen.estimate)
        if not chosen.estimate:
            opened().commit(keys)
