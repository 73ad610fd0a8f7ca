"""Continual-learning metrics from accuracy matrices, and intervals and verdicts over seeds.

Throughout, `R[i, j]` is the test accuracy on task j after training on task i, a fraction in [0, 1]. Leading axes, such
as seeds, are kept: R of shape (..., T, T) gives shape (...).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from sp.checks import check_choice

CONFIDENCE = 0.95  # nominal coverage of the intervals, and 1 minus the level of the tests
RESAMPLES = 10_000


def average_accuracy(R: ArrayLike) -> np.ndarray | float:
    """Mean accuracy over all tasks after training on the last one (Lopez-Paz & Ranzato 2017): mean over j of R[T, j].

    R: shape (..., T, T), in [0, 1]; R[i, j] is the accuracy on task j after training on task i; NaN above the diagonal
    means not evaluated. Returns shape (...), in [0, 1]. Raises ValueError for a wrong shape or range, or other NaN.
    """
    return _checked(R)[..., -1, :].mean(-1)


def learning_accuracy(R: ArrayLike) -> np.ndarray | float:
    """Mean accuracy on each task right after learning it, a measure of plasticity: mean over j of R[j, j].

    See `average_accuracy` for R and errors. Returns shape (...), in [0, 1].
    """
    return _diagonal(_checked(R)).mean(-1)


def anytime_accuracy(R: ArrayLike) -> np.ndarray | float:
    """Average anytime accuracy: mean over i of the mean accuracy on the tasks learnt so far, R[i, j] for j <= i.

    See `average_accuracy` for R and errors. Returns shape (...), in [0, 1].
    """
    R = _checked(R)
    return np.mean([R[..., i, : i + 1].mean(-1) for i in range(R.shape[-1])], axis=0)


def backward_transfer(R: ArrayLike) -> np.ndarray | float:
    """Effect of later tasks on earlier ones (Lopez-Paz & Ranzato 2017): mean over j < T of R[T, j] - R[j, j].

    See `average_accuracy` for R and errors. Returns shape (...), in [-1, 1], negative if tasks were forgotten; NaN for
    a single task.
    """
    R = _checked(R)
    return _mean_or_nan((R[..., -1, :] - _diagonal(R))[..., :-1])


def forward_transfer(R: ArrayLike, initial: ArrayLike) -> np.ndarray | float:
    """Effect of earlier tasks on later ones (Lopez-Paz & Ranzato 2017): mean over j > 1 of R[j - 1, j] - initial[j].

    See `average_accuracy` for R and errors; R[j - 1, j], just above the diagonal, is required as well.
    initial: accuracies before any training, shape (T,) or (..., T), or a single number, in [0, 1].
    Returns shape (...), in [-1, 1]; NaN for a single task.
    """
    R = _checked(R)
    before = np.diagonal(R, offset=1, axis1=-2, axis2=-1)
    if np.isnan(before).any():
        raise ValueError(
            "R must hold R[j - 1, j] for forward_transfer; got NaN there: evaluate each task before learning it"
        )
    return _mean_or_nan(before - _checked_vector("initial", initial, R)[..., 1:])


def forgetting(R: ArrayLike) -> np.ndarray | float:
    """Drop from the best accuracy per task (Chaudhry et al. 2018): mean over j < T of max_{l < T} R[l, j] - R[T, j].

    See `average_accuracy` for R and errors; the maximum ignores NaN. Returns shape (...), in [-1, 1], positive if tasks
    were forgotten, and never below the negated backward transfer; NaN for a single task.
    """
    R = _checked(R)
    if R.shape[-1] == 1:
        return _mean_or_nan(R[..., -1, :-1])
    return _mean_or_nan(np.nanmax(R[..., :-1, :-1], axis=-2) - R[..., -1, :-1])


def interval_text(estimate: float, low: float, high: float, form: str = ".3f") -> str:
    """Format "estimate [low, high]", each number with ``form``; "+.3f" shows the sign of a difference.

    A single value has no interval.
    """
    return f"{estimate:{form}}" + ("" if np.isnan(low) else f" [{low:{form}}, {high:{form}}]")


class Interval(NamedTuple):
    """An estimate from n values, and the interval [low, high] around it, in the units of the values."""

    estimate: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{interval_text(*self[:3])} (n = {self.n})"


class PairedDifference(NamedTuple):
    """An `Interval` for the difference a - b over n pairs, the p-value for no difference, and the verdict on a."""

    estimate: float
    low: float
    high: float
    n: int
    p_value: float
    verdict: str

    def __str__(self) -> str:
        return f"{interval_text(*self[:3], '+.3f')} (n = {self.n}, p = {self.p_value:.3g}): {self.verdict}"


def bootstrap_interval(values: ArrayLike) -> Interval:
    """Mean over seeds and its 95 % percentile bootstrap interval (Efron 1979).

    BCa is not used because it is unstable at about ten values. With few values, coverage falls short of 95 %: for
    normal values, the interval covers the true mean about 84 % of the time at n = 5, 90 % at n = 10 and 92 % at n = 20.

    Args:
        values: one value per seed, shape (n,), finite, n >= 1. The same values always give the same interval.

    Returns:
        Interval(estimate, low, high, n). Equal values give a width of zero; a single value gives NaN bounds.
    """
    values = _checked_values("values", values)
    if len(values) == 1:
        return Interval(float(values[0]), np.nan, np.nan, 1)
    if (values == values[0]).all():  # exact: the mean of equal numbers may have a rounding error
        return Interval(*[float(values[0])] * 3, len(values))
    low, high = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(0),
    ).confidence_interval
    return Interval(float(np.mean(values)), float(low), float(high), len(values))


def paired_difference(a: ArrayLike, b: ArrayLike) -> PairedDifference:
    """Test whether a differs from b, seed by seed: bootstrap interval of a - b, and a sign-flip test (Fisher 1935).

    Args:
        a, b: one value per seed, shape (n,) each, finite; a[i] and b[i] come from the same seed.

    Returns:
        PairedDifference(estimate, low, high, n, p_value, verdict). p_value is two-sided, in (0, 1], from 10,000 sign
        flips, or from all 2^n if there are fewer. The verdict is "higher" or "lower" (a relative to b) if the interval
        excludes zero and p_value is below 0.05, else "no difference found". With fewer than six pairs no p_value can be
        that low, and the interval is too narrow as well, so the verdict is "too few seeds to tell".
    """
    a, b = _checked_values("a", a), _checked_values("b", b)
    if len(a) != len(b):
        raise ValueError(f"a and b must hold the same seeds, in the same order; got {len(a)} and {len(b)} values")
    interval = bootstrap_interval(a - b)
    p_value = 1.0
    if len(a) > 1:
        p_value = stats.permutation_test(
            (a - b,),
            np.mean,
            permutation_type="samples",
            n_resamples=RESAMPLES,
            vectorized=True,
            random_state=np.random.default_rng(0),
        ).pvalue
    verdict = "no difference found"
    if 2 * 0.5 ** len(a) >= 1 - CONFIDENCE:
        verdict = "too few seeds to tell"
    elif p_value < 1 - CONFIDENCE and (interval.low > 0 or interval.high < 0):
        verdict = "higher" if interval.low > 0 else "lower"
    return PairedDifference(*interval, float(p_value), verdict)


def difference(rows: pd.DataFrame, first: str, second: str, value: str = "average_accuracy") -> PairedDifference:
    """`paired_difference` of two methods, from one column of tidy results.

    Args:
        rows: one row per run: ``method``, ``seed`` and column ``value``. first, second: methods with the same seeds.
    """
    check_choice("first", first, rows.method.unique())
    check_choice("second", second, rows.method.unique())
    both = rows[rows.method.isin([first, second])].pivot(index="seed", columns="method", values=value)
    if len(alone := both.index[both.isna().any(axis=1)]):
        raise ValueError(f"{first!r} and {second!r} must have the same seeds; only one of them has {list(alone)}")
    return paired_difference(both[first], both[second])


def summarise(frame: pd.DataFrame, by: Sequence[str], value: str) -> pd.DataFrame:
    """Mean, bootstrap interval and number of values for each group.

    Args:
        frame: tidy results, one row per run.
        by: the columns to group by, at least one; missing values form their own group.
        value: the column to summarise; its numbers must be finite.

    Returns:
        One row per group, in order of first appearance; columns `by`, then mean, low, high (in units of `value`), n.
    """
    for column in [*by, value]:
        check_choice("column", column, frame.columns)
    groups = frame.groupby(list(by), sort=False, observed=True, dropna=False)[value]
    rows = [(*key, *bootstrap_interval(group)) for key, group in groups]
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "n"])


def interval_table(frame: pd.DataFrame, by: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """`summarise` for several columns: one row per group and value, with the name of the value in ``metric``."""
    tables = [summarise(frame, by, value).assign(metric=value) for value in values]
    return pd.concat(tables, ignore_index=True)


def readable(table: pd.DataFrame, digits: int = 3) -> pd.DataFrame:
    """An `interval_table` as text, "mean [low, high]": one row per group, one column per metric, n above them."""
    by = [column for column in table.columns if column not in ("metric", "mean", "low", "high", "n")]
    figures = table[["mean", "low", "high"]].itertuples(index=False, name=None)
    text = [interval_text(*row, f".{digits}f") for row in figures]
    wide = table[by].assign(metric=table.metric, text=text)
    text = wide.groupby([*by, "metric"], sort=False, dropna=False).text.first().unstack("metric", sort=False)
    ends = sorted({table.n.min(), table.n.max()})
    return text.rename_axis(columns="n = " + " to ".join(map(str, ends)))


def _diagonal(R: np.ndarray) -> np.ndarray:
    return np.diagonal(R, axis1=-2, axis2=-1)


def _mean_or_nan(values: np.ndarray) -> np.ndarray | float:
    """Mean over the last axis, or NaN (without NumPy's warning) if it is empty."""
    return values.mean(-1) if values.shape[-1] else np.full(values.shape[:-1], np.nan)[()]


def _checked(R: ArrayLike) -> np.ndarray:
    R = np.asarray(R, dtype=float)
    if R.ndim < 2 or R.shape[-1] != R.shape[-2] or R.shape[-1] == 0:
        raise ValueError(f"R must be square, shape (T, T) or (..., T, T) with T >= 1; got shape {R.shape}")
    _check_range("R", R)
    missing = np.argwhere(np.isnan(R) & np.tri(R.shape[-1], dtype=bool))
    if len(missing):
        i, j = missing[0][-2:]
        raise ValueError(
            f"R must be known on and below the diagonal; got NaN for task {j} after task {i} (R[{i}, {j}]): "
            f"evaluate all tasks learnt so far after each task, and check that R is not transposed"
        )
    return R


def _checked_vector(name: str, values: ArrayLike, R: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim and values.shape not in (R.shape[-1:], R.shape[:-1]):
        raise ValueError(
            f"{name} must hold one accuracy a task, shape {R.shape[-1:]}, or one number; got shape {values.shape}"
        )
    _check_range(name, values)
    if np.isnan(values).any():
        raise ValueError(f"{name} must be known for every task; got NaN: evaluate it, or leave this figure out")
    return np.broadcast_to(values, R.shape[:-1])


def _check_range(name: str, values: np.ndarray) -> None:
    outside = values[(values < 0) | (values > 1)]
    if len(outside):
        raise ValueError(f"{name} must hold fractions in [0, 1]; got {outside[0]:g}: divide percentages by 100")


def _checked_values(name: str, values: ArrayLike) -> np.ndarray:
    values = np.asarray(values, dtype=float)
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"{name} must hold one figure a seed, shape (n,) with n >= 1; got shape {values.shape}")
    if not np.isfinite(values).all():
        place = int(np.argmin(np.isfinite(values)))
        raise ValueError(f"{name} must be finite; got {values[place]} at {place}: leave out, or rerun, what failed")
    return values
