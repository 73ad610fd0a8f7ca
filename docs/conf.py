"""How the site is built: ``make site``. Nothing on it is loaded from elsewhere, formulas included."""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package as it lies here, whatever is installed

from docutils import nodes  # noqa: E402

import sp  # noqa: E402

project = "sp"
author = "The sp authors"
copyright = "the sp authors, MIT licence"
version = release = sp.__version__

extensions = [
    "myst_nb",  # notebooks and Markdown
    "sphinx.ext.autodoc",
    "sphinx.ext.apidoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinxcontrib.bibtex",
    "sphinx-mathjax-offline",
]
root_doc = "docs/index"
# The folder of the project is the source, so that links between documents, notebooks and figures are those of the
# repository. Only these are pages.
include_patterns = ["docs/**", "notebooks/*.ipynb", "notebooks/README.md", "figures/README.md", "CHANGELOG.md"]
exclude_patterns = [".*", "build", "sp", "tests", "selective_plasticity", "notebooks/studies", "**.egg-info"]

nb_execution_mode = "off"  # notebooks are shown with the outputs that the tests compare
nb_ipywidgets_js = {}  # a panel needs a kernel; its pictures stand below it
myst_enable_extensions = ["dollarmath", "amsmath", "html_image"]
myst_heading_anchors = 3

apidoc_modules = [
    {
        "path": "../sp",
        "destination": "docs/reference",
        "separate_modules": True,
        "module_first": True,
        "exclude_patterns": ["**/__main__.py"],
    }
]
autodoc_default_options = {"ignore-module-all": True}  # each name stands where it is defined
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
napoleon_use_ivar = True
default_role = "code"  # docstrings name code in single backticks

bibtex_bibfiles = ["references.bib"]
bibtex_default_style = "unsrtalpha"
bibtex_reference_style = "author_year"

html_theme = "furo"
html_title = "sp"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = ["frames.js"]
html_extra_path = ["_extra"]  # the address of the site itself leads to its first page
html_copy_source = False
html_show_sourcelink = False

CITED = re.compile(r"\[((?:@\w+(?:; )?)+)\]")


def read(app, name, source):
    """What is written for the repository, as the site shows it."""
    text = source[0].replace("(../README.md)", "(index.md)")
    if name == root_doc:  # the README, seen from here, is the first page
        text = re.sub(r"\]\((?!http)", "](../", (ROOT / "README.md").read_text()) + text
    text = re.sub(r'<a href="[^"]*\.pdf">(<img[^>]*>)</a>', r"\1", text)
    # ``[@key; @key]``, which can be read in the repository as well, is a citation.
    source[0] = CITED.sub(lambda keys: "{cite:p}`" + keys[1].replace("@", "").replace("; ", ",") + "`", text)


def describe(app, doctree):
    """Give a figure of a notebook, which has no words of its own, the heading that it stands under."""
    for image in doctree.findall(nodes.image):
        section = image
        while section is not None and not isinstance(section, nodes.section):
            section = section.parent
        if not image.get("alt") and section is not None:
            image["alt"] = f"Figure: {section.next_node(nodes.title).astext()}"


def setup(app):
    app.connect("doctree-read", describe)
    app.connect("source-read", read)
