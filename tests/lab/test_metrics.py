"""Metrics against hand-computed cases, and what must hold for any accuracies."""

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sp.lab import metrics

NAN = np.nan
R = np.array([[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.5, 0.6, 1.0]])
LOWER = np.array([[0.9, NAN, NAN], [0.7, 0.8, NAN], [0.5, 0.6, 1.0]])

SIMPLE = [
    metrics.average_accuracy,
    metrics.learning_accuracy,
    metrics.anytime_accuracy,
    metrics.backward_transfer,
    metrics.forgetting,
]

squares = st.integers(2, 5).flatmap(lambda tasks: arrays(float, (tasks, tasks), elements=st.floats(0, 1)))
figures = arrays(float, st.integers(2, 12), elements=st.floats(-1, 1, width=16))


@pytest.mark.parametrize("matrix", [R, LOWER, R.tolist()])
def test_by_hand(matrix):
    assert metrics.average_accuracy(matrix) == pytest.approx(0.7)
    assert metrics.learning_accuracy(matrix) == pytest.approx(0.9)
    assert metrics.anytime_accuracy(matrix) == pytest.approx((0.9 + 0.75 + 0.7) / 3)
    assert metrics.backward_transfer(matrix) == pytest.approx((-0.4 - 0.2) / 2)
    assert metrics.forgetting(matrix) == pytest.approx((0.4 + 0.2) / 2)


def test_forward_transfer_by_hand():
    assert metrics.forward_transfer(R, [0.1, 0.1, 0.2]) == pytest.approx((0.1 + 0.1) / 2)
    assert metrics.forward_transfer(R, 0.1) == pytest.approx((0.1 + 0.2) / 2)
    with pytest.raises(ValueError, match="before learning it"):
        metrics.forward_transfer(LOWER, 0.1)


def test_forgetting_counts_from_the_best_moment_not_from_the_first():
    improved = [[0.5, NAN, NAN], [0.9, 0.8, NAN], [0.6, 0.8, 0.7]]
    assert metrics.forgetting(improved) == pytest.approx((0.3 + 0.0) / 2)
    assert metrics.backward_transfer(improved) == pytest.approx((0.1 + 0.0) / 2)


def test_one_task_has_accuracies_but_nothing_to_transfer_or_forget():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for metric in SIMPLE[:3]:
            assert metric([[0.8]]) == pytest.approx(0.8)
        for metric in SIMPLE[3:]:
            assert np.isnan(metric([[0.8]]))
            assert np.isnan(metric([[[0.8]], [[0.9]]])).tolist() == [True, True]
        assert np.isnan(metrics.forward_transfer([[0.8]], 0.1))


@given(squares)
def test_bounds(matrix):
    for metric in SIMPLE[:3]:
        assert 0 <= metric(matrix) <= 1 + 1e-12
    for metric in SIMPLE[3:]:
        assert -1 <= metric(matrix) <= 1
    assert metrics.forgetting(matrix) >= -metrics.backward_transfer(matrix) - 1e-12


@given(squares)
def test_leading_axes_are_kept(matrix):
    stack = np.stack([matrix, matrix**2])
    for metric in SIMPLE:
        np.testing.assert_allclose(metric(stack), [metric(matrix), metric(matrix**2)])
    initial = np.stack([matrix[0], matrix[-1]])
    one_by_one = [metrics.forward_transfer(matrix, initial[0]), metrics.forward_transfer(matrix**2, initial[1])]
    np.testing.assert_allclose(metrics.forward_transfer(stack, initial), one_by_one)


@given(squares)
def test_what_was_not_evaluated_changes_only_what_is_made_from_it(matrix):
    known = np.where(np.tri(len(matrix), dtype=bool), matrix, NAN)
    for metric in SIMPLE[:4]:
        assert metric(known) == metric(matrix)
    assert metrics.forgetting(known) <= metrics.forgetting(matrix) + 1e-12


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([0.1, 0.2], r"square.*got shape \(2,\)"),
        (np.ones((2, 3)), r"square.*got shape \(2, 3\)"),
        (np.ones((0, 0)), "T >= 1"),
        (R * 100, "got 90: divide percentages by 100"),
        (-R, "fractions in"),
        (LOWER.T, r"task 0 after task 1 \(R\[1, 0\]\).*transposed"),
    ],
)
def test_a_wrong_matrix_is_refused(matrix, message):
    for metric in SIMPLE:
        with pytest.raises(ValueError, match=message):
            metric(matrix)


def test_a_wrong_vector_is_refused():
    with pytest.raises(ValueError, match=r"initial must hold one accuracy a task, shape \(3,\).*got shape \(2,\)"):
        metrics.forward_transfer(R, [0.9, 0.9])
    with pytest.raises(ValueError, match="initial must hold fractions"):
        metrics.forward_transfer(R, 10)
    with pytest.raises(ValueError, match="initial must be known"):
        metrics.forward_transfer(R, [0.9, NAN, 0.9])


@settings(max_examples=25, deadline=None)
@given(figures)
def test_an_interval_lies_within_its_values(values):
    interval = metrics.bootstrap_interval(values)
    tolerance = 1e-9
    assert interval.n == len(values)
    assert values.min() - tolerance <= interval.low <= interval.high <= values.max() + tolerance
    assert interval == metrics.bootstrap_interval(values)


def test_an_interval_of_a_known_sample():
    values = np.random.default_rng(0).normal(0.8, 0.05, 400)
    interval = metrics.bootstrap_interval(values)
    half_width = 1.96 * values.std() / np.sqrt(len(values))
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half_width, abs=5e-4)
    assert interval.high == pytest.approx(values.mean() + half_width, abs=5e-4)


def test_equal_values_and_a_single_value_warn_of_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert metrics.bootstrap_interval([0.1] * 10) == (0.1, 0.1, 0.1, 10)
        single = metrics.bootstrap_interval([0.3])
        assert (single.estimate, single.n) == (0.3, 1)
        assert np.isnan(single.low) and np.isnan(single.high)
        assert metrics.paired_difference([0.3], [0.1]).verdict == "too few seeds to tell"
        same = metrics.paired_difference([0.1, 0.2, 0.3], [0.1, 0.2, 0.3])
        assert same[:4] == (0, 0, 0, 3)
        assert (same.p_value, same.verdict) == (1, "too few seeds to tell")


@pytest.mark.parametrize(
    ("values", "message"),
    [([], "n >= 1"), ([[0.1, 0.2]], r"got shape \(1, 2\)"), ([0.1, NAN], "finite; got nan at 1")],
)
def test_wrong_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        metrics.bootstrap_interval(values)


def test_pairing_finds_what_spread_between_seeds_hides():
    generator = np.random.default_rng(0)
    b = generator.uniform(0.5, 0.9, 12)
    a = b + generator.uniform(0.005, 0.02, 12)
    difference = metrics.paired_difference(a, b)
    assert difference.verdict == "higher"
    assert difference.p_value == pytest.approx(2 / 2**12)  # all flips of twelve signs; only two are as extreme
    assert difference.estimate == pytest.approx(np.mean(a - b))
    assert metrics.bootstrap_interval(a).low < metrics.bootstrap_interval(b).high


@settings(max_examples=25, deadline=None)
@given(figures, st.integers(0, 100))
def test_swapping_the_methods_turns_the_verdict(a, seed):
    b = np.random.default_rng(seed).permutation(a)
    there, back = (metrics.paired_difference(*methods) for methods in ((a, b), (b, a)))
    assert there.estimate == pytest.approx(-back.estimate)
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    assert there.n == len(a)
    assert 0 < there.p_value <= 1
    if min(abs(there.low), abs(there.high)) > 1e-9:
        opposite = {"higher": "lower", "lower": "higher"}
        assert back.verdict == opposite.get(there.verdict, there.verdict)


def test_methods_must_be_paired():
    with pytest.raises(ValueError, match=r"same seeds.*got 2 and 3"):
        metrics.paired_difference([0.1, 0.2], [0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="b must be finite"):
        metrics.paired_difference([0.1, 0.2], [0.1, NAN])


def test_results_print_themselves():
    assert str(metrics.Interval(0.93314, 0.92, 0.945, 10)) == "0.933 [0.920, 0.945] (n = 10)"
    difference = metrics.PairedDifference(0.012, -0.001, 0.02, 10, 0.0625, "no difference found")
    assert str(difference) == "+0.012 [-0.001, +0.020] (n = 10, p = 0.0625): no difference found"


def test_summarise():
    frame = pd.DataFrame(
        {
            "optimizer": ["sp", "sp", "adam", "adam", "adam"],
            "tasks": [2, 2, 2, 2, 5],
            "seed": [0, 1, 0, 1, 0],
            "accuracy": [0.8, 0.9, 0.5, 0.5, 0.4],
        }
    )
    table = metrics.summarise(frame, by=["optimizer", "tasks"], value="accuracy")
    assert list(table.columns) == ["optimizer", "tasks", "mean", "low", "high", "n"]
    assert table[["optimizer", "tasks"]].values.tolist() == [["sp", 2], ["adam", 2], ["adam", 5]]
    assert table["n"].tolist() == [2, 2, 1]
    np.testing.assert_allclose(table["mean"], [0.85, 0.5, 0.4])
    np.testing.assert_allclose(table[["low", "high"]], [[0.8, 0.9], [0.5, 0.5], [NAN, NAN]])
    assert metrics.summarise(frame, ["optimizer"], "accuracy")["n"].tolist() == [2, 3]
    assert len(metrics.summarise(frame[:0], ["optimizer"], "accuracy")) == 0


def test_summarise_says_what_is_wrong():
    frame = pd.DataFrame({"optimizer": ["adam"], "accuracy": [0.5]})
    with pytest.raises(ValueError, match="column must be one of 'optimizer', 'accuracy', got 'method'"):
        metrics.summarise(frame, ["method"], "accuracy")


def test_a_group_with_a_missing_value_is_shown_and_n_is_said():
    frame = pd.DataFrame({"samples": [None, None, 100.0], "accuracy": [0.1, 0.2, 0.3]})
    text = metrics.readable(metrics.interval_table(frame, ["samples"], ["accuracy"]))
    assert len(text) == 2 and text.columns.name == "n = 1 to 2"


def test_a_verdict_asks_for_the_interval_and_for_the_test():
    assert metrics.paired_difference([1.0] * 5, [0.0] * 5).verdict == "too few seeds to tell"
    assert metrics.paired_difference([1.0] * 6, [0.0] * 6).verdict == "higher"
    uneven = metrics.paired_difference([0.04, 0.0, 0.0, 0.0, 0.05, 0.001], [0.0] * 6)
    assert uneven.low > 0 and uneven.p_value > 0.05 and uneven.verdict == "no difference found"


def test_a_difference_of_methods_is_paired_by_seed_whatever_the_order_of_rows():
    rng = np.random.default_rng(0)
    a, b = rng.random(8), rng.random(8)
    rows = pd.DataFrame({"method": ["a"] * 8 + ["b"] * 8, "seed": [*range(8)] * 2, "score": [*a, *b]})
    found = metrics.difference(rows.sample(frac=1, random_state=1), "a", "b", "score")
    assert found == metrics.paired_difference(a, b)
    assert metrics.interval_text(*found[:3], "+.2f") == f"{found.estimate:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
    with pytest.raises(ValueError, match="second must be one of 'a', 'b', got 'c'"):
        metrics.difference(rows, "a", "c", "score")
    with pytest.raises(ValueError, match=r"only one of them has \[7\]"):
        metrics.difference(rows[:-1], "a", "b", "score")


def test_forgetting_is_negative_where_the_last_task_helps_more_than_any_before():
    assert metrics.forgetting([[0.5, NAN, NAN], [0.4, 0.8, NAN], [0.9, 0.6, 0.7]]) == pytest.approx((-0.4 + 0.2) / 2)
