"""What the README says is what the committed files say."""

from pathlib import Path

import pandas as pd

from sp.report import MARKS, fill_tables, markdown

ROOT = Path(__file__).parent.parent


def test_the_readme_s_tables_come_from_the_committed_files():
    text = (ROOT / "README.md").read_text()
    assert MARKS.search(text)
    assert fill_tables(text, ROOT) == text, "run  python -m sp readme"


def test_a_table_is_filled_from_its_file(tmp_path):
    rows = [("one", "final_1", 0.5, 0.4, 0.6), ("one", "other", 1.0, 1.0, 1.0)]
    pd.DataFrame(rows, columns=["arm", "metric", "mean", "low", "high"]).to_csv(tmp_path / "t.csv", index=False)
    filled = fill_tables("before\n<!-- table: t.csv -->\nold\n<!-- end -->\nafter", tmp_path)
    table = "| | task A | other |\n|---|---|---|\n| one | 0.500 [0.400, 0.600] | 1.000 [1.000, 1.000] |\n"
    assert filled == f"before\n<!-- table: t.csv -->\n{table}<!-- end -->\nafter"
    assert markdown(pd.read_csv(tmp_path / "t.csv")) == table
