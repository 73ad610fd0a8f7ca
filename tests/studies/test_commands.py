"""What a notebook shows is recorded by one command, whether its runs are listed or it has to be executed."""

import nbformat
from studies import permuted
from studies.commands import main

from sp import files
from sp.lab import sweep
from sp.lab.experiment import Experiment
from sp.lab.ledger import Ledger
from sp.lab.sweep import with_seeds
from tests.lab.test_ledger import project as project

RUNS = """
from sp.lab.experiment import Experiment
from sp.lab.sweep import run_all
_ = run_all([Experiment(dataset=dataset, hidden=(8,))], workers=1, progress=False)
"""


def test_the_command_records_what_the_notebook_reads(project, capsys):
    command = ["record", "08_permuted", "--tasks", "2", "3", "--seeds", "1", "--workers", "1"]
    assert main(command) == 0 and "14 runs are in" in capsys.readouterr().out
    named = with_seeds(permuted.methods("digits", 2), range(1))
    assert not sweep.missing([experiment for _, experiment in named], Ledger(files.folder("ledger")))
    rows = sweep.runs(named)
    curves = permuted.averages(rows, 2)
    assert set(curves.tasks) == {1, 2} and len(curves) == 2 * len(rows) and curves.average.notna().all()
    assert "after_3" not in rows


def test_long_streams_are_recorded_with_their_own_number_of_seeds(project, capsys):
    assert main(["record", "08_permuted", "--tasks", "10", "30", "--seeds", "5", "--long-seeds", "2", "--dry-run"]) == 0
    methods = len(permuted.methods("digits", 10))
    assert f"{7 * methods} runs" in capsys.readouterr().out


def test_a_notebook_is_executed_and_its_runs_are_committed(project, capsys):
    parameters = nbformat.v4.new_code_cell('dataset = "mnist"', metadata={"tags": ["parameters"]})
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python"}}
    notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(RUNS)], metadata=kernel)
    nbformat.write(notebook, project / "notebooks" / "01_forgetting.ipynb")
    assert main(["record", "01_forgetting", "--dry-run"]) == 0
    assert "01_forgetting.ipynb would be executed on digits" in capsys.readouterr().out
    assert not list(files.folder("ledger").glob("*"))
    assert main(["record", "01_forgetting", "--dataset", "digits"]) == 0
    assert "1 runs and tables are in" in capsys.readouterr().out
    assert Ledger(files.folder("ledger")).get(Experiment(hidden=(8,))) is not None
