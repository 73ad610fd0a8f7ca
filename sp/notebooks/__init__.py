"""The collection of notebooks: its parameters, and running it in parallel."""

from pathlib import Path


def all_notebooks() -> list[Path]:
    """The notebooks of the collection, in order; raises FileNotFoundError if the working directory has none."""
    found = sorted(Path("notebooks").glob("*.ipynb"))
    if not found:
        raise FileNotFoundError(f"{Path('notebooks').absolute()} has no notebooks: go to the project's folder first")
    return found
