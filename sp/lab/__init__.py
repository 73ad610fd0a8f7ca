"""The bench: your own rule, network and data beside the methods of this package, in one fair comparison.

>>> runs = compare({"Adam": "adam", "Lion": lambda model, lr=1e-4: Lion(model.parameters(), lr=lr)},
...                Stream.split("digits", tasks=5), tune={"Lion": {"lr": [1e-4, 3e-4]}})  # doctest: +SKIP
>>> runs.table()  # doctest: +SKIP
"""

from sp.baselines import GradientLearner, Needs, masked
from sp.lab.comparing import compare
from sp.lab.methods import register
from sp.lab.runs import Runs
from sp.lab.streams import Stream

__all__ = ["GradientLearner", "Needs", "Runs", "Stream", "compare", "masked", "register"]
