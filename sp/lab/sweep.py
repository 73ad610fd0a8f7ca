"""Many runs in parallel, experiments times seeds, each stored as soon as it finishes.

A sweep that is killed at any moment loses only the runs in flight; the same call resumes it. Two sweeps may share a
ledger. Failed runs are reported once the others have finished.
"""

import random
import statistics
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import joblib
import pandas as pd
from tqdm import tqdm

from sp.checks import check_choice
from sp.files import bar
from sp.lab import tables
from sp.lab.experiment import RULES_VERSION, Enough, Experiment, Moment, Result, run, stream_of
from sp.lab.ledger import Ledger, opened
from sp.lab.parallel import Failed, call_all

CONNECT_SECONDS = 30
TIMED_METHODS = 6  # experiments timed for an estimate, each for TIMED_STEPS; the first FIRST_STEPS do not count
TIMED_STEPS, FIRST_STEPS = 60, 20
# Options are varied one by one, and a loss is a function.
VARIED = tuple(name for name in Experiment.__dataclass_fields__ if name not in ("options", "loss"))


class SweepError(RuntimeError):
    """Some runs failed; the others are finished and stored.

    Attributes:
        failures: (experiment, traceback) for each failed run. results: results of the other runs, in order.
    """

    def __init__(self, failures: list[tuple[Experiment, str]], results: list[Result]):
        self.failures, self.results = failures, results
        alike: dict[str, list[Experiment]] = {}
        for experiment, reason in failures:
            alike.setdefault(reason, []).append(experiment)
        lines = []
        for reason, group in alike.items():
            more = f", and {len(group) - 1} more in the same way" if len(group) > 1 else ""
            lines += [f"FAILED {_described(group[0])}{more}", reason]
        super().__init__("\n".join([*lines, f"{len(failures)} of {len(failures) + len(results)} runs failed."]))


def _described(experiment: Experiment) -> str:
    chosen = {**experiment.chosen, "seed": experiment.seed}
    return f"Experiment({', '.join(f'{name}={value!r}' for name, value in chosen.items())})"


def run_all(
    experiments: Iterable[Experiment],
    ledger: Ledger | None = None,
    workers: int | None = None,
    progress: bool = True,
    cluster: str | None = None,
    carried: bool = False,
    device: str = "cpu",
) -> list[Result]:
    """Results of experiments, in order: read from the ledger if it has them, otherwise run and stored.

    Args:
        experiments: what to run; duplicates run once.
        ledger: defaults to `sp.lab.ledger.opened()`.
        workers: number of processes, one thread each; defaults to the number of cores.
        cluster: address of a dask.distributed scheduler (``tcp://host:port``); its workers are used instead. They need
            this version of the package and one thread each, but no access to the ledger.
        carried: also accept runs that were carried over from a table of their measures and have nothing else.

    Raises:
        SweepError: some runs failed; the others are finished.
        OSError: the ledger cannot be written, or no scheduler answers.
    """
    ledger = ledger or opened()
    experiments = list(experiments)
    known = partial(_kept, ledger, carried)
    results = {experiment: known(experiment) for experiment in dict.fromkeys(experiments)}
    todo = [experiment for experiment, result in results.items() if result is None]
    failures = []
    if todo:
        ledger.check_writable()
        # Random order gives a fair estimate of the time left, and two concurrent sweeps seldom run the same experiment.
        random.Random().shuffle(todo)
        here = cluster is None
        train = partial(_bare_run, device=device)
        outcomes = call_all(train, todo, workers, known) if here else _on_cluster(train, todo, cluster)
        with bar(total=len(todo), unit="run", progress=progress) as shown:
            for experiment, outcome in outcomes:
                if isinstance(outcome, Failed):
                    failures.append((experiment, outcome.reason))
                    shown.set_postfix(failed=len(failures))
                else:
                    outcome = replace(outcome, experiment=experiment)
                    if known(experiment) is None:  # another sweep may have been faster
                        ledger.put(outcome)
                    results[experiment] = outcome
                shown.update()
    if failures:
        raise SweepError(failures, [result for result in results.values() if result is not None])
    return [results[experiment] for experiment in experiments]


def _bare_run(experiment: Experiment, device: str) -> Result:
    return replace(run(experiment, device), experiment=experiment.bare())


def _kept(ledger: Ledger, carried: bool, experiment: Experiment) -> Result | None:
    result = ledger.get(experiment)
    return None if result is None or (result.accuracy is None and not carried) else result


def missing(experiments: Iterable[Experiment], ledger: Ledger | None = None, carried: bool = False) -> list[Experiment]:
    """The experiments that are not in the ledger; ``carried`` as in `run_all`."""
    ledger = ledger or opened()
    return [experiment for experiment in dict.fromkeys(experiments) if _kept(ledger, carried, experiment) is None]


def _on_cluster(
    train: Callable[[Experiment], Result], experiments: list[Experiment], address: str
) -> Iterator[tuple[Experiment, Result | Failed]]:
    """Like `sp.lab.parallel.call_all`, on the workers of a dask scheduler.

    This avoids joblib's dask backend, which waits forever (joblib 1.6) for a run whose workers died.
    """
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise ImportError("a cluster needs dask: pip install 'selective-plasticity[cluster]'") from error
    try:
        client = Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        client.wait_for_workers(1, timeout=CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise OSError(
            f"no dask scheduler with workers answers at {address} ({error}): start one with  dask scheduler , workers "
            "with  dask worker ADDRESS --nworkers CORES --nthreads 1 , and give the scheduler's address, tcp://host:port"
        ) from error
    with client:
        if any(threads > 1 for threads in client.nthreads().values()):
            warnings.warn(
                "a dask worker with several threads runs one experiment at a time: start one worker per core instead, "
                "with  dask worker ADDRESS --nworkers CORES --nthreads 1",
                stacklevel=3,
            )
        futures = {client.submit(_same_rules, train, e, RULES_VERSION, pure=False): e for e in experiments}
        for future in as_completed(futures, loop=client.loop):
            if future.cancelled():
                raise OSError(f"the dask scheduler at {address} is gone; finished runs are kept, so start again")
            if (error := future.exception()) is None:
                yield futures[future], future.result()
            else:
                yield futures[future], Failed("".join(traceback.format_exception(error)))
            future.release()


def _same_rules(train: Callable[[Experiment], Result], experiment: Experiment, rules_version: int) -> Result:
    if rules_version != RULES_VERSION:
        raise RuntimeError(
            f"the worker has version {RULES_VERSION} of the rules, the sweep has version {rules_version}: install the "
            "same version of the package in both places"
        )
    return train(experiment)


def vary(experiment: Experiment, choices: Mapping[str, Any]) -> Experiment:
    """The experiment with other choices: ``option_NAME`` is an optimizer argument, any other name is a field."""
    options = {name.removeprefix("option_"): value for name, value in choices.items() if name.startswith("option_")}
    chosen = {name: value for name, value in choices.items() if not name.startswith("option_")}
    for name in chosen:
        check_choice("choice", name, (*VARIED, "option_NAME"))
    return replace(experiment, **chosen).with_options(**options)


def points_of(experiment: Experiment, points: Iterable[Mapping[str, Any]], seeds: Sequence[int]) -> list[Experiment]:
    """The experiment at each of the points (`sp.lab.choices.grid` or `sample`), with every seed; equal points count
    once, since they are no further seeds."""
    found = [replace(vary(experiment, point), seed=seed) for point in points for seed in seeds]
    return list(dict.fromkeys(found))


Named = list[tuple[str, Experiment]]
Seeded = Callable[[Experiment, int], Experiment]


def with_seed(experiment: Experiment, seed: int) -> Experiment:
    """The same experiment with another seed, on the same data."""
    return replace(experiment, seed=seed)


def with_seeds(methods: Mapping[str, Experiment], seeds: Sequence[int], seeded: Seeded = with_seed) -> Named:
    """Pairs (method name, experiment) for every method and seed; ``seeded`` sets the seed of an experiment."""
    return [(method, seeded(experiment, seed)) for method, experiment in methods.items() for seed in seeds]


def runs(
    named: Named,
    ledger: Ledger | None = None,
    workers: int | None = None,
    progress: bool = True,
    carried: bool = False,
) -> pd.DataFrame:
    """`sp.lab.tables.table` of named experiments, read or run as in `run_all`, with a first column ``method``."""
    experiments = [experiment for _, experiment in named]
    rows = tables.table(run_all(experiments, ledger, workers, progress, carried=carried))
    rows.insert(0, "method", [method for method, _ in named])
    return rows


def paired_runs(
    methods: Mapping[str, Experiment], seeds: Sequence[int], *options: Any, **named_options: Any
) -> pd.DataFrame:
    """`runs` for every method with every seed.

    Rows with the same seed are paired: networks start with the same weights and see the same data in the same order.
    """
    return runs(with_seeds(methods, seeds), *options, **named_options)


def paired_curves(methods: Mapping[str, Experiment], seeds: Sequence[int]) -> pd.DataFrame:
    """`sp.lab.tables.curves` for every method with every seed, with a first column ``method``."""
    named = with_seeds(methods, seeds)
    results = run_all([experiment for _, experiment in named])
    found = [tables.curves([result]).assign(method=method) for (method, _), result in zip(named, results, strict=True)]
    points = pd.concat(found, ignore_index=True)
    return points[["method", *points.columns.drop("method")]]


@dataclass(frozen=True)
class Plan:
    """What a sweep would do: the total number of runs, those not in the ledger, and their time on one core."""

    total: int
    missing: list[Experiment]
    seconds: float

    def describe(self, workers: int | None = None) -> str:
        """The plan in words, for ``workers`` processes; by default one per core."""
        workers = workers or joblib.cpu_count()
        seconds = self.seconds / min(workers, max(len(self.missing), 1))
        # Starting the workers takes seconds as well, so shorter times cannot be estimated.
        long = "less than a minute" if seconds < 30 else f"about {tqdm.format_interval(seconds)}"
        text = f"{self.total} runs, {self.total - len(self.missing)} of them stored, {len(self.missing)} to do"
        return f"{text}: {long} with {workers} process{'es' if workers > 1 else ''}."


def plan(experiments: Iterable[Experiment], ledger: Ledger | None = None, device: str = "cpu") -> Plan:
    """What `run_all` would run, and how long it should take.

    A run is expected to take as long as stored runs that differ from it only in the seed. If there are none, a few
    training steps are timed now for a sample of these runs.
    """
    ledger = ledger or opened()
    results = {experiment: ledger.get(experiment) for experiment in dict.fromkeys(experiments)}
    missing = [experiment for experiment, result in results.items() if result is None]
    known: dict[Experiment, list[float]] = {}
    for experiment, result in results.items():
        if result is not None:
            known.setdefault(replace(experiment, seed=0), []).append(result.seconds)
    new = [experiment for experiment in missing if replace(experiment, seed=0) not in known]
    timed = [_timed(experiment, device) for experiment in random.Random(0).sample(new, min(len(new), TIMED_METHODS))]
    old = [statistics.median(seconds) for e in missing if (seconds := known.get(replace(e, seed=0)))]
    return Plan(len(results), missing, sum(old) + (len(new) * sum(timed) / len(timed) if timed else 0.0))


def _timed(experiment: Experiment, device: str) -> float:
    """Estimated time of a run in seconds, from some of its steps."""
    stream = stream_of(experiment)  # also loads the data, which a worker does once
    tasks = len(stream.tasks)
    times = [time.perf_counter()]

    def look(moment: Moment) -> None:
        times.append(time.perf_counter())
        if moment.step == TIMED_STEPS or (moment.last and moment.task == tasks):
            raise Enough

    try:
        run(experiment, device, look=look)
    except Enough:
        pass
    except Exception:
        return 0.0  # a run that fails takes no time
    steps = sum(-(-len(task.train()[1]) // experiment.batch_size) for task in stream.tasks) * experiment.epochs
    counted = times[min(FIRST_STEPS, len(times) // 2) :]
    before = times[1] - times[0]  # one test on all tasks, and one step
    tests = 1 + (tasks + 1) / 2 + 1 - 1 / tasks + tasks * experiment.curve_points
    return before * tests + steps * (counted[-1] - counted[0]) / max(len(counted) - 1, 1)
