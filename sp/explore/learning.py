"""The learning panel: task A, then task B, with one method beside Adam."""

import inspect
import pickle
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import BrokenExecutor, wait
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import pandas as pd
from joblib.externals.loky import ProcessPoolExecutor

from sp import files
from sp.explore.code import comparison_code, optimizer_code
from sp.explore.panel import Answer, Panel
from sp.explore.sliders import published_sliders
from sp.lab import watch
from sp.lab.experiment import Experiment, Moment
from sp.lab.ledger import Ledger, opened
from sp.lab.methods import Method, registered, titled
from sp.lab.own import Own
from sp.lab.settings import on_stream
from sp.rivals import TITLES

RULES = {TITLES[method]: method for method in ("coincidence", "selective", "consolidating", "sgd")}
ADAM_RATES = {False: 1e-3, True: 1e-2}  # without replay and with, as tuned in notebook 01
RATES = {"Coincidence": 0.1, "Selective plasticity": 1e-3, "Consolidation": 0.1, "SGD": 0.1}  # lr of each at first
# Which of the controls are options of which method; the others are not shown.
OPTIONS = {
    "Coincidence": ("lr", "retention"),
    "Selective plasticity": ("lr", "plasticity_k", "trace_decay", "threshold_percentile", "warmup_steps"),
    "Consolidation": ("lr", "warmup_steps", "threshold_quantile"),
    "SGD": ("lr",),
}
STEPS = 220  # of both tasks
DEFAULTS = {
    "method": "Coincidence",
    "lr": 0.1,
    "retention": 200.0,
    "plasticity_k": 5.0,
    "trace_decay": 0.99,
    "threshold_percentile": 75,
    "warmup_steps": 50,
    "threshold_quantile": 0.85,
    "replay_capacity": 0,
    "seed": 0,
    "step": STEPS,
}
STOP = "stop"  # name of a file that ends trainings
IDLE = 1800  # seconds after which processes that had nothing to train end
EVERY = 0.15  # seconds between two pictures of a training

Seen = dict[str, watch.Observed]


def learning_panel(ledger: Ledger | None = None, methods: Mapping[str, Method] | None = None) -> Panel:
    """Sliders for a method that learns two tasks of digits one after the other, beside Adam with the same seed.

    While a slider moves, a training of one epoch shows what to expect; once it rests, the whole one is shown as it
    goes.

    Args:
        ledger: where finished runs are kept; default `sp.lab.ledger.opened()`.
        methods: more to choose from, title -> what `sp.lab.compare` takes; those of `sp.lab.register` are there anyway.

    Raises:
        ValueError, TypeError: as `sp.lab.compare` of ``methods``, or one of them has the title "Adam".
    """
    ledger, rules = ledger or opened(), _rules(methods)
    controls = _controls(rules)

    def adjust(moved: str) -> None:
        method = controls["method"].value
        if moved == "method":
            controls["lr"].value = _rate(rules, method)
        for name in {name for names in OPTIONS.values() for name in names}:
            controls[name].layout.display = None if name in _options(rules, method) else "none"

    adjust("")
    short = tempfile.TemporaryDirectory()  # of trainings that are a glimpse of the whole ones, as long as the panel is
    glimpses = Ledger(short.name)
    for _ in range(2):
        _processes().submit(_imported)

    def make(choices: dict) -> Iterator[Answer]:
        methods = experiments(rules, **choices)
        shown = _kept(methods, ledger)
        missing = {method: experiment for method, experiment in methods.items() if method not in shown}
        if missing:
            brief = {method: _brief(experiment) for method, experiment in missing.items()}
            glimpse = _kept(brief, glimpses)
            for trained in _training({m: e for m, e in brief.items() if m not in glimpse}, glimpses):
                glimpse |= trained
            now = {method: shown.get(method) or _stretched(glimpse[method]) for method in methods}
            yield _answer(now, choices["step"], "one epoch of five; all of them follow")
            for trained in _training(missing, ledger):
                now |= {method: _followed(found, now[method]) for method, found in trained.items()}
                yield _answer(now, choices["step"], "training &hellip;")
            shown = {method: now[method] for method in methods}
        yield _answer(shown, choices["step"])

    return Panel(
        "learning",
        "Learning B after A: what is left of A?",
        "Two equal networks learn digits 0-4 (task A), then 5-9 (task B), from the same images. Look for the curve of "
        "task A right of the vertical line, where task B begins: Adam, at its tuned rate, loses it.",
        controls,
        make,
        lambda choices: _code(rules, choices),
        adjust,
        play="step",
    )


def learning_answer(
    ledger: Ledger | None = None, methods: Mapping[str, Method] | None = None, **choices: Any
) -> Answer:
    """What the learning panel shows in the end for these choices; see `DEFAULTS` for their names."""
    rules = _rules(methods)
    method = choices.get("method", DEFAULTS["method"])
    chosen = {**DEFAULTS, "lr": _rate(rules, method), **choices}
    made = experiments(rules, **chosen)
    return _answer({method: watch.observe(run, ledger) for method, run in made.items()}, chosen["step"])


def experiments(
    rules: Mapping[str, str | Own], method: str, replay_capacity: int, seed: int, **options: Any
) -> dict[str, Experiment]:
    """The two runs that the panel compares: the chosen method, and Adam at its tuned rate."""
    adam = {"optimizer": "adam", "options": {"lr": ADAM_RATES[replay_capacity > 0]}}
    base = replace(on_stream("split2_class", "digits"), **adam, seed=seed, replay_capacity=replay_capacity)
    base = replace(base, curve_points=12)
    own = {name: options[name] for name in _options(rules, method)}
    return {method: replace(base, optimizer=rules[method], options=own), "Adam": base}


def _rules(methods: Mapping[str, Method] | None) -> dict[str, str | Own]:
    own = titled({**{name: name for name in registered()}, **(methods or {})}) if methods or registered() else {}
    if taken := sorted({*RULES, "Adam"} & set(own)):
        raise ValueError(f"methods must have titles of their own, got {taken[0]!r}, which the panel has")
    return {**RULES, **own}


def _options(rules: Mapping[str, str | Own], method: str) -> tuple[str, ...]:
    return OPTIONS[method] if method in OPTIONS else ("lr",) * ("lr" in _taken(rules[method]))


def _rate(rules: Mapping[str, str | Own], method: str) -> float:
    default = RATES[method] if method in RATES else getattr(_taken(rules[method]).get("lr"), "default", None)
    return default if isinstance(default, float) else DEFAULTS["lr"]


def _taken(rule: str | Own) -> Mapping[str, inspect.Parameter]:
    """What one can be called with; nothing of a method by name, which has no sliders here."""
    return inspect.signature(rule.given()).parameters if isinstance(rule, Own) else {}


def _code(rules: Mapping[str, str | Own], choices: dict) -> str:
    method = choices["method"]
    options = {name: choices[name] for name in _options(rules, method)}
    if isinstance(rules[method], Own):
        return comparison_code(method, options, choices["replay_capacity"], choices["seed"])
    return optimizer_code(rules[method], options, choices["replay_capacity"], choices["seed"])


def _kept(methods: dict[str, Experiment], ledger: Ledger) -> Seen:
    """Of those that the ledger has."""
    seen = {method: watch.observe(experiment, ledger, missing_too=False) for method, experiment in methods.items()}
    return {method: found for method, found in seen.items() if found is not None}


def _brief(experiment: Experiment) -> Experiment:
    """One epoch of it, and in proportion what its options count in steps."""
    options = {
        name: max(1, value // experiment.epochs) if name == "warmup_steps" else value
        for name, value in experiment.options
    }
    return replace(experiment, epochs=1, options=options)


def _stretched(brief: watch.Observed) -> watch.Observed:
    """A short training on the axis of the whole one."""
    return replace(brief, curve=brief.curve.assign(step=brief.curve.step * STEPS // brief.curve.step.max()))


def _followed(now: watch.Observed, before: watch.Observed) -> watch.Observed:
    """A training as far as it has come, with events and gates of an earlier one for tasks that have not ended."""

    def both(name: str) -> pd.DataFrame:
        new, old = getattr(now, name), getattr(before, name)
        return pd.concat([new, old[~old.task.isin(new.task)]], ignore_index=True) if len(new) else old

    return replace(now, events=both("events"), gates=both("gates"))


def _training(methods: dict[str, Experiment], ledger: Ledger) -> Iterator[Seen]:
    """Train in other processes, since a run sets the random state of its own, and say again and again what is seen.

    Closed before its end it stops them.
    """
    with tempfile.TemporaryDirectory() as place:
        futures, told = {}, {}
        try:
            for method, experiment in methods.items():
                file = Path(place, f"{len(futures)}")
                futures[method] = _processes().submit(_observe, experiment, str(ledger.folder), file)
            while wait(futures.values(), EVERY).not_done:
                for number, method in enumerate(futures):
                    file = Path(place, f"{number}")
                    if file.exists():
                        told[method] = pickle.loads(file.read_bytes())
                if told:
                    yield told
            yield {method: future.result() for method, future in futures.items()}
        except BrokenExecutor:
            _processes.cache_clear()  # the next move starts new ones
            raise
        finally:
            Path(place, STOP).touch()
            wait(futures.values())


class _Stopped(Exception):
    """Nobody waits for the training any more."""


def _observe(experiment: Experiment, folder: str, file: Path) -> watch.Observed:
    due = time.monotonic()

    def tell(look: watch.Plasticity, moment: Moment) -> None:
        nonlocal due
        if file.with_name(STOP).exists():
            raise _Stopped
        if moment.curve and time.monotonic() >= due:
            files.write_atomically(file, pickle.dumps(watch.so_far(look, moment)))
            due = time.monotonic() + EVERY

    return watch.observe(experiment, _ledger(folder), tell=tell)


@cache
def _ledger(folder: str) -> Ledger:
    return Ledger(folder)


def _imported() -> None:
    """What a process is first asked for, so that it has imported everything when it is needed."""


@cache
def _processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers=2, timeout=IDLE)


def _answer(seen: Seen, step: int, pending: str = "") -> Answer:
    """Curves, LTP and LTD of each layer, and the gates of the first method, up to a step of the training."""
    curves = {method: found.curve[found.curve.step <= step] for method, found in seen.items()}
    ended = [task for task in (1, 2) if step >= STEPS * task // 2]
    layer, counts = ["task", "parameter", "synapses", "looks"], ["ltp", "ltd", "shut"]
    tables = [rows.assign(quantity="accuracy", value=rows.accuracy, method=name) for name, rows in curves.items()]
    for name, found in seen.items():
        events = found.events[found.events.task.isin(ended)]
        tables.append(events.melt(layer, counts, "quantity").assign(method=name))
    method, first = next(iter(seen.items()))
    gates = first.gates[first.gates.task.isin(ended)]
    tables.append(gates.assign(quantity="gate", value=gates.gate, method=method))
    columns = ["method", "quantity", "training", "step", *layer, "row", "column", "value"]
    data = pd.concat(tables, ignore_index=True).reindex(columns=columns)
    numbers = pd.DataFrame({name: _numbers(rows) for name, rows in curves.items()}).T.rename_axis("method")
    now = "; ".join(
        f"{name} has {rows.accuracy.iloc[-2]:.2f} on task A and {rows.accuracy.iloc[-1]:.2f} on task B"
        for name, rows in curves.items()
        if len(rows)
    )
    when = "After task B" if step == STEPS and not pending else "So far"
    return Answer("learning", data, f"{when}: {now or 'nothing was tested'}.", numbers, pending=pending)


def _numbers(curve: pd.DataFrame) -> dict[str, str]:
    last = curve.groupby(["training", "task"]).accuracy.last()
    columns = {"A after A": (1, 1), "A after B": (2, 1), "B after B": (2, 2)}
    return {name: f"{last[place]:.2f}" if place in last else "" for name, place in columns.items()}


def _controls(rules: Mapping[str, str | Own]) -> dict[str, widgets.Widget]:
    def slider(kind, name, low, high, step, description, tooltip, **more):
        return kind(DEFAULTS[name], min=low, max=high, step=step, description=description, tooltip=tooltip, **more)

    whole, real = widgets.IntSlider, widgets.FloatSlider
    return {
        "method": widgets.Dropdown(
            value=DEFAULTS["method"],
            options=list(rules),
            description="method",
            tooltip="What is compared with Adam. Choosing one sets the learning rate it starts from.",
        ),
        "lr": widgets.FloatLogSlider(
            DEFAULTS["lr"],
            min=-5,
            max=0,
            step=0.25,
            readout_format=".1e",
            description="learning rate",
            tooltip="Step size. Published advice: Adam's, or 1.5 to 3 times it.",
        ),
        **published_sliders(DEFAULTS),
        "warmup_steps": slider(
            whole,
            "warmup_steps",
            10,
            500,
            10,
            "warm-up (steps)",
            "Selective plasticity: steps before the gate begins to work. Consolidation: steps in which θ is measured. "
            "A task has 110 steps.",
        ),
        "threshold_quantile": slider(
            real,
            "threshold_quantile",
            0.05,
            0.95,
            0.05,
            "θ quantile",
            "Consolidation strength: share of synapses that the warm-up leaves plastic; smaller protects more.",
        ),
        "retention": widgets.SelectionSlider(
            value=DEFAULTS["retention"],
            options=[(f"{value * 10**power}", float(value * 10**power)) for power in range(4) for value in (1, 2, 5)],
            description="retention r",
            tooltip="Coincidence: an input that was met n times counts as new by about 1 / (1 + r n).",
        ),
        "replay_capacity": slider(
            whole,
            "replay_capacity",
            0,
            500,
            50,
            "replay (images)",
            "Size of the replay buffer of both methods, a reservoir; 0: no replay.",
        ),
        "seed": slider(whole, "seed", 0, 9, 1, "seed", "Of the weights and of the order of the images, for both."),
        "step": slider(whole, "step", 0, STEPS, 1, "shown up to step", "Of the training; press play to watch it."),
    }
