"""What the extra ``lab`` brings: all that notebooks, comparisons and commands need, and the optimizers do not."""

from importlib.util import find_spec

LAB = (  # modules
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


def check_lab(user: str) -> None:
    """Raise an ImportError that says what to install, unless all of it is there.

    Args:
        user: what needs it.
    """
    if missing := [module for module in LAB if find_spec(module) is None]:
        raise ImportError(
            f"{user} needs {', '.join(missing)}: install what is missing with  pip install 'selective-plasticity[lab]'"
        )
