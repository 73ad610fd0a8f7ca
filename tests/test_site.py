"""The site: its settings name files that are there. `make site` builds it, and fails on any warning."""

import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def conf():
    pytest.importorskip("sphinx", reason="comes with the extra site")
    return runpy.run_path(str(ROOT / "docs" / "conf.py"))


def read(conf, name, text):
    source = [text]
    conf["read"](SimpleNamespace(), name, source)
    return source[0]


def test_citations_and_links_are_those_of_the_site(conf):
    assert read(conf, "docs/other", "as [@zeng2019owm; @kao2021ncl] and [one](../README.md)") == (
        "as {cite:p}`zeng2019owm,kao2021ncl` and [one](index.md)"
    )


def test_the_readme_is_the_first_page_and_its_links_lead_on(conf):
    page = read(conf, conf["root_doc"], "\nthe end")
    assert page.startswith("# sp") and page.endswith("the end")
    for target in re.findall(r"\]\(([^)]+)\)", page):
        assert (ROOT / "docs" / target).exists(), target


def test_a_figure_of_a_notebook_is_described_by_its_heading(conf):
    from docutils import nodes

    document, image = nodes.section(), nodes.image(uri="x.png")
    document += [nodes.title(text="What is kept?"), nodes.container("", image)]
    conf["describe"](SimpleNamespace(), document)
    assert image["alt"] == "Figure: What is kept?"


def test_every_document_is_in_the_sidebar():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.stem == "index" or re.search(rf"^{page.stem}$", index, re.MULTILINE), page.name
