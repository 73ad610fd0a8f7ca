"""The plots: each a function of one tidy table and JSON options, under its name in `PLOTS`.

A plot is called as ``plot(canvas, table, **options)``. ``canvas(height, **subplots)`` gives it a figure, or a part of a
larger one, and axes in it, as `sp.figures.figure` does. Where a plot draws intervals they are `sp.lab.metrics`'s.
"""

from sp.plots import comparing, inside
from sp.plots.comparing import FILLS
from sp.plots.inside import GatePicture
from sp.plots.kit import PLOTS

__all__ = ["FILLS", "PLOTS", "GatePicture", "comparing", "inside"]
