"""Write every notebook, and the documentation of the package, as static pages into build/html."""

import argparse

from sp import pages


def add_arguments(_: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(_: argparse.Namespace) -> None:
    """Write them."""
    pages.make_all()
