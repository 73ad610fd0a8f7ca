"""Streams of words, flights and permutations match their version, and kept runs need none of these data."""

import hashlib
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from studies import commands, drift, languages, own_data

from sp.lab.experiment import Experiment
from sp.lab.ledger import Ledger
from sp.lab.streams import Stream
from sp.lab.sweep import with_seeds

LETTERS = ("aé", "bø", "cö", "dñ", "eè", "fã", "gij", "hå", "ił", "jä")
WORDS = {
    language: [a + b + c for a in "etaon" for b in letters for c in "rsln"]
    for language, letters in zip(languages.LANGUAGES, LETTERS, strict=False)
}


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    kept = Ledger(tmp_path / "store")
    monkeypatch.setattr(own_data, "opened", lambda: kept)
    return kept


@pytest.fixture
def words(monkeypatch):
    monkeypatch.setattr(languages, "words_of", lambda language: tuple(WORDS[language]))


def content(stream):
    """A checksum of everything in a stream."""
    found = hashlib.sha256()
    for task in stream.tasks:
        for column in (*task.train(), *task.test()):
            found.update(np.ascontiguousarray(column.double().numpy().round(4)).tobytes())
    return found.hexdigest()[:12]


def flights(folder):
    generator, count = np.random.default_rng(0), 3000
    table = pd.DataFrame({"month": np.sort(generator.integers(1, 13, count)), "day": 1, "flight": range(count)})
    table["year"], table["hour"], table["sched_dep_time"] = 2013, 5 + table.flight % 18, 800
    table["carrier"], table["origin"] = generator.choice(["AA", "UA"], count), generator.choice(["JFK", "EWR"], count)
    table["distance"], table["dep_delay"] = generator.integers(100, 900, count), generator.integers(-90, 300, count)
    table["arr_delay"] = table.dep_delay + generator.integers(-20, 20, count)
    hours = table[drift.PLACE_AND_TIME].drop_duplicates()
    weather = hours.assign(**{name: generator.random(len(hours)) for name in drift.WEATHER})
    (folder / "data").mkdir()
    table.to_csv(folder / "data" / "flights.csv.zip", index=False)
    weather.to_csv(folder / "data" / "weather.csv", index=False)


# If you change one of these on purpose, raise VERSION in the study and rerun it.
MADE = {
    "languages": partial(languages.telling, languages.LANGUAGES[:10]),
    "next letter": partial(languages.spelling, languages.LANGUAGES[:5]),
    "pixels": replace(drift.PIXELS, dataset="digits", tasks=2).tasks_for,
    "labels": replace(drift.SHORT_LABELS, dataset="digits", tasks=2).tasks_for,
}
SUMS = {
    "languages": ["520c291146b6", "b39bb780e589"],
    "next letter": ["3485680e3f6b", "de0bc8f65169"],
    "pixels": ["713796c8017d", "19a91cf63071"],
    "labels": ["8bf68f27695b", "4d469b7e6d94"],
}
ANSWERS = [[-0.029944, 0.022718, -0.042036], [0.123798, 0.023334, 0.142705]]  # of the GRU and the transformer


@pytest.mark.parametrize("name", MADE)
def test_a_stream_is_what_its_version_says(name, words):
    assert (languages.VERSION, drift.VERSION) == (1, 1)
    assert [content(MADE[name](evaluation)) for evaluation in ("test", "validation")] == SUMS[name]


def test_networks_are_what_their_version_says():
    assert languages.NETWORK_VERSIONS == {"GRU": 1, "Transformer": 2}
    torch.manual_seed(0)
    x = torch.arange(2 * languages.LENGTH).reshape(2, -1) % 9
    answers = [make(letters=9, outputs=3)(x)[0].tolist() for make in languages.NETWORKS.values()]
    assert answers == pytest.approx(np.array(ANSWERS), abs=1e-5)


def test_pieces_of_training_and_test_share_no_word():
    words = [f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"]
    train, test = languages.pieces(words, 30, (20, 5), 0)
    assert {len(piece) for piece in (*train, *test)} == {30} and (len(train), len(test)) == (20, 5)
    whole = [{word for word in " ".join(part).split() if len(word) == 2} for part in (train, test)]
    assert whole[1] <= set(words[4::5]) and not whole[0] & set(words[4::5])
    assert languages.coded(["ab z", "b"[:1] + "  a"], " ab").tolist() == [[2, 3, 1, 0], [3, 1, 1, 2]]


def test_a_month_s_held_out_flights_are_never_learnt_and_nothing_comes_before_its_time(tmp_path, monkeypatch):
    flights(tmp_path)
    monkeypatch.setattr(drift, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    drift.flights.cache_clear()
    x, y, month = drift.flights()
    drift.flights.cache_clear()
    assert len(x) == 300 and (np.diff(month) >= 0).all() and y.min() >= -1 and y.max() <= 3
    stream = drift.by_month("test")
    (learnt, _), (asked, _) = stream.tasks[6].train(), stream.tasks[6].test()
    assert len(learnt) + len(asked) == (month == 7).sum()
    assert not {tuple(row) for row in learnt.tolist()} & {tuple(row) for row in asked.tolist()}
    drift.flights.cache_clear()
    assert drift.in_order("test").scored_from == 60


@pytest.mark.parametrize("what", ["labels", "pixels"])
def test_a_permutation_is_of_one_thing_and_the_same_for_all_images_of_a_task(what):
    first, second = replace(drift.SHORT_LABELS, dataset="digits", what=what, tasks=2).tasks_for("test").tasks
    # Its sorted grey levels identify an image wherever its pixels are.
    (x, known), (other, found) = (
        (image, {tuple(sorted(row)): label for row, label in zip(image.tolist(), y.tolist(), strict=True)})
        for image, y in (first.test(), second.test())
    )
    pairs = {(known[image], found[image]) for image in known.keys() & found.keys()}
    assert len(pairs) == 10 and all(a == b for a, b in pairs) == (what == "pixels")
    assert ((x.mean(0) - other.mean(0)).abs().max() < 0.3) == (what == "labels")


# -- running --


def stream(make):
    return own_data.named("toy", 1, own_data.Source(make))


def small(evaluation):
    x = np.random.default_rng(0).normal(size=(80, 4)).astype(np.float32)
    y = (x[:, 0] > 0).astype(int)
    return Stream.from_arrays([(x, y, x, y), (x, 1 - y, x, 1 - y)], scenario="domain").arrays.tasks_for(evaluation)


def absent(evaluation):
    raise ImportError("the toys are not there: buy some")


def test_a_kept_run_is_read_without_its_data_and_a_missing_one_says_what_brings_them(ledger):
    plain = Experiment(stream=stream(small), tasks=2, scenario="domain", hidden=(8,))
    kept = own_data.results([plain])[0]
    without = replace(plain, stream=stream(absent))
    assert own_data.results([without])[0].accuracy.tolist() == kept.accuracy.tolist()
    with pytest.raises(ImportError, match="the toys are not there: buy some"):
        own_data.results([replace(without, seed=1)])
    with pytest.raises(ImportError, match="the toys"):  # another version of the data
        own_data.results([replace(without, stream=own_data.named("toy", 2, own_data.Source(absent)))])


def test_tuning_takes_the_point_with_the_best_score_on_tuning_seeds_and_held_out_data(ledger):
    plain = Experiment(stream=stream(small), tasks=2, scenario="domain", hidden=(8,))
    methods = {"Adam": plain, "Coincidence": replace(plain, optimizer="coincidence")}
    grid = {"Adam": [{"lr": 1e-6}, {"lr": 3e-2}]}
    tuning = own_data.Tuning(methods, grid, (100, 101), score=lambda accuracy: accuracy[0, 0])
    assert {(e.seed, e.evaluation) for e in tuning.experiments} == {(100, "validation"), (101, "validation")}
    assert tuning.table().chosen.tolist() == [False, True]
    assert dict(tuning.chosen()["Adam"].options) == {"lr": 3e-2} and tuning.chosen()["Coincidence"].options == ()


def test_a_part_can_be_run_in_turns(ledger, capsys):
    plain = Experiment(stream=stream(small), tasks=2, scenario="domain", hidden=(8,))
    methods = {"Adam": plain, "Coincidence": replace(plain, optimizer="coincidence")}
    part = own_data.Part(partial(with_seeds, seeds=(0, 1)), own_data.Tuning(methods, {"Adam": [{"lr": 0.01}]}, (100,)))
    assert part.carry_out(dry=True) == [] and "5 runs, 0 of them stored" in capsys.readouterr().out
    assert len(part.carry_out(without=["Coincidence"])) == 3
    assert len(part.carry_out()) == 5 and "5 runs, 3 of them stored, 2 to do" in capsys.readouterr().out
    assert part.table().method.tolist() == ["Adam", "Adam", "Coincidence", "Coincidence"]


def test_the_command_says_how_long_a_part_takes_and_then_runs_and_commits_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SP_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("SP_LEDGER", str(tmp_path / "ledger"))
    plain = Experiment(stream=stream(small), tasks=2, scenario="domain", hidden=(8,))
    tuning = own_data.Tuning({"Adam": plain}, {"Adam": [{"lr": 0.01}]}, (100,))
    monkeypatch.setattr(drift, "PARTS", ("toys",))
    monkeypatch.setattr(drift, "part", lambda name: own_data.Part(partial(with_seeds, seeds=(0,)), tuning))
    assert commands.main(["drift", "--dry-run"]) == 0
    assert "2 runs, 0 of them stored, 2 to do" in capsys.readouterr().out and not (tmp_path / "ledger").exists()
    assert commands.main(["drift"]) == 0
    assert len((tmp_path / "ledger" / "own.jsonl").read_text().splitlines()) == 2
    assert commands.main(["drift", "--parts", "pets"]) == 2
    assert "parts must be one of 'toys', got 'pets'" in capsys.readouterr().err


def test_perplexity_is_kept_of_every_text_so_far(words):
    chosen = replace(languages.spellers()["Adam"], epochs=1, options={"lr": 1e-3})
    measures = languages.with_perplexity(chosen).measures
    assert list(measures) == [f"perplexity_{i}_{j}" for i in range(1, 6) for j in range(1, i + 1)]
    assert all(1 < value < 30 for value in measures.values())


def test_perplexity_of_equal_odds_is_the_number_of_letters():
    learner = SimpleNamespace(logits=lambda x: torch.zeros(*x.shape, 7))
    assert languages.perplexity(learner, torch.zeros(3, 5).long(), torch.ones(3, 5).long()) == pytest.approx(7)


def test_a_head_grows_by_five_when_a_class_comes_that_it_has_no_output_for():
    learner = languages.Growing(languages.Recurrent(4, 5), "coincidence", {})
    x = torch.randint(5, (6, 8))
    learner.learn(x, torch.tensor([0, 1, 2, 3, 4, 0]), None)
    assert learner.logits(x).shape == (6, 5)
    learner.learn(x, torch.tensor([5, 6, 5, 6, 5, 6]), None)
    assert learner.logits(x).shape == (6, 10)
    learner.learn(x, torch.tensor([0, 1, 12, 3, 4, 0]), None)
    assert learner.logits(x).shape == (6, 15)


@pytest.mark.parametrize("study", [languages, drift])
def test_every_arm_of_every_part_has_as_many_points_or_its_defaults(study):
    for name in study.PARTS:
        tuning = study.part(name).tuning
        assert len({len(points) for points in tuning.grids.values()}) <= 1, name
        assert not [method for method in tuning.grids if method.startswith("Coincidence")]
        assert {e.seed for e in tuning.experiments} <= {100, 101, 102}


def test_how_late_flights_left_is_known_ten_flights_later(tmp_path, monkeypatch):
    flights(tmp_path)
    monkeypatch.setattr(drift, "EVERY", 1)
    monkeypatch.setattr(drift, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    path, recent = tmp_path / "data" / "flights.csv.zip", []
    table = pd.read_csv(path).assign(origin="JFK", carrier="AA")
    for late in (0, 170):
        table.loc[2000, "dep_delay"] = late
        table.to_csv(path, index=False)
        drift.flights.cache_clear()
        recent.append(drift.flights()[0][:, 2])
    drift.flights.cache_clear()
    assert np.flatnonzero(np.abs(recent[1] - recent[0]) > 1e-6).tolist() == [*range(2010, 2030)]


def test_both_axes_are_what_is_kept_of_all_tasks_and_what_is_learnt_of_the_last_ten():
    R = np.full((12, 12), 0.4)
    np.fill_diagonal(R, [0.1, 0.1, *[0.8] * 10])
    assert drift.kept_and_learnt(R) == pytest.approx((R[-1].mean() + 0.8) / 2)
    learnt = {f"learned_{task}": 0.1 if task < 3 else 0.8 for task in range(1, 13)}
    names = ["SGD, lr 0.1", "Coincidence", "Coincidence, horizon 10,000"]
    rows = pd.DataFrame({"method": names, "seed": 0, "tasks": 12, "average_accuracy": 0.5, "key": "k", **learnt})
    found = drift.on_both_axes(rows)
    assert found.learnt.tolist() == pytest.approx([0.8] * 3) and found.kept.tolist() == [0.5] * 3
    assert found.setting.tolist() == ["lr 0.1", "no horizon", "10,000"]
    groups = drift.just_learnt(rows[:1].assign(tasks=10, **{f"learned_{task}": task / 10 for task in range(1, 11)}))
    assert groups.task.tolist() == [5, 10] and groups.accuracy.tolist() == pytest.approx([0.3, 0.8])


def test_a_seed_of_endless_tasks_is_that_of_their_permutations_as_well():
    experiment = drift.with_permutations(drift.endless_methods(drift.SHORT_LABELS)["Adam"], 3)
    assert experiment.seed == experiment.stream.given().seed == 3


def test_methods_stand_beside_the_base_by_their_quotient_and_by_the_difference_in_learning():
    levels = {"Adam": (0.4, 0.8), "Other": (0.6, 0.9)}
    rows = pd.DataFrame(
        {"method": method, "seed": seed, "average_accuracy": kept, "learning_accuracy": learnt}
        for method, (kept, learnt) in levels.items()
        for seed in range(3)
    )
    found = own_data.beside(rows).loc["Other"]
    assert found["final, times Adam's"] == "1.50" and found["learning, less Adam's"] == "+0.100 [+0.100, +0.100]"


def test_perplexities_are_averaged_by_their_logarithms():
    row = {
        "method": "Adam",
        "seed": 0,
        "tasks": 2,
        "perplexity_1_1": 4.0,
        "perplexity_2_1": 1.0,
        "perplexity_2_2": 16.0,
    }
    found = languages.perplexities(pd.DataFrame([row]))
    assert found["all"].tolist() == pytest.approx([4.0, 4.0]) and found["last"].tolist() == [4.0, 16.0]


def test_joint_training_and_the_growing_head_use_the_rate_of_adam():
    untuned = languages.methods("GRU")
    tuned = {**untuned, "Adam": untuned["Adam"].with_options(lr=0.25)}
    runs = dict(languages._runs(untuned, [0], tuned))
    assert {method for method, one in runs.items() if dict(one.options).get("lr") == 0.25} == {
        "Adam",
        "Joint training",
        "Adam, growing head",
    }
