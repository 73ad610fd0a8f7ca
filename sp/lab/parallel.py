"""Calls in worker processes: what one does to its process does not reach the others."""

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
    """In place of what a call returns: why it returned nothing. ``reason`` is a traceback, or how its process ended."""

    reason: str


def call_all(
    function: Callable[[Any], Any],
    items: Iterable[Hashable],
    workers: int | None = None,
    known: Callable[[Any], Any] = lambda item: None,
) -> Iterator[tuple[Any, Any]]:
    """Pairs (item, ``function(item)``), as they come; a `Failed` in place of a value where a call raised or died.

    Args:
        function: what to call, in processes that are started afresh and never forked.
        items: each is called for once.
        workers: how many processes; default: as many as there are cores. With one, it is this process.
        known: called here, right before an item's turn; a value that is not None is taken and the call left out.
    """
    left = dict.fromkeys(items)
    suspects: list[Any] = []
    while left or suspects:
        # When a process dies, nobody knows which of the calls in flight killed it: they are made one by one at the end.
        alone = not left
        turn = _Turn([suspects.pop()] if alone else list(left), function, known)
        # With one worker joblib would call in this process, which a suspect must not take with it.
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
    """Items on their way through one pool of workers."""

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
    except Exception:
        return number, Failed(traceback.format_exc())


@cache
def end_with(parent: int) -> None:
    """End this process soon after its parent, which may be killed and then tells nobody."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
