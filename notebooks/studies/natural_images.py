"""CIFAR-10 in five tasks of two classes: from pixels, on frozen features, and with a pretrained network's last block.

``python notebooks/studies natural_images`` first says how long it takes, then tunes and runs everything, and resumes
where it was stopped. Coincidence appears both with its defaults and tuned. Every tuned method has the same number of
points, on held-out training images.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

import studies
from sp.checks import check_choice
from sp.lab import data, metrics, pretrained
from sp.lab.experiment import Experiment
from sp.lab.ledger import opened
from sp.lab.networks import MODELS
from sp.lab.settings import INPUTS, TUNING_SEEDS
from sp.lab.sweep import paired_runs, plan, run_all, with_seeds
from sp.lab.watch import accuracy_by_task

PIXELS = Experiment(dataset="cifar10", tasks=5, model="normalised", hidden=(16, 32, 64, 256), samples_per_task=2000)
FROZEN = replace(PIXELS, dataset="cifar10_features", model="mlp", hidden=(), samples_per_task=1600)
THAWED = replace(FROZEN, dataset="cifar10_maps", model="last_block", samples_per_task=1000)
SETTINGS = {"pixels": PIXELS, "frozen": FROZEN, "thawed": THAWED}
PANELS = {"pixels": "From pixels", "frozen": "Frozen features", "thawed": "Last block thawed"}
RANDOM = 1500  # random features of ridge and RanPAC
REPLAYED = 200  # stored images
DEFAULT, CHOSEN = "Coincidence", "Coincidence, tuned"  # one method, with its defaults and with tuned options

TUNED_SEEDS = TUNING_SEEDS[:1]
# Further points that each method may try, neighbours of its best one; the slow setting gets none.
FURTHER = {"pixels": 2, "frozen": 4, "thawed": 0}
# Four points for each tuned method; RanPAC chooses its own penalty.
_RATES = {"pixels": (1e-4, 3e-4, 1e-3, 3e-3), "frozen": (3e-5, 1e-4, 3e-4, 1e-3), "thawed": (1e-5, 3e-5, 1e-4, 3e-4)}
_SGD = {"pixels": (3e-3, 1e-2, 3e-2, 0.1), "frozen": (1e-4, 1e-3, 1e-2, 0.1), "thawed": (3e-5, 3e-4, 3e-3, 3e-2)}
_OWM = {"pixels": (0.01, 0.1), "frozen": (0.01, 0.1), "thawed": (3e-3, 3e-2)}


def grids(setting: str) -> dict[str, list[dict]]:
    """The points on which methods are tuned, by optimizer name; methods without points are not tuned."""
    rates = [{"lr": lr} for lr in _RATES[setting]]
    low, high = _RATES[setting][1:3]
    return {
        "adam": rates,
        "coincidence": [{"lr": lr, "retention": retention} for lr in (0.1, 0.2) for retention in (50.0, 200.0)],
        "sgd": [{"lr": lr} for lr in _SGD[setting]],
        "ewc": [{"lr": lr, "strength": strength} for lr in (low, high) for strength in (100.0, 1e4)],
        "owm": [{"lr": lr, "alpha": alpha} for lr in _OWM[setting] for alpha in (0.01, 0.1)],
        "ridge": [{"penalty": penalty} for penalty in (1e-4, 1e-3, 1e-2, 1e-1)],
        "slda": [{"shrinkage": shrinkage} for shrinkage in (1e-4, 1e-3, 1e-2, 1e-1)],
    }


def every_method(setting: str) -> dict[str, Experiment]:
    """Every method in a setting of `SETTINGS`, untuned.

    A closed-form head takes pixels or the frozen network's features, even where other methods train its last block.
    From pixels, ridge regression has as many numbers as the network. Joint training is Adam on all classes in one task,
    with the same number of passes.
    """
    check_choice("setting", setting, SETTINGS)
    plain = SETTINGS[setting]
    heads = replace(plain, dataset="cifar10_features") if setting == "thawed" else plain
    heads = replace(heads, model="mlp", hidden=(RANDOM,))
    # If only a small head is trained, its memory may be exact.
    exact = {"rank": pretrained.FEATURES + 1} if setting == "frozen" else {}
    found = {
        DEFAULT: replace(plain, optimizer="coincidence"),
        CHOSEN: replace(plain, optimizer="coincidence", options=exact),
        "SGD": replace(plain, optimizer="sgd"),
        "Adam": replace(plain, optimizer="adam"),
        "EWC": replace(plain, optimizer="ewc", options={"samples": 200}),
        "OWM": replace(plain, optimizer="owm", options={"batch": plain.batch_size}),
        "Ridge": replace(heads, optimizer="ridge"),
        "SLDA": replace(heads, optimizer="slda", hidden=()),
        "RanPAC": replace(heads, optimizer="ranpac"),
        "Adam + replay": replace(plain, optimizer="adam", replay_capacity=REPLAYED),
        "Joint training": replace(plain, optimizer="adam", tasks=1, samples_per_task=5 * plain.samples_per_task),
    }
    if setting == "pixels":
        size = sum(p.numel() for p in MODELS[plain.model](INPUTS["cifar10"], plain.hidden, 10).parameters())
        found["Ridge"] = replace(found["Ridge"], hidden=(round(size / (INPUTS["cifar10"] + 11)),))
    return found


def tuned(setting: str, titles: Sequence[str] = ()) -> dict[str, Experiment]:
    """Methods of a setting (by default all) with the options that tuning chose for them."""
    chosen = {title: experiment for title, experiment in every_method(setting).items() if title in titles or not titles}
    for title, experiment in chosen.items():
        if _is_tuned(setting, title, experiment):
            options = studies.tuned_options(_study(setting), "cifar10", title)
            chosen[title] = experiment.with_options(**options)
    return chosen


def _is_tuned(setting: str, title: str, experiment: Experiment) -> bool:
    return title != DEFAULT and experiment.optimizer in grids(setting)


def _study(setting: str) -> str:
    return f"natural_images_{setting}"


def trials(setting: str, methods: Sequence[str]) -> list[studies.Trial]:
    """The runs that choose options for those ``methods`` that are to be tuned and have none yet."""
    known = pd.read_csv(studies.TUNED)
    known = set(known[known.study == _study(setting)].method)
    chosen = {
        title: experiment
        for title, experiment in every_method(setting).items()
        if title in methods and title not in known and _is_tuned(setting, title, experiment)
    }
    return studies.trials(chosen, grids(setting), TUNED_SEEDS)


def run(
    settings: Sequence[str], methods: Sequence[str], seeds: int, workers: int | None = None, only_plan: bool = False
) -> None:
    """Tune what is not tuned, run everything, and commit the runs; with ``only_plan``, only say how long that takes.

    Args:
        settings: names in `SETTINGS`. methods: titles; empty means all. seeds: number of seeds.
        workers: number of processes; defaults to the number of cores.
    """
    for setting in settings:
        titles = list(methods or every_method(setting))
        for title in titles:
            check_choice("methods", title, every_method(setting))
        tried = trials(setting, titles)
        if only_plan:
            waiting = {title for title, *_ in tried}
            chosen = {title: one for title, one in every_method(setting).items() if title in waiting}
            chosen |= tuned(setting, rest) if (rest := [title for title in titles if title not in waiting]) else {}
            runs = [experiment for _, experiment in with_seeds(chosen, range(seeds))]
            print(f"{PANELS[setting]}: {plan([*(one for *_, one in tried), *runs]).describe(workers)}", flush=True)
            continue
        for title in titles:
            if mine := [trial for trial in tried if trial[0] == title]:
                studies.tune_methods(_study(setting), "cifar10", mine, workers=workers, further=FURTHER[setting])
        experiments = [experiment for _, experiment in with_seeds(tuned(setting, titles), range(seeds))]
        run_all(experiments, workers=workers)
        opened().commit(experiment.key() for experiment in experiments)


def what_is_missing() -> str:
    """What this machine lacks to rerun all of this and which command provides it, in a sentence."""
    own = os.environ.get("SP_DATA")
    place = Path(own, "cifar10") if own else data.cache_folder() / "cifar10" / data.CIFAR_ARCHIVE
    needed = []
    if not place.expanduser().exists():
        needed.append(
            "CIFAR-10 is not in $SP_DATA/cifar10: put its binary files there, or unset SP_DATA."
            if own
            else "CIFAR-10 is not downloaded yet: python notebooks/studies natural_images  downloads it (170 MB)."
        )
    try:
        pretrained.weights_file()
    except pretrained.MissingWeights as error:
        needed.append(f"{error}.")
    return " ".join(needed) or "CIFAR-10 and the weights of EfficientNet-Lite0 are here: everything can be rerun."


HEADS = ("Ridge", "SLDA", "RanPAC")
# The target for coincidence in each setting: the methods to compare with, and the least difference in final accuracy.
ASKED = {
    "pixels": ("above ridge on as many random features", ("Ridge",), 0.0),
    "frozen": ("within .005 of the best closed-form head", HEADS, -0.005),
    "thawed": ("above the best closed-form head", HEADS, 0.0),
}


def rows(seeds: Mapping[str, int]) -> pd.DataFrame:
    """Paired runs of every method in each setting, with a column ``setting``; ``seeds`` has the number for each."""
    return pd.concat([paired_runs(tuned(name), range(count)).assign(setting=name) for name, count in seeds.items()])


def verdicts(rows: pd.DataFrame) -> pd.DataFrame:
    """The target in each setting and whether it holds: yes or no if the interval of the difference decides it."""
    found = []
    for setting, (asked, others, least) in ASKED.items():
        here = rows[rows.setting == setting]
        best = here[here.method.isin(others)].groupby("method").average_accuracy.mean().idxmax()
        told = {"setting": PANELS[setting], "asked": asked, "against": best}
        for method in (DEFAULT, CHOSEN):
            gap = metrics.difference(here, method, best)
            holds = "yes" if gap.low > least else "no" if gap.high < least else "cannot be told"
            text = metrics.interval_text(gap.estimate, gap.low, gap.high, "+.3f")
            found.append({**told, "method": method, "difference": text, "holds": holds})
    return pd.DataFrame(found).set_index(["setting", "asked", "against", "method"])


def matrices(setting: str, titles: Sequence[str], seeds: int) -> pd.DataFrame:
    """Accuracy on each task after each task, as in `sp.lab.watch.accuracy_by_task`."""
    return accuracy_by_task(tuned(setting, titles), range(seeds))
