"""A study is tuned by its name, and a wrong name lists the right ones."""

import studies
from studies.commands import main

from sp.lab.experiment import Experiment
from tests.lab.test_ledger import project as project


def test_a_study_is_tuned_by_its_name(project, monkeypatch, capsys):
    monkeypatch.setattr(studies, "TUNED", project / "tuned.csv")
    monkeypatch.setattr(studies, "GRIDS", {**studies.GRIDS, "sgd": [{"lr": 0.1}, {"lr": 0.3}]})
    small = {method: Experiment(optimizer="sgd", hidden=(8,), epochs=epochs) for method, epochs in (("A", 1), ("B", 2))}
    monkeypatch.setitem(studies.STUDIES, "toy", lambda dataset, tuned: small)
    assert main(["tune", "toy", "digits", "--methods", "A", "--workers", "1"]) == 0
    assert capsys.readouterr().out.count("toy") == 2
    assert list(studies.tuned_options("toy", "digits", "A")) == ["lr"]
    assert main(["tune", "toys", "digits"]) == 2
    said = capsys.readouterr().err
    assert "did you mean 'toy'" in said and "ablation_domain" in said and "dendrites_permuted" in said
