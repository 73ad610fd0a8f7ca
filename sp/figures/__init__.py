"""The look of every figure, and the one way to save it from a notebook.

A figure is a kind of plot (a name in `PLOTS`), its options and one CSV. `draw` writes these three and draws from
what it has written. `redraw` draws again from them alone: ``python -m sp paper NAME``. Nothing here trains or needs
PyTorch.
"""

from sp.figures.inside import PICTURES
from sp.figures.kit import PLOTS
from sp.figures.place import begin, path_of
from sp.figures.record import draw, picture, redraw, save_table, stored
from sp.figures.style import FORMATS, JOURNALS, METHODS, WIDTHS, figure, look
from sp.figures.tables import latex_table

__all__ = [
    "FORMATS",
    "JOURNALS",
    "METHODS",
    "PICTURES",
    "PLOTS",
    "WIDTHS",
    "begin",
    "draw",
    "figure",
    "latex_table",
    "look",
    "path_of",
    "picture",
    "redraw",
    "save_table",
    "stored",
]
