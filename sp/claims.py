"""The published claims (P15 to P23) on trial: what notebook 10 measures, and how a measurement becomes a verdict.

A verdict is a rule written here, not an impression: "holds", "holds under a condition" or "does not hold". Where an
interval includes no difference, nothing is claimed either way.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace

import joblib
import numpy as np
import pandas as pd

from sp import metrics, studies
from sp.baselines import needs
from sp.experiment import Experiment, Moment, results_frame, run
from sp.metrics import PairedDifference

RULE = "Selective plasticity"
# Option of the published rule -> values from weaker to stronger; the default is the middle one.
ADVICE = {"plasticity_k": (1.0, 5.0, 10.0), "trace_decay": (0.95, 0.99, 0.999), "lr": (3e-4, 1e-3, 3e-3)}
NETWORKS = {"mlp": (100, 100), "convolutional": (4, 8, 32), "residual": (64,), "attention": (24,)}
BUFFERS = {
    "reservoir": {"replay_policy": "reservoir"},
    "first in, first out": {"replay_policy": "fifo", "replay_distinct": False},
}
SLOWER = 0.032  # the published rise of the training time over Adam's (P16)
COLUMNS = ["promise", "claim", "measured", "verdict"]


def _base(dataset: str, **choices) -> Experiment:
    chosen = studies.settings(dataset)
    return Experiment(
        dataset=dataset,
        **{"hidden": chosen["hidden"], "batch_size": chosen["batch_size"], "epochs": chosen["epochs"], **choices},
    )


def _rule(experiment: Experiment, **options) -> Experiment:
    warmup = {"warmup_steps": studies.settings(experiment.dataset)["warmup_steps"]}
    return replace(experiment, optimizer="selective", options={**warmup, "lr": 1e-3, **options})


def networks(dataset: str) -> dict[str, Experiment]:
    """Arms of P18, "RULE, NETWORK": the published rule and Adam at the same rate, one task, four kinds of network."""
    arms = {}
    for model, hidden in NETWORKS.items():
        base = _base(dataset, model=model, hidden=hidden, tasks=1, options={"lr": 1e-3})
        arms |= {f"Adam, {model}": base, f"{RULE}, {model}": _rule(base)}
    return arms


def two_tasks(dataset: str) -> dict[str, Experiment]:
    """The arms of notebook 01, tested at the end of each task only."""
    return {arm: replace(experiment, curve_points=0) for arm, experiment in studies.forgetting(dataset).items()}


def replay(dataset: str) -> dict[str, Experiment]:
    """Arms of P19, "OPTIMIZER, BUFFER": the published loop, which puts replayed examples back, with both buffers."""
    arms = two_tasks(dataset)
    return {
        f"{optimizer}, {name}": replace(arms[f"{optimizer} + replay"], replay_adds="whole", **buffer)
        for optimizer in ("SGD", "Adam", RULE)
        for name, buffer in BUFFERS.items()
    }


def permuted(dataset: str) -> dict[str, Experiment]:
    """Arms of P20 at the published rate: ten permutations, the rule and Adam at 1e-3."""
    tasks = {"stream": "permuted", "tasks": 10, "scenario": "domain", "options": {"lr": 1e-3}}
    base = _base(dataset, **tasks, samples_per_task=None if dataset == "digits" else 12_000)
    return {"Adam": base, RULE: _rule(base)}


def advice(dataset: str) -> dict[str, Experiment]:
    """Arms of P21, "OPTION = VALUE": one option moved at a time, five tasks, labels shared (domain-incremental)."""
    base = _base(dataset, tasks=5, scenario="domain")
    return {
        f"{option} = {value:g}": _rule(base, **{option: value}) for option, values in ADVICE.items() for value in values
    }


def resets(moment: Moment) -> None:
    """Look of P22: the optimizer is told that a task is over, as the published documentation advises (P3)."""
    if moment.last:
        moment.learner.optimizer.reset_eligibility()


def told_of_boundaries(dataset: str, seeds: Iterable[int]) -> pd.DataFrame:
    """Runs of P22, with ``arm`` "told" or "not told" of boundaries; these are short and not stored."""
    experiment = _rule(_base(dataset, tasks=5, scenario="domain"))
    looks: dict[str, Callable | None] = {"told": resets, "not told": None}
    named = [(arm, look, replace(experiment, seed=seed)) for arm, look in looks.items() for seed in seeds]
    results = joblib.Parallel(n_jobs=min(len(named), os.cpu_count() or 1))(
        joblib.delayed(run)(one, look=look) for _, look, one in named
    )
    return results_frame(results).assign(arm=[arm for arm, *_ in named])


def difference(rows: pd.DataFrame, first: str, second: str, value: str = "average_accuracy") -> PairedDifference:
    """Paired by seed: what the arm ``first`` has more of ``value`` than the arm ``second``."""
    wide = rows.pivot(index="seed", columns="arm", values=value)
    return metrics.paired_difference(wide[first], wide[second])


def share_of_the_gap(rows: pd.DataFrame) -> tuple[float, float]:
    """Of P19's replay headline: what the buffer and what the optimizer do for task A.

    Returns:
        Mean gain of task A's accuracy by the reservoir over first in, first out (optimizer held), and by the rule over
        Adam (buffer held), each averaged over the two values of what is held.
    """
    mean = rows.groupby("arm").final_1.mean()
    by_buffer = [mean[f"{rule}, reservoir"] - mean[f"{rule}, first in, first out"] for rule in ("Adam", RULE)]
    by_rule = [mean[f"{RULE}, {buffer}"] - mean[f"Adam, {buffer}"] for buffer in BUFFERS]
    return float(np.mean(by_buffer)), float(np.mean(by_rule))


def cost_verdicts(costs: pd.DataFrame) -> list[tuple]:
    """P15, P16 and P17, from `sp.comparison.costs`."""
    alone = costs[costs.capacity == 0].set_index("arm")
    kept, ratio = alone.kept[RULE], alone.step_ratio[RULE]
    told = needs("selective")
    quiet = not (told.boundaries or told.again or told.second_network)
    return [
        (
            "P15",
            "no more state than Adam",
            f"{kept:.1f} numbers a weight, Adam {alone.kept['Adam']:.1f}",
            "holds" if kept <= alone.kept["Adam"] + 0.05 else "does not hold",
        ),
        (
            "P16",
            f"training time +{SLOWER:.1%} over Adam",
            f"{ratio - 1:+.0%}, uncompiled, one thread",
            "holds" if ratio <= 1 + SLOWER else "does not hold",
        ),
        (
            "P17",
            "importance from gradients alone",
            "no boundary, no second look, no second network" if quiet else "more is asked for",
            "holds" if quiet else "does not hold",
        ),
    ]


def network_verdict(rows: pd.DataFrame) -> tuple:
    """P18: the rule learns what Adam learns, to within 0.05, on every network."""
    mean = rows.groupby("arm").learning_accuracy.mean()
    behind = {model: mean[f"Adam, {model}"] - mean[f"{RULE}, {model}"] for model in NETWORKS}
    worst = max(behind, key=behind.get)
    fine = behind[worst] < 0.05
    measured = f"{len(behind)} networks, at most {behind[worst]:.2f} behind Adam ({worst})"
    return "P18", "a drop-in for any PyTorch model", measured, "holds" if fine else "holds under a condition"


def replay_verdicts(rows: pd.DataFrame, alone: pd.DataFrame) -> list[tuple]:
    """P19: without replay nothing is kept; with it, is it the optimizer or the buffer?

    The rule's advantage over Adam counts where it is more than half of the published one.

    Args:
        rows: runs of `replay`. alone: runs of `two_tasks`.
    """
    kept = metrics.bootstrap_interval(alone[alone.arm == RULE].final_1)
    fair = metrics.bootstrap_interval(rows[rows.arm == f"{RULE}, reservoir"].final_1)
    gains = [difference(rows, f"{RULE}, {buffer}", f"Adam, {buffer}", "final_1").estimate for buffer in BUFFERS]
    by_buffer, by_rule = share_of_the_gap(rows)
    half = (0.8655 - 0.0282) / 2  # of the published gap
    large = [gain > half for gain in gains]
    return [
        (
            "P19",
            "alone, the rule keeps nothing of task A (published 0.00)",
            f"task A {kept.estimate:.2f}",
            "holds" if kept.high < 0.05 else "does not hold",
        ),
        (
            "P19",
            "with replay the rule keeps most of task A (published 0.87)",
            f"task A {fair.estimate:.2f} with a reservoir",
            "holds" if fair.low > 0.8 else "does not hold",
        ),
        (
            "P19",
            "with the same replay Adam keeps 0.03 of it",
            f"the rule less Adam: {gains[0]:+.2f} (reservoir), {gains[1]:+.2f} (first in, first out); "
            f"the buffer is worth {by_buffer:+.2f}, the rule {by_rule:+.2f}",
            "holds" if all(large) else "holds under a condition" if any(large) else "does not hold",
        ),
    ]


def permuted_verdict(intervals: pd.DataFrame, title: str) -> tuple:
    """P20, at one choice of rates: more accuracy and less forgetting than Adam, by intervals that do not overlap.

    It holds where backward transfer is besides no worse than -0.15, and under a condition where it is.

    Args:
        intervals: ``arm, metric, mean, low, high`` of the rule and Adam on ten permutations. title: of the rates.
    """
    of = intervals.set_index(["metric", "arm"])
    parts, won = [], []
    for metric in ("average_accuracy", "backward_transfer"):
        rule, adam = of.loc[metric, RULE], of.loc[metric, "Adam"]
        won.append(rule.low > adam.high)
        parts.append(f"{rule['mean']:.2f} (Adam {adam['mean']:.2f})")
    little = of.loc["backward_transfer", RULE]["mean"] > -0.15
    verdict = "does not hold" if not all(won) else "holds" if little else "holds under a condition"
    measured = f"{title}: accuracy {parts[0]}, backward transfer {parts[1]}"
    return "P20", "Permuted, 10 tasks: accuracy 0.76, backward transfer -0.07 (Adam -0.56)", measured, verdict


def advice_verdicts(rows: pd.DataFrame) -> list[tuple]:
    """P21: does the old task gain by more k or decay, the new one by less k or more lr?"""
    last = rows.assign(new=rows[[f"learned_{task}" for task in range(2, 6)]].mean(axis=1))
    table = []
    for option, stronger, value, text in (
        ("plasticity_k", True, "final_1", "raise k when the old task is forgotten"),
        ("trace_decay", True, "final_1", "raise the decay when the old task is forgotten"),
        ("plasticity_k", False, "new", "lower k when the new task is not learnt"),
        ("lr", True, "new", "raise lr when the new task is not learnt"),
    ):
        low, _, high = (f"{option} = {number:g}" for number in ADVICE[option])
        found = difference(last, *((high, low) if stronger else (low, high)), value)
        names = {"higher": "holds", "lower": "does not hold"}
        verdict = names.get(found.verdict, "no difference found")
        task = "old" if value == "final_1" else "new"
        table.append(("P21", text, f"accuracy on the {task} task {found.estimate:+.3f}", verdict))
    return table


def limit_verdicts(told: pd.DataFrame, rows: pd.DataFrame) -> list[tuple]:
    """P22: what the module admits. ``told``: `told_of_boundaries`; ``rows``: runs of `two_tasks`."""
    boundary = difference(told, "told", "not told")
    replayed = difference(rows, f"{RULE} + replay", RULE)
    names = {"higher": "holds", "lower": "does not hold"}
    return [
        (
            "P22",
            "it helps to know task boundaries",
            f"reset at each: {boundary.estimate:+.3f}",
            names.get(boundary.verdict, "no difference found"),
        ),
        (
            "P22",
            "it is best with replay",
            f"with replay {replayed.estimate:+.2f}",
            names.get(replayed.verdict, "no difference found"),
        ),
    ]


def table(rows: Iterable[tuple]) -> pd.DataFrame:
    """Verdicts as a table: ``promise, claim, measured, verdict``."""
    return pd.DataFrame(list(rows), columns=COLUMNS)
