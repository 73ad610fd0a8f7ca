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

from sp import files, metrics, studies
from sp.baselines import needs
from sp.experiment import Experiment, Moment, run
from sp.frames import results_frame
from sp.metrics import difference, interval_text
from sp.permuted import arms

RULE = "Selective plasticity"
NETWORKS = {"mlp": (100, 100), "convolutional": (4, 8, 32), "residual": (64,), "attention": (24,)}
BUFFERS = {
    "reservoir": {"replay_policy": "reservoir"},
    "first in, first out": {"replay_policy": "fifo", "replay_distinct": False},
}
BEHIND = 0.05  # of learning accuracy: how far behind Adam a drop-in may be (P18)
SLOWER = 0.032  # the published rise of the training time over Adam's (P16)
COLUMNS = ["promise", "claim", "measured", "verdict"]


def _rule(experiment: Experiment, **options) -> Experiment:
    warmup = {"warmup_steps": studies.settings(experiment.dataset)["warmup_steps"]}
    return replace(experiment, optimizer="selective", options={**warmup, "lr": 1e-3, **options})


def networks(dataset: str) -> dict[str, Experiment]:
    """Arms of P18, "RULE, NETWORK": the published rule and Adam at the same rate, one task, four kinds of network."""
    arms = {}
    for model, hidden in NETWORKS.items():
        base = studies.base(dataset, model=model, hidden=hidden, tasks=1, options={"lr": 1e-3})
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
    """Arms of P20: ten permutations, the rule and Adam, at the published rate and tuned; those of notebook 08."""
    every = arms(dataset)
    return {arm: every[arm] for arm in ("Adam", RULE, "Adam, tuned", f"{RULE}, tuned")}


def resets(moment: Moment) -> None:
    """Look of P22: the optimizer is told that a task is over, as the published documentation advises (P3)."""
    if moment.last:
        moment.learner.optimizer.reset_eligibility()


def told_of_boundaries(dataset: str, seeds: Iterable[int]) -> pd.DataFrame:
    """Runs of P22, with ``arm`` "told" or "not told" of boundaries; these are short and not stored."""
    experiment = _rule(studies.base(dataset, tasks=5, scenario="domain"))
    looks: dict[str, Callable | None] = {"told": resets, "not told": None}
    named = [(arm, look, replace(experiment, seed=seed)) for arm, look in looks.items() for seed in seeds]
    results = joblib.Parallel(n_jobs=min(len(named), os.cpu_count() or 1))(
        joblib.delayed(run)(one, look=look) for _, look, one in named
    )
    return results_frame(results).assign(arm=[arm for arm, *_ in named])


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


def cost_verdicts(costs: pd.DataFrame, bench: pd.DataFrame) -> list[tuple]:
    """P15, P16 and P17, from `sp.comparison.costs` and from the table of `sp.bench.bench`.

    P16 holds under a condition where it holds on some of the networks of the bench.
    """
    alone = costs[costs.capacity == 0].set_index("arm")
    kept = alone.kept[RULE]
    sizes = bench[(bench.part == "size") & (bench.optimizer == RULE)].sort_values("parameters")
    longer = sizes[["training_ratio", "training_ratio_low", "training_ratio_high"]] - 1
    shown = [
        f"{interval_text(*row, '+.0%')} ({parameters:,} parameters)"
        for parameters, row in zip(sizes.parameters, longer.to_numpy(), strict=True)
    ]
    slower = sizes.training_ratio_low > 1 + SLOWER
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
            f"training time {SLOWER:+.1%} over Adam",
            "; ".join(shown),
            "does not hold" if slower.all() else "holds under a condition" if slower.any() else "holds",
        ),
        (
            "P17",
            "importance from gradients alone",
            "no boundary, no second look, no second network" if quiet else "more is asked for",
            "holds" if quiet else "does not hold",
        ),
    ]


def network_verdict(rows: pd.DataFrame) -> tuple:
    """P18: the rule learns what Adam learns, to within `BEHIND`, on every network."""
    mean = rows.groupby("arm").learning_accuracy.mean()
    behind = {model: mean[f"Adam, {model}"] - mean[f"{RULE}, {model}"] for model in NETWORKS}
    worst = max(behind, key=behind.get)
    gap = difference(rows, f"Adam, {worst}", f"{RULE}, {worst}", "learning_accuracy")
    measured = (
        f"{len(behind)} networks; most behind Adam on {worst}: {interval_text(*gap[:3], '+.3f')}, {BEHIND} allowed"
    )
    fine = behind[worst] < BEHIND
    return "P18", "a drop-in for any PyTorch model", measured, "holds" if fine else "holds under a condition"


def replay_verdicts(rows: pd.DataFrame, alone: pd.DataFrame) -> list[tuple]:
    """P19: without replay nothing is kept; with it, is it the optimizer or the buffer?

    The rule's advantage over Adam counts where it is more than half of the published one.

    Args:
        rows: runs of `replay`. alone: runs of `two_tasks`.
    """
    kept = metrics.bootstrap_interval(alone[alone.arm == RULE].final_1)
    fair = metrics.bootstrap_interval(rows[rows.arm == f"{RULE}, reservoir"].final_1)
    gains = [difference(rows, f"{RULE}, {buffer}", f"Adam, {buffer}", "final_1") for buffer in BUFFERS]
    by_policy = [interval_text(*gain[:3], "+.2f") for gain in gains]
    by_buffer, by_rule = share_of_the_gap(rows)
    half = (0.8655 - 0.0282) / 2  # of the published gap
    large = [gain.estimate > half for gain in gains]
    return [
        (
            "P19",
            "alone, the rule keeps nothing of task A (published 0.00)",
            f"task A {kept}",
            "holds" if kept.high < 0.05 else "does not hold",
        ),
        (
            "P19",
            "with replay the rule keeps most of task A (published 0.87)",
            f"task A {fair} with a reservoir",
            "holds" if fair.low > 0.8 else "does not hold",
        ),
        (
            "P19",
            "with the same replay Adam keeps 0.03 of it",
            f"the rule less Adam: {by_policy[0]} (reservoir), {by_policy[1]} (first in, first out); "
            f"the buffer is worth {by_buffer:+.2f}, the rule {by_rule:+.2f}",
            "holds" if all(large) else "holds under a condition" if any(large) else "does not hold",
        ),
    ]


def permuted_verdict(rows: pd.DataFrame, title: str, ending: str = "") -> tuple:
    """P20, at one choice of rates: more accuracy and less forgetting than Adam, paired by seed.

    It holds where backward transfer is besides no worse than -0.15, and under a condition where it is.

    Args:
        rows: ``arm, seed, average_accuracy, backward_transfer`` of the rule and Adam on ten permutations.
        title: of the rates. ending: of the arms' names, such as ", tuned".
    """
    of = rows.groupby("arm")[["average_accuracy", "backward_transfer"]].mean()
    parts, won = [], []
    for metric in of:
        found = difference(rows, RULE + ending, f"Adam{ending}", metric)
        won.append(found.verdict == "higher")
        parts.append(f"{of[metric][RULE + ending]:.2f}, less Adam's {interval_text(*found[:3], '+.2f')}")
    little = of.backward_transfer[RULE + ending] > -0.15
    verdict = "does not hold" if not all(won) else "holds" if little else "holds under a condition"
    measured = f"{title}: accuracy {parts[0]}; backward transfer {parts[1]}"
    return "P20", "Permuted, 10 tasks: accuracy 0.76, backward transfer -0.07 (Adam -0.56)", measured, verdict


def advice_verdicts(dataset: str) -> list[tuple]:
    """P21, as notebook 07 judged it; FileNotFoundError where it did not on this data set."""
    judged = pd.read_csv(files.committed(f"07_hyperparameters_{dataset}_advice.csv"))
    rows = []
    for row in judged.itertuples():
        change = interval_text(row.mean, row.low, row.high, "+.3f")
        changed = f"{row.measure.replace('_', ' ')} {row.before:.2f}, {change}"
        rows.append(("P21", f"{row.trouble}: {row.change}", changed, row.verdict))
    return rows


def limit_verdicts(told: pd.DataFrame, rows: pd.DataFrame) -> list[tuple]:
    """P22: what the module admits. ``told``: `told_of_boundaries`; ``rows``: runs of `two_tasks`."""
    names = {"higher": "holds", "lower": "does not hold"}
    return [
        ("P22", claim, f"{setting} {interval_text(*found[:3], '+.3f')}", names.get(found.verdict, found.verdict))
        for claim, setting, found in (
            ("it helps to know task boundaries", "reset at each:", difference(told, "told", "not told")),
            ("it is best with replay", "with replay", difference(rows, f"{RULE} + replay", RULE)),
        )
    ]


def dendrite_verdicts(rows: pd.DataFrame) -> list[tuple]:
    """P23: the companion's table of two tasks, in sentences.

    Args:
        rows: of `sp.dendrite_study.runs`, part "two_tasks": ``arm, seed, old`` (task A at the end), ``new`` (task B).
    """
    lost = ["Adam", "Adam, dendrites", f"{RULE}, dendrites"]
    loop = "Adam, dendrites + replay, published loop"
    gains = {rule: difference(rows, f"{rule}, dendrites", rule, "new") for rule in ("Adam", RULE)}
    higher = [gain.verdict == "higher" for gain in gains.values()]
    changed = "; ".join(f"{rule} {interval_text(*gain[:3], '+.3f')}" for rule, gain in gains.items())
    kept = {arm: metrics.bootstrap_interval(rows[rows.arm == arm].old) for arm in (*lost, loop)}
    shown = {arm: f"{arm} {interval_text(*interval[:3], '.2f')}" for arm, interval in kept.items()}
    gone = [kept[arm].high < 0.05 for arm in lost]
    return [
        (
            "P23",
            "with dendrites as without, task A is lost: 0.00 (both together 0.0002)",
            "; ".join(shown[arm] for arm in lost),
            "holds" if all(gone) else "does not hold",
        ),
        (
            "P23",
            "dendrites add to task B: Adam 0.9813 to 0.9817, the rule 0.8840 to 0.8869",
            changed,
            "holds" if all(higher) else "holds under a condition" if any(higher) else "does not hold",
        ),
        (
            "P23",
            "with dendrites and the published loop of replay next to nothing of task A is kept (0.03)",
            shown[loop],
            "holds" if kept[loop].high < 0.1 else "does not hold",
        ),
    ]


def table(rows: Iterable[tuple]) -> pd.DataFrame:
    """Verdicts as a table: ``promise, claim, measured, verdict``."""
    return pd.DataFrame(list(rows), columns=COLUMNS)
