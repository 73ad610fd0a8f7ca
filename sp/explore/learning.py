"""The learning panel: task A, then task B, with one method compared with Adam."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from ipywidgets import Dropdown, Widget

from sp.checks import check_choice
from sp.explore.code import NAMES, comparison_code, optimizer_code
from sp.explore.panel import Answer, Panel
from sp.explore.sliders import STEPS, retention_slider, sliders
from sp.explore.training import EVERY, Trainings
from sp.lab import watch
from sp.lab.experiment import Experiment
from sp.lab.ledger import Ledger, opened
from sp.lab.methods import Method, registered, titled
from sp.lab.own import Own
from sp.lab.settings import on_stream
from sp.rivals import TITLES, WITHOUT_NETWORK

RULES = {TITLES[method]: method for method in ("coincidence", "selective", "consolidating", "sgd")}
ADAM_RATES = {False: 1e-3, True: 1e-2}  # without and with replay, as tuned in notebook 01
RATES = {"Coincidence": 0.1, "Selective plasticity": 1e-3, "Consolidation": 0.1, "SGD": 0.1}  # initial lr of each
PUBLISHED = ("plasticity_k", "trace_decay", "threshold_percentile")
# The controls that are options of each method; the others are hidden.
OPTIONS = {
    "Coincidence": ("lr", "retention"),
    "Selective plasticity": ("lr", *PUBLISHED, "warmup_steps"),
    "Consolidation": ("lr", "warmup_steps", "threshold_quantile"),
    "SGD": ("lr",),
}
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


def learning_panel(ledger: Ledger | None = None, methods: Mapping[str, Method] | None = None) -> Panel:
    """Sliders for a method that learns two tasks of digits one after the other, next to Adam with the same seed.

    While a slider moves, training for one epoch shows what to expect. Once it rests, the full training is shown as it
    progresses.

    Args:
        ledger: where finished runs are kept; default `sp.lab.ledger.opened()`.
        methods: more to choose from, title -> method as for `sp.lab.compare`; those of `sp.lab.register` are included.

    Raises:
        ValueError, TypeError: as for `sp.lab.compare` with ``methods``, or a title is one that the panel uses itself,
            or a method has no network.
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
    trainings = Trainings(ledger)

    def make(choices: dict) -> Iterator[Answer]:
        methods = experiments(rules, **choices)
        trainings.want(methods.values())
        look = trainings.glimpse
        while True:
            found = {method: look(experiment) for method, experiment in methods.items()}
            if not all(found.values()):
                trainings.wait(0.02)
                continue
            lacks = [lack for _, lack in found.values() if lack]
            yield _answer({method: seen for method, (seen, _) in found.items()}, choices["step"], *lacks[:1])
            if not lacks:
                return
            look = trainings.seen
            trainings.wait(EVERY)

    return Panel(
        "learning",
        "Learning B after A: what is left of A?",
        "Two equal networks learn digits 0-4 (task A), then 5-9 (task B), from the same images. Look at the curve of "
        "task A to the right of the vertical line, where task B begins: Adam, at its tuned rate, loses it.",
        controls,
        make,
        lambda choices: _code(rules, choices),
        adjust,
        play="step",
    )


def learning_answer(
    ledger: Ledger | None = None, methods: Mapping[str, Method] | None = None, **choices: Any
) -> Answer:
    """What the learning panel finally shows for these choices; see `DEFAULTS` for their names."""
    rules = _rules(methods)
    for name in choices:
        check_choice("choices", name, DEFAULTS)
    check_choice("method", choices.get("method", DEFAULTS["method"]), rules)
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
        raise ValueError(f"methods must have titles that the panel does not use itself, got {taken[0]!r}")
    if bare := [title for title, method in own.items() if method in WITHOUT_NETWORK]:
        raise ValueError(f"methods must train a network, which the panel watches, got {bare[0]!r}: leave it out")
    return {**RULES, **own}


def _options(rules: Mapping[str, str | Own], method: str) -> tuple[str, ...]:
    return OPTIONS[method] if method in OPTIONS else ("lr",) * ("lr" in _taken(rules[method]))


def _rate(rules: Mapping[str, str | Own], method: str) -> float:
    default = RATES[method] if method in RATES else getattr(_taken(rules[method]).get("lr"), "default", None)
    return default if isinstance(default, float) else DEFAULTS["lr"]


def _taken(rule: str | Own) -> Mapping[str, inspect.Parameter]:
    """Parameters of a custom method; empty for a method given by name, which has no sliders here."""
    return inspect.signature(rule.given()).parameters if isinstance(rule, Own) else {}


def _code(rules: Mapping[str, str | Own], choices: dict) -> str:
    method = choices["method"]
    options = {name: choices[name] for name in _options(rules, method)}
    name = rules[method] if isinstance(rules[method], str) else None
    if name in NAMES:
        return optimizer_code(name, options, choices["replay_capacity"], choices["seed"])
    replay = choices["replay_capacity"]
    return comparison_code(method, name, options, replay, choices["seed"], ADAM_RATES[replay > 0])


def _answer(seen: dict[str, watch.Observed], step: int, pending: str = "") -> Answer:
    """Curves, LTP and LTD of each layer, and the gates of the first method, up to a training step."""
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
    numbers = pd.DataFrame({name: _numbers(rows, ended) for name, rows in curves.items()}).T.rename_axis("method")
    now = "; ".join(
        f"{name} has {rows.accuracy.iloc[-2]:.2f} on task A and {rows.accuracy.iloc[-1]:.2f} on task B"
        for name, rows in curves.items()
        if len(rows)
    )
    when = "After task B" if step == STEPS and not pending else "So far"
    return Answer("learning", data, f"{when}: {now or 'nothing has been tested'}.", numbers, pending=pending)


def _numbers(curve: pd.DataFrame, ended: list[int]) -> dict[str, str]:
    """Accuracies after each task; empty until it has ended."""
    last = curve.groupby(["training", "task"]).accuracy.last()
    columns = {"A after A": (1, 1), "A after B": (2, 1), "B after B": (2, 2)}
    return {
        name: f"{last[place]:.2f}" if place[0] in ended and place in last else "" for name, place in columns.items()
    }


def _controls(rules: Mapping[str, str | Own]) -> dict[str, Widget]:
    method = Dropdown(
        value=DEFAULTS["method"],
        options=list(rules),
        description="method",
        tooltip="The method to compare with Adam. Choosing one sets its initial learning rate.",
    )
    return {
        "method": method,
        **sliders(("lr", *PUBLISHED, "warmup_steps", "threshold_quantile"), DEFAULTS),
        "retention": retention_slider(DEFAULTS["retention"]),
        **sliders(("replay_capacity", "seed", "step"), DEFAULTS),
    }
