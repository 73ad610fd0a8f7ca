"""Calls in separate processes: one that raises or dies does not take the others with it."""

import os
import signal
import time

import pytest

from sp.lab.parallel import Failed, call_all


def ends_badly(item):
    if item == "raises":
        raise ValueError(f"no {item}")
    if item == "dies":
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGKILL)
    return item, os.getpid()


@pytest.mark.parametrize("workers", [1, 2])
def test_every_item_has_its_value_or_its_traceback(workers):
    outcomes = dict(call_all(ends_badly, [1, "raises", 2], workers))
    assert "ValueError: no raises" in outcomes.pop("raises").reason
    assert {item: value[0] for item, value in outcomes.items()} == {1: 1, 2: 2}
    assert all((value[1] == os.getpid()) == (workers == 1) for value in outcomes.values())


def test_a_call_that_kills_its_process_is_the_only_one_that_is_lost():
    outcomes = dict(call_all(ends_badly, ["dies", *range(8)], workers=2))
    assert isinstance(outcomes["dies"], Failed) and "process died" in outcomes["dies"].reason
    assert {item: value[0] for item, value in outcomes.items() if item != "dies"} == {i: i for i in range(8)}


def test_what_is_known_is_not_called_for():
    outcomes = dict(call_all(ends_badly, ["raises", 1], 1, known={"raises": "known"}.get))
    assert outcomes["raises"] == "known" and outcomes[1][0] == 1
