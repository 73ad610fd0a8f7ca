"""Published recipes run in this harness: before it judges any method, it has to reproduce what others found.

``python notebooks/studies recipes`` runs them on MNIST, and writes the table ``mnist_recipes.csv`` from the ledger.
"""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from sp.checks import check_choice
from sp.lab.experiment import Experiment
from sp.lab.ledger import Ledger
from sp.lab.metrics import average_accuracy, bootstrap_interval
from sp.lab.sweep import Named, missing, run_all, with_seeds

# GMvandeVen/continual-learning: Split MNIST, 784-400-400, Adam at 1e-3, 2,000 batches of 128 a task (here 21 passes,
# about as many), strengths from its params/param_values.py; its SI penalty is c times the sum, ours strength / 2 times.
# Its pixels lie in [0, 1], ours are standardised; its ER weights new and stored examples 1 to t - 1 in task t and keeps
# 100 per class, ours weights both equally and keeps 1,000 in all, balanced over the classes. Its Fisher information is
# that of all images and all labels, ours that of 1,000 images with a label drawn for each.
_VAN_DE_VEN = Experiment(
    dataset="mnist", tasks=5, hidden=(400, 400), optimizer="adam", options={"lr": 1e-3}, epochs=21, batch_size=128
)
_STORED = {"replay_capacity": 1000, "replay_policy": "class_balanced", "replay_batch": 128}
# aimagelab/mammoth: Split MNIST, 784-100-100, SGD, batch 10, one pass, 200 stored examples, options from its
# utils/best_args.py. Its weights are initialised by Xavier's rule, ours by PyTorch's.
_BUZZEGA = Experiment(dataset="mnist", tasks=5, hidden=(100, 100), optimizer="sgd", batch_size=10)

# Published final mean accuracy over all tasks, and the recipe.
RECIPES: dict[str, tuple[float, Experiment]] = {}
for _scenario, _figures, _ewc, _si in (
    ("class", (0.20, 0.21, 0.21, 0.89), 1e9, 5e3),
    ("domain", (0.60, 0.63, 0.67, 0.94), 1e10, 5e4),
):
    _base = replace(_VAN_DE_VEN, scenario=_scenario)
    for _name, _figure, _change in zip(
        ("none", "EWC", "SI", "ER"),
        _figures,
        (
            {},
            {"optimizer": "ewc", "options": {"lr": 1e-3, "strength": _ewc}},
            {"optimizer": "si", "options": {"lr": 1e-3, "strength": 2 * _si}},
            _STORED,
        ),
        strict=True,
    ):
        RECIPES[f"van de Ven et al. 2022, {_scenario}-incremental, {_name}"] = (_figure, replace(_base, **_change))
for _name, _figure, _change in (
    ("SGD", 0.20, {"options": {"lr": 0.03}}),
    ("ER", 0.80, {"options": {"lr": 0.01}, "replay_capacity": 200, "replay_batch": 10}),
    (
        "DER++",
        0.86,
        {
            "optimizer": "derpp",
            "options": {"lr": 0.03, "alpha": 0.2, "beta": 1.0},
            "replay_capacity": 200,
            "replay_batch": 128,
        },
    ),
):
    RECIPES[f"Buzzega et al. 2020, class-incremental, {_name}"] = (_figure, replace(_BUZZEGA, **_change))


def runs(seeds: int = 5, names: Sequence[str] = tuple(RECIPES)) -> Named:
    """Every recipe with every seed."""
    for name in names:
        check_choice("names", name, RECIPES)
    return with_seeds({name: RECIPES[name][1] for name in names}, range(seeds))


def table(seeds: int = 5, ledger: Ledger | None = None) -> pd.DataFrame:
    """The recipes for which the ledger has all seeds, next to the published figures.

    Returns:
        One row per recipe: ``recipe``, ``published``, ``mean``, ``low``, ``high`` (95 % bootstrap interval) and ``n``
        of the average accuracy, and ``difference``, measured minus published.
    """
    rows = []
    for name, (published, _) in RECIPES.items():
        experiments = [experiment for _, experiment in runs(seeds, [name])]
        if not missing(experiments, ledger):
            measured = [average_accuracy(result.accuracy) for result in run_all(experiments, ledger)]
            interval = bootstrap_interval(measured)
            beside = {"recipe": name, "published": published, "difference": interval.estimate - published}
            rows.append({**beside, "mean": interval.estimate, "low": interval.low, "high": interval.high, "n": seeds})
    return pd.DataFrame(rows, columns=["recipe", "published", "mean", "low", "high", "n", "difference"])
