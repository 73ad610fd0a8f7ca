"""The README agrees with the committed files."""

import json
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from sp.figures import PLOTS
from sp.figures.documents import FILLED, MARKS, fill_tables, gallery, index
from sp.figures.record import seeds
from sp.figures.tables import cost_columns, markdown

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", FILLED)
def test_the_tables_of_the_documents_come_from_the_committed_files(page):
    text = (ROOT / page).read_text()
    assert MARKS.search(text)
    assert fill_tables(text, ROOT) == text, "run  python -m sp readme"


def test_a_table_is_filled_from_its_file(tmp_path):
    rows = [("one", "final_1", 0.5, 0.4, 0.6, 10), ("one", "other", 1.0, 1.0, 1.0, 5)]
    pd.DataFrame(rows, columns=["method", "metric", "mean", "low", "high", "n"]).to_csv(tmp_path / "t.csv", index=False)
    filled = fill_tables("before\n<!-- table: t.csv -->\nold\n<!-- end -->\nafter", tmp_path)
    table = (
        "| | task A (n = 10) | other (n = 5) |\n|---|---|---|\n| one | 0.500 [0.400, 0.600] | 1.000 [1.000, 1.000] |\n"
    )
    assert filled == f"before\n<!-- table: t.csv -->\n{table}<!-- end -->\nafter"
    assert markdown(pd.read_csv(tmp_path / "t.csv")) == table


def test_a_table_over_streams_has_a_gap_where_an_method_was_not_run(tmp_path):
    rows = [("a", "one", "x", 0.5, 0.5, 0.5, 10), ("b", "one", "x", 0.2, 0.2, 0.2, 10), ("b", "two", "x", 1, 1, 1, 10)]
    columns = ["stream", "method", "metric", "mean", "low", "high", "n"]
    other = [("a", "one", "y", 0.9, 0.9, 0.9, 10)]
    pd.DataFrame(rows + other, columns=columns).to_csv(tmp_path / "t.csv", index=False)
    filled = fill_tables("<!-- table: t.csv metric=x -->\n<!-- end -->", tmp_path).splitlines()
    assert filled[1:-1] == [
        "| | a (n = 10) | b (n = 10) |",
        "|---|---|---|",
        "| one | 0.500 [0.500, 0.500] | 0.200 [0.200, 0.200] |",
        "| two |  | 1.000 [1.000, 1.000] |",
    ]


def test_a_table_over_streams_takes_those_and_the_buffer_that_are_asked_for(tmp_path):
    rows = [(s, c, method, "x", 0.5, c, 1, 10) for s in ("a", "b", "d") for c in (0, 7) for method in ("two", "one")]
    columns = ["stream", "capacity", "method", "metric", "mean", "low", "high", "n"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "t.csv", index=False)
    filled = fill_tables("<!-- table: t.csv metric=x streams=d,a capacity=7 -->\n<!-- end -->", tmp_path).splitlines()
    assert filled[1] == "| | d (n = 10) | a (n = 10) |"
    assert filled[3:5] == [f"| {method} | 0.500 [7.000, 1.000] | 0.500 [7.000, 1.000] |" for method in ("two", "one")]
    with pytest.raises(ValueError, match=r"takes metric=, .*, got \['metrics'\]"):
        fill_tables("<!-- table: t.csv metrics=x -->\n<!-- end -->", tmp_path)


def test_a_short_table_has_the_methods_that_are_asked_for_and_the_best_in_bold(tmp_path):
    means = {"Adam": 0.384, "Joint training": 0.97, "My rule": 0.9249, "Ridge": 0.9151}
    rows = [("a", arm, "x", mean, 0, 1, 10) for arm, mean in means.items()]
    columns = ["stream", "method", "metric", "mean", "low", "high", "n"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "t.csv", index=False)
    mark = "<!-- table: t.csv metric=x methods=My_rule,Ridge,Joint_training decimals={} -->\n<!-- end -->"
    filled = fill_tables(mark.format(2), tmp_path).splitlines()
    assert filled[1:-1] == [
        "| | a |",
        "|---|---|",
        "| My rule | **0.92** |",
        "| Ridge | **0.92** |",
        "| Joint training | 0.97 |",
    ]
    assert fill_tables(mark.format(3), tmp_path).splitlines()[3:5] == ["| My rule | **0.925** |", "| Ridge | 0.915 |"]
    with pytest.raises(ValueError, match="My rul"):
        fill_tables("<!-- table: t.csv metric=x methods=My_rul -->\n<!-- end -->", tmp_path)


def test_the_gallery_shows_every_committed_figure():
    page = ROOT / "figures" / "README.md"
    assert page.read_text() == gallery(ROOT), "run  make readme"
    for record in (ROOT / "figures").glob("*/*.json"):
        assert all(record.with_suffix(suffix).is_file() for suffix in (".csv", ".pdf", ".png")), record.name
        known = json.loads(record.read_text())
        if PLOTS[known["kind"]].shows:
            assert seeds(pd.read_csv(record.with_suffix(".csv"))) in known["caption"], f"{record.stem}: draw again"
    for picture in (ROOT / "figures").glob("*/*.png"):
        assert f'src="{picture.parent.name}/{picture.name}"' in page.read_text()


def test_the_index_shows_every_notebook_and_each_leads_to_the_next():
    page = ROOT / "notebooks" / "README.md"
    assert page.read_text() == index(ROOT), "run  make readme"
    paths = sorted((ROOT / "notebooks").glob("*.ipynb"))
    for path, following in pairwise(paths):
        last = "".join(json.loads(path.read_text())["cells"][-1]["source"])
        assert "## What to try" in last and f"Next: [`{following.stem}`]({following.name})" in last, path.name


def test_a_notebook_without_figures_is_named_with_what_makes_them(tmp_path):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "notebooks" / "18_sign.ipynb").write_text('{"cells": [{"source": ["# Sign?"]}]}')
    with pytest.raises(FileNotFoundError, match=r"18_sign has no figures yet: python -m sp refresh notebooks/18_sign"):
        index(tmp_path)


def test_costs_are_those_with_the_buffer_that_is_asked_for():
    rows = [("Adam", 0, 1.0, 2.0), ("Adam", 200, 2.04, 9.0), ("Ridge", 0, 0.5, 7.0)]
    costs = pd.DataFrame(rows, columns=["method", "capacity", "step_ratio", "kept"])
    found = cost_columns(costs, ["Adam, tuned", "Ridge"], 200)
    assert found.loc["Adam, tuned"].tolist() == ["2.0", "9.0"] and found.loc["Ridge"].isna().all()
