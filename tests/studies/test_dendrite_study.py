"""What notebook 13 compares: networks of the stated sizes, every method tuned, and verdicts from paired seeds."""

import numpy as np
import pandas as pd
import pytest
import studies
from studies import dendrite_study as study

from sp.lab import sweep
from sp.lab.networks import mlp
from sp.lab.sweep import with_seeds

METHODS = [study.published_methods("digits"), *(study.stream_methods(stream, "digits") for stream in study.STREAMS)]


@pytest.mark.parametrize(("inputs", "hidden"), [(64, (100, 100)), (784, (256, 256))])
def test_the_wide_network_is_of_the_size_of_the_one_with_dendrites(inputs, hidden):
    plain = sum(p.numel() for p in mlp(inputs, hidden, 10).parameters())
    grown = study.grown_size(inputs, hidden, 10)
    width = study.equal_width(grown, inputs, 10)
    wide = sum(p.numel() for p in mlp(inputs, (width, width), 10).parameters())
    assert grown == 2 * plain + sum(hidden) + 10
    assert abs(wide - grown) < inputs + 2 * width  # give or take a unit


def test_published_parameters_are_those_of_a_wrapped_network_without_a_dendrite():
    plain = sum(p.numel() for p in mlp(784, (256, 256), 10).parameters())
    assert set(study.PUBLISHED.parameters) == {plain, 2 * plain}
    assert study.grown_size(784, (256, 256), 10) == 2 * plain + 522


def test_every_method_has_a_rate_of_its_own_or_runs_with_defaults():
    for methods in METHODS:
        assert len(set(methods.values())) == len(methods)
        for method, experiment in methods.items():
            assert ("lr" in dict(experiment.options)) == (not method.startswith("Coincidence")), method


def test_methods_are_tuned_on_other_seeds_and_images_with_equal_effort():
    found = [trial for trials in study.trials("digits").values() for trial in trials]
    assert all(e.seed >= 100 and e.evaluation == "validation" for *_, e in found)
    counts = pd.Series([(method, e.tasks, e.stream) for method, _, e in found]).value_counts()
    assert set(counts) == {7 * 3, 7} and all(
        n == (7 if stream == "permuted" else 21) for (*_, stream), n in counts.items()
    )


def test_without_tuned_rates_the_error_gives_the_command(tmp_path, monkeypatch):
    table = pd.read_csv(studies.TUNED)
    monkeypatch.setattr(studies, "TUNED", tmp_path / "tuned.csv")
    table[~table.study.str.startswith("dendrites_")].to_csv(studies.TUNED, index=False)
    with pytest.raises(LookupError, match="python notebooks/studies tune dendrites_permuted digits"):
        study.stream_methods("permuted", "digits")


def test_additions_compare_each_method_with_its_own_rule():
    values = {"Adam": 0.5, "Adam, wide": 0.5, "Adam, dendrites": 0.4, "Adam + replay": 0.8, "Adam, wide + replay": 0.9}
    values |= {f"Adam{study.LOOP}": 0.3, f"Adam, dendrites{study.LOOP}": 0.3}
    rows = pd.DataFrame(
        [
            {"method": method, "seed": s, "average_accuracy": v + s / 100}
            for method, v in values.items()
            for s in range(6)
        ]
    )
    found = study.additions(rows).set_index(["rule", "with"])
    assert found.verdict.to_dict() == {
        ("Adam", "wide"): "no difference found",
        ("Adam", "dendrites"): "lower",
        ("Adam + replay", "wide"): "higher",
        (f"Adam{study.LOOP}", "dendrites"): "no difference found",
    }
    assert found["average accuracy"]["Adam", "dendrites"] == "-0.100 [-0.100, -0.100]"


def test_the_notebook_s_runs_are_recorded():
    for methods, stream in zip(METHODS, ("two_tasks", *study.STREAMS), strict=True):
        named = with_seeds(methods, range(5 if stream == "permuted" else 10))
        assert not sweep.missing((experiment for _, experiment in named), carried=True)
    rows = study.runs("digits", "two_tasks", seeds=10)
    beside = study.beside_published(rows)
    assert beside.loc["Adam", "parameters"] == "17,610" and beside.loc["Adam", "published B"] == "98.13%"
    assert beside.loc["Adam, wide", "published A"] == ""


def test_active_dendrites_leave_different_units_to_different_tasks():
    stream = study.small_stream(tasks=3)
    plain, active = (study.shared_units(study.learnt(stream, active, epochs=1), stream) for active in (False, True))
    assert np.allclose(plain.diagonal(), 1) and np.allclose(active.diagonal(), 1)
    others = ~np.eye(3, dtype=bool)
    assert active[others].mean() < 0.6 < plain[others].mean() + 0.2
    assert np.allclose(active, active.T)


def test_prototypes_tell_permutations_apart_and_classes_less_well():
    permuted = study.inferred(study.stream_methods("permuted", "digits")["Adam"])
    split = study.inferred(study.stream_methods("split5_class", "digits")["Adam"])
    assert permuted > 0.99 and 0.5 < split < 0.95
