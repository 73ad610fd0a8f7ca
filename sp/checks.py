"""Argument checks: each raises an error that names the argument, what is allowed and what was given."""

import math
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any


def check_number(
    name: str, value: Any, low: float, high: float = math.inf, *, low_open: bool = False, high_open: bool = False
) -> None:
    """Raise TypeError unless ``value`` is a real number, and ValueError unless it is between ``low`` and ``high``."""
    allowed = f"{'(' if low_open else '['}{low}, {high}{')' if high_open or math.isinf(high) else ']'}"
    if hasattr(value, "numel") and value.numel() == 1 and not value.is_complex():  # a learning rate may be a tensor
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number in {allowed}, got {value!r} of type {type(value).__name__}")
    too_low = value <= low if low_open else value < low
    too_high = value >= high if high_open else value > high
    if math.isnan(value) or math.isinf(value) or too_low or too_high:
        raise ValueError(f"{name} must be a finite number in {allowed}, got {value!r}")


def check_integer(name: str, value: Any, low: int, high: int = 2**63 - 1) -> None:
    """Raise TypeError unless ``value`` is a whole number, and ValueError unless it is from ``low`` to ``high``."""
    allowed = f">= {low}" if high == 2**63 - 1 else f"from {low} to {high}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number {allowed}, got {value!r} of type {type(value).__name__}")
    if not low <= value <= high:
        raise ValueError(f"{name} must be a whole number {allowed}, got {value!r}")


def check_flag(name: str, value: Any) -> None:
    """Raise TypeError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")


def check_choice(name: str, value: Any, allowed: Iterable[Any]) -> None:
    """Raise ValueError unless ``value`` is one of ``allowed``; the message suggests a similar one if there is one."""
    allowed = tuple(allowed)
    if value not in allowed:
        known = ", ".join(map(repr, allowed))
        raise ValueError(f"{name} must be one of {known}, got {value!r}{did_you_mean(value, allowed)}")


def did_you_mean(word: Any, known: Iterable[Any]) -> str:
    """The end of a message about an unknown word: the closest known word, or nothing."""
    near = get_close_matches(str(word), map(str, known), 1)
    return f": did you mean {near[0]!r}?" if near else ""
