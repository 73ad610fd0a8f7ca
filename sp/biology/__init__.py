"""The biology: a watcher of networks, a counter of LTP and LTD, and the formulas behind the analogies.

`watcher` records what enters a layer and which errors come back, `counter` counts potentiation and depression while any
optimizer steps, and `textbook` has the formulas and small simulations that notebook 04 plots.
"""

from sp.biology.counter import Events, PlasticityCounter
from sp.biology.watcher import Activity, NMDACoincidence, Synapses

__all__ = ["Activity", "Events", "NMDACoincidence", "PlasticityCounter", "Synapses"]
