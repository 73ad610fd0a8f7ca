"""Running notebooks in parallel, as executed copies or in place."""

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import nbformat
import papermill
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from sp.commands import all_notebooks
from sp.figures import parameters
from sp.files import FOLDERS, bar, folder, fresh, set_folder, write_atomically
from sp.lab.parallel import Failed, call_all

PYTHON = {"kernel_name": "python3", "language": "python"}  # even if a notebook does not specify it
SILENT = ["--IPKernelApp.log_level=50"]  # a kernel would write over the progress bar
QUIET = {"TQDM_DISABLE": "1"}  # progress bars would be stored as outputs, and they differ from run to run


@dataclass(frozen=True, eq=False)
class Copy:
    """A notebook to execute.

    Attributes:
        notebook: what to execute, in its own folder. target: its executed copy. Both are absolute paths.
        chosen: parameters; the others keep the notebook's values.
        figures: folder for its figures, ``$SP_FIGURES``; None means the usual place.
    """

    notebook: Path
    target: Path
    chosen: dict[str, Any]
    figures: Path | None = None


def make_figures(dataset: str, notebooks: Sequence[Path] = (), workers: int | None = None, commit: bool = False) -> int:
    """Execute notebooks on a data set, in parallel; executed copies go to ``build/notebooks``.

    With ``SP_FRESH=DATASET`` in the environment, no committed run on that data set is read, and if all notebooks are
    executed, the expected time is printed first. ``commit`` as in `execute_all`.

    Returns:
        Exit status: 0, or 1 if a notebook failed; the others are still executed.
    """
    if fresh() == dataset and not notebooks:
        minutes = _expected_seconds(dataset) / 60
        print(
            f"Recomputing all runs on {dataset}: about {minutes:.0f} minutes of CPU time, "
            f"{minutes / joblib.cpu_count():.0f} on {joblib.cpu_count()} cores.",
            flush=True,
        )
        workers = workers or 1  # notebook 09 has half of all runs: in parallel it would be left with one core
    target = Path("build/notebooks").absolute() / dataset
    copies = []
    for path in notebooks or all_notebooks():
        chosen = {"dataset": dataset} if "dataset" in parameters.of(path) else {}
        copies.append(Copy(path.absolute(), target / path.name, chosen))
    failures = execute_all(copies, workers, commit)
    print(f"Figures are in {folder('figures')}, executed notebooks in {target}.")
    return 1 if failures else 0


def _expected_seconds(dataset: str) -> float:
    """Total time of the committed runs on a data set, in seconds on one core."""
    from sp.lab.ledger import Ledger  # imports PyTorch, which each worker process would wait for

    kept = Ledger(folder("ledger")).results()
    return sum(result.seconds for result in kept if result.experiment.dataset == dataset)


def execute_all(copies: Sequence[Copy], workers: int | None = None, commit: bool = False) -> dict[Copy, str]:
    """Execute copies in parallel, and print what failed and how many runs were read and computed.

    Args:
        copies: what to execute. workers: number of copies at a time; defaults to the number of cores, which they share.
        commit: write the runs that the copies use into the committed layer of the ledger.

    Returns:
        What went wrong with each copy that failed.
    """
    for copy in copies:
        copy.target.parent.mkdir(parents=True, exist_ok=True)
    failures, read, computed = _side_by_side(_execute, copies, {}, workers)
    print(f"{len(read):,} runs were read, {len(computed):,} computed.")
    if commit:
        from sp.lab.ledger import Ledger  # imports PyTorch

        print(f"The committed ledger has {Ledger().commit(read | computed):,} runs and tables.")
    return failures


def _execute(environment: Mapping[str, str], copy: Copy) -> str | None:
    own = {"SP_FIGURES": str(copy.figures)} if copy.figures else {}
    notebook = papermill.execute_notebook(str(copy.notebook), None, copy.chosen, prepare_only=True, **PYTHON)
    failure = _failure(notebook, copy.notebook.parent, {**environment, **own})
    write_atomically(copy.target, nbformat.writes(notebook) + "\n")
    return failure and f"{copy.target}, {failure}"


def _failure(notebook: nbformat.NotebookNode, folder: Path, environment: Mapping[str, str]) -> str | None:
    """Execute a notebook and return what went wrong; it holds the outputs, including those of a failed cell."""
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
        extra_arguments=SILENT,
        coalesce_streams=True,  # a busy machine sends text in parts
    )
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        return f"cell [{client.code_cells_executed}]: {error.ename}: {error.evalue}"
    return None


def refresh(notebooks: Sequence[Path] = ()) -> int:
    """Execute notebooks in place with their own parameters, and store the outputs that the tests compare.

    First, ``notebooks/parameters.json`` is written from the ``parameters`` cells of the whole collection. The runs that
    the notebooks show are written to the committed layer of the ledger; if all notebooks ran and none failed, no other
    runs on digits remain in it.

    Returns:
        Exit status: 0, or 1 if a notebook failed; that one stays as it was.
    """
    from sp.lab.ledger import Ledger  # imports PyTorch

    write_atomically(parameters.file(), parameters.of_all(all_notebooks()))
    # Absolute paths: worker processes may have been started in another folder.
    paths = [path.absolute() for path in notebooks or all_notebooks()]
    failures, read, computed = _side_by_side(_refresh, paths, QUIET)
    used = read | computed
    count = Ledger().commit(used, instead_of=None if failures or notebooks else "digits")
    print(f"The notebooks show {len(used):,} runs and tables; the committed ledger has {count:,}.")
    return 1 if failures else 0


def _refresh(environment: Mapping[str, str], path: Path) -> str | None:
    notebook = nbformat.read(path, as_version=4)
    if failure := _failure(notebook, path.parent, environment):
        return f"{path}, {failure}"
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("widgets", None)
    write_atomically(path, nbformat.writes(notebook) + "\n")
    return None


def _side_by_side(
    make: Callable[[Mapping[str, str], Any], str | None],
    items: Sequence[Any],
    environment: Mapping[str, str],
    workers: int | None = None,
) -> tuple[dict[Any, str], set[str], set[str]]:
    """Make notebooks in worker processes with one progress bar, and print failures as they happen.

    Args:
        make: takes the environment of its kernel and an item; returns what went wrong, or None.
        items: what to make. environment: additional variables for all kernels.

    Returns:
        What went wrong with each item that failed, and what `logged` returns.
    """
    workers = max(1, min(workers or joblib.cpu_count(), len(items)))
    failures = {}
    with tempfile.TemporaryDirectory() as scratch, bar(total=len(items), unit="notebook") as shown:
        log = Path(scratch) / "runs"
        # A kernel runs in its notebook's folder.
        folders = {f"SP_{name.upper()}": str(path.absolute()) for name in FOLDERS if (path := set_folder(name))}
        environment = {**os.environ, **folders, **kernel_environment(workers), **environment, "SP_LEDGER_LOG": str(log)}
        for item, failure in call_all(partial(make, environment), items, workers):
            if failure is not None:
                failures[item] = f"{item}: {failure.reason}" if isinstance(failure, Failed) else failure
                shown.write(f"FAILED {failures[item]}", file=sys.stderr)  # immediately: others may take an hour
            shown.set_postfix(failed=len(failures))
            shown.update()
        read, computed = logged(log)
    return failures, read, computed


def kernel_environment(workers: int) -> dict[str, str]:
    """The environment of a kernel that runs alongside others: its share of the cores, one thread per process."""
    cores = -(-joblib.cpu_count() // workers)
    # The number of threads that share a sum affects its rounding: with one, every machine stores the same outputs.
    return {"LOKY_MAX_CPU_COUNT": str(cores), "OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def logged(log: Path) -> tuple[set[str], set[str]]:
    """Keys of the runs that were read but not computed, and of those that were computed.

    Args:
        log: lines ``read KEY`` or ``computed KEY``, as the ledger writes them to ``$SP_LEDGER_LOG``; no file means no
            runs. A line that a killed kernel did not finish is left out.
    """
    whole = log.read_text().rpartition("\n")[0] if log.is_file() else ""
    lines = whole.splitlines()
    read, computed = ({line.removeprefix(w) for line in lines if line.startswith(w)} for w in ("read ", "computed "))
    return read - computed, computed
