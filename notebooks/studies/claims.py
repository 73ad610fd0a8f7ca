"""Tests of the published claims (P15 to P23): what notebook 10 measures, and how a measurement becomes a verdict.

Verdicts follow fixed rules, not impressions: "holds" if an interval or a paired difference
(`sp.lab.metrics.paired_difference`) lies wholly on the claim's side of a bound, "does not hold" if it lies wholly on
the other side, else "open". A claim with several parts "holds under a condition" if some of them hold.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

import studies
from sp.lab import sweep, watch
from sp.lab.experiment import Experiment, Moment
from sp.lab.metrics import PairedDifference, bootstrap_interval, difference, interval_text
from sp.rivals import needs
from studies import search
from studies.permuted import methods as permuted_methods

RULE = "Selective plasticity"
PUBLISHED_RATE = f"{RULE}, lr 1e-3"
NETWORKS = {"mlp": (100, 100), "convolutional": (4, 8, 32), "residual": (64,), "transformer": (24,)}
BUFFERS = {
    "reservoir": {"replay_policy": "reservoir"},
    "first in, first out": {"replay_policy": "fifo", "replay_distinct": False},
}
BEHIND = 0.05  # how far a drop-in's learning accuracy may be behind Adam's (P18)
SLOWER = 0.032  # the published increase in training time over Adam (P16)
NEAR = 0.02  # how far below a published accuracy or transfer still counts as reaching it (P20)
UNDECIDED = ("no difference found", "too few seeds to tell")
COLUMNS = ["promise", "claim", "measured", "verdict"]


def judged(interval: Sequence[float], bound: float, below: bool = False) -> str:
    """Whether an interval, (estimate, low, high), is above a bound, or below it: "holds", "does not hold" or "open"."""
    _, low, high, *_ = interval
    above, under = low > bound, high < bound
    if not (above or under):
        return "open"
    return "holds" if under == below else "does not hold"


def of_difference(found: PairedDifference) -> str:
    """The verdict on the claim that the first of two methods is higher."""
    return {"higher": "holds", "lower": "does not hold"}.get(found.verdict, "open")


def together(parts: Sequence[str]) -> str:
    """The verdict on a claim with several parts, from the verdicts on its parts."""
    if len(set(parts)) == 1:
        return parts[0]
    return "holds under a condition" if "holds" in parts else "does not hold"


def _rule(experiment: Experiment, **options) -> Experiment:
    warmup = {"warmup_steps": studies.settings(experiment.dataset)["warmup_steps"]}
    return replace(experiment, optimizer="selective", options={**warmup, "lr": 1e-3, **options})


def networks(dataset: str) -> dict[str, Experiment]:
    """Methods of P18, named "RULE, NETWORK": the published rule and Adam at one rate, on one task, in four networks."""
    methods = {}
    for model, hidden in NETWORKS.items():
        base = studies.base(dataset, model=model, hidden=hidden, tasks=1, options={"lr": 1e-3})
        methods |= {f"Adam, {model}": base, f"{RULE}, {model}": _rule(base)}
    return methods


def two_tasks(dataset: str) -> dict[str, Experiment]:
    """The methods of notebook 01, tested only at the end of each task, plus the rule at the published rate."""
    methods = {
        method: replace(experiment, curve_points=0) for method, experiment in studies.forgetting(dataset).items()
    }
    return {**methods, PUBLISHED_RATE: _rule(methods[RULE])}


def replay(dataset: str) -> dict[str, Experiment]:
    """Methods of P19, "OPTIMIZER, BUFFER": the published loop, which re-adds replayed examples, with both buffers."""
    methods = two_tasks(dataset)
    return {
        f"{optimizer}, {name}": replace(methods[f"{optimizer} + replay"], replay_adds="whole", **buffer)
        for optimizer in ("SGD", "Adam", RULE)
        for name, buffer in BUFFERS.items()
    }


def permuted(dataset: str) -> dict[str, Experiment]:
    """Methods of P20, as in notebook 08: the rule and Adam on ten permutations, at the published rate and tuned."""
    every = permuted_methods(dataset)
    return {method: every[method] for method in ("Adam", RULE, "Adam, tuned", f"{RULE}, tuned")}


def resets(moment: Moment) -> None:
    """Look of P22: tell the optimizer that a task is over, as the published documentation advises (P3)."""
    if moment.last:
        moment.learner.optimizer.reset_eligibility()


def told_of_boundaries(dataset: str, seeds: Iterable[int]) -> pd.DataFrame:
    """Runs of P22; ``method`` says whether the rule was "told" or "not told" about task boundaries."""
    experiment = _rule(studies.base(dataset, tasks=5, scenario="domain"))
    told = watch.runs_with(resets, sweep.with_seeds({"told": experiment}, seeds))
    return pd.concat([told, sweep.paired_runs({"not told": experiment}, seeds)], ignore_index=True)


def share_of_the_gap(rows: pd.DataFrame) -> tuple[float, float]:
    """How much of P19's replay result on task A is due to the buffer, and how much to the optimizer.

    Returns:
        Mean gain in task A's accuracy of the reservoir over first in, first out (optimizer fixed), and of the rule over
        Adam (buffer fixed). Each is averaged over the two values of what is fixed.
    """
    mean = rows.groupby("method").final_1.mean()
    by_buffer = [mean[f"{rule}, reservoir"] - mean[f"{rule}, first in, first out"] for rule in ("Adam", RULE)]
    by_rule = [mean[f"{RULE}, {buffer}"] - mean[f"Adam, {buffer}"] for buffer in BUFFERS]
    return float(np.mean(by_buffer)), float(np.mean(by_rule))


def cost_verdicts(costs: pd.DataFrame, bench: pd.DataFrame) -> list[tuple]:
    """P15, P16 and P17, from `studies.comparison.costs` and the table of `studies.bench.bench`.

    P16 has one part per network of the bench.
    """
    alone = costs[costs.capacity == 0].set_index("method")
    kept = alone.kept[RULE]
    sizes = bench[(bench.part == "size") & (bench.optimizer == RULE)].sort_values("parameters")
    longer = sizes[["training_ratio", "training_ratio_low", "training_ratio_high"]] - 1
    shown = [
        f"{interval_text(*row, '+.0%')} ({parameters:,} parameters)"
        for parameters, row in zip(sizes.parameters, longer.to_numpy(), strict=True)
    ]
    slower = [judged(row, SLOWER, below=True) for row in longer.to_numpy()]
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
            together(slower),
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
    behind = {model: difference(rows, f"Adam, {model}", f"{RULE}, {model}", "learning_accuracy") for model in NETWORKS}
    worst = max(behind, key=lambda model: behind[model][0])
    gap = interval_text(*behind[worst][:3], "+.3f")
    measured = f"{len(behind)} networks; most behind Adam on {worst}: {gap}, {BEHIND} allowed"
    verdict = together([judged(one, BEHIND, below=True) for one in behind.values()])
    return "P18", "a drop-in for any PyTorch model", measured, verdict


def replay_verdicts(rows: pd.DataFrame, alone: pd.DataFrame) -> list[tuple]:
    """P19: nothing is kept without replay; with it, does the optimizer or the buffer make the difference?

    The rule's advantage over Adam counts if it is more than half of the published one.

    Args:
        rows: runs of `replay`. alone: runs of `two_tasks`.
    """
    kept = bootstrap_interval(alone[alone.method == PUBLISHED_RATE].final_1)
    fair = bootstrap_interval(rows[rows.method == f"{RULE}, reservoir"].final_1)
    gains = [difference(rows, f"{RULE}, {buffer}", f"Adam, {buffer}", "final_1") for buffer in BUFFERS]
    by_policy = [interval_text(*gain[:3], "+.2f") for gain in gains]
    by_buffer, by_rule = share_of_the_gap(rows)
    published = studies.PUBLISHED.set_index("method").final_1
    half = (published[f"{RULE} + replay"] - published["Adam + replay"]) / 2
    return [
        (
            "P19",
            "alone, the rule keeps nothing of task A (published 0.00)",
            f"task A {kept} at the published rate",
            judged(kept, 0.05, below=True),
        ),
        (
            "P19",
            "with replay the rule keeps most of task A (published 0.87)",
            f"task A {fair} with a reservoir",
            judged(fair, 0.8),
        ),
        (
            "P19",
            "with the same replay Adam keeps 0.03 of it",
            f"the rule less Adam: {by_policy[0]} (reservoir), {by_policy[1]} (first in, first out); "
            f"the buffer is worth {by_buffer:+.2f}, the rule {by_rule:+.2f}",
            together([judged(gain, half) for gain in gains]),
        ),
    ]


def permuted_verdicts(rows: pd.DataFrame, title: str, ending: str = "") -> list[tuple]:
    """P20 at one choice of rates: the published figures, and higher accuracy and less forgetting than Adam.

    Args:
        rows: ``method, seed, average_accuracy, backward_transfer`` of the rule and Adam on ten permutations.
        title: a title for the rates. ending: how the methods' names end, such as ", tuned".
    """
    published = {"average_accuracy": 0.76, "backward_transfer": -0.07}
    own = {metric: bootstrap_interval(rows[rows.method == RULE + ending][metric]) for metric in published}
    gains = {metric: difference(rows, RULE + ending, f"Adam{ending}", metric) for metric in published}
    reached = [judged(own[metric], value - NEAR) for metric, value in published.items()]
    texts = {metric: interval_text(*own[metric][:3], ".2f") for metric in published}
    against = {metric: interval_text(*gains[metric][:3], "+.2f") for metric in published}
    return [
        (
            "P20",
            "ten permutations: accuracy 0.76, backward transfer -0.07",
            f"{title}: accuracy {texts['average_accuracy']}; backward transfer {texts['backward_transfer']}",
            together(reached),
        ),
        (
            "P20",
            "more accuracy and less forgetting than Adam (whose transfer is -0.56)",
            f"{title}: accuracy {against['average_accuracy']}; backward transfer {against['backward_transfer']}",
            together([of_difference(gain) for gain in gains.values()]),
        ),
    ]


def advice_verdicts(dataset: str) -> list[tuple]:
    """P21, as notebook 07 judges it ("no difference found" is "open" here)."""
    advice = search.advice_verdicts(sweep.runs(search.advice_runs(dataset, range(6)), carried=True), dataset)
    rows = []
    for row in advice.itertuples():
        change = interval_text(row.mean, row.low, row.high, "+.3f")
        changed = f"{dataset}: {row.measure.replace('_', ' ')} {row.before:.2f}, {change}"
        verdict = "open" if row.verdict in UNDECIDED else row.verdict
        rows.append(("P21", f"{row.trouble}: {row.change}", changed, verdict))
    return rows


def limit_verdicts(told: pd.DataFrame, rows: pd.DataFrame) -> list[tuple]:
    """P22: the limits that the module admits. ``told``: `told_of_boundaries`; ``rows``: runs of `two_tasks`."""
    return [
        ("P22", claim, f"{setting} {interval_text(*found[:3], '+.3f')}", of_difference(found))
        for claim, setting, found in (
            ("it helps to know task boundaries", "reset at each:", difference(told, "told", "not told")),
            ("it is best with replay", "with replay", difference(rows, f"{RULE} + replay", RULE)),
        )
    ]


def dendrite_verdicts(rows: pd.DataFrame, title: str) -> list[tuple]:
    """P23: the companion's table of two tasks, in sentences.

    Args:
        rows: from `studies.dendrite_study.runs`, part "two_tasks": ``method, seed``, ``old`` (task A at the end) and
            ``new`` (task B).
        title: a title for the data.
    """
    lost = ["Adam", "Adam, dendrites", f"{RULE}, dendrites"]
    loop = "Adam, dendrites + replay, published loop"
    gains = {rule: difference(rows, f"{rule}, dendrites", rule, "new") for rule in ("Adam", RULE)}
    changed = "; ".join(f"{rule} {interval_text(*gain[:3], '+.3f')}" for rule, gain in gains.items())
    kept = {method: bootstrap_interval(rows[rows.method == method].old) for method in (*lost, loop)}
    shown = {method: f"{method} {interval_text(*interval[:3], '.2f')}" for method, interval in kept.items()}
    gone = [judged(kept[method], 0.05, below=True) for method in lost]
    return [
        (
            "P23",
            "with dendrites as without, task A is lost: 0.00 (both together 0.0002)",
            f"{title}: " + "; ".join(shown[method] for method in lost),
            together(gone),
        ),
        (
            "P23",
            "dendrites add to task B: Adam 0.9813 to 0.9817, the rule 0.8840 to 0.8869",
            f"{title}: {changed}",
            together([of_difference(gain) for gain in gains.values()]),
        ),
        (
            "P23",
            "with dendrites and the published loop of replay next to nothing of task A is kept (0.03)",
            f"{title}: {shown[loop]}",
            judged(kept[loop], 0.1, below=True),
        ),
    ]


def table(rows: Iterable[tuple]) -> pd.DataFrame:
    """Verdicts as a table: ``promise, claim, measured, verdict``."""
    return pd.DataFrame(list(rows), columns=COLUMNS)
