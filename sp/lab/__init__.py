"""The bench: your own rule, network and data against the methods of this package, in one fair comparison.

>>> runs = compare({"Adam": "adam", "Lion": lambda model, lr=1e-4: Lion(model.parameters(), lr=lr)},
...                Stream.split("digits", tasks=5), tune={"Lion": {"lr": [1e-4, 3e-4]}})  # doctest: +SKIP
>>> runs.table()  # doctest: +SKIP
"""

from importlib import import_module
from importlib.util import find_spec

LAB = (  # what notebooks, comparisons and commands need but the optimizers do not
    "IPython",
    "cloudpickle",
    "ipywidgets",
    "joblib",
    "jupyterlab",
    "matplotlib",
    "numpy",
    "pandas",
    "papermill",
    "pooch",
    "scipy",
    "seaborn",
    "sklearn",
    "tqdm",
)
if missing := [module for module in LAB if find_spec(module) is None]:
    raise ImportError(
        f"sp.lab needs {', '.join(missing)}: install what is missing with  pip install 'selective-plasticity[lab]'"
    )

# Imported on first access, so that code that needs only the metrics does not wait for PyTorch.
_HOME = {
    "GradientLearner": "sp.rivals",
    "Needs": "sp.rivals",
    "Runs": "sp.lab.runs",
    "Stream": "sp.lab.streams",
    "compare": "sp.lab.comparing",
    "masked": "sp.rivals",
    "register": "sp.lab.methods",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
