"""What a step costs in time and memory compared with Adam's, measured in turn in one process on one thread.

``python notebooks/studies bench`` measures, best on a quiet machine, and saves ``bench.csv`` next to this file.
"""

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from scipy.stats import bootstrap
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.profiler import ProfilerActivity, profile

from sp.biology import NMDACoincidence, PlasticityCounter
from sp.checks import check_choice
from sp.files import bar
from sp.lab.networks import MODELS, WIDTHS
from sp.optim import ConsolidatingPlasticityOptimizer, SelectivePlasticityOptimizer

MEASURED = Path(__file__).with_name("bench.csv")
ON_A_GPU = MEASURED.with_name("on_a_gpu.csv")  # measured by `make gpu`
STEPS = 20  # consecutive steps of each optimizer in a round, so that work done every twentieth step is in its mean
WARM_UP = 60  # untimed steps: they cover compiling, the first look at thresholds, and the gate's own warm-up


def _coincidence(model: nn.Module, rank: int | None) -> Optimizer:
    return ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model), rank=rank)


def _counted(name: str, model: nn.Module) -> Optimizer:
    optimizer = OPTIMIZERS[name](model)
    optimizer.counter = PlasticityCounter(optimizer)  # keeps the counter alive
    return optimizer


def _compiled(name: str, model: nn.Module) -> Optimizer:
    optimizer = OPTIMIZERS[name](model)
    optimizer.step = torch.compile(optimizer.step)
    return optimizer


def _perceptrons(*widths: int) -> list[tuple[str, tuple[int, ...]]]:
    return [("mlp", (width, width)) for width in widths]


OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "Adam": lambda model: torch.optim.Adam(model.parameters()),
    "Adam, fused": lambda model: torch.optim.Adam(model.parameters(), fused=True),
    "SGD": lambda model: torch.optim.SGD(model.parameters()),
    "Selective plasticity": lambda model: SelectivePlasticityOptimizer(model.parameters(), warmup_steps=5),
    "Selective plasticity, compiled": lambda model: _compiled("Selective plasticity", model),
    "Selective plasticity, counted": lambda model: _counted("Selective plasticity", model),
    "Consolidation": lambda model: ConsolidatingPlasticityOptimizer(model.parameters(), warmup_steps=50),
    "Consolidation, compiled": lambda model: _compiled("Consolidation", model),
    "Consolidation, counted": lambda model: _counted("Consolidation", model),
    "Coincidence": lambda model: _coincidence(model, None),
    "Coincidence, rank 128": lambda model: _coincidence(model, 128),
}
WATCHED = ["Adam", "Coincidence", "Coincidence, rank 128"]

# What is measured: networks on 28 x 28 images, by model and hidden widths; batches of these sizes; these optimizers.
PARTS = {
    "size": (_perceptrons(32, 256, 800, 2048), (128,), [name for name in OPTIMIZERS if name not in WATCHED[1:]]),
    "width": (_perceptrons(256, 512, 1024, 2048), (128,), WATCHED),
    "batch": (_perceptrons(256), (32, 128, 512), WATCHED),
    "network": ([*WIDTHS.items(), ("normalised", (32, 64, 128, 256))], (128,), WATCHED[:2]),
}


def bench(
    parts: Sequence[str] = tuple(PARTS), rounds: int = 15, widest: int | None = None, device: str = "cpu"
) -> pd.DataFrame:
    """Measure the time of a step and of a whole training step, and memory, per optimizer, network and batch size.

    In each round every optimizer takes `STEPS` consecutive steps, so that a busy machine slows all of them alike. Times
    and their ratios to Adam's in the same round are medians over rounds, with 95 % bootstrap intervals.

    Args:
        parts: names in `PARTS`.
        rounds: at least 2.
        widest: networks with wider layers are left out.
        device: where networks and data live. An accelerator is synchronised before and after each step.

    Returns:
        One row per part, network, batch size and optimizer: ``part, network, width, batch, parameters, optimizer``,
        with the width of the first hidden layer; ``step_us`` and ``training_us`` (of ``step()`` alone, and with forward
        and backward pass), ``step_ratio`` and ``training_ratio`` to Adam, ``step_fused_ratio`` to fused Adam where it
        was measured, each with ``_low`` and ``_high``; ``state_bytes`` and ``peak_bytes`` per parameter. The peak (CPU
        only) counts weights, gradients, state and the most that a step needs on top of these.
    """
    for part in parts:
        check_choice("parts", part, PARTS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cases = [
        (part, model, hidden, batch)
        for part in parts
        for model, hidden in PARTS[part][0]
        for batch in PARTS[part][1]
        if widest is None or max(hidden) <= widest
    ]
    try:
        tables = [
            _measure(part, model, hidden, batch, PARTS[part][2], rounds, device)
            for part, model, hidden, batch in bar(cases, unit="network")
        ]
    finally:
        torch.set_num_threads(threads)
    return pd.concat(tables, ignore_index=True)


def _measure(
    part: str, model: str, hidden: tuple[int, ...], batch: int, names: list[str], rounds: int, device: str
) -> pd.DataFrame:
    x, y = torch.randn(batch, 784, device=device), torch.randint(10, (batch,), device=device)
    models = {name: MODELS[model](784, hidden, 10).to(device) for name in names}
    optimizers = {name: OPTIMIZERS[name](models[name]) for name in names}
    for name, optimizer in optimizers.items():
        for _ in range(WARM_UP):
            _training_step(models[name], optimizer, x, y)
    times: dict[str, list[np.ndarray]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, optimizer in optimizers.items():
                steps = [_training_step(models[name], optimizer, x, y) for _ in range(STEPS)]
                times[name].append(np.mean(steps, axis=0))
    finally:
        gc.enable()
    measured = {name: np.array(columns) * 1e6 for name, columns in times.items()}
    rows = []
    for name, optimizer in optimizers.items():
        count = sum(p.numel() for p in models[name].parameters())
        place = {"part": part, "network": model, "width": hidden[0], "batch": batch, "parameters": count}
        row = {
            **place,
            "optimizer": name,
            **_interval("step_us", measured[name][:, 0]),
            **_interval("training_us", measured[name][:, 1]),
        }
        for column, kind in enumerate(("step", "training")):
            row |= _interval(f"{kind}_ratio", measured[name][:, column] / measured["Adam"][:, column])
        if "Adam, fused" in measured:
            row |= _interval("step_fused_ratio", measured[name][:, 0] / measured["Adam, fused"][:, 0])
        state = state_bytes(optimizer)
        _training_step(models[name], optimizer, x, y)
        optimizer.zero_grad()
        F.cross_entropy(models[name](x), y).backward()
        peak = 2 * 4 * count + state + peak_of_step(optimizer) if device == "cpu" else np.nan
        rows.append({**row, "state_bytes": state / count, "peak_bytes": peak / count})
    return pd.DataFrame(rows)


def _interval(name: str, values: np.ndarray) -> dict[str, float]:
    interval = bootstrap((values,), np.median, method="percentile", rng=0).confidence_interval
    return {name: float(np.median(values)), f"{name}_low": float(interval.low), f"{name}_high": float(interval.high)}


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _training_step(model: nn.Module, optimizer: Optimizer, x: Tensor, y: Tensor) -> tuple[float, float]:
    start = time.perf_counter()
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    _wait(x.device)
    before_step = time.perf_counter()
    optimizer.step()
    _wait(x.device)
    end = time.perf_counter()
    return end - before_step, end - start


def state_bytes(optimizer: Optimizer) -> int:
    """Total bytes of the tensors that an optimizer keeps."""
    return sum(v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))


def peak_of_step(optimizer: Optimizer) -> int:
    """Peak bytes that a step on the CPU holds, beyond what was allocated before it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        optimizer.step()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())])
    return max(0, int(held.max(initial=0)))


def verdicts(table: pd.DataFrame) -> list[str]:
    """What a table from `bench` says about P15 (no more state than Adam), P16 (3.2 % more training time than Adam) and
    the project's own targets, in sentences. All parts are needed. A target is met if the value does not exceed it.
    """
    size, width = (
        table[table.part == part].set_index(["optimizer", "parameters"]).sort_index() for part in ("size", "width")
    )
    counts = [count for count in (269_322, 5_824_522) if count in size.index.levels[1]]
    lines = []

    def told(what: str, row: pd.Series, column: str, target: float) -> None:
        value, low, high = row[column], row.get(f"{column}_low", row[column]), row.get(f"{column}_high", row[column])
        spread = "" if low == high else f" [{low:.2f}, {high:.2f}]"
        word = "met" if value <= target else "not distinguishable" if low <= target else "not met"
        lines.append(f"{what}: {value:.2f}{spread}, at most {target:g} asked: {word}.")

    for count in counts:
        adam = size.loc[("Adam", count)]
        for rule in ("Selective plasticity", "Consolidation"):
            row, compiled = size.loc[(rule, count)], size.loc[(f"{rule}, compiled", count)]
            shares = pd.Series({name: row[name] / adam[name] for name in ("state_bytes", "peak_bytes")})
            name = f"{rule}, {count:,} parameters"
            told(f"P15. {name}: state, of Adam's", shares, "state_bytes", 1 + 1e-3)  # plus two numbers per tensor
            told(f"P16. {name}: training time, of Adam's", row, "training_ratio", 1.032)
            told(f"{name}: step, of Adam's", row, "step_ratio", 1.0)
            told(f"{name}: compiled step, of fused Adam's", compiled, "step_fused_ratio", 1.0)
            told(f"{name}: peak memory, of Adam's", shares, "peak_bytes", 1.1)
        for rule in WATCHED[1:]:
            row = width.loc[(rule, count)]
            told(f"{rule}, {count:,} parameters: training step, of Adam's", row, "training_ratio", 2)
            state = pd.Series({"state_bytes": row.state_bytes / adam.state_bytes})
            told(f"{rule}, {count:,} parameters: state, of Adam's", state, "state_bytes", 1)
    return lines
