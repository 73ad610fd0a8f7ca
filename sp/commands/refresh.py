"""Run notebooks afresh in place, with the outputs that the tests compare."""

import argparse

from sp.commands.figures import add_notebooks, which


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which notebooks."""
    add_notebooks(parser)


def run(chosen: argparse.Namespace) -> int:
    """Refresh them; exit status 1 where one failed."""
    from sp.notebooks import running

    return running.refresh(which(chosen))
