"""The learning panel: task A, then task B, with one optimizer beside Adam."""

import threading
from concurrent.futures import BrokenExecutor
from dataclasses import replace
from functools import cache
from typing import Any

import ipywidgets as widgets
import pandas as pd
from joblib.externals.loky import ProcessPoolExecutor

from sp import figures
from sp.explore.code import optimizer_code
from sp.explore.panel import Answer, Panel
from sp.explore.sliders import published_sliders
from sp.lab import watch
from sp.lab.experiment import Experiment
from sp.lab.ledger import Ledger, opened
from sp.lab.settings import on_stream
from sp.rivals import TITLES

RULES = {TITLES[method]: method for method in ("selective", "consolidating", "coincidence", "sgd")}
ADAM_RATES = {False: 1e-3, True: 1e-2}  # without replay and with, as tuned in notebook 01
RATES = {"Selective plasticity": 1e-3, "Consolidation": 0.1, "Coincidence": 0.1, "SGD": 0.1}  # lr of each at first
# Which of the controls are options of which optimizer; the others are greyed.
OPTIONS = {
    "Selective plasticity": ("plasticity_k", "trace_decay", "threshold_percentile", "warmup_steps"),
    "Consolidation": ("warmup_steps", "threshold_quantile"),
    "Coincidence": ("retention",),
    "SGD": (),
}
DEFAULTS = {
    "optimizer": "Selective plasticity",
    "lr": 1e-3,
    "plasticity_k": 5.0,
    "trace_decay": 0.99,
    "threshold_percentile": 75,
    "warmup_steps": 50,
    "threshold_quantile": 0.85,
    "retention": 200.0,
    "replay_capacity": 0,
    "seed": 0,
}
IDLE = 1800  # seconds after which processes that had nothing to train end


def learning_panel(ledger: Ledger | None = None) -> Panel:
    """Sliders for an optimizer that learns two tasks of digits one after the other, beside Adam with the same seed.

    Args:
        ledger: where finished runs are kept; default `sp.lab.ledger.opened()`.
    """
    ledger = ledger or opened()
    controls = _controls()

    def adjust(moved: str) -> None:
        method = controls["optimizer"].value
        if moved == "optimizer":
            controls["lr"].value = RATES[method]
        for name in sorted({name for names in OPTIONS.values() for name in names}):
            controls[name].disabled = name not in OPTIONS[method]

    adjust("")
    _seen(ledger, DEFAULTS)  # so that the panel has something to show at once
    for _ in range(2):
        _processes().submit(_imported)
    return Panel(
        "learning",
        "Learning B after A: what is left of A?",
        "Look for the curve of task A (digits 0-4) after the vertical line, where task B (5-9) begins: without replay "
        "it falls to zero unless the rule protects what A used. Adam, at its tuned rate, has the same seed and buffer.",
        controls,
        lambda choices: learning_answer(ledger, **choices),
        _code,
        adjust,
    )


def _imported() -> None:
    """What a process is first asked for, so that it has imported everything when it is needed."""


def learning_answer(ledger: Ledger | None = None, **choices: Any) -> Answer:
    """What the learning panel shows for these choices; see `DEFAULTS` for their names."""
    ledger, chosen = ledger or opened(), {**DEFAULTS, **choices}
    seen = _seen(ledger, chosen)
    method = chosen["optimizer"]
    lines = [
        f"{title}: accuracy on A {R[0, 0]:.2f} after A, {R[1, 0]:.2f} after B; on B {R[1, 1]:.2f}."
        for title, R in ((title, found.accuracy) for title, found in seen.items())
    ]
    events = seen[method].events.groupby("task")[["ltp", "ltd"]].sum()
    lines.append(
        "; ".join(
            f"Task {figures.LETTERS[task - 1]}: {row.ltp:,} LTP and {row.ltd:,} LTD events"
            for task, row in events.iterrows()
        )
        + f" with {method}, in every fifth step."
    )
    return Answer("learning", _table(seen), "\n".join(lines))


def _seen(ledger: Ledger, choices: dict) -> dict[str, watch.Observed]:
    methods = experiments(**choices)
    seen = {method: watch.observe(experiment, ledger, missing_too=False) for method, experiment in methods.items()}
    missing = [method for method, found in seen.items() if found is None]
    if missing:
        seen.update(zip(missing, _train([methods[method] for method in missing], ledger), strict=True))
    return seen


def _train(experiments: list[Experiment], ledger: Ledger) -> list[watch.Observed]:
    # A run sets the random state of its process, which belongs to the main thread; others train in other processes.
    if threading.current_thread() is threading.main_thread():
        return [watch.observe(experiment, ledger) for experiment in experiments]
    try:
        return list(_processes().map(_observe, experiments, [str(ledger.folder)] * len(experiments)))
    except BrokenExecutor:
        _processes.cache_clear()  # the next move starts new ones
        raise


def _observe(experiment: Experiment, folder: str) -> watch.Observed:
    return watch.observe(experiment, Ledger(folder))


@cache
def _processes() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(max_workers=2, timeout=IDLE)


def experiments(optimizer: str, lr: float, replay_capacity: int, seed: int, **options: Any) -> dict[str, Experiment]:
    """The two runs that the panel compares: the chosen optimizer, and Adam at its tuned rate."""
    adam = {"optimizer": "adam", "options": {"lr": ADAM_RATES[replay_capacity > 0]}}
    base = replace(on_stream("split2_class", "digits"), **adam, seed=seed, replay_capacity=replay_capacity)
    base = replace(base, curve_points=12)
    own = {name: options[name] for name in OPTIONS[optimizer]}
    return {optimizer: replace(base, optimizer=RULES[optimizer], options={"lr": lr, **own}), "Adam": base}


def _code(choices: dict) -> str:
    method = choices["optimizer"]
    options = {"lr": choices["lr"], **{name: choices[name] for name in OPTIONS[method]}}
    return optimizer_code(RULES[method], options, choices["replay_capacity"], choices["seed"])


def _table(seen: dict[str, watch.Observed]) -> pd.DataFrame:
    """What `sp.figures.inside.learning` draws: curves, LTP and LTD of each layer, and the gates of the first method."""
    curves = pd.concat([found.curve.assign(method=method) for method, found in seen.items()])
    layer, counts = ["task", "parameter", "synapses", "looks"], ["ltp", "ltd", "shut"]
    events = [found.events.melt(layer, counts, "quantity").assign(method=method) for method, found in seen.items()]
    method, first = next(iter(seen.items()))
    gates = first.gates.assign(quantity="gate", value=first.gates.gate, method=method)
    tables = [curves.assign(quantity="accuracy", value=curves.accuracy), *events, gates]
    columns = ["method", "quantity", "training", "step", *layer, "row", "column", "value"]
    return pd.concat(tables, ignore_index=True).reindex(columns=columns)


def _controls() -> dict[str, widgets.Widget]:
    def slider(kind, name, low, high, step, description, tooltip, **more):
        return kind(DEFAULTS[name], min=low, max=high, step=step, description=description, tooltip=tooltip, **more)

    whole, real = widgets.IntSlider, widgets.FloatSlider
    return {
        "optimizer": widgets.Dropdown(
            value=DEFAULTS["optimizer"],
            options=list(RULES),
            description="optimizer",
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
        "retention": widgets.FloatLogSlider(
            DEFAULTS["retention"],
            min=0,
            max=4,
            step=0.1,
            readout_format=".0f",
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
            "Size of the replay buffer of both optimizers, a reservoir; 0: no replay.",
        ),
        "seed": slider(whole, "seed", 0, 9, 1, "seed", "Of the weights and of the order of the images, for both."),
    }
