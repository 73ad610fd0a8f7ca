"""The search over hyper-parameters (P24), and the published tuning advice (P21) put to the test (notebook 07)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import stats

import studies
from sp.lab import choices, metrics
from sp.lab.choices import Range
from sp.lab.experiment import Experiment
from sp.lab.sweep import Named, vary, with_seeds

# What is searched, for each optimizer: the published ranges, and a wide one for the learning rate.
SPACES: dict[str, dict[str, choices.Values]] = {
    "adam": {"option_lr": Range(1e-5, 1e-2, log=True)},
    "selective": {
        "option_lr": Range(1e-5, 1e-2, log=True),
        "option_plasticity_k": Range(1.0, 10.0),
        "option_trace_decay": Range(0.95, 0.999),
        "option_threshold_percentile": Range(25.0, 95.0),
        "option_warmup_steps": Range(10, 200, log=True),
    },
    "coincidence": {
        "option_lr": Range(0.01, 1.0, log=True),
        "option_retention": Range(20.0, 2000.0, log=True),
        "option_equalisation": Range(0.01, 1.0, log=True),
    },
}
NAMES = {
    "option_lr": "Learning rate",
    "option_plasticity_k": "k",
    "option_trace_decay": "β",
    "option_threshold_percentile": "Percentile",
    "option_warmup_steps": "Warm-up (steps)",
}


def searched(dataset: str) -> dict[str, Experiment]:
    """The methods of the search on the two-task stream (P19), before anything is varied."""
    base = studies.on_stream("split2_class", dataset)
    if dataset == "digits":
        base = replace(base, epochs=3)  # shorter than elsewhere, because there are many points
    capacity = studies.settings(dataset)["replay_capacity"]
    return {
        "Adam": replace(base, optimizer="adam"),
        "Adam + replay": replace(base, optimizer="adam", replay_capacity=capacity),
        "Selective plasticity": replace(base, optimizer="selective"),
        "Selective plasticity + replay": replace(base, optimizer="selective", replay_capacity=capacity),
        "Coincidence": replace(base, optimizer="coincidence"),
    }


def points(dataset: str, count: int) -> pd.DataFrame:
    """``count`` points for each method, a Latin hypercube in its space: ``method, point`` and a column per choice."""
    tables = [
        pd.DataFrame(choices.sample(SPACES[experiment.optimizer], count)).assign(method=method, point=range(count))
        for method, experiment in searched(dataset).items()
    ]
    return pd.concat(tables, ignore_index=True)


def search_runs(dataset: str, count: int, seeds: int) -> Named:
    """Every point of every method, on the first tuning seeds and held-out training images, named METHOD/POINT."""
    named = {}
    for method, experiment in searched(dataset).items():
        for number, point in enumerate(choices.sample(SPACES[experiment.optimizer], count)):
            named[f"{method}/{number}"] = replace(vary(experiment, point), evaluation="validation")
    return with_seeds(named, studies.TUNING_SEEDS[:seeds])


def outcomes(rows: pd.DataFrame, drawn: pd.DataFrame) -> pd.DataFrame:
    """Mean over seeds of each point's ``old`` and ``new``, together with its choices.

    Args:
        rows: `sp.lab.sweep.runs` of `search_runs`. drawn: from `points`.
    """
    means = rows.groupby("method", sort=False)[["old", "new"]].mean().reset_index()
    means[["method", "point"]] = means.method.str.split("/", expand=True)
    return drawn.merge(means.astype({"point": int}), on=["method", "point"])


def on_front(table: pd.DataFrame, values: Sequence[str] = ("old", "new")) -> np.ndarray:
    """Which rows are Pareto optimal: no other is at least as high in every value and higher in one; (n,) bool."""
    found = table[list(values)].to_numpy()
    beaten = (found[None] >= found[:, None]).all(2) & (found[None] > found[:, None]).any(2)
    return ~beaten.any(1)


def sensitivity(
    table: pd.DataFrame, parameters: Sequence[str], values: Sequence[str] = ("old", "new"), given: str = "option_lr"
) -> pd.DataFrame:
    """Rank correlation of each choice with each value over the points, and its 95 % bootstrap interval.

    For the choice ``given`` it is Spearman's. For the others it is partial: between what is left of both ranks after a
    linear regression on the rank of ``given``, which would otherwise drown them out.

    Returns:
        ``parameter, value, mean`` (the correlation, in [-1, 1]), ``low, high, n``, ``verdict``: "raises", "lowers" or
        "no effect found".
    """
    rows = []
    for parameter in parameters:
        for value in values:
            columns = [table[name].to_numpy(float) for name in (parameter, value, given)]

            def correlation(x, y, z, alone=parameter == given):
                x, y, z = (stats.rankdata(column) for column in (x, y, z))
                if not alone:
                    x, y = (column - np.polyval(np.polyfit(z, column, 1), z) for column in (x, y))
                return np.corrcoef(x, y)[0, 1]

            low, high = stats.bootstrap(
                columns,
                correlation,
                paired=True,
                vectorized=False,
                n_resamples=500,
                method="percentile",
                random_state=np.random.default_rng(0),
            ).confidence_interval
            verdict = "raises" if low > 0 else "lowers" if high < 0 else "no effect found"
            rows.append((parameter, value, correlation(*columns), low, high, len(table), verdict))
    return pd.DataFrame(rows, columns=["parameter", "value", "mean", "low", "high", "n", "verdict"])


@dataclass(frozen=True)
class Advice:
    """One sentence of the published tuning advice (P21), as a comparison.

    Attributes:
        trouble: what is wrong before the change. change: what the advice says to do.
        before, after: the experiment without and with the change.
        measure: the measure in `sp.lab.tables.table` that shows the trouble.
        better: +1 if the measure should rise, -1 if it should fall. price: a measure that might suffer.
    """

    trouble: str
    change: str
    before: Experiment
    after: Experiment
    measure: str
    better: int
    price: str


def advice(dataset: str) -> list[Advice]:
    """The sentences of P21, each in a setting where the trouble occurs."""
    warmup = studies.settings(dataset)["warmup_steps"]
    methods = {
        method: replace(experiment, curve_points=12)
        for method, experiment in studies.forgetting(dataset, warmup_steps=warmup).items()
    }
    alone, replay = methods["Selective plasticity"], methods["Selective plasticity + replay"]
    usual = alone.with_options(lr=1e-3)
    slow = vary(usual, {"option_lr": 1e-4, "option_plasticity_k": 10.0})
    fast = vary(usual, {"option_lr": 3e-2, "option_plasticity_k": 10.0, "option_warmup_steps": 0})

    def entry(trouble, change, before, choice, measure, better, price):
        return Advice(trouble, change, before, vary(before, choice), measure, better, price)

    partly = vary(usual, {"option_lr": 1e-4})
    forgotten, unlearnt = "old task forgotten", "new task not learnt"
    low_rate, failing = f"{forgotten}, at a rate of 0.0001", "training unstable, at a rate of 0.03"
    longer = {"option_warmup_steps": 4 * warmup}
    return [
        entry(forgotten, "k 5 → 10", usual, {"option_plasticity_k": 10.0}, "old", 1, "new"),
        entry(forgotten, "β 0.99 → 0.999", usual, {"option_trace_decay": 0.999}, "old", 1, "new"),
        entry(low_rate, "k 5 → 10", partly, {"option_plasticity_k": 10.0}, "old", 1, "new"),
        entry(low_rate, "β 0.99 → 0.999", partly, {"option_trace_decay": 0.999}, "old", 1, "new"),
        entry(f"{forgotten}, with replay", "k 5 → 10", replay, {"option_plasticity_k": 10.0}, "old", 1, "new"),
        entry(f"{forgotten}, with replay", "β 0.99 → 0.999", replay, {"option_trace_decay": 0.999}, "old", 1, "new"),
        entry(unlearnt, "k 10 → 2", slow, {"option_plasticity_k": 2.0}, "new", 1, "old"),
        entry(unlearnt, "lr 0.0001 → 0.001", slow, {"option_lr": 1e-3}, "new", 1, "old"),
        entry(failing, "warm-up 0 → 4 times", fast, longer, "instability", -1, "new"),
        entry(failing, "k 10 → 2", fast, {"option_plasticity_k": 2.0}, "instability", -1, "new"),
        entry(failing, "warm-up 0 → 4 times", fast, longer, "learning_accuracy", 1, "instability"),
        entry(failing, "k 10 → 2", fast, {"option_plasticity_k": 2.0}, "learning_accuracy", 1, "instability"),
    ]


def advice_runs(dataset: str, seeds: Sequence[int]) -> Named:
    """Every sentence's experiments before and after, named by their hashes; shared experiments occur only once."""
    both = [experiment for one in advice(dataset) for experiment in (one.before, one.after)]
    return with_seeds({experiment.key(): experiment for experiment in both}, seeds)


def verdict_of(one: Advice, rows: pd.DataFrame) -> dict:
    """Judge one sentence: the measure before, the paired change and its interval, the price, and whether it holds.

    Args:
        one: the sentence. rows: `sp.lab.sweep.runs` of `advice_runs`.

    Returns:
        ``trouble, change, measure, before, mean, low, high, n, price, verdict``. The verdict is "holds" if
        `sp.lab.metrics.paired_difference` finds the promised change, "the opposite" if it finds the opposite one, else
        that function's own verdict. ``price`` is what might suffer, and its mean change.
    """
    before, after = (rows[rows.method == experiment.key()].set_index("seed") for experiment in (one.before, one.after))
    mean, low, high, n, _, found = metrics.paired_difference(after[one.measure], before[one.measure])
    promised, other = ("higher", "lower") if one.better > 0 else ("lower", "higher")
    return {
        "trouble": one.trouble,
        "change": one.change,
        "measure": one.measure,
        "before": before[one.measure].mean(),
        **{"mean": mean, "low": low, "high": high, "n": n},
        "price": f"{one.price} {(after[one.price] - before[one.price]).mean():+.2f}",
        "verdict": {promised: "holds", other: "the opposite"}.get(found, found),
    }


def advice_verdicts(rows: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """`verdict_of` for every sentence, one row each."""
    return pd.DataFrame([verdict_of(one, rows) for one in advice(dataset)])


def recommended(dataset: str) -> pd.DataFrame:
    """The tuned settings of a data set, from the table of tuned values, each with the command that chose it."""
    table = pd.read_csv(studies.TUNED)
    table = table[(table.dataset == dataset) & table.study.isin(studies.STUDIES)]
    commands = [f"python notebooks/studies tune {study} {dataset}" for study in table.study]
    return table.drop(columns="dataset").assign(command=commands).reset_index(drop=True)
