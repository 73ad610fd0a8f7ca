"""Values to vary from a command line or a notebook: how they are written, and grids and samples of them."""

import ast
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import qmc

_RANGE = re.compile(r"([^:]+):([^:]+?)(:log)?")


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, for `sample`.

    Attributes:
        low, high: finite, low < high. Two whole numbers (``int``) give a range of whole numbers, both ends included.
        log: spread evenly on a logarithmic scale; low > 0.
    """

    low: float
    high: float
    log: bool = False

    def __post_init__(self):
        if not -math.inf < self.low < self.high < math.inf or (self.log and self.low <= 0):
            above = " and low > 0 for a logarithmic range" if self.log else ""
            raise ValueError(f"a range needs finite low < high{above}, got {self.low!r}:{self.high!r}")

    def __str__(self) -> str:
        return f"{self.low!r}:{self.high!r}" + (":log" if self.log else "")

    def at(self, share: float) -> float | int:
        """The value below which a fraction ``share`` of the range lies, share in [0, 1)."""
        whole = isinstance(self.low, int) and isinstance(self.high, int)
        low, high = self.low, self.high + whole
        value = low * (high / low) ** share if self.log else low + (high - low) * share
        return min(int(value), self.high) if whole else float(value)


Values = Sequence[Any] | Range


def parse(text: str) -> Values:
    """Parse values as written on a command line: ``v1,v2,...``, or a range ``low:high`` or ``low:high:log``.

    A value is a Python literal (``3``, ``1e-3``, ``True``, ``None``, ``(256, 256)``) or else the text itself.
    """
    if match := _RANGE.fullmatch(text):
        low, high = (_literal(part) for part in match.groups()[:2])
        if type(low) in (int, float) and type(high) in (int, float):
            return Range(low, high, bool(match[3]))
    # Literals may contain commas inside brackets and quotes; words without quotes are not literals.
    if isinstance(literals := _literal(f"[{text}]"), list) and literals and not text.rstrip().endswith(","):
        return literals
    words = [word.strip() for word in text.split(",")]
    if "" in words or set(text) & set("([{"):
        raise ValueError(
            f"expected values as v1,v2,... or low:high or low:high:log, got {text!r}: text with brackets needs quotes"
        )
    return [_literal(word) for word in words]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def grid(choices: Mapping[str, Values]) -> list[dict[str, Any]]:
    """Every combination of the values, with the last name varying fastest; ``[{}]`` if nothing varies."""
    for name, values in choices.items():
        if isinstance(values, Range):
            raise ValueError(
                f"{name} is a range, {values}: list its values instead, or draw points from it (--sample COUNT on the "
                "command line)"
            )
    return [dict(zip(choices, point, strict=True)) for point in itertools.product(*choices.values())]


def sample(choices: Mapping[str, Values], count: int) -> list[dict[str, Any]]:
    """Draw points from a Latin hypercube (McKay et al. 1979).

    Each range is cut into ``count`` parts of equal probability, with one point in each part.

    Args:
        choices: name -> a `Range`, or a list whose values are equally likely.
        count: number of points, >= 1. Equal arguments give equal points.
    """
    if count < 1 or not choices:
        raise ValueError(f"a sample needs count >= 1 and something to vary, got {count!r} and {len(choices)} names")
    shares = qmc.LatinHypercube(len(choices), seed=np.random.default_rng(0)).random(count)
    return [
        {name: _pick(values, share) for (name, values), share in zip(choices.items(), row, strict=True)}
        for row in shares.tolist()
    ]


def _pick(values: Values, share: float) -> Any:
    return values.at(share) if isinstance(values, Range) else values[int(share * len(values))]
