"""Calls in worker processes: nothing that one call does to its process affects the others."""

import os
import threading
import time
import traceback
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError


@dataclass(frozen=True)
class Failed:
    """Stands in for the value of a call that failed. ``reason`` is a traceback, or says how the process ended."""

    reason: str


def call_all(
    function: Callable[[Any], Any],
    items: Iterable[Hashable],
    workers: int | None = None,
    known: Callable[[Any], Any] = lambda item: None,
) -> Iterator[tuple[Any, Any]]:
    """Yield (item, ``function(item)``) as calls finish, with a `Failed` as the value if a call raised or died.

    Args:
        function: what to call, in newly started processes, never forked ones.
        items: arguments of the calls; each is passed once.
        workers: number of processes; defaults to the number of cores. With one, calls run in this process.
        known: called in this process right before an item's turn. A value other than None is used instead of the call.
    """
    left = dict.fromkeys(items)
    suspects: list[Any] = []
    while left or suspects:
        # When a process dies, any of the calls in flight may have killed it, so they are retried one by one at the end.
        alone = not left
        turn = _Turn([suspects.pop()] if alone else list(left), function, known)
        # With one worker, joblib would run the call in this process, which a suspect could kill.
        count = 2 if alone else min(workers or joblib.cpu_count(), len(left))
        try:
            for number, value in joblib.Parallel(count, return_as="generator_unordered", batch_size=1)(turn.tasks()):
                item = turn.items[number]
                turn.in_flight.pop(item)
                left.pop(item, None)
                yield item, value
        except TerminatedWorkerError as death:
            if alone:
                yield turn.items[0], Failed(f"Its process died: {death}")
            else:
                suspects += turn.in_flight
                for item in turn.in_flight:
                    del left[item]
        for item, value in turn.known_values:
            left.pop(item, None)
            yield item, value


class _Turn:
    """Items being processed by one pool of workers."""

    def __init__(self, items: list[Any], function: Callable, known: Callable):
        self.items, self.function, self.known = items, function, known
        self.in_flight: dict[Any, None] = {}
        self.known_values: list[tuple[Any, Any]] = []

    def tasks(self) -> Iterator[Any]:
        for number, item in enumerate(self.items):
            if (value := self.known(item)) is not None:
                self.known_values.append((item, value))
            else:
                self.in_flight[item] = None
                yield joblib.delayed(_call)(self.function, item, number, os.getpid())


def _call(function: Callable, item: Any, number: int, parent: int) -> tuple[int, Any]:
    if os.getpid() != parent:
        end_with(parent)
    try:
        return number, function(item)
    except (Exception, SystemExit):
        return number, Failed(traceback.format_exc())


@cache
def end_with(parent: int) -> None:
    """End this process soon after its parent, which gives no notice if it is killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
