"""The first edition next to today's: means are those of the committed tables, and what is missing is left out."""

import pandas as pd
import pytest
from studies import first_edition

from sp import files
from sp.lab.ledger import Ledger


def test_both_means_are_those_of_their_tables():
    rows = first_edition.moved().loc["digits"]
    kept = pd.read_csv(files.committed("09_comparison/digits.csv"))
    kept = kept[(kept.method == "Coincidence") & (kept.metric == "average_accuracy") & (kept.capacity == 0)]
    today = kept.set_index("stream")["mean"]
    assert rows.today.astype(float).to_dict() == pytest.approx(today.to_dict(), abs=6e-4)
    before = pd.read_csv(first_edition.RUNS)
    before = before[before.dataset == "digits"].groupby("scenario").average_accuracy.mean()
    assert rows["first edition"].astype(float).to_dict() == pytest.approx(before.to_dict(), abs=6e-4)


def test_streams_without_all_runs_are_left_out(tmp_path):
    assert first_edition.moved(Ledger(tmp_path)).empty
