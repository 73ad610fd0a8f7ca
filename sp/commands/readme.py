"""Write the tables of the documents, the gallery of figures and the index of notebooks, from committed files."""

import argparse
from pathlib import Path

from sp.figures import documents
from sp.files import write_atomically


def add_arguments(_: argparse.ArgumentParser) -> None:
    """Add nothing: the command takes no arguments."""


def run(_: argparse.Namespace) -> None:
    """Write the tables, the gallery and the index."""
    for page in map(Path, documents.FILLED):
        write_atomically(page, documents.fill_tables(page.read_text()))
    write_atomically(Path("figures/README.md"), documents.gallery())
    write_atomically(Path("notebooks/README.md"), documents.index())
