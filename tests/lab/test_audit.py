"""An audit finds kept runs that differ from what their experiments give."""

from dataclasses import replace

import pytest

from sp.lab.audit import AuditError, audit, describe, draw
from sp.lab.experiment import Experiment, run
from sp.rivals.optimizers import UPGD

METHODS = {"coincidence": {}, "sgd": {"options": {"lr": 0.2}}, "upgd": {"epochs": 10}}
EXPERIMENTS = [
    Experiment(optimizer=name, samples_per_task=200, hidden=(16,), seed=seed, **more)
    for name, more in METHODS.items()
    for seed in range(5)
]


@pytest.fixture(scope="module")
def kept():
    return {experiment.key(): run(experiment) for experiment in EXPERIMENTS}


def altered(result, by: float, row: int = 1):
    """The result with another accuracy on the second task, at the end or after the first task."""
    accuracy = result.accuracy.copy()
    accuracy[row, 1] += by if accuracy[row, 1] < 1 - by else -by
    return replace(result, accuracy=accuracy)


def test_honest_runs_pass_and_are_told_row_by_row_and_in_a_sentence(kept):
    rows = audit(kept, sample=4, seed=1, workers=1)
    assert list(rows) == ["key", "method", "dataset", "stream", "seed", "kept", "computed", "difference", "largest"]
    assert (
        len(rows) == 4 and set(rows["method"]) == set(METHODS) and (rows[["difference", "largest"]] == 0).all(axis=None)
    )
    told = describe(rows, kept, seed=1)
    assert told.startswith(
        "4 of 15 kept runs, from 3 of 3 methods, were recomputed (seed 1): average accuracies differ"
    )
    assert "by 0.0000 on average and 0.0000 at most" in told


def test_a_run_of_which_only_measures_are_kept_is_compared_by_them(kept):
    class Short:
        accuracy = None

        def __init__(self, result, by=0.0):
            self.experiment = result.experiment
            self.measures = {"average_accuracy": result.accuracy[-1].mean() + by}

    assert len(audit({key: Short(result) for key, result in kept.items()}, 2, seed=0, workers=1)) == 2
    with pytest.raises(AuditError):
        audit({key: Short(result, 0.11) for key, result in kept.items()}, 2, seed=0, workers=1)


def test_a_default_rate_that_was_doubled_is_found(kept, monkeypatch):
    rate, *others = UPGD.__init__.__defaults__
    monkeypatch.setattr(UPGD.__init__, "__defaults__", (2 * rate, *others))
    with pytest.raises(AuditError, match=r"upgd") as found:
        audit(kept, sample=3, seed=0, workers=1)
    assert found.value.rows.loc[found.value.rows["difference"].abs().idxmax(), "method"] == "upgd"


def test_two_rows_that_were_swapped_are_found(kept):
    one, *_, other = kept
    with pytest.raises(AuditError, match="do not have the key of their experiment") as found:
        audit({**kept, one: kept[other], other: kept[one]}, sample=1, seed=0, workers=1)
    assert set(found.value.rows["key"]) == {one, other}

    accuracies = {**kept, one: replace(kept[one], accuracy=kept[other].accuracy)}
    accuracies[other] = replace(kept[other], accuracy=kept[one].accuracy)
    with pytest.raises(AuditError, match=r"differ from the recomputed ones by more than 0.1 .*\(seed 0\)") as found:
        audit(accuracies, sample=15, seed=0, workers=1)
    assert set(found.value.rows["key"]) == {one, other}


def test_a_run_that_was_altered_is_told_with_the_seed(kept):
    drawn = draw(kept, 3, seed=5)
    wrong = {**kept, drawn[-1]: altered(kept[drawn[-1]], 0.25)}
    with pytest.raises(AuditError, match=r"differ from the recomputed ones by more than 0.1 .*\(seed 5\)") as found:
        audit(wrong, sample=3, seed=5, workers=1)
    assert list(found.value.rows["key"]) == drawn[-1:]


@pytest.mark.parametrize("row", [0, 1])
def test_one_accuracy_that_was_altered_in_ten_rows_is_found_whichever_it_is(kept, row):
    ten = set(list(kept)[:10])
    wrong = {key: altered(result, 0.2, row) if key in ten else result for key, result in kept.items()}
    with pytest.raises(AuditError, match="in a single one") as found:
        audit(wrong, sample=6, seed=row, workers=1)  # five rows are unaltered, so at least one of the six is altered
    assert set(found.value.rows["key"]) == ten & set(draw(wrong, 6, seed=row))


def test_small_differences_in_all_are_found_by_their_mean(kept):
    wrong = {key: altered(result, 0.03) for key, result in kept.items()}
    with pytest.raises(AuditError, match=r"differ by 0.0150 on average, more than .* \(seed 2\)") as found:
        audit(wrong, sample=3, seed=2, workers=1)
    assert len(found.value.rows) == 3


def test_a_run_that_cannot_be_made_is_named_with_the_reason(kept, monkeypatch):
    monkeypatch.setattr(UPGD, "step", lambda self: 1 / 0)
    with pytest.raises(AuditError, match=r"(?s)cannot be recomputed \(seed 0\).*upgd.*ZeroDivisionError"):
        audit(kept, sample=3, seed=0, workers=1)


def test_the_sample_is_spread_over_methods_and_is_its_seeds(kept):
    many = {f"{key}{i}": result for key, result in kept.items() for i in range(10 if key < "8" else 1)}
    for seed in range(20):
        methods = [many[key].experiment.optimizer for key in draw(many, 5, seed)]
        assert set(methods[:3]) == set(methods) == set(METHODS) and len(set(methods[3:])) == 2
    assert draw(many, 5, 3) == draw(dict(reversed(many.items())), 5, 3)
    assert len({tuple(draw(many, 5, seed)) for seed in range(20)}) > 10
    assert sorted(draw(many, 1000, 0)) == sorted(many)


def test_an_audit_of_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing to audit"):
        audit({}, 1, 0)
