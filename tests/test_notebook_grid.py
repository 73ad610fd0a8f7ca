"""A notebook over a grid: typed parameters, a copy for each point, and a finished copy is not made again."""

import ast

import nbformat
import pytest
from nbformat import v4

from sp.__main__ import main
from sp.notebook_grid import checked, parameters_of

PARAMETERS = 'seeds = 3  # how many\nlr = 0.1\nname = "a"\nsizes = (1, 2)\nflag = False\nfree = None'
BODY = "import os\nassert lr < 1, 'too fast'\nprint((seeds, lr, os.environ['SP_FIGURES']))"


@pytest.fixture
def notebook(tmp_path):
    cells = [v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), v4.new_code_cell(BODY)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "toy.ipynb")
    return tmp_path / "toy.ipynb"


def test_copies_are_made_once_and_failures_are_collected_with_a_link(notebook, capsys):
    copies = notebook.parent / "copies"
    command = [
        "notebooks",
        str(notebook),
        "--to",
        str(copies),
        "--workers",
        "2",
        "-p",
        "lr",
        "0.5,2",
        "-p",
        "seeds",
        "4",
    ]
    assert main(command) == 1
    out, err = capsys.readouterr()
    failed = copies / "lr=2.0,seeds=4.failed.ipynb"
    assert f"FAILED {failed}#papermill-error-cell" in err and "AssertionError: too fast" in err
    assert "papermill-error-cell" in failed.read_text()
    assert "1 of 2 notebooks" in out
    made = copies / "lr=0.5,seeds=4.ipynb"
    seeds, lr, figures = ast.literal_eval(nbformat.read(made, 4).cells[-1].outputs[0].text)
    assert (seeds, lr, figures) == (4, 0.5, str(copies / "lr=0.5,seeds=4"))
    assert not list(copies.glob("*.running.ipynb"))

    first = made.stat().st_mtime_ns
    changed = nbformat.read(notebook, 4)
    changed.cells[1].source = changed.cells[1].source.replace("lr < 1", "lr < 3")
    assert main(command) == 1
    assert made.stat().st_mtime_ns == first
    nbformat.write(changed, notebook)
    assert main(command) == 0
    assert made.stat().st_mtime_ns > first and not failed.exists()


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"seedz": 1}, "unknown parameter.*seedz.*the notebook has seeds = 3, lr = 0.1"),
        ({"seeds": 1.5}, "seeds must be of type int, such as 3, got 1.5"),
        ({"seeds": True}, "seeds must be of type int"),
        ({"flag": 1}, "flag must be of type bool"),
        ({"name": 3}, "name must be of type str.*quotes"),
        ({"sizes": 3}, "sizes must be of type tuple"),
    ],
)
def test_parameters_are_checked_against_the_cell(notebook, point, message):
    with pytest.raises(ValueError, match=message):
        checked(point, parameters_of(notebook))


def test_parameters_of_the_right_type_are_taken(notebook):
    point = checked({"seeds": 4, "lr": 1, "name": "b", "sizes": [3], "free": "x"}, parameters_of(notebook))
    assert point == {"seeds": 4, "lr": 1.0, "name": "b", "sizes": [3], "free": "x"} and type(point["lr"]) is float


def test_a_notebook_without_parameters_is_refused(tmp_path, capsys):
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("1")]), tmp_path / "none.ipynb")
    assert main(["notebooks", str(tmp_path / "none.ipynb"), "-p", "lr", "1"]) == 2
    assert main(["notebooks", str(tmp_path / "absent.ipynb"), "-p", "lr", "1"]) == 2
    err = capsys.readouterr().err
    assert "no cell tagged `parameters`" in err and "absent.ipynb is not there" in err
