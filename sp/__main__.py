"""Commands: ``python -m sp --help``."""

import argparse
import os
import sys
from pathlib import Path

from sp import paper, report
from sp.files import write_atomically


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m sp", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    arguments = sys.argv[1:] if arguments is None else arguments
    paper.add_commands(commands)
    if arguments and arguments[0] in commands.choices:
        chosen = parser.parse_args(arguments)
        return chosen.run(chosen)

    # What the other commands need takes seconds to import, which drawing a figure again must not wait for.
    from sp import bench, bench_sweep, comparison, metrics, notebooks, pages, recipes, studies
    from sp import commands as batches

    figures = commands.add_parser("figures", help="run every notebook and leave its figures in figures/")
    figures.add_argument("--dataset", default="digits", choices=sorted(studies.SETTINGS))
    figures.add_argument("notebooks", nargs="*", type=Path, help="which ones; default: all")

    commands.add_parser("refresh", help="run every notebook afresh in place, with the outputs that the tests compare")
    commands.add_parser("check-notebooks", help="run every notebook and compare with its stored outputs")

    commands.add_parser("html", help="write every notebook as a static page into build/html")
    measure = commands.add_parser(
        "bench", help="time and memory of a step beside Adam, kept in sp/bench.csv, and what a sweep costs"
    )
    measure.add_argument("--parts", nargs="*", default=list(bench.PARTS), choices=sorted(bench.PARTS))
    measure.add_argument("--rounds", type=int, default=15)
    measure.add_argument("--dry", action="store_true", help="print only, and leave sp/bench.csv as it is")
    commands.add_parser(
        "readme", help="write the README's tables, the gallery of the committed figures and the index of the notebooks"
    )

    tune = commands.add_parser("tune", help="choose the options of a study's arms on the tuning seeds")
    tune.add_argument("study", choices=sorted(studies.STUDIES))
    tune.add_argument("dataset", choices=sorted(studies.SETTINGS))

    tune.add_argument("--arms", nargs="*", default=[], help="which ones; default: all")

    results = commands.add_parser("results", help="run the retention studies and keep their table in figures/")
    results.add_argument("--dataset", default="digits", choices=sorted(studies.SETTINGS))
    results.add_argument("--seeds", type=int, default=10)
    results.add_argument("--long-seeds", type=int, default=5, help="seeds of the permuted streams")
    results.add_argument("--streams", nargs="*", default=list(studies.STREAMS), choices=sorted(studies.STREAMS))

    compare = commands.add_parser("compare", help="run the comparison of notebook 09 and keep its tables in figures/")
    compare.add_argument("--dataset", default="digits", choices=sorted(studies.SETTINGS))
    compare.add_argument(
        "--scenarios", nargs="*", default=list(comparison.SCENARIOS), choices=list(comparison.SCENARIOS)
    )
    compare.add_argument("--seeds", type=int, default=10)
    compare.add_argument("--long-seeds", type=int, default=5, help="seeds of the permuted and rotated streams")
    compare.add_argument("--no-replay", action="store_true", help="only the arms without replay")
    compare.add_argument("--workers", type=int, help="processes; default: as many as there are cores")
    compare.add_argument("--estimate", action="store_true", help="only say how long it will take")

    published = commands.add_parser("recipes", help="run published recipes on MNIST and say by how much they differ")
    published.add_argument("--seeds", type=int, default=5)
    published.add_argument("--workers", type=int, help="processes; default: as many as there are cores")
    published.add_argument("--only", nargs="*", default=list(recipes.RECIPES), choices=list(recipes.RECIPES))
    batches.add_sweep(commands)
    batches.add_notebooks(commands)
    batches.add_record(commands)

    chosen = parser.parse_args(arguments)
    if "run" in chosen:
        return chosen.run(chosen)
    if chosen.command == "figures":
        return notebooks.make_figures(chosen.dataset, chosen.notebooks)
    if chosen.command == "refresh":
        return notebooks.refresh()
    if chosen.command == "check-notebooks":
        return notebooks.check()
    if chosen.command == "html":
        pages.document()
        return pages.make_pages()
    if chosen.command == "bench":
        table = bench.bench(chosen.parts, chosen.rounds)
        print(table.round(2).to_string(index=False))
        table = bench.beside_known(table)
        if not chosen.dry:
            write_atomically(bench.MEASURED, table.to_csv(index=False, float_format="%.5g"))
        if set(bench.PARTS) <= set(table.part):
            print("\n".join(bench.verdicts(table)))
        print(bench_sweep.bench_sweep().round(3).to_string(index=False))
        return 0
    if chosen.command == "readme":
        write_atomically(Path("README.md"), report.fill_tables(Path("README.md").read_text()))
        write_atomically(Path("figures/README.md"), report.gallery())
        write_atomically(Path("notebooks/README.md"), report.index())
        return 0
    if chosen.command == "compare":
        plan = (chosen.dataset, chosen.scenarios, chosen.seeds, chosen.long_seeds, not chosen.no_replay)
        seconds = comparison.estimate(chosen.dataset, comparison.planned(*plan), comparison.known_costs(chosen.dataset))
        print(f"About {seconds / 60:.0f} minutes of CPU time; what is finished is kept.", flush=True)
        if not chosen.estimate:
            comparison.results(*plan, workers=chosen.workers)
        return 0
    if chosen.command == "recipes":
        print(recipes.reproduce(chosen.only, chosen.seeds, workers=chosen.workers).round(3).to_string(index=False))
        return 0
    if chosen.command == "results":
        table = studies.retention_results(chosen.dataset, chosen.seeds, chosen.long_seeds, chosen.streams)
        print(metrics.readable(table).to_string())
        return 0
    print(studies.tune(chosen.study, chosen.dataset, chosen.arms).to_string(index=False))
    return 0


if __name__ == "__main__":
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    sys.exit(main())
