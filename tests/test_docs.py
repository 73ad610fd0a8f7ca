"""The documents: their examples run, their citations are in the bibliography, and their links lead somewhere."""

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from sp.figures import record

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README = (ROOT / "README.md").read_text()


def test_the_example_of_the_readme_prints_what_it_says(capsys):
    code, said = re.search(r"```python\n(.*?)```\n\n(.*?)\n", README, re.DOTALL).groups()
    exec(compile(code, "README.md", "exec"), {})
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    expected = dict(re.findall(r"`(\w+) (\[.*?\])`", said))
    assert list(printed) == list(expected) == ["Adam", "Coincidence"]
    for name, accuracies in expected.items():
        assert json.loads(printed[name]) == pytest.approx(json.loads(accuracies), abs=0.03)


def test_the_readme_is_one_page_with_few_numbers():
    assert len(README.splitlines()) <= 120
    assert len(re.findall(r"\d*\.\d+", README)) <= 40


def test_the_plot_of_the_architecture_can_be_drawn(monkeypatch):
    monkeypatch.setattr(record, "PLOTS", dict(record.PLOTS))
    monkeypatch.setattr("sp.figures.kit.PLOTS", record.PLOTS)
    text = (ROOT / "docs" / "architecture.md").read_text()
    exec(re.search(r"## Add a plot.*?```python\n(.*?)```", text, re.DOTALL)[1], {})
    table = pd.DataFrame({"method": ["Adam", "Coincidence"], "mean": [0.2, 0.9]})
    drawn = record.picture("bars", table, {"label": "Final accuracy"})
    assert [bar.get_height() for bar in drawn.axes[0].patches] == [0.2, 0.9]


def entries():
    """Key -> text of each entry of the bibliography."""
    text = (ROOT / "docs" / "references.bib").read_text()
    return dict(re.findall(r"^@\w+\{(\w+),(.*?\})\}$", text, re.DOTALL | re.MULTILINE))


def test_every_key_that_is_cited_is_in_the_bibliography():
    for page in PAGES:
        for citation in re.findall(r"\[(@[^\]]*)\]", page.read_text()):
            assert set(re.findall(r"@(\w+)", citation)) <= set(entries()), f"{page.name}: {citation}"


def test_papers_that_docstrings_name_are_in_the_bibliography():
    found = 0
    for path in [*ROOT.glob("sp/**/*.py"), *ROOT.glob("notebooks/studies/*.py")]:
        named = (
            r"([A-Z][a-z]+(?:-[A-Z][a-z]+)?)(?: et al\.|, [A-Z][a-z]+ & [A-Z]\w+| & [A-Z]\w+)?,? \(?((?:19|20)\d\d)\)?"
        )
        for author, year in re.findall(named, path.read_text()):
            assert any(author in entry and year in entry for entry in entries().values()), f"{path}: {author} {year}"
            found += 1
    assert found > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_that_are_there(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} leads to {target}, which is not there"


def test_the_glossary_is_short_and_in_order():
    words = re.findall(r"^\| \*\*(.*?)\*\* \|", (ROOT / "docs" / "glossary.md").read_text(), re.MULTILINE)
    assert 15 < len(words) <= 25
    assert words == sorted(words, key=str.lower)
