"""A plugin for pytest: nbval compares outputs of notebooks by their words and, nearly, their numbers.

Processors round sums in different ways and training amplifies that, so that no training gives the same last digit
everywhere. What is sorted by a number may change places as well.
"""

import re
from collections import Counter

import pytest
from nbval.plugin import IPyNbCell

P_VALUE = re.compile(r"p = [\d.e+-]+")  # a small change of what is compared changes it out of proportion
# Where an interval ends near a bound, its verdict is decided by rounding; the numbers beside it are compared.
VERDICT = re.compile(
    r"\b(no (difference|effect) found|too few seeds to tell|no matter|open|higher|lower|raises|lowers|better|worse|"
    r"holds( under a condition)?|does not hold|the opposite)\b"
)
NUMBER = re.compile(r"[-+−]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")
TOLERANCE = 0.2  # of two runs of the shortest trainings at high rates, on two processors, .09 was seen
ALL_BUT = 0.1  # of an output's numbers: ratios to a small spread, and trainings on the brink, differ by more


def same(one: str, other: str) -> bool:
    """Whether two texts have the same words, and as many numbers, of which all but a tenth are close, in any order.

    Two numbers are close if they differ by no more than `TOLERANCE`, or by as large a part of one that is above 1.
    Values of p are left out, and verdicts ("higher", "open", ...) count as one word.
    """
    one, other = P_VALUE.sub("p", one), P_VALUE.sub("p", other)
    first, second = _numbers(one), _numbers(other)
    if _words(one) != _words(other) or len(first) != len(second):
        return False
    return len(first) - _pairs(first, second) <= ALL_BUT * len(first)


def _pairs(first: list[float], second: list[float]) -> int:
    """How many numbers of two sorted lists can be paired with a close one."""
    pairs = i = j = 0
    while i < len(first) and j < len(second):
        if abs(first[i] - second[j]) <= TOLERANCE * max(1, abs(first[i])):
            pairs, i, j = pairs + 1, i + 1, j + 1
        elif first[i] < second[j]:
            i += 1
        else:
            j += 1
    return pairs


def _words(text: str) -> Counter:
    return Counter(NUMBER.sub("0", VERDICT.sub("verdict", text)).split())


def _numbers(text: str) -> list[float]:
    return sorted(float(found.replace(",", "").replace("−", "-")) for found in NUMBER.findall(text))


class Output(str):
    """A text of an output that equals what is the `same`."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and same(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let every cell compare its outputs as `Output`."""
    for cell in items:
        if isinstance(cell, IPyNbCell):
            cell.sanitize = _as_outputs(cell.sanitize)


def _as_outputs(sanitize):
    def sanitized(found):
        text = sanitize(found)
        return Output(text) if isinstance(text, str) else text

    return sanitized
