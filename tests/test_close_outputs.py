"""A notebook's outputs may differ in what rounding decides, and in nothing else."""

import nbformat
import pytest

from sp import notebooks
from sp.close_outputs import Output, same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("accuracy 0.914 [0.901, 0.924]", "accuracy 0.931  [0.92, 0.94]"),
        ("A  0.91\nB  0.90", "B  0.92\nA  0.91"),  # sorted by what changed
        ("gain -0.01 (n = 8, p = 0.0938)", "gain +0.01 (n = 8, p = 0.6)"),
        ("26,506 parameters", "26,509 parameters"),
        ("+0.010 [-0.001, +0.02] no difference found", "+0.012 [+0.001, +0.02] higher"),
        ("1 2 3 4 5 6 7 8 9 0.5", "1 2 3 4 5 6 7 8 9 10"),  # one of ten
    ],
)
def test_numbers_may_differ_a_little_and_rows_change_places(one, other):
    assert same(one, other) and Output(one) == other


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("accuracy 0.914", "accuracy 0.2"),
        ("accuracy 0.914", "transfer 0.914"),
        ("kept 0.9 0.9", "kept 0.9"),
        ("1 2 3 4 5 6 7 8 0.1 0.5", "1 2 3 4 5 6 7 8 10 10"),
        ("26,506 parameters", "53,012 parameters"),
        ("ahead: Ridge", "ahead: nobody"),
    ],
)
def test_words_and_larger_differences_count(one, other):
    assert not same(one, other) and Output(one) != other


@pytest.mark.parametrize(("stored", "status"), [("0.52\n", 0), ("0.9\n", 1), ("half\n", 1)])
def test_notebooks_are_compared_in_this_way(stored, status, tmp_path):
    cell = nbformat.v4.new_code_cell("print(0.5)", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=stored)]
    path = tmp_path / "one.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    assert notebooks.check([path]) == status
