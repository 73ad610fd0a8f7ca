"""Run notebooks in parallel for their figures.

With their own parameters, on any data set, figures go to figures/ and executed notebooks to build/notebooks. With -p,
one notebook is run with every combination of the values: each copy has its own folder in $SP_FIGURES, or else in
build/figures, and the tables of all copies are combined. Runs in the ledger are reused; with SP_FRESH=DATASET in the
environment, the committed ones on that data set are not.
Exit status: 0; 1 if notebooks failed; 2 if the command cannot run.
"""

import argparse
from pathlib import Path

from sp.checks import did_you_mean
from sp.commands import add_dataset, add_values, all_notebooks, positive, values_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: which notebooks, and with which parameters."""
    parser.epilog = (
        "example: python -m sp figures notebooks/01_forgetting.ipynb -p seeds 3 -p plasticity_k 1.0,5.0,10.0"
    )
    add_notebooks(parser)
    add_dataset(parser)
    parser.set_defaults(dataset=None)
    add_values(parser, "a name in the parameters cell, and its values v1,v2,...")
    parser.add_argument("--workers", type=positive, help="notebooks at a time (default: one per core)")
    parser.add_argument("--commit", action="store_true", help="put the runs that they use into figures/ledger")


def add_notebooks(parser: argparse.ArgumentParser) -> None:
    """Add the paths of notebooks; `which` reads them."""
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: all")


def which(chosen: argparse.Namespace) -> list[Path]:
    """The notebooks that were named; raises FileNotFoundError if one does not exist."""
    for path in chosen.notebooks:
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist{did_you_mean(path, all_notebooks())}")
    return chosen.notebooks


def run(chosen: argparse.Namespace) -> int:
    """Run the notebooks; exit status 1 if one failed."""
    from sp.commands import grid, running
    from sp.lab import choices

    notebooks, how = which(chosen), (chosen.workers, chosen.commit)
    if not chosen.p:
        return running.make_figures(chosen.dataset or "digits", notebooks, *how)
    if len(notebooks) != 1:
        raise ValueError(f"-p needs exactly one notebook, got {len(notebooks)}: name one")
    always = {"dataset": chosen.dataset} if chosen.dataset else {}
    points = [{**always, **point} for point in choices.grid(values_of(chosen.p))]
    return grid.make_grid(notebooks[0], points, *how)
