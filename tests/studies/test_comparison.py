"""The comparison is fair by construction, resumes where it stopped, and its verdicts follow from numbers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import studies
import torch
from studies import claims, comparison, recipes

from sp import figures
from sp.figures.style import OTHER
from sp.lab.experiment import Experiment, run
from sp.lab.ledger import Ledger as Results
from sp.lab.networks import mlp
from sp.lab.settings import SETTINGS
from sp.replay import ReplayBuffer
from sp.rivals import METHODS, GradientLearner, ReplaySource, make_learner, rehearses
from sp.rivals.distillation import LwF

COMMITTED = Path(__file__).parents[2] / "figures" / "09_comparison"


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Two methods on one small scenario, with their own table of tuned values and folder."""
    monkeypatch.setenv("SP_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setattr(studies, "TUNED", tmp_path / "tuned.csv")
    small = {"hidden": (8, 8), "epochs": 1}
    monkeypatch.setitem(SETTINGS, "digits", {**SETTINGS["digits"], **small})
    monkeypatch.setattr(comparison, "SCENARIOS", {"tiny": {"tasks": 2}})
    monkeypatch.setattr(comparison, "PLAIN", {"Chance": "chance", "Ridge": "ridge"})
    monkeypatch.setattr(comparison, "REPLAYED", {"SGD + replay": "sgd"})
    pd.DataFrame(columns=["study", "dataset", "method", "options", "accuracy", "search"]).to_csv(
        studies.TUNED, index=False
    )
    monkeypatch.setenv("SP_LEDGER", str(tmp_path / "ledger"))
    return Results(tmp_path / "store")


def test_every_method_gets_seven_points_and_each_can_be_built():
    methods = {**comparison.PLAIN, **comparison.REPLAYED}
    elsewhere = {
        "selective_coincidence",
        "dendrites",
        "active_dendrites",
        "ranpac",
        "slda",
        "l2_init",
    }  # in 04, 06, 13, 15, 17
    assert set(METHODS) - elsewhere == set(methods.values())
    for method in {name for title, name in methods.items() if title not in comparison.DEFAULTS}:
        grid = comparison.GRIDS[method]
        assert len(grid) == 7 and len({json.dumps(point) for point in grid}) == 7, method
        for point in grid:
            store = ReplaySource(ReplayBuffer(5), 2, lambda y: None) if rehearses(method) else None
            make_learner(method, lambda: mlp(4, (3,), 2), (4, (3,), 2), torch.device("cpu"), point, store)


def test_a_comparison_tunes_runs_and_goes_on_where_it_stopped(tiny, monkeypatch):
    table = comparison.results("digits", ["tiny"], seeds=2, ledger=tiny, workers=1)
    tuned = comparison.tuned_values("tiny", "digits")
    assert list(tuned.index) == ["Ridge", "SGD + replay"] and json.loads(tuned.options["Ridge"]).keys() == {"penalty"}
    assert set(table.method) == {"Chance", "Ridge", "SGD + replay"} and set(table.capacity) == {0, 50, 200}
    assert (table.n == 2).all() and set(table.metric) == set(comparison.VALUES)
    assert comparison.trials("tiny", "digits") == []
    monkeypatch.setattr("sp.lab.sweep.run", None)  # nothing is run again
    again = comparison.results("digits", ["tiny"], seeds=2, ledger=tiny, workers=1)
    pd.testing.assert_frame_equal(table, again)


def test_runs_are_committed_and_read_from_there(tiny, tmp_path, monkeypatch):
    comparison.results("digits", ["tiny"], seeds=1, replay=False, ledger=tiny, workers=1)
    assert comparison.kept_runs("digits").groupby("method").seed.nunique().to_dict() == {"Chance": 1, "Ridge": 1}
    own = Results(tmp_path / "own", tmp_path / "ledger")
    table = comparison.results("digits", ["tiny"], seeds=2, replay=False, ledger=own, workers=1)
    assert [result.experiment.seed for result in Results(tmp_path / "own").results()] == [1, 1]
    assert (table.n == 2).all()


def test_tuning_never_sees_a_test_image_or_a_reported_seed(tiny):
    found = comparison.trials("tiny", "digits")
    assert len(found) == 2 * 7 * 2  # two methods, seven points, and on digits two seeds
    assert all(trial.evaluation == "validation" and trial.seed >= 100 for *_, trial in found)


def test_methods_without_tuned_options_name_the_command(tiny):
    with pytest.raises(LookupError, match=r"Ridge of 'tiny': not tuned on digits: run  python notebooks/studies comp"):
        comparison.methods("tiny", "digits")
    with pytest.raises(ValueError, match="scenario must be one of 'tiny', got 'other'"):
        comparison.methods("other", "digits")


def test_a_run_s_cost_is_read_from_its_steps():
    clock = comparison._Clock()
    run(Experiment(optimizer="adam", hidden=(8,), samples_per_task=64, options={"lr": 1e-3}), look=clock)
    weights = 65 * 8 + 9 * 10
    assert len(clock.times) == 2 and clock.step_seconds() > 0
    assert clock.kept == 4 * (2 * weights + 4)


@pytest.mark.parametrize("dataset", ["digits", "mnist"])
def test_ridge_with_equal_memory_keeps_as_much_as_coincidence(dataset):
    kept = pd.read_csv(COMMITTED / f"{dataset}_costs.csv").query("capacity == 0").set_index("method").kept
    assert kept[comparison.WIDE] == pytest.approx(kept["Coincidence"] + 1, rel=0.01)  # ridge has no weights besides


@pytest.mark.parametrize("dataset", ["digits", "mnist"])
def test_committed_costs_are_of_the_rules_of_today(dataset):
    methods = {**comparison.untuned("split2_class", dataset), **comparison.untuned("split2_class", dataset, 200)}
    costs = pd.read_csv(COMMITTED / f"{dataset}_costs.csv", dtype={"version": str}).set_index("method")
    stale = [method for method, version in costs.version.items() if version != comparison.version(methods[method])]
    assert not stale, f"measure again, with  python notebooks/studies costs --dataset {dataset}"


def test_what_is_kept_is_every_number_besides_the_weights():
    x, y = torch.randn(12, 4), torch.randint(2, (12,))
    model = mlp(4, (3,), 2)
    weights = sum(p.numel() for p in model.parameters())
    learner = GradientLearner(model, "adam", {})
    assert comparison.kept_bytes(learner) == 0
    learner.learn(x, y, None)
    assert comparison.kept_bytes(learner) == 4 * (2 * weights + 4)  # two moments, and a count for each of four tensors
    published = GradientLearner(mlp(4, (3,), 2), "selective", {})
    published.learn(x, y, None)  # its pieces of weights and state add nothing to these
    assert 0 <= comparison.kept_bytes(published) - 4 * 2 * weights < 200
    lwf = LwF(mlp(4, (3,), 2), base="sgd", lr=0.1)
    lwf.end_task(x, y, None)
    assert comparison.kept_bytes(lwf) == 4 * weights + 2  # the old network, and which units it knows


def test_who_is_ahead_is_read_seed_by_seed():
    noise = np.array([0.0, 0.05, -0.05, 0.1, 0.02, -0.1])  # shared by the methods, and larger than A's advantage
    level = noise + np.array([0.01, -0.01, 0.01, -0.01, 0.01, -0.01])
    values = {"Coincidence": 0.8 + noise, "A": 0.82 + noise, "B": 0.8 + level, "C": 0.4 + noise}
    rows = runs(**values).assign(stream="s", capacity=0)
    other = runs(Coincidence=noise, A=noise).assign(stream="t", capacity=0)
    buffered = runs(D=0.9 + noise).assign(stream="s", capacity=200)
    rows = pd.concat([rows, other, buffered])
    assert comparison.ahead(rows, "Coincidence", "s") == (["A"], ["B"])
    assert comparison.ahead(rows, "Coincidence", "s", 200) == (["D"], [])
    more = pd.concat([rows, buffered.assign(seed=buffered.seed + len(noise))])  # seeds that the method does not have
    assert comparison.ahead(more, "Coincidence", "s", 200) == (["D"], [])


def test_a_choice_that_other_grids_would_make_counts_as_not_made(tiny, monkeypatch):
    comparison.results("digits", ["tiny"], seeds=2, replay=False, ledger=tiny, workers=1)
    assert comparison.trials("tiny", "digits") == []
    monkeypatch.setitem(comparison.GRIDS, "ridge", [{"penalty": 1e-3}])
    assert {method for method, *_ in comparison.trials("tiny", "digits")} == {"Ridge"}
    with pytest.raises(LookupError, match="Ridge of 'tiny': not tuned"):
        comparison.methods("tiny", "digits")


def test_a_part_that_is_made_again_leaves_the_others(tiny):
    both = comparison.results("digits", ["tiny"], seeds=2, ledger=tiny, workers=1)
    again = comparison.results("digits", ["tiny"], seeds=3, replay=False, ledger=tiny, workers=1)
    assert set(again[again.capacity == 0].n) == {3} and set(again[again.capacity > 0].n) == {2}
    assert len(again) == len(both)
    rows = comparison.kept_runs("digits", tiny)
    assert rows.groupby("capacity").seed.nunique().to_dict() == {0: 3, 50: 2, 200: 2}
    with pytest.raises(ValueError, match="scenario must be one of 'tiny', got 'tinny'"):
        comparison.results("digits", ["tinny"])


def test_every_method_has_a_colour():
    assert all(figures.look(method) != OTHER for method in {**comparison.PLAIN, **comparison.REPLAYED})
    assert set(comparison.COLOURED) <= {*comparison.PLAIN, *comparison.REPLAYED}


def runs(**values):
    """One row per seed and method, from method -> values of ``average_accuracy``, or of the named columns."""
    return pd.concat(
        [
            pd.DataFrame({"seed": range(len(v)), "average_accuracy": v, "final_1": v}).assign(method=a)
            for a, v in values.items()
        ]
    )


def test_the_replay_headline_is_split_into_buffer_and_optimizer():
    flushed, fair = "first in, first out", "reservoir"
    values = {
        f"Adam, {flushed}": 0.0,
        f"Adam, {fair}": 0.8,
        f"{claims.RULE}, {flushed}": 0.1,
        f"{claims.RULE}, {fair}": 0.9,
    }
    rows = runs(**{method: [value, value + 0.01] for method, value in values.items()})
    assert claims.share_of_the_gap(rows) == pytest.approx((0.8, 0.1))
    alone = runs(**{claims.PUBLISHED_RATE: [0.0, 0.0]})
    assert [row[3] for row in claims.replay_verdicts(rows, alone)] == ["holds", "holds", "does not hold"]
    apart = rows.assign(final_1=rows.final_1.where(rows.method != f"Adam, {fair}", 0.1))
    assert claims.replay_verdicts(apart, alone)[2][3] == "holds under a condition"


@pytest.mark.parametrize(
    ("accuracy", "transfer", "verdict"),
    [
        (0.9, -0.01, ["holds", "holds"]),
        (0.9, -0.3, ["holds under a condition", "holds"]),
        (0.8, -0.3, ["holds under a condition", "holds under a condition"]),
        (0.7, -0.6, ["does not hold", "does not hold"]),
    ],
)
def test_the_verdicts_on_ten_permutations(accuracy, transfer, verdict):
    noise = np.array([0.0, 0.01, -0.01, 0.02, 0.005, -0.015])
    means = {"Adam, tuned": (0.8, -0.5), f"{claims.RULE}, tuned": (accuracy, transfer)}
    rows = pd.concat(
        pd.DataFrame(
            {"method": method, "seed": range(6), "average_accuracy": a + noise, "backward_transfer": b + noise**2}
        )
        for method, (a, b) in means.items()
    )
    assert [row[3] for row in claims.permuted_verdicts(rows, "x", ", tuned")] == verdict


def test_a_verdict_is_open_where_the_interval_is():
    assert claims.judged((0.15, 0.1, 0.2), 0.05) == claims.judged((-0.05, -0.1, 0.0), 0.05, below=True) == "holds"
    assert claims.judged((0.15, 0.1, 0.2), 0.15) == claims.judged((0.15, 0.1, 0.2), 0.15, below=True) == "open"
    assert claims.judged((0.15, 0.1, 0.2), 0.05, below=True) == "does not hold"
    assert claims.together(["holds", "open"]) == "holds under a condition"
    assert claims.together(["does not hold", "open"]) == "does not hold" and claims.together(["open"]) == "open"
    few = claims.difference(runs(a=[1.0, 2.0], b=[0.0, 1.0]), "a", "b")
    assert claims.of_difference(few) == "open"


def test_claims_of_cost():
    costs = pd.DataFrame({"method": ["Adam", claims.RULE], "capacity": 0, "step_ratio": [1.0, 1.5], "kept": [2.0, 2.0]})
    case = {"part": "size", "optimizer": claims.RULE}
    table = pd.DataFrame(
        [
            {**case, "parameters": 10, "training_ratio": 1.3, "training_ratio_low": 1.2, "training_ratio_high": 1.4},
            {**case, "parameters": 90, "training_ratio": 0.9, "training_ratio_low": 0.8, "training_ratio_high": 1.0},
        ]
    )
    assert [row[3] for row in claims.cost_verdicts(costs, table)] == ["holds", "holds under a condition", "holds"]
    assert claims.cost_verdicts(costs, table[:1])[1][2:] == ("+30% [+20%, +40%] (10 parameters)", "does not hold")
    assert claims.cost_verdicts(costs, table[1:])[1][3] == "holds"


def test_the_advice_is_judged_as_notebook_07_judged_it():
    rows = claims.advice_verdicts("digits")
    judged = pd.read_csv("figures/07_hyperparameters/digits_advice.csv")
    told = judged.verdict.replace("no difference found", "open")
    assert [row[3] for row in rows] == told.to_list() and len(rows) == 12


def test_the_companion_is_judged_by_what_dendrites_change():
    loop = "Adam, dendrites + replay, published loop"
    methods = ["Adam", "Adam, dendrites", claims.RULE, f"{claims.RULE}, dendrites", loop]

    def rows(gain, kept=0.0):
        new = {method: 0.9 + gain * ("dendrites" in method) for method in methods}
        return pd.DataFrame(
            {"method": method, "seed": seed, "old": kept, "new": new[method] + seed / 1000}
            for method in methods
            for seed in range(8)
        )

    assert [row[3] for row in claims.dendrite_verdicts(rows(0.01), "x")] == ["holds", "holds", "holds"]
    assert [row[3] for row in claims.dendrite_verdicts(rows(-0.01, 0.5), "x")] == ["does not hold"] * 3
    mixed = rows(0.01)
    mixed.loc[mixed.method == f"{claims.RULE}, dendrites", "new"] = 0.5
    assert claims.dendrite_verdicts(mixed, "x")[1][3] == "holds under a condition"


def test_being_told_of_a_boundary_resets_the_trace():
    experiment = Experiment(optimizer="selective", hidden=(8,), scenario="domain")
    told, quiet = run(experiment, look=claims.resets), run(experiment)
    assert told.accuracy[0, 0] == quiet.accuracy[0, 0] and told.accuracy.tolist() != quiet.accuracy.tolist()


def test_recipes_that_the_ledger_has_stand_beside_what_was_published(monkeypatch, tmp_path):
    assert len(recipes.RECIPES) == 11 and all(e.dataset == "mnist" for _, e in recipes.RECIPES.values())
    small = Experiment(optimizer="ridge", hidden=(20,))
    monkeypatch.setattr(recipes, "RECIPES", {"one": (0.5, small), "two": (0.4, replace(small, tasks=5))})
    ledger = Results(tmp_path)
    for seed in range(2):
        ledger.put(run(replace(small, tasks=5, seed=seed)))
    ledger.put(run(small))  # the other recipe lacks a seed
    table = recipes.table(seeds=2, ledger=ledger)
    assert list(table.recipe) == ["two"] and table.n.tolist() == [2]
    accuracies = [result.accuracy[-1].mean() for result in ledger.results() if result.experiment.tasks == 5]
    assert table.difference[0] == pytest.approx(np.mean(accuracies) - 0.4)


def test_methods_side_by_side_have_the_smaller_buffer_and_its_costs():
    rows = [("s", capacity, "A", "average_accuracy", capacity / 1000) for capacity in (0, 50, 200)]
    table = pd.DataFrame(rows, columns=["stream", "capacity", "method", "metric", "mean"])
    costs = pd.DataFrame({"method": "A", "capacity": [0, 50, 200], "kept": [1.0, 2.0, 3.0], "step_ratio": 1.0})
    found = comparison.side_by_side(table, costs, ["s"])
    assert found.capacity.tolist() == [0, 50] and found.kept.tolist() == [1.0, 2.0]


def test_the_end_of_a_task_costs_what_it_takes_beyond_sgd(monkeypatch):
    small = Experiment(hidden=(8,))
    few = {"SGD": replace(small, optimizer="sgd"), "Adam": small, "Joint training": replace(small, optimizer="joint")}
    monkeypatch.setattr(comparison, "untuned", lambda stream, dataset, size=0: {} if size else few)
    found = comparison.costs("digits", rounds=1).set_index("method")
    assert found.task_ms["SGD"] == 0 < found.task_ms["Joint training"] and found.step_ratio["Adam"] == 1


def test_a_table_of_a_scenario_says_what_each_method_is_given():
    rows = [("s", 0, method, metric, 0.5, 0.4, 0.6, 10) for method in ("EWC", "Adam") for metric in comparison.VALUES]
    columns = ["stream", "capacity", "method", "metric", "mean", "low", "high", "n"]
    costs = pd.DataFrame({"method": ["EWC", "Adam"], "capacity": 0, "step_ratio": [1.5, 1.0], "kept": [4.0, 2.0]})
    found = comparison.scenario_table(pd.DataFrame(rows, columns=columns), costs, "s")
    assert found.given.to_dict() == {"EWC": "boundaries, again", "Adam": ""}


def test_a_choice_on_other_seeds_counts_as_not_made(tiny, monkeypatch):
    comparison.results("digits", ["tiny"], seeds=1, replay=False, ledger=tiny, workers=1)
    assert comparison.trials("tiny", "digits") == []
    monkeypatch.setattr(comparison, "TUNED_TWICE", ("tiny",))
    assert {method for method, *_ in comparison.trials("tiny", "digits")} == {"Ridge", "SGD + replay"}


def test_the_rule_has_to_gain_more_than_half_of_what_was_published():
    alone = runs(**{claims.PUBLISHED_RATE: [0.0, 0.0]})
    for gain, verdict in ((0.41, "does not hold"), (0.42, "holds")):
        levels = {rule: 0.2 + gain * (rule == claims.RULE) for rule in ("Adam", claims.RULE)}
        rows = runs(**{f"{rule}, {buffer}": [levels[rule]] * 2 for rule in levels for buffer in claims.BUFFERS})
        assert claims.replay_verdicts(rows, alone)[2][3] == verdict


def test_the_network_on_which_the_rule_is_furthest_behind_is_named():
    behind = dict(zip(claims.NETWORKS, (0.01, 0.04, 0.02, 0.03), strict=True))
    rows = runs(
        **{f"Adam, {model}": [0.9] * 6 for model in behind},
        **{f"{claims.RULE}, {model}": [0.9 - gap] * 6 for model, gap in behind.items()},
    )
    found = claims.network_verdict(rows.assign(learning_accuracy=rows.average_accuracy))
    assert "most behind Adam on convolutional: +0.040 [+0.040, +0.040]" in found[2] and found[3] == "holds"


def test_a_limit_holds_where_what_is_told_or_replayed_helps():
    told = runs(**{"told": [0.8] * 6, "not told": [0.7] * 6})
    rows = runs(**{f"{claims.RULE} + replay": [0.5] * 6, claims.RULE: [0.9] * 6})
    assert [row[3] for row in claims.limit_verdicts(told, rows)] == ["holds", "does not hold"]


def test_the_strength_of_synaptic_intelligence_is_twice_the_published_one_since_ours_is_halved():
    for scenario, published in (("class", 5e3), ("domain", 5e4)):
        _, experiment = recipes.RECIPES[f"van de Ven et al. 2022, {scenario}-incremental, SI"]
        assert dict(experiment.options)["strength"] == 2 * published
