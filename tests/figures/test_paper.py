"""The sheets and tables for a paper come from what is committed, and say what is missing."""

import shutil
import subprocess

import pandas as pd
import pytest

from sp.__main__ import main
from sp.figures import paper, tables
from tests.figures.test_record import in_pdf


def test_five_figures_and_three_tables_are_collected_with_their_captions(tmp_path, capsys):
    assert main(["paper", "--to", str(tmp_path)]) == 0
    names = [*paper.FIGURES, *paper.TABLES]
    assert len(paper.FIGURES) == 5 and len(paper.TABLES) == 3
    assert sorted(path.name for path in tmp_path.glob("*.tex")) == sorted(f"{name}.tex" for name in names)
    for name in paper.FIGURES:
        pdf, sizes = in_pdf((tmp_path / f"{name}.pdf").read_bytes())
        assert b"/Type3" not in pdf and b"/FontFile2" in pdf and min(sizes) >= 6, name
        text = (tmp_path / f"{name}.tex").read_text()
        assert rf"\includegraphics{{{name}}}" in text and "(a) " in text and "n = " in text and "Data: " in text
    for name in paper.TABLES:
        text = (tmp_path / f"{name}.tex").read_text()
        assert r"\toprule" in text and r"\caption" in text and "nan" not in text, name


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="LaTeX is not installed")
def test_what_is_collected_compiles_and_fits_a_page(tmp_path):
    assert main(["paper", "--to", str(tmp_path)]) == 0
    inputs = "".join(rf"\input{{{name}}}" for name in [*paper.TABLES, *paper.FIGURES])
    page = r"\usepackage[letterpaper,textwidth=6.75in,textheight=9in]{geometry}"  # as at ICML
    text = rf"\documentclass{{article}}\usepackage{{booktabs,graphicx}}{page}\begin{{document}}{inputs}\end{{document}}"
    (tmp_path / "all.tex").write_text(text)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "all.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert "Overfull" not in done.stdout and "too large" not in done.stdout


def test_what_is_missing_is_named_with_the_command_that_makes_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SP_FIGURES", str(tmp_path / "none"))
    assert main(["paper", "--to", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "02_consolidation/digits_traces" in error
    assert "python -m sp figures --dataset digits notebooks/02_consolidation.ipynb" in error


def test_a_figure_by_its_name_has_its_caption_beside_it(tmp_path, capsys):
    name = "digits_curves"
    assert main(["paper", f"01_forgetting/{name}", "--width", "page", "--to", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / name}.tex\n"
    text = (tmp_path / f"{name}.tex").read_text()
    assert r"\begin{figure*}" in text and rf"\includegraphics{{{name}}}" in text
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".json", ".pdf", ".tex"]
    assert main(["paper", "01_forgetting/digits", "02_consolidation/digits", "--to", str(tmp_path)]) == 2
    assert "got 'digits' twice" in capsys.readouterr().err
    assert main(["paper", "--width", "page"]) == 2
    assert "--colour need a NAME" in capsys.readouterr().err


def test_a_table_of_results_is_latex_with_intervals_and_seeds():
    rows = [("A_1 & co", metric, 0.5, 0.4, 0.6, 3) for metric in ("final_1", "split5_class")]
    table = pd.DataFrame(rows, columns=["method", "metric", "mean", "low", "high", "n"])
    text = tables.latex_table(tables.wide(table), "At 95 %.", "t")
    assert r"A\_1 \& co & 0.500 [0.400, 0.600] & 0.500 [0.400, 0.600] \\" in text and r"task A (n = 3) &" in text
    assert r"\shortstack{Split, 5 tasks, \\ class-incremental \\ (n~=~3)}" in text
    assert r"\caption{At 95 \%.}" in text


@pytest.mark.parametrize(
    ("text", "shown"), [("50 % of_θ", r"50 \% of\_$\theta$"), ("a\\b~{c}", r"a\textbackslash{}b\textasciitilde{}\{c\}")]
)
def test_latex_is_escaped(text, shown):
    assert tables.latex(text) == shown
