"""How each free choice of the rules affects the accuracy: one at a time and in important pairs (notebook 06).

A method differs from its rule's base in one choice (two in a pair) and is compared with the base seed by seed. For the
published rule, the learning rate of every method, including the base, is tuned separately, since most choices also
change the size of a step. The consolidating rule is varied around its defaults, which are meant to work without tuning;
its learning rate is one of the choices.
"""

from dataclasses import replace

import pandas as pd

import studies
from sp.lab import metrics
from sp.lab.experiment import Experiment

Methods = dict[str, Experiment]

# Title of a stream, by rule and name.
STREAMS = {
    "published": {"replay": "2 split tasks, replay", "domain": "5 split, odd or even"},
    "coincidence": {"class": "5 split tasks", "permuted": "4 permuted tasks"},
    "consolidating": {"permuted": "4 permuted tasks"},
}

TWICE = "twice the data set's warm-up"

# Choice (and its value in the base) -> method -> options that replace the base's, or another optimizer.
PUBLISHED = {
    "k (5)": {"k = 0: no gate": {"plasticity_k": 0.0}, "k = 10": {"plasticity_k": 10.0}},
    "β (0.99)": {"β = 0.9": {"trace_decay": 0.9}, "β = 0.999": {"trace_decay": 0.999}},
    "percentile (75)": {
        "percentile = 25": {"threshold_percentile": 25},
        "percentile = 95": {"threshold_percentile": 95},
    },
    "warm-up": {"no warm-up": {"warmup_steps": 0}, "warm-up × 2": {"warmup_steps": TWICE}},
    "threshold (adaptive)": {"fixed threshold": {"adaptive_threshold": False}},
    "normalisation (percentile)": {"by maximum": {"normalisation": "max"}},
    "base (Adam)": {"SGD as base": {"base": "sgd"}},
    "floor of the gate (0)": {"gate_min = 0.1": {"gate_min": 0.1}},
    "momentum (0.9)": {"no momentum": {"momentum": 0.0}},
    "coincidence (none)": {"with coincidence": {"optimizer": "selective_coincidence"}},
    "pairs": {
        "k = 10, β = 0.999": {"plasticity_k": 10.0, "trace_decay": 0.999},
        "k = 20, by maximum": {"plasticity_k": 20.0, "normalisation": "max"},
        "SGD, no momentum": {"base": "sgd", "momentum": 0.0},
    },
}
COINCIDENCE = {
    "retention (200)": {"r = 20": {"retention": 20.0}, "r = 2000": {"retention": 2000.0}},
    "learning rate (0.1)": {"lr = 0.03": {"lr": 0.03}, "lr = 0.3": {"lr": 0.3}},
    "horizon (none)": {"horizon = 5,000": {"horizon": 5000.0}},
    "rank (all)": {"rank = 8": {"rank": 8}, "rank = 32": {"rank": 32}},
    "equalisation (0.12)": {"no equalisation": {"equalisation": 0.0}},
    "response bound (0.3)": {"no response bound": {"response_bound": None}},
    "absorber (1.25)": {"absorber = 1": {"absorber": 1.0}, "no absorber": {"absorber": 1e9}},
    "looks (one for 80 inputs)": {"a look every 20": {"refresh_every": 20}, "a look every 100": {"refresh_every": 100}},
}
CONSOLIDATING = {
    "threshold quantile (0.85)": {f"quantile = {q}": {"threshold_quantile": q} for q in (0.5, 0.95)},
    "warm-up (100)": {"warm-up = 10": {"warmup_steps": 10}},
    "learning rate (0.1)": {"lr = 0.03": {"lr": 0.03}, "lr = 0.3": {"lr": 0.3}},
    "absorber (1.25)": {"absorber = 1": {"absorber": 1.0}, "absorber = 3": {"absorber": 3.0}},
}
CHOICES = {"published": PUBLISHED, "coincidence": COINCIDENCE, "consolidating": CONSOLIDATING}
BASE = "base"


def stream(name: str, dataset: str) -> Experiment:
    """The experiment for a stream, shorter than in the other notebooks because so many are run."""
    short = dataset == "digits"
    if name == "permuted":
        experiment = replace(studies.on_stream("permuted10", dataset), tasks=4)
        return replace(experiment, **({"epochs": 1} if short else {"samples_per_task": 15_000}))
    known = {"replay": "split2_class", "domain": "split5_domain", "class": "split5_class"}
    experiment = studies.on_stream(known[name], dataset)
    capacity = studies.settings(dataset)["replay_capacity"] if name == "replay" else 0
    return replace(experiment, epochs=3 if short else experiment.epochs, replay_capacity=capacity)


def methods(rule: str, name: str, dataset: str, tuned: bool = True) -> Methods:
    """The base and every method of a rule on a stream.

    Args:
        rule: a name in `CHOICES`. name: one of its streams. dataset: a name in `sp.lab.settings.SETTINGS`.
        tuned: False returns the methods of the published rule without their tuned learning rates.
    """
    setting = studies.settings(dataset)
    base = replace(stream(name, dataset), optimizer="selective" if rule == "published" else rule)
    changes = {BASE: {}, **{method: change for group in CHOICES[rule].values() for method, change in group.items()}}
    steps = {"warmup_steps": setting["warmup_steps"]} if rule == "published" else {}
    found = {}
    for method, change in changes.items():
        options = {**steps, **change}
        if options.get("warmup_steps") == TWICE:
            options["warmup_steps"] = 2 * setting["warmup_steps"]
        if rule == "published" and tuned:
            options |= studies.tuned_options(study(name), dataset, method)
        optimizer = options.pop("optimizer", base.optimizer)
        found[method] = replace(base, optimizer=optimizer, options=options)
    return found


def study(name: str) -> str:
    """The name under which the table of tuned values stores the rates of the published rule's methods."""
    return f"ablation_{name}"


def trials(dataset: str) -> dict[str, list[studies.Trial]]:
    """By study: every variant of the published rule at seven rates, on the tuning seeds (digits) or only the first.

    On larger data sets, the held-out images distinguish rates with a single seed.
    """
    seeds = studies.TUNING_SEEDS if dataset == "digits" else studies.TUNING_SEEDS[:1]
    found: dict[str, list[studies.Trial]] = {}
    for name in STREAMS["published"]:
        for method, experiment in methods("published", name, dataset, tuned=False).items():
            base = "sgd" if dict(experiment.options).get("base") == "sgd" else "selective"
            grids = {experiment.optimizer: studies.GRIDS[base]}
            found.setdefault(study(name), []).extend(studies.trials({method: experiment}, grids, seeds))
    return found


def effects(rows: pd.DataFrame, margin: float) -> pd.DataFrame:
    """How each method changes the average accuracy, compared with the base at the same seed.

    Args:
        rows: ``method, seed, average_accuracy``. One method is named `BASE`.
        margin: a change in accuracy that would be worth having, > 0.

    Returns:
        One row per method: ``method``; ``mean, low, high, n`` of the paired difference and its 95 % bootstrap interval;
        ``size``, the mean difference in units of its standard deviation over seeds; and ``verdict``: "better" or
        "worse" if the interval excludes zero and the mean is at least ``margin`` away from it, "no matter" if the whole
        interval lies within ``margin`` of zero, else "open".
    """
    score = rows.pivot(index="seed", columns="method", values="average_accuracy")
    table = []
    for method in [method for method in dict.fromkeys(rows.method) if method != BASE]:
        mean, low, high, n, *_ = metrics.difference(rows, method, BASE)
        deviation = (score[method] - score[BASE]).std()
        verdict = "open"
        if max(abs(low), abs(high)) < margin:
            verdict = "no matter"
        elif (low > 0 or high < 0) and abs(mean) >= margin:
            verdict = "better" if mean > 0 else "worse"
        size = mean / deviation if deviation > 0 else float("nan")
        table.append(
            {"method": method, "mean": mean, "low": low, "high": high, "n": n, "size": size, "verdict": verdict}
        )
    return pd.DataFrame(table)


def side_by_side(panels: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """`effects` of several streams as text: one row per method, with difference, size and verdict for each stream."""
    tables = {}
    for title, table in panels.items():
        text = [metrics.interval_text(row.mean, row.low, row.high, "+.3f") for row in table.itertuples()]
        shown = pd.DataFrame(
            {
                "difference": text,
                "size": [f"{size:+.1f}" if size == size else "" for size in table["size"]],
                "verdict": table.verdict,
            }
        )
        tables[title] = shown.set_index(table.method)
    return pd.concat(tables, axis=1)
