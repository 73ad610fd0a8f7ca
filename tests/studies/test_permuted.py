"""The average over the tasks so far, from a table that has all of them."""

from studies import permuted

from sp.lab import sweep
from sp.lab.ledger import Ledger
from sp.lab.sweep import with_seeds


def test_there_is_an_average_for_each_number_of_tasks_learnt(tmp_path):
    named = with_seeds(permuted.methods("digits", 2), range(1))
    rows = sweep.runs(named, Ledger(tmp_path), workers=1, progress=False)
    curves = permuted.averages(rows, 2)
    assert set(curves.tasks) == {1, 2} and len(curves) == 2 * len(rows) and curves.average.notna().all()
    assert "after_3" not in rows
