"""Pages that need no kernel."""

import re
from pathlib import Path

from sp.pages import document, make_pages

ROOT = Path(__file__).parent.parent


def test_a_notebook_is_a_page_with_its_figures_in_it(tmp_path, capsys):
    make_pages([ROOT / "notebooks" / "12_overhead.ipynb"], tmp_path)
    page = (tmp_path / "12_overhead.html").read_text()
    assert "What does plasticity cost" in page and "data:image/png;base64" in page
    assert 'href="13_dendrites.html"' in page and ".ipynb" not in re.findall(r'href="(.*?)"', page)
    texts = re.findall(r'<img[^>]*?alt="(.*?)"', page)
    assert len(texts) == page.count("<img") and len(set(texts)) > 1
    assert all(text.startswith("Figure: ") and len(text) > 12 for text in texts), texts
    assert 'href="12_overhead.html"' in (tmp_path / "index.html").read_text()


def test_public_names_are_documented(tmp_path):
    document(["sp", "sp.rules"], tmp_path)
    page = (tmp_path / "sp.html").read_text()
    assert "Learns a stream of tasks without forgetting" in page and "retention" in page
    assert "eligibility_trace" in (tmp_path / "sp" / "rules.html").read_text()
