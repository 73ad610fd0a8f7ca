"""A notebook over a grid: typed parameters, a copy for each point, and a finished copy is not made again."""

import ast

import nbformat
import pandas as pd
import pytest
from nbformat import v4

from sp.__main__ import main
from sp.notebook_grid import checked, execute_grid, parameters_of

PARAMETERS = 'seeds = 3  # how many\nlr = 0.1\nname = "a"\nsizes = (1, 2)\nflag = False\nfree = None'
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
BODY = """
import os
from pathlib import Path
assert lr < 1, 'too fast'
Path(os.environ["SP_FIGURES"]).mkdir(exist_ok=True)
Path(os.environ["SP_FIGURES"], "toy_digits.csv").write_text(f"seeds,error\\n0,{lr:.3f}\\n1,0.250\\n")
print((seeds, lr, os.environ['SP_FIGURES']))
"""


@pytest.fixture
def notebook(tmp_path):
    cells = [v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), v4.new_code_cell(BODY)]
    nbformat.write(v4.new_notebook(cells=cells, metadata=KERNEL), tmp_path / "toy.ipynb")
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
    grid = copies / "toy"
    failed = grid / "seeds=4,lr=2.0.failed.ipynb"
    assert f"FAILED {failed}#papermill-error-cell" in err and "AssertionError: too fast" in err
    assert "papermill-error-cell" in failed.read_text()
    assert "1 of 2 notebooks" in out
    made = grid / "seeds=4,lr=0.5.ipynb"
    seeds, lr, figures = ast.literal_eval(nbformat.read(made, 4).cells[-1].outputs[0].text)
    assert (seeds, lr, figures) == (4, 0.5, str(grid / "seeds=4,lr=0.5"))
    assert not list(grid.glob("*.running.ipynb"))
    # What the copies have a column for already is not taken for the parameter of that name.
    table = grid / "toy_digits.csv"
    assert f"One table over 1 of 2 notebooks: {table}" in out
    assert table.read_text() == "lr,parameter_seeds,seeds,error\n0.5,4,0,0.500\n0.5,4,1,0.250\n"

    first = made.stat().st_mtime_ns
    changed = nbformat.read(notebook, 4)
    changed.cells[1].source = changed.cells[1].source.replace("lr < 1", "lr < 3")
    assert main(command) == 1
    assert made.stat().st_mtime_ns == first
    nbformat.write(changed, notebook)
    assert main(command) == 0
    assert made.stat().st_mtime_ns > first and not failed.exists()
    assert pd.read_csv(table).groupby("lr").error.max().to_dict() == {0.5: 0.5, 2.0: 2.0}
    assert f"One table over 2 of 2 notebooks: {table}" in capsys.readouterr().out


def test_a_table_that_was_lost_is_made_again_and_one_that_is_no_longer_made_is_left_out(notebook):
    grid = execute_grid(notebook, [{"lr": 0.5}], notebook.parent, progress=False)
    (notebook.parent / "toy" / "lr=0.5" / "toy_digits.csv").unlink()
    assert execute_grid(notebook, [{"lr": 0.5}], notebook.parent, progress=False) == grid
    assert pd.read_csv(notebook.parent / "toy" / "lr=0.5" / "toy_digits.csv").error.tolist() == [0.5, 0.25]
    changed = nbformat.read(notebook, 4)
    changed.cells[1].source = changed.cells[1].source.replace("toy_digits", "other")
    nbformat.write(changed, notebook)
    again = execute_grid(notebook, [{"lr": 0.5}], notebook.parent, progress=False)
    assert not again.failures and [path.name for path in again.tables] == ["other.csv"]


def test_own_parameters_are_named_so_and_data_sets_come_into_one_table(tmp_path):
    parameters = v4.new_code_cell('dataset = "digits"\nk = 1.0', metadata={"tags": ["parameters"]})
    body = v4.new_code_cell(
        "import os\nfrom pathlib import Path\nPath(os.environ['SP_FIGURES']).mkdir()\n"
        "Path(os.environ['SP_FIGURES'], f'toy_{dataset}_k.csv').write_text(f'k2\\n{2 * k}\\n')"
    )
    nbformat.write(v4.new_notebook(cells=[parameters, body], metadata=KERNEL), tmp_path / "toy.ipynb")
    points = [{"dataset": "digits"}, {"dataset": "mnist"}, {"k": 3}, {"k": 1}]
    grid = execute_grid(tmp_path / "toy.ipynb", points, tmp_path, progress=False)
    assert not grid.failures and grid.copies == 3
    assert sorted(path.stem for path in grid.folder.glob("*.ipynb")) == ["dataset=mnist", "k=3.0", "own"]
    assert [path.name for path in grid.tables] == ["toy_k.csv"]
    rows = "dataset,k,k2\ndigits,1.0,2.0\nmnist,1.0,2.0\ndigits,3.0,6.0\n"
    assert grid.tables[0].read_text() == rows


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
