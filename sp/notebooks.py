"""Running the notebooks: for their figures, afresh in place, and against their stored outputs."""

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import nbformat
import papermill
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from sp import parameters
from sp.files import bar, folder, switched_on, write_atomically
from sp.lab.parallel import Failed, call_all

SILENT = ["--IPKernelApp.log_level=50"]  # a kernel would write into the bar
FINISHED = "finished"  # what a notebook comes to that does not fail


def all_notebooks() -> list[Path]:
    """The notebooks of the collection in their order.

    Raises:
        FileNotFoundError: there are none in the working directory.
    """
    found = sorted(Path("notebooks").glob("*.ipynb"))
    if not found:
        raise FileNotFoundError(f"{Path('notebooks').absolute()} has no notebooks: go to the project's folder first")
    return found


def make_figures(dataset: str, notebooks: Sequence[Path] = ()) -> int:
    """Execute notebooks with papermill on a data set, side by side; executed copies go to ``build/notebooks``.

    With ``SP_FRESH=1`` in the environment, where no committed run is read, it says first how long that takes.

    Returns:
        Exit status: 0, or 1 when a notebook failed; the others are executed all the same.
    """
    # Whole paths: worker processes may have been started in another folder.
    paths = [path.absolute() for path in notebooks or all_notebooks()]
    workers = workers_for(len(paths))
    if switched_on("SP_FRESH"):
        minutes = expected_seconds(dataset) / 60
        print(
            f"All runs anew: about {minutes:.0f} minutes of CPU time, {minutes / joblib.cpu_count():.0f} on "
            f"{joblib.cpu_count()} cores.",
            flush=True,
        )
    target = Path("build/notebooks").absolute() / dataset
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "runs"
        make = partial(_make_figures, dataset, target, {**kernel_environment(workers), "SP_LEDGER_LOG": str(log)})
        failures = side_by_side(make, paths, workers)
        read, computed = counted(log)
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    print(f"Figures are in {folder('figures')}, executed notebooks in {target}.")
    print(f"{read:,} runs were read, {computed:,} computed.")
    return 1 if failures else 0


def _make_figures(dataset: str, target: Path, environment: dict[str, str], path: Path) -> str:
    known = papermill.inspect_notebook(str(path))
    return execute(path, target / path.name, {"dataset": dataset} if "dataset" in known else {}, environment)


def counted(log: Path) -> tuple[int, int]:
    """How many runs of a ledger's log were read and not computed, and how many were computed; each counts once.

    Args:
        log: lines ``read KEY`` or ``computed KEY``, as the ledger writes them to ``$SP_LEDGER_LOG``; none: no runs.
    """
    read, computed = _logged(log)
    return len(read - computed), len(computed)


def _logged(log: Path) -> tuple[set[str], set[str]]:
    """Keys that were read, and that were computed; a line that a killed kernel did not finish is left out."""
    lines = log.read_text().splitlines() if log.is_file() else []
    read, computed = ({line.removeprefix(w) for line in lines if line.startswith(w)} for w in ("read ", "computed "))
    return read, computed


def expected_seconds(dataset: str) -> float:
    """How long the committed runs on a data set took, in seconds of one core."""
    from sp.lab.ledger import Ledger

    kept = Ledger(folder("ledger")).results()
    return sum(result.seconds for result in kept if result.experiment.dataset == dataset)


def workers_for(notebooks: int) -> int:
    """How many notebooks are executed at a time: as many as there are cores."""
    return max(1, min(joblib.cpu_count(), notebooks))


def kernel_environment(workers: int) -> dict[str, str]:
    """The environment of a kernel beside others: its share of the cores, one thread for each of its processes."""
    cores = -(-joblib.cpu_count() // workers)
    # How many threads share a sum decides how it is rounded: with one, every machine stores the same outputs.
    return {"LOKY_MAX_CPU_COUNT": str(cores), "OMP_NUM_THREADS": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}


def side_by_side(
    make: Callable[[Any], str],
    items: Iterable[Any],
    workers: int,
    known: Callable[[Any], str | None] = lambda item: None,
    progress: bool = True,
) -> list[str]:
    """Make notebooks in worker processes with one bar.

    Args:
        make: returns `FINISHED`, or what went wrong.
        items: what to make. workers: how many at a time. known: as for `sp.lab.parallel.call_all`.
        progress: show a bar.

    Returns:
        What went wrong, a line or a traceback for each notebook that failed, in the order of the items.
    """
    items, failures = list(items), {}
    with bar(total=len(items), unit="notebook", progress=progress) as shown:
        for item, outcome in call_all(make, items, workers, known):
            if isinstance(outcome, Failed):
                failures[item] = f"{item}: {outcome.reason}"
            elif outcome != FINISHED:
                failures[item] = outcome
            shown.set_postfix(failed=len(failures))
            shown.update()
    return [failures[item] for item in items if item in failures]


def execute(notebook: Path, target: Path, chosen: dict[str, Any], environment: Mapping[str, str]) -> str:
    """Execute a notebook with papermill in its own folder, and keep the executed copy, also of one that fails.

    Args:
        notebook: what to execute. target: its executed copy.
        chosen: parameters; the others keep the notebook's values.
        environment: more variables for its kernel.

    Returns:
        `FINISHED`, or what went wrong, with a link to the failing cell.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _environment(environment):  # papermill starts kernels in the environment of this process
            papermill.execute_notebook(
                str(notebook),
                str(target),
                parameters=chosen,
                cwd=str(notebook.parent),
                kernel_name="python3",
                progress_bar=False,
                extra_arguments=SILENT,
            )
    except papermill.PapermillExecutionError as error:
        return f"{target}#papermill-error-cell, cell {error.exec_count}: {error.ename}: {error.evalue}"
    return FINISHED


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def refresh(notebooks: Sequence[Path] = ()) -> int:
    """Execute notebooks in place on their own parameters, and store the outputs that the tests compare.

    First ``notebooks/parameters.json`` is written from the ``parameters`` cells of the whole collection. The runs that
    the notebooks show are written into the committed layer of the ledger; where all were executed, it then has no other
    runs on digits.

    Returns:
        Exit status: 0, or 1 when a notebook failed, which stays as it was.
    """
    from sp.lab.ledger import Ledger  # brings PyTorch

    write_atomically(parameters.file(), own_parameters())
    paths = [path.absolute() for path in notebooks or all_notebooks()]
    workers = workers_for(len(paths))
    with tempfile.TemporaryDirectory() as scratch:
        log = Path(scratch) / "runs"
        environment = {**kernel_environment(workers), **_quiet(), "SP_LEDGER_LOG": str(log)}
        failures = side_by_side(partial(_refresh, environment), paths, workers)
        used = set.union(*_logged(log))
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    count = Ledger().commit(used, instead_of=None if failures or notebooks else "digits")
    print(f"{len(used):,} runs and tables are shown; the committed ledger has {count:,}.")
    return 1 if failures else 0


def _refresh(environment: dict[str, str], path: Path) -> str:
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, kernel_name="python3", resources=resources, extra_arguments=SILENT)
    try:
        client.execute(env={**os.environ, **environment})
    except CellExecutionError as error:
        return f"{path}: {error.ename}: {error.evalue}"
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata.pop("widgets", None)
    write_atomically(path, nbformat.writes(notebook) + "\n")
    return FINISHED


def own_parameters() -> str:
    """The text of ``notebooks/parameters.json``, from the ``parameters`` cells of the collection.

    Raises:
        ValueError: a parameter's own value is not a literal.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in all_notebooks():
        for name, about in papermill.inspect_notebook(str(path)).items():
            try:
                value = ast.literal_eval(about["default"])
            except (ValueError, SyntaxError) as error:
                raise ValueError(
                    f"{path}: the own value of {name} must be a number, a text, or a list or dict of these, got "
                    f"{about['default']}: write it out, or compute it in a later cell"
                ) from error
            found.setdefault(path.stem, {})[name] = parameters.plain(value)
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def check(notebooks: Sequence[Path] = ()) -> int:
    """Execute notebooks with nbval, side by side, and compare each output with the stored one, exactly.

    What they show comes from the committed layer of the ledger, so that it is the same on every machine. Cells that
    train before the reader's eyes are tagged ``nbval-ignore-output``.

    Returns:
        Exit status: 0, or 1 where something differs or fails, with what nbval says of it.
    """
    paths = [str(path) for path in notebooks or all_notebooks()]
    workers = workers_for(len(paths))
    with tempfile.TemporaryDirectory() as scratch:
        own = {"SP_STORE": f"{scratch}/store", "SP_FIGURES": f"{scratch}/figures"}
        environment = {**kernel_environment(workers), **_quiet(), **own}
        failures = side_by_side(partial(_check, environment), paths, workers)
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"{len(paths) - len(failures)} of {len(paths)} notebooks give their stored outputs.")
    return 1 if failures else 0


def _check(environment: dict[str, str], path: str) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider", path]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    return FINISHED if done.returncode == 0 else done.stdout + done.stderr


def _quiet() -> dict[str, str]:
    # Bars would be stored as outputs, and no two runs draw them alike.
    return {"TQDM_DISABLE": "1"}
