"""Values on a command line mean what they say, and samples lie where they should."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sp.lab.choices import Range, grid, parse, sample

values = st.one_of(
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.none(),
    st.lists(st.integers()).map(tuple),
    st.text(),
)


words = st.text("abcdefgh_", min_size=1).filter(lambda word: word not in ("None", "True", "False"))


@given(st.lists(values, min_size=1))
def test_values_are_read_back_as_they_were_written(written):
    assert parse(",".join(map(repr, written))) == written


@given(st.lists(words | st.integers(), min_size=1))
def test_words_need_no_quotes(written):
    assert parse(",".join(map(str, written))) == written


def test_ranges_are_read():
    assert parse("1e-4:1:log") == Range(1e-4, 1, log=True)
    assert parse("1:8") == Range(1, 8)


@pytest.mark.parametrize("text", ["", "1,,2", "(1,2", "adam,(1,2)", "2:1", "0:1:log", "1:1e999"])
def test_what_cannot_be_read_is_refused(text):
    with pytest.raises(ValueError, match=r"low:high|low < high"):
        parse(text)


def test_a_grid_has_every_combination_once():
    points = grid({"lr": [1, 2, 3], "optimizer": ["adam", "sgd"]})
    assert len(points) == 6 and len({tuple(point.items()) for point in points}) == 6
    assert grid({}) == [{}]
    with pytest.raises(ValueError, match="lr is a range"):
        grid({"lr": Range(0.1, 1)})


@given(st.integers(1, 30))
def test_a_latin_hypercube_has_one_point_in_each_part_of_each_range(count):
    points = sample({"a": Range(1e-3, 10.0, log=True), "b": Range(-1.0, 1.0)}, count)
    parts = {
        "a": [int(math.log(point["a"] / 1e-3) / math.log(1e4) * count) for point in points],
        "b": [int((point["b"] + 1) / 2 * count) for point in points],
    }
    assert all(sorted(places) == list(range(count)) for places in parts.values())


@given(st.integers(1, 40))
def test_samples_stay_in_their_ranges_and_repeat(count):
    choices = {"whole": Range(2, 5), "share": Range(0.5, 0.75), "rule": ["a", "b"]}
    points = sample(choices, count)
    assert points == sample(choices, count) and len(points) == count
    for point in points:
        assert point["whole"] in (2, 3, 4, 5) and isinstance(point["whole"], int)
        assert 0.5 <= point["share"] <= 0.75 and point["rule"] in choices["rule"]


def test_a_sample_of_nothing_is_refused():
    with pytest.raises(ValueError, match="count >= 1"):
        sample({"a": [1]}, 0)


def test_the_values_of_a_list_are_equally_likely():
    drawn = [point["rule"] for point in sample({"rule": ["a", "b", "c"], "share": Range(0.0, 1.0)}, 30)]
    assert {value: drawn.count(value) for value in drawn} == {"a": 10, "b": 10, "c": 10}
