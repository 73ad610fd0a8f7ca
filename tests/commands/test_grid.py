"""A notebook over a grid: typed parameters, a copy for each point, and one table of all."""

import ast

import nbformat
import pandas as pd
import pytest
from nbformat import v4

from sp.__main__ import main
from sp.commands.grid import make_grid

PARAMETERS = "seeds = 3  # how many\nlr = 0.1"
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
BODY = """
import os
from pathlib import Path
assert lr < 1, 'too fast'
Path(os.environ["SP_FIGURES"]).mkdir(parents=True, exist_ok=True)
Path(os.environ["SP_FIGURES"], "toy_digits.csv").write_text(f"seeds,error\\n0,{lr:.3f}\\n1,0.250\\n")
print((seeds, lr, os.environ['SP_FIGURES']))
"""


@pytest.fixture(autouse=True)
def copies(tmp_path, monkeypatch):
    monkeypatch.setenv("SP_FIGURES", str(tmp_path / "copies"))
    return tmp_path / "copies"


@pytest.fixture
def notebook(tmp_path):
    cells = [v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}), v4.new_code_cell(BODY)]
    nbformat.write(v4.new_notebook(cells=cells, metadata=KERNEL), tmp_path / "toy.ipynb")
    return tmp_path / "toy.ipynb"


def test_each_point_has_a_copy_and_one_table_has_those_that_finished(notebook, copies, capsys):
    grid = copies / "toy"
    command = f"figures {notebook} --workers 2 -p lr 0.5,2 -p seeds 4".split()
    assert main(command) == 1
    out, err = capsys.readouterr()
    failed = grid / "seeds=4,lr=2.0.ipynb"
    assert f"FAILED {failed}, cell [3]: AssertionError: too fast" in err and "AssertionError" in failed.read_text()
    made = grid / "seeds=4,lr=0.5.ipynb"
    seeds, lr, figures = ast.literal_eval(nbformat.read(made, 4).cells[-1].outputs[0].text)
    assert (seeds, lr, figures) == (4, 0.5, str(grid / "seeds=4,lr=0.5"))
    # A column that the copies already have is not mistaken for the parameter of that name.
    table = grid / "toy_digits.csv"
    assert f"Combined table of 1 of 2 notebooks: {table}" in out
    assert table.read_text() == "lr,parameter_seeds,seeds,error\n0.5,4,0,0.500\n0.5,4,1,0.250\n"

    changed = nbformat.read(notebook, 4)
    changed.cells[1].source = changed.cells[1].source.replace("lr < 1", "lr < 3")
    nbformat.write(changed, notebook)
    assert main(command) == 0
    assert pd.read_csv(table).groupby("lr").error.max().to_dict() == {0.5: 0.5, 2.0: 2.0}
    assert f"Combined table of 2 of 2 notebooks: {table}" in capsys.readouterr().out


def test_a_grid_does_not_replace_the_tables_of_a_run_without_one(notebook, copies, capsys):
    (copies / "toy").mkdir(parents=True)
    (copies / "toy" / "digits_curves.json").write_text("{}")
    assert main(f"figures {notebook} -p seeds 4".split()) == 2
    assert "whose tables a grid would replace: set SP_FIGURES to another folder" in capsys.readouterr().err


def test_a_table_that_is_no_longer_made_is_left_out(notebook, capsys):
    assert make_grid(notebook, [{"lr": 0.5}]) == 0
    assert "toy_digits.csv" in capsys.readouterr().out
    changed = nbformat.read(notebook, 4)
    changed.cells[1].source = changed.cells[1].source.replace("toy_digits", "other")
    nbformat.write(changed, notebook)
    assert make_grid(notebook, [{"lr": 0.5}]) == 0
    out = capsys.readouterr().out
    assert "other.csv" in out and "toy_digits.csv" not in out


def test_own_parameters_are_named_so_and_data_sets_come_into_one_table(tmp_path, copies):
    parameters = v4.new_code_cell('dataset = "digits"\nk = 1.0', metadata={"tags": ["parameters"]})
    body = v4.new_code_cell(
        "import os\nfrom pathlib import Path\nPath(os.environ['SP_FIGURES']).mkdir()\n"
        "for name in f'toy_{dataset}_k', f'{dataset}_k', dataset:\n"
        "    Path(os.environ['SP_FIGURES'], f'{name}.csv').write_text(f'k2\\n{2 * k}\\n')"
    )
    nbformat.write(v4.new_notebook(cells=[parameters, body], metadata=KERNEL), tmp_path / "toy.ipynb")
    points = [{"dataset": "digits"}, {"dataset": "mnist"}, {"k": 3}, {"k": 1}]
    assert make_grid(tmp_path / "toy.ipynb", points) == 0
    grid = copies / "toy"
    assert sorted(path.stem for path in grid.glob("*.ipynb")) == ["dataset=mnist", "k=3.0", "own"]
    assert sorted(path.stem for path in grid.glob("*.csv")) == ["datasets", "k", "toy_k"]
    for table in grid.glob("*.csv"):
        assert table.read_text() == "dataset,k,k2\ndigits,1.0,2.0\nmnist,1.0,2.0\ndigits,3.0,6.0\n"


def test_a_grid_is_of_one_notebook_that_has_the_parameters(tmp_path, capsys):
    none = str(tmp_path / "none.ipynb")
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell("1")], metadata=KERNEL), none)
    for words, message in (
        ([none], "unknown parameter(s) lr; the notebook has none"),
        ([str(tmp_path / "absent.ipynb")], "absent.ipynb does not exist"),
        ([], "-p needs exactly one notebook, got 0"),
    ):
        assert main(["figures", *words, "-p", "lr", "1"]) == 2
        assert message in capsys.readouterr().err
