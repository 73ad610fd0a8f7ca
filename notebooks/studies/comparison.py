"""Comparison with the field: every method on every scenario, tuned with the same effort (notebooks 09 and 11).

``python notebooks/studies comparison --dataset DATASET`` says how long it will take, tunes what is not yet tuned and
runs the reported seeds. Earlier runs are read from the ledger. ``python notebooks/studies costs`` measures what a step
costs.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

import studies
from sp import figures, files
from sp.checks import check_choice
from sp.figures.tables import cost_columns
from sp.lab import metrics
from sp.lab.data import load
from sp.lab.experiment import RULES_VERSION, Experiment, Moment, run
from sp.lab.ledger import Ledger, opened
from sp.lab.networks import mlp_size
from sp.lab.settings import STREAMS
from sp.lab.sweep import runs, with_seeds
from sp.optim.fast import Blocks
from sp.rivals import TITLES, needs, rehearses

# Streams by name: those of the retention studies, and more. Long ones use a fifth of MNIST's images for each task.
_LONG = {"scenario": "domain", "samples_per_task": 12_000}
SCENARIOS = {
    "split5_class": STREAMS["split5_class"],
    "split5_domain": STREAMS["split5_domain"],
    "permuted10": {"stream": "permuted", "tasks": 10, **_LONG},
    "split2_class": STREAMS["split2_class"],
    "split5_task": {"tasks": 5, "scenario": "task"},
    "rotated5": {"stream": "rotated", "tasks": 5, **_LONG},
    "split2_domain": {"tasks": 2, "scenario": "domain"},
    "split2_task": {"tasks": 2, "scenario": "task"},
}
# These are tuned on two seeds and the rest on one, to save time: the most compared streams, and one where a single seed
# chose rates that broke down on others. On digits, which take less time, each is tuned on one seed more.
TUNED_TWICE = ("split5_class", "split5_domain", "split2_class", "split5_task")
WIDE = "Ridge with equal memory"  # as coincidence keeps
COLOURED = (  # in figures; the others are grey
    "Joint training",
    WIDE,
    "Ridge",
    "NCL",
    "OWM",
    "Online OWM",
    "GPM",
    "DER++",
    "EWC",
    "Adam",
    "Selective plasticity",
    "Consolidation",
    "Coincidence",
)
# Sizes of the replay buffer: on digits the same share of the images as 200 and 2,000 of MNIST's.
CAPACITIES = {"digits": (50, 200), "mnist": (200, 2000), "fashion_mnist": (200, 2000)}
# What is measured on each data set.
MEASURED = {
    "digits": tuple(SCENARIOS),
    "mnist": tuple(SCENARIOS),
    "fashion_mnist": ("split5_class", "split5_domain", "permuted10"),
}
# Data set -> the one it is tuned on. Fashion-MNIST uses MNIST's settings, to see how far they carry over.
TUNED_ON = {"digits": "digits", "mnist": "mnist", "fashion_mnist": "mnist"}


def _titled(*methods: str) -> dict[str, str]:
    return {TITLES[method]: method for method in methods}


# Name in tables -> method in `sp.rivals.METHODS`.
PLAIN = {
    **_titled("chance", "sgd", "momentum", "adam", "adamw", "adagrad", "stable_sgd", "upgd", "l2", "ewc", "online_ewc"),
    **_titled("si", "mas", "lwf", "owm", "online_owm", "gpm", "ncl", "selective", "consolidating", "coincidence"),
    **_titled("ridge", "joint"),
    WIDE: "ridge",
}
REPLAYED = {
    TITLES[method] + ("" if rehearses(method) else " + replay"): method
    for method in ("sgd", "adam", "agem", "derpp", "er_ace", "selective", "consolidating", "coincidence")
}
DEFAULTS = ("Chance", "Coincidence", "Coincidence + replay")  # run as they are, without tuning


def _grid(**columns: tuple) -> list[dict]:
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


# Learning rates of Adam with the penalties and distillation. The last is the one that plain Adam uses where it forgets
# most, so that a useless penalty is not held to a worse rate than Adam's.
_A, _B, _C = 1e-3, 1e-4, 1e-5
# Every method gets seven points, which include its learning rate, and then at most this many of their neighbours.
FURTHER = 6
GRIDS = {
    **studies.GRIDS,
    "momentum": _grid(lr=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)),
    "adamw": studies.GRIDS["adam"],
    "adagrad": _grid(lr=(3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)),
    "stable_sgd": _grid(
        lr=(0.1, 0.3, 0.3, 0.03, 0.1, 0.3, 0.1),
        dropout=(0.25, 0.25, 0.5, 0.25, 0.25, 0.25, 0.5),
        decay=(0.4, 0.4, 0.4, 0.7, 0.7, 0.7, 0.9),
    ),
    "upgd": _grid(lr=(3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 3e-2, 1e-1), sigma=(1e-3, 1e-3, 1e-3, 1e-3, 1e-3, 1e-2, 1e-2)),
    "l2": _grid(lr=(_A, _A, _A, _A, _B, _B, _C), strength=(0.01, 0.1, 1.0, 10.0, 0.1, 1.0, 0.01)),
    "ewc": _grid(lr=(_A, _A, _A, _A, _B, _B, _C), strength=(10.0, 1e2, 1e3, 1e4, 1e2, 1e4, 10.0)),
    "online_ewc": _grid(lr=(_A, _A, _A, _A, _B, _B, _C), strength=(10.0, 1e2, 1e3, 1e4, 1e2, 1e4, 10.0)),
    "mas": _grid(lr=(_A, _A, _A, _A, _B, _B, _C), strength=(0.01, 0.1, 1.0, 10.0, 0.1, 1.0, 0.01)),
    "si": _grid(lr=(_A, _A, _A, _A, _B, _B, _C), strength=(1.0, 10.0, 1e2, 1e3, 10.0, 1e3, 1.0)),
    "lwf": _grid(lr=(_A, _A, _A, _B, _B, _B, _C), strength=(0.3, 1.0, 3.0, 0.3, 3.0, 10.0, 0.3)),
    "owm": _grid(lr=(0.3, 0.3, 0.3, 0.1, 0.1, 0.1, 0.1), alpha=(0.01, 0.1, 1.0, 1e-3, 0.01, 0.1, 1.0)),
    "online_owm": _grid(lr=(1.0, 0.3, 0.3, 0.3, 0.1, 0.1, 0.1), alpha=(0.1, 0.01, 0.1, 1.0, 0.01, 0.1, 1.0)),
    "gpm": _grid(lr=(0.3, 0.3, 0.3, 0.1, 0.1, 0.1, 0.03), threshold=(0.9, 0.95, 0.99, 0.9, 0.95, 0.99, 0.9)),
    "ncl": _grid(lr=(0.3, 0.3, 0.3, 0.3, 0.1, 0.1, 0.1), prior=(1e-5, 1e-4, 1e-3, 1e-2, 1e-4, 1e-3, 1e-2)),
    "agem": _grid(lr=(3e-3, 1e-2, 3e-2, 0.1, 0.2, 0.3, 0.5)),
    "derpp": _grid(
        lr=(0.03, 0.1, 0.1, 0.1, 0.1, 0.3, 0.3),
        alpha=(1.0, 0.2, 0.5, 1.0, 1.0, 0.2, 0.5),
        beta=(1.0, 1.0, 0.5, 0.5, 1.0, 1.0, 0.5),
    ),
    "er_ace": _grid(lr=(3e-3, 1e-2, 3e-2, 0.1, 0.2, 0.3, 0.5)),
    "joint": _grid(lr=(3e-5, 1e-4, 3e-4, 1e-3, 2e-3, 3e-3, 1e-2)),
}


def methods(
    scenario: str, dataset: str, capacity: int = 0, names: Sequence[str] | None = None
) -> dict[str, Experiment]:
    """Methods of a scenario with the options that tuning chose.

    Args:
        scenario: a name in `SCENARIOS`. dataset: a name in `sp.lab.settings.SETTINGS`.
        capacity: 0 returns the methods without replay. Otherwise, those with replay from a buffer of this size, with
            the options that were tuned for the smaller size in `CAPACITIES`.
        names: the methods to return, in this order. None returns all.
    """
    plain = untuned(scenario, dataset, capacity)
    chosen = {method: plain[method] for method in (plain if names is None else names)}
    tuned = tuned_values(scenario, dataset)
    if missing := [method for method in chosen if method not in DEFAULTS and method not in tuned.index]:
        raise LookupError(
            f"{', '.join(missing)} of {scenario!r}: not tuned on {TUNED_ON[dataset]}: run  "
            f"python notebooks/studies comparison --dataset {TUNED_ON[dataset]} --scenarios {scenario}"
        )
    return {
        method: experiment if method in DEFAULTS else experiment.with_options(**json.loads(tuned.options[method]))
        for method, experiment in chosen.items()
    }


def tuned_values(scenario: str, dataset: str) -> pd.DataFrame:
    """What tuning chose on a scenario: ``options`` (JSON) and ``accuracy`` on held-out training images, by method.

    Includes only what the current grids, settings and rules would choose again.
    """
    table = pd.read_csv(studies.TUNED)
    rows = table[(table.study == f"comparison_{scenario}") & (table.dataset == TUNED_ON[dataset])]
    rows = rows[rows.search == rows.method.map(_searches(scenario, dataset))]
    return rows.set_index("method")[["options", "accuracy"]]


def _tried_methods(scenario: str, dataset: str) -> dict[str, Experiment]:
    """Every tuned method, as it is during tuning except for its point and its seed."""
    source = TUNED_ON[dataset]
    every = {**untuned(scenario, source), **untuned(scenario, source, CAPACITIES[source][0])}
    return {method: experiment for method, experiment in every.items() if method not in DEFAULTS}


def _tuning_seeds(scenario: str, dataset: str) -> tuple[int, ...]:
    return studies.TUNING_SEEDS[: 1 + (scenario in TUNED_TWICE) + (dataset == "digits")]


def _searches(scenario: str, dataset: str) -> dict[str, str]:
    """Method -> a hash of everything that its tuned value depends on."""
    found = {}
    for method, experiment in _tried_methods(scenario, dataset).items():
        versions = RULES_VERSION, experiment.method_version
        parts = [GRIDS[experiment.optimizer], FURTHER, _tuning_seeds(scenario, dataset), versions, experiment.chosen]
        found[method] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    return found


def untuned(scenario: str, dataset: str, capacity: int = 0) -> dict[str, Experiment]:
    """`methods` with their default options."""
    check_choice("scenario", scenario, SCENARIOS)
    chosen = studies.settings(dataset)
    base = studies.base(dataset, **SCENARIOS[scenario], replay_capacity=capacity)
    fixed = {
        "selective": {"options": {"warmup_steps": chosen["warmup_steps"]}},
        "owm": {"options": {"batch": chosen["batch_size"]}},
        "ridge": {"hidden": (studies.equal_features(studies.INPUTS[dataset], chosen["hidden"]),)},
        WIDE: {"hidden": (studies.equal_memory(studies.INPUTS[dataset], chosen["hidden"]),)},
        # Per-example gradients take longer than anything else. A task of digits has about as many examples.
        **dict.fromkeys(("ewc", "online_ewc", "mas"), {} if dataset == "digits" else {"options": {"samples": 300}}),
    }
    table = REPLAYED if capacity else PLAIN
    return {
        method: replace(base, optimizer=name, **fixed.get(method, fixed.get(name, {})))
        for method, name in table.items()
    }


def trials(scenario: str, dataset: str) -> list[studies.Trial]:
    """The grids that tuning still has to try on a scenario, for methods missing from the table of tuned values."""
    check_choice("scenario", scenario, SCENARIOS)
    if TUNED_ON[dataset] != dataset:
        return []
    known = tuned_values(scenario, dataset).index
    missing = {method: e for method, e in _tried_methods(scenario, dataset).items() if method not in known}
    return studies.trials(missing, GRIDS, _tuning_seeds(scenario, dataset))


def replay_practice(
    dataset: str, capacities: Sequence[int], batches: Sequence[int], policies: Sequence[str]
) -> dict[str, dict[tuple[str, object], Experiment]]:
    """Methods of notebook 11, five class-incremental tasks: (method, value) -> experiment, for each varied choice.

    What is not varied: a reservoir of the smaller size in `CAPACITIES`, and 32 stored examples per step. Optimizers use
    the options that were tuned in this setting.
    """
    mixed = [method for method, name in REPLAYED.items() if not rehearses(name)]
    base = methods("split5_class", dataset, CAPACITIES[dataset][0], mixed)
    varied = {"replay_capacity": capacities, "replay_batch": batches, "replay_policy": policies}
    return {
        choice: {(method, value): replace(base[method], **{choice: value}) for method in mixed for value in values}
        for choice, values in varied.items()
    }


def needs_table() -> pd.DataFrame:
    """What each method needs: ``method, boundaries, stored, again, second_network, tuned``."""
    rows = []
    for method, name in {**PLAIN, **REPLAYED}.items():
        asked = needs(name, replay_capacity=int(method in REPLAYED))
        columns = {"boundaries": asked.boundaries, "stored": asked.examples, "again": asked.again}
        rows.append(
            {"method": method, **columns, "second_network": asked.second_network, "tuned": method not in DEFAULTS}
        )
    table = pd.DataFrame(rows).replace({True: "yes", False: "-", "none": "-"})
    return table.rename(columns={"second_network": "second network"})


def scenario_table(table: pd.DataFrame, costs: pd.DataFrame, scenario: str, capacity: int = 0) -> pd.DataFrame:
    """A readable table of one scenario, best method first: the metrics with intervals, what a step costs, and what the
    method needs according to `needs_table`.

    Args:
        table: from `results`. costs: from `costs`. capacity: size of the buffer; 0 means without replay.
    """
    rows = table[(table.stream == scenario) & (table.capacity == capacity)]
    rows = rows.assign(metric=rows.metric.str.replace("average_", "").str.replace("_", " "))
    order = rows[rows.metric == "accuracy"].sort_values("mean", ascending=False).method
    text = metrics.readable(rows.drop(columns=["stream", "capacity"])).loc[order]
    asked = needs_table().set_index("method").drop(columns="tuned").rename(columns={"stored": "examples"})
    given = asked.apply(lambda row: ", ".join(asked.columns[row != "-"]), axis=1).rename("given")
    return text.join(cost_columns(costs, order, capacity)).join(given).fillna("-")


def side_by_side(table: pd.DataFrame, costs: pd.DataFrame, scenarios: Sequence[str]) -> pd.DataFrame:
    """Accuracy and costs of every method, for `sp.figures`. Methods with replay use the smaller buffer.

    Args:
        table: from `results`. costs: from `costs`.

    Returns:
        ``stream, capacity, method, mean, low, high, n, metric, kept, step_ratio``.
    """
    rows = table[table.stream.isin(scenarios) & (table.metric == "average_accuracy")]
    smaller = rows[rows.capacity > 0].capacity.min()
    rows = rows[(rows.capacity == 0) | (rows.capacity == smaller)]
    return rows.merge(costs[["method", "capacity", "kept", "step_ratio"]], "left", on=["method", "capacity"])


def ahead(rows: pd.DataFrame, method: str, scenario: str, capacity: int = 0) -> tuple[list[str], list[str]]:
    """Methods with a higher average accuracy than a given one, and methods for which no difference was found.

    Methods are compared seed by seed (`sp.lab.metrics.difference`), on the seeds that both have, and listed best first.

    Args:
        rows: one row per run, from `single_runs`. method: one without replay. capacity: size of the others' buffer.
    """
    rows = rows[rows.stream == scenario]
    others = rows[(rows.capacity == capacity) & (rows.method != method)]
    own = rows[(rows.capacity == 0) & (rows.method == method)]
    own, others = own[own.seed.isin(others.seed)], others[others.seed.isin(own.seed)]
    means = others.groupby("method").average_accuracy.mean().sort_values(ascending=False)
    verdicts = {name: metrics.difference(pd.concat([own, others]), name, method).verdict for name in means.index}
    return [name for name in verdicts if verdicts[name] == "higher"], [
        name for name in verdicts if verdicts[name] not in ("higher", "lower")
    ]


VALUES = ["average_accuracy", "backward_transfer", "learning_accuracy"]


def results(
    dataset: str,
    scenarios: Sequence[str] = tuple(SCENARIOS),
    seeds: int = 10,
    replay: bool = True,
    ledger: Ledger | None = None,
    workers: int | None = None,
) -> pd.DataFrame:
    """Tune and run a comparison, and save its tables in ``figures/`` after every scenario.

    ``figures/09_comparison/DATASET.csv`` has the intervals over the seeds; scenarios and buffers that are not requested
    stay in it. The runs are written to the committed layer of the ledger.

    Returns:
        The intervals, one row per scenario, buffer size, method and metric: ``stream, capacity, method, mean, low,
        high, n, metric``.

    Raises:
        ValueError: a scenario is not in `SCENARIOS`.
    """
    ledger = ledger or opened()
    for scenario in scenarios:
        if todo := trials(scenario, dataset):
            searches = _searches(scenario, dataset)
            studies.tune_methods(f"comparison_{scenario}", dataset, todo, ledger, workers, FURTHER, searches)
        rows = single_runs(dataset, [scenario], seeds, replay, ledger, workers)
        ledger.commit(rows.key)
        table = intervals(kept_runs(dataset, ledger))
        figures.save_table(table, f"09_comparison/{dataset}")
    return table


def single_runs(
    dataset: str,
    scenarios: Sequence[str] = (),
    seeds: int = 10,
    replay: bool = True,
    ledger: Ledger | None = None,
    workers: int | None = None,
) -> pd.DataFrame:
    """The individual runs of a comparison, read or run: ``stream, capacity, method, seed`` and what was measured.

    Args:
        scenarios: defaults to those in `MEASURED`.
    """
    found = []
    for scenario in scenarios or MEASURED[dataset]:
        check_choice("scenario", scenario, SCENARIOS)
        for capacity in _capacities(dataset, replay):
            named = with_seeds(methods(scenario, dataset, capacity), range(seeds))
            rows = runs(named, ledger, workers, carried=True)
            found.append(rows.assign(stream=scenario, capacity=capacity))
    return pd.concat(found, ignore_index=True)


def kept_runs(dataset: str, ledger: Ledger | None = None, seeds: int = 10) -> pd.DataFrame:
    """Those `single_runs` that are in the ledger."""
    ledger = ledger or opened()
    found = []
    for scenario in SCENARIOS:
        for capacity in _capacities(dataset, True):
            known = {*DEFAULTS, *tuned_values(scenario, dataset).index}
            chosen = [method for method in untuned(scenario, dataset, capacity) if method in known]
            named = with_seeds(methods(scenario, dataset, capacity, chosen), range(seeds))
            kept = [(method, experiment) for method, experiment in named if ledger.get(experiment) is not None]
            if kept:
                rows = runs(kept, ledger, carried=True)
                found.append(rows.assign(stream=scenario, capacity=capacity))
    return pd.concat(found, ignore_index=True)


def intervals(rows: pd.DataFrame) -> pd.DataFrame:
    """Intervals over the seeds of `single_runs`: ``stream, capacity, method, mean, low, high, n, metric``."""
    parts = [
        metrics.interval_table(part, ["stream", "capacity", "method"], VALUES)
        for _, part in rows.groupby(["stream", "capacity"], sort=False)
    ]
    return pd.concat(parts, ignore_index=True)


def _capacities(dataset: str, replay: bool) -> tuple[int, ...]:
    """Sizes of the buffer, 0 for none."""
    return (0, *(CAPACITIES[dataset] if replay else ()))


def costs(dataset: str, rounds: int = 3) -> pd.DataFrame:
    """What a training step costs, and what is kept from step to step.

    All methods are measured in turn, in the second of two tasks, in one process on one thread. Times are CPU times. A
    step excludes what is done at the end of a task. What is kept after both tasks is every number except the weights:
    optimizer state, anchors, projectors, second networks, stored examples (for joint training all images).

    Returns:
        One row per method: ``method, capacity, step_ms, step_ratio`` (to Adam), ``task_ms`` (extra time compared with
        SGD at the end of a task), ``kept`` (in units of the network's weights), `version`.
    """
    small, large = CAPACITIES[dataset]
    every = [(method, 0, e) for method, e in untuned("split2_class", dataset).items()]
    every += [
        (method, size, e) for size in (small, large) for method, e in untuned("split2_class", dataset, size).items()
    ]
    settings = studies.settings(dataset)
    images = 20 * settings["batch_size"]
    weights = mlp_size(studies.INPUTS[dataset], settings["hidden"], 10)
    image_bytes = 4 * load(dataset).train_x.shape[1] + 8  # with its label
    times: dict[int, list[tuple[float, float]]] = {number: [] for number in range(len(every))}
    kept = {}
    for _ in files.bar(range(rounds), unit="round"):
        for number, (method, size, experiment) in enumerate(every):
            points = GRIDS.get(experiment.optimizer, [{}])
            tried = {} if method in DEFAULTS else points[len(points) // 2]
            clock = _Clock()
            run(replace(experiment.with_options(**tried), epochs=2, samples_per_task=images), look=clock)
            times[number].append((clock.step_seconds(), clock.task_seconds()))
            images_stored = 0 if rehearses(experiment.optimizer) else size
            held = clock.kept
            if method == "Joint training":  # it stores every image of a stream
                images_stored, held = len(load(dataset).train_x), 0
            kept[number] = (held + images_stored * image_bytes) / (4 * weights)
    names = [method for method, _, _ in every]
    step, end = np.median([times[number] for number in times], axis=1).T
    step[names.index("Joint training")] = np.nan  # it only collects examples until a task ends
    return pd.DataFrame(
        {
            "method": names,
            "capacity": [size for _, size, _ in every],
            "step_ms": 1000 * step,
            "step_ratio": step / step[names.index("Adam")],
            "task_ms": 1000 * (end - end[names.index("SGD")]).clip(min=0),
            "kept": [kept[number] for number in kept],
            "version": [version(experiment) for *_, experiment in every],
        }
    ).round(4)


def version(experiment: Experiment) -> str:
    """Version of the rules behind a cost. A cost with another version is out of date."""
    return f"{RULES_VERSION}.{experiment.method_version or 1}"


def known_costs(dataset: str) -> pd.DataFrame:
    """The `costs` that ``python notebooks/studies costs`` wrote into ``figures/09_comparison/DATASET_costs.csv``."""
    return pd.read_csv(files.committed(f"09_comparison/{dataset}_costs.csv"))


class _Clock:
    """CPU time at each step of the second task and between the tasks, and what the learner keeps after both."""

    def __init__(self):
        self.times: list[float] = []
        self.first_ended, self.learner = 0.0, None

    def __call__(self, moment: Moment) -> None:
        if moment.task == 1 and moment.last:
            self.first_ended = time.process_time()
        if moment.task == 2:
            self.times.append(time.process_time())
        self.learner = moment.learner

    @property
    def kept(self) -> int:
        """Bytes in addition to the weights."""
        return kept_bytes(self.learner)

    def step_seconds(self) -> float:
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)

    def task_seconds(self) -> float:
        """From the last step of the first task to the end of the first step of the second, including tests."""
        return self.times[0] - self.first_ended


def kept_bytes(learner: Any) -> int:
    """Bytes that a learner keeps from step to step in addition to its network's weights: all tensors it holds."""
    model = getattr(learner, "model", None)
    parameters = [] if model is None else list(model.parameters())
    held = {_place(t) for p in parameters for t in (p, p.grad) if t is not None}
    # Counted by storage, because several tensors may share one.
    found = {_place(t): t.untyped_storage().nbytes() for t in _tensors(vars(learner), set())}
    return sum(size for place, size in found.items() if place not in held)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen or isinstance(value, Blocks):  # scratch space, nothing in it is kept
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(key, seen)
            yield from _tensors(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _tensors(item, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        yield from _tensors(vars(value), seen)
    elif isinstance(value, nn.Module):
        yield from value.parameters()


def planned(dataset: str, scenarios: Sequence[str], seeds: int = 10, replay: bool = True) -> list[Experiment]:
    """What `results` will run: the tuning grids, and the reported seeds (whose cost does not depend on the options).

    The neighbours that tuning tries next are left out, because they depend on what it finds.
    """
    todo = []
    for scenario in scenarios:
        todo += [experiment for *_, experiment in trials(scenario, dataset)]
        for capacity in _capacities(dataset, replay):
            chosen = untuned(scenario, dataset, capacity)
            known = [
                method for method in chosen if method in DEFAULTS or method in tuned_values(scenario, dataset).index
            ]
            chosen |= methods(scenario, dataset, capacity, known)
            todo += [replace(experiment, seed=seed) for experiment in chosen.values() for seed in range(seeds)]
    return todo
