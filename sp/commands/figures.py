"""Run notebooks for their figures, side by side.

With their own parameters, on any data set, the figures go to figures/ and the executed notebooks to build/notebooks.
With -p one notebook is run with every combination of the values: each copy has a folder of its own in $SP_FIGURES, else
build/figures, and the tables of all copies are put into one. Runs that the ledger has are read; SP_FRESH=DATASET
in the environment leaves out the committed ones on that data set.
Exit status: 0, 1 when notebooks failed, 2 when it cannot run.
"""

import argparse
from pathlib import Path

from sp.checks import did_you_mean
from sp.commands import add_dataset, add_values, positive, values_of
from sp.notebooks import all_notebooks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which notebooks, and with which parameters."""
    parser.epilog = (
        "example: python -m sp figures notebooks/01_forgetting.ipynb -p seeds 3 -p plasticity_k 1.0,5.0,10.0"
    )
    add_notebooks(parser)
    add_dataset(parser)
    parser.set_defaults(dataset=None)
    add_values(parser, "a name in the cell of parameters; v1,v2,...")
    parser.add_argument("--workers", type=positive, help="notebooks at a time (default: one a core)")
    parser.add_argument("--commit", action="store_true", help="put the runs that they use into figures/ledger")


def add_notebooks(parser: argparse.ArgumentParser) -> None:
    """Paths of notebooks; `which` reads them."""
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="default: all")


def which(chosen: argparse.Namespace) -> list[Path]:
    """The notebooks that were named; a FileNotFoundError for one that is not there."""
    for path in chosen.notebooks:
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not there{did_you_mean(path, all_notebooks())}")
    return chosen.notebooks


def run(chosen: argparse.Namespace) -> int:
    """Run them; exit status 1 where one failed."""
    from sp.lab import choices
    from sp.notebooks import grid, running

    notebooks, how = which(chosen), (chosen.workers, chosen.commit)
    if not chosen.p:
        return running.make_figures(chosen.dataset or "digits", notebooks, *how)
    if len(notebooks) != 1:
        raise ValueError(f"-p is of one notebook: name it, got {len(notebooks)} notebooks")
    always = {"dataset": chosen.dataset} if chosen.dataset else {}
    points = [{**always, **point} for point in choices.grid(values_of(chosen.p))]
    return grid.make_grid(notebooks[0], points, *how)
