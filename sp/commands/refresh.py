"""Rerun notebooks in place, storing the outputs that the tests compare."""

import argparse

from sp.commands.figures import add_notebooks, which


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the paths of notebooks."""
    add_notebooks(parser)


def run(chosen: argparse.Namespace) -> int:
    """Refresh the notebooks; exit status 1 if one failed."""
    from sp.commands import running

    return running.refresh(which(chosen))
