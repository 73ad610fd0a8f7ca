"""What a notebook's own parameters are, and the names and commands of runs with other values."""

import json
import shlex
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp.commands import all_notebooks
from sp.figures import parameters
from sp.lab import choices

ROOT = Path(__file__).parents[2]
OWN = {"dataset": "digits", "seeds": 10, "lr": None, "k": 5.0, "batches": [4, 32]}


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_committed_file_is_what_the_cells_say(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert parameters.file().read_text() == parameters.of_all(all_notebooks()), "write it with  python -m sp refresh"


def test_every_notebook_with_parameters_begins_with_them_before_it_uses_them():
    for name in json.loads((ROOT / "notebooks/parameters.json").read_text()):
        cells = [cell for cell in nbformat.read(ROOT / f"notebooks/{name}.ipynb", 4).cells if cell.cell_type == "code"]
        assert cells[0].metadata.tags == ["parameters"], name
        first, *_ = [line for line in cells[1].source.splitlines() if line and not line.startswith(("import", "from"))]
        assert first == f'figures.begin("{name}", globals())', name


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"dataset": "digits", "k": 5, "batches": (4, 32)}, "own"),
        ({"k": np.float64(5), "batches": torch.tensor([4, 32])}, "own"),
        ({"k": 7, "seeds": 3}, "seeds=3,k=7.0"),
        ({"lr": 1e-3, "dataset": "mnist"}, "dataset=mnist,lr=0.001"),
        ({"seeds": True}, "seeds=True"),
    ],
)
def test_a_run_is_named_by_what_is_not_the_notebook_s_own(values, name):
    typed = {key: parameters.plain(value, OWN[key]) for key, value in values.items()}
    assert parameters.run_name(parameters.changed(typed, OWN)) == name


values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=200),
    st.lists(st.one_of(st.integers(), st.text())),
    st.dictionaries(st.text(), st.text(), max_size=3),
)


@given(st.dictionaries(st.sampled_from(["a", "b"]), values, min_size=1), values)
def test_the_command_gives_the_same_parameters_and_names_are_short_and_differ(changed, other):
    words = shlex.split(parameters.command("01_toy", changed))
    assert words[:5] == ["python", "-m", "sp", "figures", "notebooks/01_toy.ipynb"]
    read = {name: choices.parse(text) for _, name, text in zip(*[iter(words[5:])] * 3, strict=True)}
    assert read == {name: [value] for name, value in changed.items()}
    name = parameters.run_name(changed)
    assert name.isascii() and "/" not in name and 0 < len(name) < 150
    beside = {**changed, "a": other}
    assert (parameters.run_name(beside) == name) == (repr(beside) == repr(changed))


def test_what_cannot_be_known_is_an_error_that_says_what_to_do(project):
    with pytest.raises(FileNotFoundError, match=r"parameters.json does not exist.*papermill --cwd notebooks"):
        parameters.own("01_toy")
    parameters.file().write_text('{"01_toy": {"k": 1}}')
    with pytest.raises(ValueError, match=r"no parameters for '02_toy', only for 01_toy: .*python -m sp refresh"):
        parameters.own("02_toy")
    with pytest.raises(ValueError, match=r"a parameter must be None, True or False, .* got <object"):
        parameters.plain([object()])


def notebook(folder, cell):
    """A notebook with a cell of parameters."""
    tagged = nbformat.v4.new_code_cell(cell, metadata={"tags": ["parameters"]})
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path = folder / "notebooks" / "toy.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[tagged], metadata=about), path)
    return path


def test_own_values_have_to_be_literals(project):
    toy = notebook(project, "k = 2 * 3")
    with pytest.raises(ValueError, match=r"toy.ipynb: the value of k must be .* got 2 \* 3: write it out"):
        parameters.of(toy)


CELL = 'seeds = 3  # how many\nlr = 0.1\nname = "a"\nsizes = (1, 2)\nflag = False\nfree = None'


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"seedz": 1}, "unknown parameter.*seedz.*the notebook has seeds = 3, lr = 0.1"),
        ({"seeds": 1.5}, "seeds must be of type int, such as 3, got 1.5"),
        ({"seeds": True}, "seeds must be of type int"),
        ({"flag": 1}, "flag must be of type bool"),
        ({"name": 3}, "name must be of type str.*quotes"),
        ({"sizes": 3}, "sizes must be of type list"),
    ],
)
def test_parameters_are_checked_against_the_cell(project, point, message):
    with pytest.raises(ValueError, match=message):
        parameters.checked(point, parameters.of(notebook(project, CELL)))


def test_parameters_of_the_right_type_are_taken(project):
    own = parameters.of(notebook(project, CELL))
    point = parameters.checked({"seeds": 4, "lr": 1, "name": "b", "sizes": (3,), "free": "x"}, own)
    assert point == {"seeds": 4, "lr": 1.0, "name": "b", "sizes": [3], "free": "x"} and type(point["lr"]) is float
