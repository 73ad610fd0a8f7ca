"""Every method has one tiny run on digits whose accuracies are kept, so that a change in a rule shows up by its name.

They are kept with the version of the method that made them. Changed results need a new version; otherwise, results of
the old rule would be read as those of the new one. ``python tests/test_golden_runs.py [RUN ...]`` records runs of a new
version in ``tests/golden_runs.csv``, by default all of them. Changes under the same version are refused.
"""

import argparse
import importlib.util
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from sp.files import write_atomically
from sp.lab.experiment import METHOD_VERSIONS, RULES_VERSION, Experiment, Moment, run
from sp.rivals import METHODS

RECORDED = Path(__file__).with_name("golden_runs.csv")
ACCURACIES = ["a_after_a", "b_after_a", "a_after_b", "b_after_b"]  # on a task after training on a task
VERSIONS = ["rules_version", "method_version"]
TOLERANCE = 0.02  # of an accuracy, about 4 images: processors round differently
ELSEWHERE = 0.06  # on an accelerator, where dropout and noise draw other numbers

# Domain-incremental, so that a part of task A is kept; so few steps that no network has converged.
SMALL = {"scenario": "domain", "hidden": (32, 32)}
REHEARSING = {"replay_capacity": 100, "options": {"lr": 0.1}}
# Without these, a method would stay near chance in so few steps, or behave like the plain optimizer under it.
CHOICES = {
    "active_dendrites": {"epochs": 2},
    "adamw": {"options": {"weight_decay": 10.0}},
    "agem": {**REHEARSING, "epochs": 2},
    "consolidating": {"options": {"warmup_steps": 20}},
    "dendrites": {"options": {"check_every": 4, "patience": 1}},
    "derpp": REHEARSING,
    "er_ace": {**REHEARSING, "scenario": "class"},
    "ewc": {"options": {"strength": 1000.0}},
    "gpm": {"options": {"lr": 0.1}},
    "l2_init": {"options": {"strength": 0.1}},
    "lwf": {"epochs": 2, "options": {"strength": 4.0}},
    "mas": {"options": {"strength": 50.0}},
    "momentum": {"options": {"lr": 0.02}},
    "ncl": {"options": {"prior": 0.1}},
    "online_ewc": {"options": {"strength": 1000.0}},
    "online_owm": {"options": {"lr": 0.3, "alpha": 0.1}},
    "owm": {"options": {"lr": 0.1}},
    "ridge": {"options": {"penalty": 10.0}},
    "selective": {"epochs": 2, "options": {"warmup_steps": 5}},
    "selective_coincidence": {"epochs": 2, "options": {"warmup_steps": 5}},
    "sgd": {"options": {"lr": 0.1}},
    "si": {"options": {"strength": 2000.0}},
    "upgd": {"epochs": 10, "options": {"sigma": 0.1}},
}
RUNS = {method: Experiment(optimizer=method, **{**SMALL, **CHOICES.get(method, {})}) for method in METHODS}
RUNS["coincidence, convolutional"] = Experiment(
    optimizer="coincidence", model="convolutional", **{**SMALL, "hidden": (4, 8, 32)}
)
RUNS["coincidence, recurrent"] = Experiment(optimizer="coincidence", model="recurrent", **{**SMALL, "hidden": (32,)})
# The first and last have no rate; the others recreate their optimizer.
WITHOUT_LASTING_RATE = ("chance", "dendrites", "joint", "ranpac", "ridge", "slda")
NEEDS_PACKAGE = "it needs the extra `dendrites`: make dendrites"


def can_run(name: str) -> bool:
    return name != "dendrites" or importlib.util.find_spec("perforatedai") is not None


def recorded() -> pd.DataFrame:
    return pd.read_csv(RECORDED, index_col="run")


def recorded_of(name: str) -> np.ndarray:
    table = recorded()
    if name not in table.index:
        pytest.fail(f"{RECORDED.name} has no run {name!r}: record it with  {command(name)}")
    return table.loc[name, ACCURACIES].to_numpy(dtype=float)


def versions(name: str) -> list[int]:
    return [RULES_VERSION, RUNS[name].method_version or 1]


def command(name: str) -> str:
    return f"python tests/{Path(__file__).name} {shlex.quote(name)}"


def differs(one: np.ndarray, other: np.ndarray) -> bool:
    tolerance = TOLERANCE if torch.get_default_device().type == "cpu" else ELSEWHERE
    return not np.abs(one - other).max() <= tolerance  # written so that NaN differs as well


def moved(name: str, measured: np.ndarray) -> str:
    return (
        f"{name} moved while its version did not: accuracies are {measured.round(3)}, recorded are "
        f"{recorded_of(name).round(3)} ({', '.join(ACCURACIES)}). If its rule was meant to change, raise "
        f"METHOD_VERSIONS[{RUNS[name].optimizer!r}] in sp/lab/experiment.py (RULES_VERSION where every method moved) "
        f"and record again with  {command(name)}"
    )


def check(name: str) -> None:
    expected, kept = recorded_of(name), recorded().loc[name, VERSIONS].to_list()
    assert kept == versions(name), (
        f"{name} was recorded under {dict(zip(VERSIONS, kept, strict=True))}, and sp/lab/experiment.py now says "
        f"{dict(zip(VERSIONS, versions(name), strict=True))}: record it again with  {command(name)}"
    )
    if not can_run(name):
        pytest.skip(NEEDS_PACKAGE)
    measured = run(RUNS[name], torch.get_default_device()).accuracy.ravel()
    assert not differs(measured, expected), moved(name, measured)


@pytest.mark.parametrize("name", RUNS)
def test_accuracies_are_those_that_were_recorded_under_this_version(name):
    check(name)


@pytest.mark.parametrize("name", [name for name in RUNS if name not in WITHOUT_LASTING_RATE])
@pytest.mark.parametrize("factor", [0.5, 2])
def test_another_learning_rate_is_seen(name, factor):
    def change(moment: Moment) -> None:
        if moment.step == 1:
            for group in moment.learner.optimizer.param_groups:
                group["lr"] *= factor

    assert differs(run(RUNS[name], look=change).accuracy.ravel(), recorded_of(name))


def test_no_run_is_recorded_that_is_not_made():
    assert set(recorded().index) <= set(RUNS)


def test_a_run_that_is_missing_is_named_with_its_command_which_adds_it_and_leaves_the_others(tmp_path, monkeypatch):
    before, copy = recorded(), tmp_path / RECORDED.name
    monkeypatch.setitem(globals(), "RECORDED", copy)
    before.drop(index="ridge").to_csv(copy, float_format="%.4f")
    with pytest.raises(pytest.fail.Exception, match=r"no run 'ridge': record it with  python tests/.* ridge"):
        recorded_of("ridge")
    main(["ridge"])
    pd.testing.assert_frame_equal(recorded().round(2), before.round(2), atol=TOLERANCE)
    with pytest.raises(SystemExit):
        main(["rigde"])


def test_a_run_that_moved_is_recorded_under_another_version_only(tmp_path, monkeypatch):
    table, copy = recorded(), tmp_path / RECORDED.name
    table.loc["ridge", "b_after_b"] -= 2 * TOLERANCE
    table.to_csv(copy, float_format="%.4f")
    monkeypatch.setitem(globals(), "RECORDED", copy)
    with pytest.raises(AssertionError, match=r"raise METHOD_VERSIONS\['ridge'\] in sp/lab/experiment.py .* ridge"):
        check("ridge")
    before = copy.read_bytes()
    with pytest.raises(SystemExit, match=r"ridge moved while its version did not"):
        main(["ridge"])
    assert copy.read_bytes() == before

    monkeypatch.setitem(METHOD_VERSIONS, "ridge", 2)
    with pytest.raises(
        AssertionError, match=r"'method_version': 1}.*'method_version': 2}: record it again with .* ridge"
    ):
        check("ridge")
    main(["ridge"])
    check("ridge")
    pd.testing.assert_frame_equal(recorded().drop(index="ridge"), table.drop(index="ridge"))


def test_what_did_not_move_keeps_its_row_so_that_small_moves_do_not_add_up(tmp_path, monkeypatch):
    table, copy = recorded(), tmp_path / RECORDED.name
    table.loc["ridge", "b_after_b"] -= TOLERANCE / 2
    table.to_csv(copy, float_format="%.4f")
    monkeypatch.setitem(globals(), "RECORDED", copy)
    before = copy.read_bytes()
    main(["ridge"])
    assert copy.read_bytes() == before


def main(arguments: Sequence[str] | None = None) -> None:
    """Run and record the named runs, by default all; other rows and unchanged ones stay as they are."""
    parser = argparse.ArgumentParser(description="Run and record tiny runs; other rows stay as they are.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"default: all of {'; '.join(RUNS)}")
    names = parser.parse_args(arguments).runs or list(RUNS)
    if unknown := sorted(set(names) - set(RUNS)):
        parser.error(f"RUN must be one of {'; '.join(RUNS)}, got {'; '.join(unknown)}")
    table, refused = recorded(), []
    for name in names:
        if not can_run(name):
            print(f"{name} is not recorded: {NEEDS_PACKAGE}")
            continue
        measured = run(RUNS[name]).accuracy.ravel()
        if name not in table.index or table.loc[name, VERSIONS].to_list() != versions(name):
            table.loc[name] = [*versions(name), *measured]
            print(f"{name} is recorded:", measured.round(3))
        elif differs(measured, recorded_of(name)):
            refused.append(moved(name, measured))
        else:
            print(f"{name} did not move")
    kept = table.loc[[name for name in RUNS if name in table.index]].astype(dict.fromkeys(VERSIONS, int))
    write_atomically(RECORDED, kept.to_csv(float_format="%.4f"))
    if refused:
        raise SystemExit("\n".join(refused))


if __name__ == "__main__":
    main()
