"""The biology: what watches a network, what counts LTP and LTD, and the formulas behind the analogies.

`watcher` sees what enters a layer and what comes back to it, `counter` counts potentiation and depression while any
optimizer steps, and `textbook` has the formulas and small simulations that notebook 04 draws.
"""

from sp.biology.counter import Events, PlasticityCounter
from sp.biology.watcher import Activity, NMDACoincidence, Synapses

__all__ = ["Activity", "Events", "NMDACoincidence", "PlasticityCounter", "Synapses"]
