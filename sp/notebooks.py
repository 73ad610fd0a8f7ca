"""Running the notebooks: for their figures, afresh in place, and against their stored outputs."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
import papermill
from nbclient import NotebookClient
from tqdm import tqdm

from sp.files import folder, write_atomically

SILENT = ["--IPKernelApp.log_level=50"]  # a kernel would write into the bar


def all_notebooks() -> list[Path]:
    """The notebooks of the collection in their order."""
    return sorted(Path("notebooks").glob("*.ipynb"))


def make_figures(dataset: str, notebooks: Sequence[Path] = ()) -> int:
    """Execute notebooks with papermill on a data set; executed copies go to ``build/notebooks``.

    Returns:
        Exit status: 0, or 1 when a notebook failed; the others are executed all the same.
    """
    failures = []
    target = Path("build/notebooks") / dataset
    with tqdm(list(notebooks) or all_notebooks(), unit="notebook") as bar:
        for path in bar:
            bar.set_postfix_str(path.stem, refresh=True)
            parameters = {"dataset": dataset} if "dataset" in papermill.inspect_notebook(str(path)) else {}
            if failure := execute(path, target / path.name, parameters):
                failures.append(failure)
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    print(f"Figures are in {folder('figures')}, executed notebooks in {target}.")
    return 1 if failures else 0


def execute(notebook: Path, target: Path, parameters: dict[str, Any]) -> str | None:
    """Execute a notebook with papermill in its own folder, and keep the executed copy, also of one that fails.

    Returns:
        None, or what went wrong, with a link to the failing cell.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        papermill.execute_notebook(
            str(notebook),
            str(target),
            parameters=parameters,
            cwd=str(notebook.parent),
            kernel_name="python3",
            progress_bar=False,
            extra_arguments=SILENT,
        )
    except papermill.PapermillExecutionError as error:
        return f"{target}#papermill-error-cell, cell {error.exec_count}: {error.ename}: {error.evalue}"
    return None


def refresh(notebooks: Sequence[Path] = ()) -> None:
    """Execute notebooks in place on their default data, and store the outputs that the tests compare."""
    for path in tqdm(list(notebooks) or all_notebooks(), unit="notebook"):
        notebook = nbformat.read(path, as_version=4)
        with tempfile.TemporaryDirectory() as store:
            environment = {**os.environ, **_quiet(), "SP_STORE": store}
            resources = {"metadata": {"path": str(path.parent)}}
            client = NotebookClient(notebook, kernel_name="python3", resources=resources, extra_arguments=SILENT)
            client.execute(env=environment)
        for cell in notebook.cells:
            cell.metadata.pop("execution", None)
        notebook.metadata.pop("widgets", None)
        write_atomically(path, nbformat.writes(notebook) + "\n")


def check(notebooks: Sequence[Path] = ()) -> int:
    """Execute notebooks afresh with nbval and compare each output with the stored one (`sp.close_outputs`).

    Returns:
        pytest's exit status.
    """
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, **_quiet(), "SP_STORE": f"{scratch}/store", "SP_FIGURES": f"{scratch}/figures"}
        options = ["--nbval", "--nbval-current-env", "-p", "no:cacheprovider", "-p", "sp.close_outputs"]
        paths = [str(path) for path in notebooks or all_notebooks()]
        return subprocess.run(
            [sys.executable, "-m", "pytest", *options, *paths], env=environment, check=False
        ).returncode


def _quiet() -> dict[str, str]:
    # Bars would be stored as outputs, and no two runs draw them alike.
    return {"TQDM_DISABLE": "1"}
