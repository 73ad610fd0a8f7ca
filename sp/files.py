"""Where files lie, what makes them, how they are written (whole or not at all), and the bar of a long loop."""

import os
import re
import tempfile
from pathlib import Path

from tqdm.auto import tqdm

# And what texts call them.
DATASETS = {
    "digits": "digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar10_features": "frozen features of CIFAR-10",
    "cifar10_maps": "what enters the last block from CIFAR-10",
}


def folder(name: str) -> Path:
    """A folder of the project, by its name in the environment or beside the notebooks.

    ``$SP_FIGURES`` for ``"figures"``, ``$SP_STORE`` for ``"store"`` and ``$SP_LEDGER`` for ``"ledger"``, the committed
    layer of the ledger; else ``figures``, ``.store`` or ``figures/ledger`` in the `project`.
    """
    own = {"figures": "figures", "store": ".store", "ledger": "figures/ledger"}
    named = os.environ.get(f"SP_{name.upper()}")
    return Path(named) if named else project() / own[name]


def other_figures() -> Path:
    """Where figures go that are not the project's own: ``$SP_FIGURES``, else ``build/figures`` in the `project`."""
    named = os.environ.get("SP_FIGURES")
    return Path(named) if named else project() / "build" / "figures"


def committed(name: str) -> Path:
    """A file of the project's own ``figures``, wherever new figures go; errors as `existing`."""
    return existing(project() / "figures" / name)


def existing(path: Path) -> Path:
    """A path in a folder for figures, of a file that is there; else a FileNotFoundError with what makes it."""
    if not path.is_file():
        made = made_by(f"{path.parent.name}/{path.stem}")
        how = f"make it with  {made},  or fetch" if made else "fetch"
        raise FileNotFoundError(f"{path} is not there: {how} it with the repository")
    return path


def dataset_of(name: str) -> str | None:
    """The data set in a figure's or table's name, such as ``mnist`` in ``mnist_curves``; None where there is none."""
    found = re.search(rf"(?:^|_)({'|'.join(DATASETS)})(?:_|$)", name.rpartition("/")[2])
    return found and found[1]


def made_by(name: str) -> str | None:
    """The command that makes a figure or table, by its name in ``figures``; None where the name does not tell.

    Args:
        name: with its folder, which is that of a notebook, such as ``01_forgetting/mnist_curves``.
    """
    folder, dataset = name.rpartition("/")[0], dataset_of(name)
    options = f" --dataset {dataset}" if dataset else ""
    if folder == "09_comparison" and name.endswith("_costs"):
        return f"python notebooks/studies costs{options}"
    return f"python -m sp figures{options} notebooks/{folder}.ipynb" if re.match(r"\d\d_", folder) else None


def project() -> Path:
    """The nearest folder at or above the working directory that has ``notebooks`` in it, else the working directory."""
    here = Path.cwd()
    return next((place for place in (here, *here.parents) if (place / "notebooks").is_dir()), here)


def bar(iterable=None, *, progress: bool = True, **options) -> tqdm:
    """A progress bar; without ``progress``, or with ``TQDM_DISABLE=1`` in the environment, none is drawn."""
    return tqdm(iterable, disable=True, **options) if quiet(progress) else tqdm(iterable, **options)


def quiet(progress: bool) -> bool:
    """Whether nothing is to be said of progress; a notebook's bar does not look at the variable itself."""
    return not progress or switched_on("TQDM_DISABLE")


def switched_on(variable: str) -> bool:
    """Whether a variable of the environment is set to something else than 0 or nothing."""
    return os.environ.get(variable, "0") not in ("", "0")


def fresh() -> str | None:
    """The data set whose committed runs are not read, ``$SP_FRESH``; None where those on all are."""
    dataset = os.environ["SP_FRESH"] if switched_on("SP_FRESH") else None
    if dataset not in (None, *DATASETS):
        raise ValueError(f"SP_FRESH must be the name of a data set, {', '.join(DATASETS)}, or 0, got {dataset!r}")
    return dataset


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that it is there whole or not at all, in a folder that is made where it is missing."""
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o644)  # a temporary file is private by default, a result is not
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> OSError:
    """What to raise where a file cannot be written."""
    return OSError(
        f"cannot write {path} ({error.strerror or error}): free some disk space, or name a folder that can be written "
        "(SP_STORE for results, SP_FIGURES for figures)"
    )
