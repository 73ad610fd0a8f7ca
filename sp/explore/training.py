"""Training runs in separate processes, which report their progress repeatedly.

A run sets the random state of its process, so none takes place in the notebook's own process.
"""

import os
import pickle
import tempfile
import time
from collections.abc import Callable, Collection
from concurrent.futures import BrokenExecutor, Future, wait
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
from joblib.externals.loky import ProcessPoolExecutor

from sp import files
from sp.lab import watch
from sp.lab.experiment import Experiment, Moment, run
from sp.lab.ledger import Ledger
from sp.lab.parallel import end_with

IDLE = 1800  # seconds after which idle processes end
EVERY = 0.1  # seconds between two looks at a training run
GLIMPSE = "one epoch of five; the full training follows"
UNDER_WAY = "training &hellip;"

Seen = tuple[watch.Observed, str]  # the text says what is still missing; empty for a complete run


class Trainings:
    """Runs that are read from a ledger or trained; only those that are wanted continue.

    Args:
        ledger: where finished runs are kept.
    """

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._folder = tempfile.TemporaryDirectory()
        self._numbers = count()
        self._whole: dict[Experiment, watch.Observed] = {}
        self._running: dict[Experiment, tuple[Future, Path]] = {}
        _submit(os.getpid)  # starts the processes and their imports

    def want(self, experiments: Collection[Experiment]) -> None:
        """Start these experiments, unless known or running already, and stop all others."""
        for experiment in set(self._running) - set(experiments):
            future, file = self._running.pop(experiment)
            if not future.cancel():
                _stop(file).touch()
        self._whole = {experiment: seen for experiment, seen in self._whole.items() if experiment in experiments}
        for experiment in experiments:
            if experiment in self._whole or experiment in self._running:
                continue
            kept = watch.observe(experiment, self._ledger, missing_too=False)
            if kept is not None:
                self._whole[experiment] = kept
                continue
            file = Path(self._folder.name, str(next(self._numbers)))
            self._running[experiment] = _submit(_train, experiment, self._ledger.folder, file), file

    def glimpse(self, experiment: Experiment) -> Seen | None:
        """What one epoch of a wanted experiment shows, or the full run if it is known; None before.

        Raises:
            Exception: whatever ended the training.
        """
        return self._look(experiment, _glimpse)

    def seen(self, experiment: Experiment) -> Seen | None:
        """Progress of a wanted experiment after its glimpse; None before.

        Raises:
            Exception: whatever ended the training.
        """
        return self._look(experiment, lambda file: file)

    def _look(self, experiment: Experiment, place: Callable[[Path], Path]) -> Seen | None:
        if experiment in self._whole:
            return self._whole[experiment], ""
        future, file = self._running[experiment]
        if future.done():
            del self._running[experiment]
            _forget(file)
            self._whole[experiment] = future.result()
            return self._whole[experiment], ""
        return pickle.loads(place(file).read_bytes()) if place(file).exists() else None

    def wait(self, seconds: float) -> None:
        """Wait until all runs have ended, but no longer than ``seconds``."""
        wait([future for future, _ in self._running.values()], seconds)


def _submit(*call: Any) -> Future:
    try:
        return _processes().submit(*call)
    except BrokenExecutor:  # a process was killed
        _processes.cache_clear()
        return _processes().submit(*call)


@cache
def _processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers=2, timeout=IDLE, initializer=end_with, initargs=(os.getpid(),))


class _Stopped(Exception):
    """The training is no longer wanted."""


def _stop(file: Path) -> Path:
    """The file that stops the training run that reports to ``file``."""
    return file.with_suffix(".stop")


def _glimpse(file: Path) -> Path:
    """The first report of the training run that reports to ``file``; a separate file, so that it is not missed."""
    return file.with_suffix(".glimpse")


def _forget(file: Path) -> None:
    for told in (file, _glimpse(file)):
        told.unlink(missing_ok=True)


def _train(experiment: Experiment, folder: Path, file: Path) -> watch.Observed:
    """Train for one epoch to show what to expect, then in full; progress is written to a file."""
    glimpse = _one_epoch(experiment, file)
    _tell(_glimpse(file), glimpse, GLIMPSE)
    due = time.monotonic()

    def tell(look: watch.Plasticity, moment: Moment) -> None:
        nonlocal due
        _check_wanted(file)
        if moment.curve and time.monotonic() >= due:
            _tell(file, _with_the_rest_of(glimpse, watch.so_far(look, moment)), UNDER_WAY)
            due = time.monotonic() + EVERY

    return watch.observe(experiment, _ledger(folder), tell=tell)


def _one_epoch(experiment: Experiment, file: Path) -> watch.Observed:
    """What one epoch shows, on the axis of the full training; options that count steps are scaled in proportion."""
    options = dict(experiment.options)
    if "warmup_steps" in options:
        options["warmup_steps"] = max(1, options["warmup_steps"] // experiment.epochs)
    plasticity, last = watch.Plasticity(every=10), None  # half as often as in the full run, for speed; so are the tests

    def look(moment: Moment) -> None:
        nonlocal last
        _check_wanted(file)
        plasticity(moment)
        last = moment

    points = experiment.curve_points // 2
    run(replace(experiment, epochs=1, options=options, curve_points=points), look=look)
    seen = watch.so_far(plasticity, last)
    return replace(seen, curve=seen.curve.assign(step=seen.curve.step * experiment.epochs))


def _with_the_rest_of(glimpse: watch.Observed, now: watch.Observed) -> watch.Observed:
    """Progress of a training run, with events and gates of the glimpse for tasks that have not ended."""

    def both(name: str) -> pd.DataFrame:
        new, old = getattr(now, name), getattr(glimpse, name)
        return pd.concat([new, old[~old.task.isin(new.task)]], ignore_index=True) if len(new) else old

    return replace(now, events=both("events"), gates=both("gates"))


def _check_wanted(file: Path) -> None:
    if _stop(file).exists():
        _forget(file)
        raise _Stopped


def _tell(file: Path, seen: watch.Observed, lacks: str) -> None:
    files.write_atomically(file, pickle.dumps((seen, lacks)))


@cache
def _ledger(folder: Path) -> Ledger:
    return Ledger(folder)
