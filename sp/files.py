"""Where files are, which commands make them, how they are written (whole or not at all), and progress bars."""

import os
import re
import tempfile
from pathlib import Path

from tqdm.auto import tqdm

# The data sets, with their names in texts.
DATASETS = {
    "digits": "digits",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
    "cifar10": "CIFAR-10",
    "cifar10_features": "frozen features of CIFAR-10",
    "cifar10_maps": "what enters the last block from CIFAR-10",
}


FOLDERS = {"figures": "figures", "store": ".store", "ledger": "figures/ledger"}  # their usual places in the project


def folder(name: str) -> Path:
    """A folder of the project, set in the environment or at its default place.

    ``$SP_FIGURES`` for ``"figures"``, ``$SP_STORE`` for ``"store"`` and ``$SP_LEDGER`` for ``"ledger"``, the committed
    layer of the ledger. The defaults are ``figures``, ``.store`` and ``figures/ledger`` in the `project`.
    """
    return set_folder(name) or project() / FOLDERS[name]


def set_folder(name: str) -> Path | None:
    """The `folder` of this name if the environment sets it, else None."""
    named = os.environ.get(f"SP_{name.upper()}")
    return Path(named).expanduser() if named else None


def other_figures() -> Path:
    """The folder for figures that are not the project's own: ``$SP_FIGURES``, else ``build/figures`` in `project`."""
    return set_folder("figures") or project() / "build" / "figures"


def committed(name: str) -> Path:
    """A file in the project's own ``figures``, wherever new figures are written; raises the same as `existing`."""
    return existing(project() / "figures" / name)


def existing(path: Path) -> Path:
    """Return a path in a figures folder if the file exists; else raise FileNotFoundError, saying how to get it."""
    if not path.is_file():
        made = made_by(f"{path.parent.name}/{path.stem}")
        how = f"make it with  {made} , or get" if made else "get"
        raise FileNotFoundError(f"{path} does not exist: {how} it from the repository")
    return path


def dataset_of(name: str) -> str | None:
    """The data set in a figure's or table's name, such as ``mnist`` in ``mnist_curves``; None if there is none."""
    longest_first = sorted(DATASETS, key=len, reverse=True)  # one name begins with another
    found = re.search(rf"(?:^|_)({'|'.join(longest_first)})(?:_|$)", name.rpartition("/")[2])
    return found and found[1]


def made_by(name: str) -> str | None:
    """The command that makes a figure or table, given its name in ``figures``; None if the name does not tell.

    Args:
        name: the name with its folder, which is named after a notebook, such as ``01_forgetting/mnist_curves``.
    """
    folder, dataset = name.rpartition("/")[0], dataset_of(name)
    options = f" --dataset {dataset}" if dataset else ""
    if folder == "09_comparison" and name.endswith("_costs"):
        return f"python notebooks/studies costs{options}"
    return f"python -m sp figures{options} notebooks/{folder}.ipynb" if re.match(r"\d\d_", folder) else None


def project() -> Path:
    """The nearest folder at or above the working directory with ``notebooks/parameters.json``, else that directory."""
    here = Path.cwd()
    return next((place for place in (here, *here.parents) if (place / "notebooks" / "parameters.json").is_file()), here)


def bar(iterable=None, *, progress: bool = True, **options) -> tqdm:
    """A progress bar, which is not shown without ``progress`` or with ``TQDM_DISABLE=1`` in the environment."""
    return tqdm(iterable, disable=True, **options) if quiet(progress) else tqdm(iterable, **options)


def quiet(progress: bool) -> bool:
    """Whether to hide progress; the bar in a notebook does not check the environment variable itself."""
    return not progress or switched_on("TQDM_DISABLE")


def switched_on(variable: str) -> bool:
    """Whether an environment variable is set to something other than 0 or the empty string."""
    return os.environ.get(variable, "0") not in ("", "0")


def fresh() -> str | None:
    """The data set whose committed runs are not read, ``$SP_FRESH``; None if the runs on all data sets are read."""
    dataset = os.environ["SP_FRESH"] if switched_on("SP_FRESH") else None
    if dataset not in (None, *DATASETS):
        raise ValueError(f"SP_FRESH must be the name of a data set, {', '.join(DATASETS)}, or 0, got {dataset!r}")
    return dataset


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file whole or not at all; its folder is created if it is missing. A link stays a link."""
    data = content.encode() if isinstance(content, str) else content
    path = path.resolve()
    try:
        if path.exists() and not path.is_file():  # such as /dev/stdout, which must not be replaced
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
            os.chmod(temporary, 0o644)  # temporary files are private by default, results are not
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> OSError:
    """The error to raise if a file cannot be written."""
    return OSError(
        f"cannot write {path} ({error.strerror or error}): free some disk space, or name a writable folder "
        "(SP_STORE for results, SP_FIGURES for figures)"
    )
