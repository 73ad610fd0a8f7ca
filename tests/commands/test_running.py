"""Notebooks run side by side, leave their figures where they belong, and report how long that took."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import papermill
import pytest
from nbformat import v4

from sp.__main__ import main
from sp.commands import all_notebooks, running
from sp.figures import parameters
from sp.lab.experiment import Experiment, Result
from sp.lab.ledger import Ledger

ROOT = Path(__file__).parents[2]
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
PARAMETERS = 'dataset = "digits"\nk = 1.0  # the mean'
IMPORTS = 'import os\n\nimport pandas as pd\n\nfrom sp import figures\n\nfigures.begin("01_toy", globals())\nk += 1'
FIGURE = """
table = pd.DataFrame({"method": ["Adam"], "metric": ["m"], "mean": [k], "low": [k], "high": [k], "n": [1]})
words = {"question": "Which?", "caption": "One."}
_ = figures.draw("interval_plot", dataset, table, panels={"m": "M"}, label="k", formats=["pdf"], **words)
figures.save_table(table, f"{dataset}_table")
if log := os.environ.get("SP_LEDGER_LOG"):
    with open(log, "a") as file:
        file.write("read a\\nread b\\ncomputed b\\nread c\\n")
print(k, *(os.environ.get(name) for name in ("OMP_NUM_THREADS", "LOKY_MAX_CPU_COUNT")))
"""
FAILS = """
import os
with open(os.environ["SP_LEDGER_LOG"], "a") as file:
    file.write("read a\\ncomputed d\\n")
1 / (k - 1)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with two notebooks, of which the second one fails."""
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SP_FIGURES", raising=False)
    monkeypatch.setattr("joblib.cpu_count", lambda: 2)
    for name, parameter_cell, *cells in (("01_toy", PARAMETERS, IMPORTS, FIGURE), ("02_fails", "k = 1", FAILS)):
        tagged = v4.new_code_cell(parameter_cell, id="p", metadata={"tags": ["parameters"]})
        others = [v4.new_code_cell(cell, id=str(i)) for i, cell in enumerate(cells)]
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        path.write_text(nbformat.writes(v4.new_notebook(cells=[tagged, *others], metadata=KERNEL)) + "\n")
    parameters.file().write_text(parameters.of_all(all_notebooks()))
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_figures_are_made_side_by_side_and_failures_and_runs_are_counted(project, capsys, monkeypatch):
    committed = Ledger(project / "figures" / "ledger")
    for name in ("mnist", "digits"):
        committed.put(Result(Experiment(dataset=name), None, None, seconds=360.0, measures={"average_accuracy": 0.5}))
    monkeypatch.setenv("SP_FRESH", "mnist")
    assert main(["figures", "--dataset", "mnist"]) == 1
    out, err = capsys.readouterr()
    assert out.startswith("Recomputing all runs on mnist: about 6 minutes of CPU time, 3 on 2 cores.\n")
    copies = project / "build" / "notebooks" / "mnist"
    assert f"FAILED {copies / '02_fails.ipynb'}, cell [2]: ZeroDivisionError" in err
    assert "\n2 runs were read, 2 computed.\n" in out
    last = nbformat.read(copies / "01_toy.ipynb", 4).cells[-1]
    assert last.outputs[0].text == "2.0 1 2\n"  # one at a time, on all cores
    monkeypatch.delenv("SP_FRESH")
    assert main(["figures", "--dataset", "mnist"]) == 1 and "Recomputing" not in capsys.readouterr().out
    last = nbformat.read(copies / "01_toy.ipynb", 4).cells[-1]
    assert last.outputs[0].text == "2.0 1 1\n"  # side by side
    record = json.loads((project / "figures" / "01_toy" / "mnist.json").read_text())
    assert record["provenance"]["command"] == "python -m sp figures --dataset mnist notebooks/01_toy.ipynb"
    assert record["provenance"]["parameters"] == {"dataset": "mnist", "k": 1.0}


def test_each_run_of_a_log_counts_once_and_one_that_was_computed_was_not_read(tmp_path):
    assert running.logged(tmp_path / "none") == (set(), set())
    log = tmp_path / "log"
    log.write_text("computed a\nread a\nread b\nread b\nread c1")  # the last kernel was killed as it wrote
    assert running.logged(log) == ({"b"}, {"a"})


def test_other_parameters_leave_the_same_in_a_folder_of_their_own_however_they_are_given(project, capsys):
    folder = project / "build" / "figures" / "01_toy" / "k=3.0"
    papermill.execute_notebook(
        "notebooks/01_toy.ipynb", "copy.ipynb", {"k": 3}, progress_bar=False, kernel_name="python3"
    )
    papered = contents(folder)
    assert sorted(papered) == [f"digits{end}" for end in (".csv", ".json", ".pdf", "_table.csv")]
    said = nbformat.read("copy.ipynb", 4).cells[-2].outputs[0].text
    assert said == (f"With parameters that are not the notebook's own (k = 3.0), figures and tables go to {folder}.\n")
    made = json.loads(papered["digits.json"])["provenance"]
    assert made["parameters"] == {"dataset": "digits", "k": 3.0}
    assert made["command"] == "python -m sp figures notebooks/01_toy.ipynb -p k 3.0"
    assert b"4" in papered["digits.csv"]

    for path in folder.iterdir():
        path.unlink()
    assert main(made["command"].split()[3:]) == 0
    assert contents(folder) == papered
    tables = sorted(path.name for path in folder.parent.glob("*.csv"))
    assert tables == ["digits.csv", "digits_table.csv"]
    assert (folder.parent / tables[1]).read_text() == "k,method,metric,mean,low,high,n\n3.0,Adam,m,4,4,4,1\n"

    edited = nbformat.read("notebooks/01_toy.ipynb", 4)
    edited.cells[0].source = edited.cells[0].source.replace("1.0", "3.0")
    nbformat.write(edited, "notebooks/by_hand.ipynb")
    for path in folder.iterdir():
        path.unlink()
    copy = running.Copy(Path("notebooks/by_hand.ipynb").absolute(), Path("copy.ipynb").absolute(), {})
    assert running.execute_all([copy], workers=1) == {}
    assert contents(folder) == papered
    assert not (project / "figures").exists()


def test_refreshing_stores_outputs_and_own_parameters_and_leaves_what_fails(project, capsys):
    parameters.file().unlink()
    toy, fails = sorted((project / "notebooks").glob("*.ipynb"))
    before = fails.read_bytes()
    assert main(["refresh"]) == 1
    assert f"FAILED {fails}, cell [2]: " in capsys.readouterr().err
    assert json.loads(parameters.file().read_text()) == {
        "01_toy": {"dataset": "digits", "k": 1.0},
        "02_fails": {"k": 1},
    }
    assert fails.read_bytes() == before
    assert nbformat.read(toy, 4).cells[-1].outputs[0].text == "2.0 1 1\n"
    first, figures = toy.read_bytes(), contents(project / "figures" / "01_toy")
    assert main(["refresh", "notebooks/01_toy.ipynb"]) == 0
    assert toy.read_bytes().replace(b"2.0 1 2", b"2.0 1 1") == first  # alone it has both cores
    assert contents(project / "figures" / "01_toy") == figures


def test_a_notebook_that_names_no_kernel_is_python(project):
    path = project / "notebooks" / "01_toy.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.metadata = {}
    nbformat.write(notebook, path)
    assert parameters.of(path) == {"dataset": "digits", "k": 1.0}
    assert running.execute_all([running.Copy(path, project / "copy.ipynb", {"dataset": "digits"})], workers=1) == {}


RUNS = """
from sp.lab.experiment import Experiment
from sp.lab.sweep import run_all
_ = run_all([Experiment(dataset=dataset, hidden=(8,), epochs=int(k))], workers=1, progress=False)
"""


def test_the_runs_that_notebooks_use_are_committed_where_that_is_asked(project, capsys):
    path = project / "notebooks" / "01_toy.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells = [notebook.cells[0], nbformat.v4.new_code_cell(RUNS)]
    nbformat.write(notebook, path)
    assert main(["figures", str(path)]) == 0 and not list((project / "figures").glob("*"))
    assert main(["figures", str(path), "--commit"]) == 0
    assert main(["figures", str(path), "-p", "k", "2,3", "--commit"]) == 0
    assert "The committed ledger has 3 runs and tables." in capsys.readouterr().out
    committed = Ledger(project / "figures" / "ledger")
    assert all(committed.get(Experiment(hidden=(8,), epochs=epochs)) for epochs in (1, 2, 3))


def test_a_folder_without_notebooks_is_an_error(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for command in ("figures", "refresh"):
        assert main([command]) == 2
        assert "has no notebooks: go to the project's folder first" in capsys.readouterr().err


SHOWN = {
    'print("Adam 0.40\\nCoincidence 0.95")': ("Adam 0.40\nCoincidence 0.95", "Adam 0.95\nCoincidence 0.40"),
    'print("final accuracy: higher")': ("higher", "lower"),
    'print("P19 holds")': ("holds", "does not hold"),
    "round(0.95, 2)": ("0.95", "0.40"),
    'pd.DataFrame({"transfer": [-0.004]})': ("-0.004", "-0.19"),
}


def compared(path: Path) -> subprocess.CompletedProcess:
    """What a comparison with the stored outputs says, run as in ``make test``."""
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-p", "no:cacheprovider", path]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_change_of_a_stored_output_is_found(tmp_path, monkeypatch):
    cells = [v4.new_code_cell("import pandas as pd", id="imports")]
    cells += [v4.new_code_cell(source, id=str(number)) for number, source in enumerate(SHOWN)]
    path = tmp_path / "notebooks" / "shown.ipynb"
    path.parent.mkdir()
    monkeypatch.chdir(tmp_path)
    path.write_text(nbformat.writes(v4.new_notebook(cells=cells, metadata=KERNEL)) + "\n")
    shutil.copy(ROOT / "notebooks" / "conftest.py", path.parent)
    assert running.refresh([path]) == 0 and compared(path).returncode == 0
    text = path.read_text()
    for right, wrong in SHOWN.values():
        right, wrong = (json.dumps(words)[1:-1].replace("\\n", '\\n",\n      "') for words in (right, wrong))
        first, _, last = text.rpartition(right)
        assert last
        text = first + wrong + last
    path.write_text(text)
    assert f"{len(SHOWN)} failed, 1 passed" in compared(path).stdout
