"""Pages that need no kernel: the notebooks as they are committed, and the documentation of the package."""

import html
import importlib
import pkgutil
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter

import sp
from sp.figures.documents import title_of
from sp.files import write_atomically
from sp.notebooks import all_notebooks

NO_ALTERNATIVE = 'alt="No description has been provided for this image"'  # what nbconvert writes for a figure
TO_NOTEBOOK = re.compile(r"\]\((\d\d_\w+)\.ipynb\)")


def make_all() -> None:
    """All pages: the documentation and the notebooks."""
    document()
    make_pages()


def make_pages(notebooks: Sequence[Path] = (), target: Path = Path("build/html")) -> None:
    """Write notebooks as static pages, with the outputs and figures they are committed with, and an index of them."""
    exporter = HTMLExporter(embed_images=True, exclude_input_prompt=True, exclude_output_prompt=True)
    paths = list(notebooks) or all_notebooks()
    links = []
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            for output in cell.get("outputs", []):
                # What a panel looks like is in the figures below it; without a kernel there is no view of it.
                output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
            if cell.cell_type == "markdown":
                cell.source = TO_NOTEBOOK.sub(r"](\1.html)", cell.source)
        texts = _alternatives(notebook)
        page, _ = exporter.from_notebook_node(notebook, {"metadata": {"name": path.stem}})
        page = re.sub(NO_ALTERNATIVE, lambda _, texts=texts: f'alt="{html.escape(next(texts))}"', page)
        write_atomically(target / f"{path.stem}.html", page)
        links.append(f'<li><a href="{path.stem}.html">{html.escape(title_of(path))}</a></li>')
    head = "<!DOCTYPE html><meta charset='utf-8'><title>sp</title><h1>Notebooks</h1><ul>"
    index = head + "".join(links) + "</ul><p><a href='api/sp.html'>The package</a></p>"
    write_atomically(target / "index.html", index)
    print(f"{len(paths)} pages: open {target / 'index.html'}")


def _alternatives(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """For each figure of a notebook, what it is about: the heading that it stands under."""
    heading = ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = [heading, *re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE)][-1]
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                yield f"Figure: {heading}"


def document(modules: Sequence[str] = (), target: Path = Path("build/html/api")) -> None:
    """Write the documentation of modules of the package, by default of all, from their docstrings with pdoc.

    Raises:
        ImportError: pdoc, which comes with the extra ``test``, is missing.
    """
    import pdoc

    found = [module.name for module in pkgutil.walk_packages(sp.__path__, "sp.")]
    names = list(modules) or ["sp", *(name for name in found if not name.endswith("__main__"))]
    for name in names:
        importlib.import_module(name)
    for name in sp.__all__:  # pdoc looks for what is there, and they are imported when they are asked for
        setattr(sp, name, getattr(sp, name))
    pdoc.render.configure(docformat="google", math=True)
    pdoc.pdoc(*names, output_directory=target)
