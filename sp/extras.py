"""The extra ``lab``: packages that notebooks, comparisons and commands need but the optimizers do not."""

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
    """Raise an ImportError that says what to install if any of `LAB` is missing.

    Args:
        user: what needs them, as named in the message.
    """
    if missing := [module for module in LAB if find_spec(module) is None]:
        raise ImportError(
            f"{user} needs {', '.join(missing)}: install what is missing with  pip install 'selective-plasticity[lab]'"
        )
