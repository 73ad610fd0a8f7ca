"""Time and state of one optimizer step beside Adam, measured in turn in one process on one thread."""

import statistics
import time

import pandas as pd
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from sp.biology import NMDACoincidence, PlasticityCounter
from sp.files import bar
from sp.models import mlp
from sp.optim import ConsolidatingPlasticityOptimizer, SelectivePlasticityOptimizer

NETWORKS = {"784-256-256-10": (784, (256, 256)), "784-2000-2000-10": (784, (2000, 2000))}

OPTIMIZERS = {
    "Adam": lambda model: torch.optim.Adam(model.parameters()),
    "Adam, fused": lambda model: torch.optim.Adam(model.parameters(), fused=True),
    "SGD": lambda model: torch.optim.SGD(model.parameters()),
    "Selective plasticity": lambda model: SelectivePlasticityOptimizer(model.parameters(), warmup_steps=5),
    "Selective plasticity, counted": lambda model: _counted("Selective plasticity", model),
    "Consolidation": lambda model: ConsolidatingPlasticityOptimizer(model.parameters()),
    "Consolidation, counted": lambda model: _counted("Consolidation", model),
    "Coincidence": lambda model: _coincidence(model, None),
    "Coincidence, rank 128": lambda model: _coincidence(model, 128),
    "Coincidence, rank 32": lambda model: _coincidence(model, 32),
}


def _coincidence(model: nn.Module, rank: int | None) -> Optimizer:
    return ConsolidatingPlasticityOptimizer(model.parameters(), coincidence=NMDACoincidence(model), rank=rank)


def _counted(name: str, model: nn.Module) -> Optimizer:
    optimizer = OPTIMIZERS[name](model)
    optimizer.counter = PlasticityCounter(optimizer)  # nothing else keeps it
    return optimizer


def bench(rounds: int = 12, batch_size: int = 128) -> pd.DataFrame:
    """Median time of a step, and what it keeps, for each optimizer and network.

    Each round gives every optimizer twenty steps after another, so that a busy machine slows all of them alike and what
    is done every twentieth step is in the mean of a round.

    Returns:
        One row an optimizer and network: ``network``, ``parameters``, ``optimizer``, ``step_us`` and ``training_us``
        (medians over rounds, of ``step()`` alone and of a whole training step), ``step_ratio`` and ``training_ratio``
        to Adam, ``state_bytes_per_parameter``.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows = []
    for network, (inputs, hidden) in NETWORKS.items():
        x, y = torch.randn(batch_size, inputs), torch.randint(10, (batch_size,))
        models = {name: mlp(inputs, hidden, 10) for name in OPTIMIZERS}
        optimizers = {name: make(models[name]) for name, make in OPTIMIZERS.items()}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in OPTIMIZERS}
        for _ in bar(range(rounds), desc=network, unit="round"):
            for name, optimizer in optimizers.items():
                steps = [_training_step(models[name], optimizer, x, y) for _ in range(20)]
                times[name].append(tuple(statistics.mean(column) for column in zip(*steps, strict=True)))
        rows += [_row(network, name, models[name], optimizers[name], times[name][2:]) for name in OPTIMIZERS]
    torch.set_num_threads(threads)
    table = pd.DataFrame(rows)
    for column in ("step", "training"):
        adam = table[table.optimizer == "Adam"].set_index("network")[f"{column}_us"]
        table[f"{column}_ratio"] = table[f"{column}_us"] / table.network.map(adam)
    return table


def _training_step(model: nn.Module, optimizer: Optimizer, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    start = time.perf_counter()
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    before_step = time.perf_counter()
    optimizer.step()
    end = time.perf_counter()
    return end - before_step, end - start


def _row(network: str, name: str, model: nn.Module, optimizer: Optimizer, times: list[tuple[float, float]]) -> dict:
    count = sum(p.numel() for p in model.parameters())
    kept = sum(v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, torch.Tensor))
    step, training = (statistics.median(column) * 1e6 for column in zip(*times, strict=True))
    return {
        "network": network,
        "parameters": count,
        "optimizer": name,
        "step_us": round(step),
        "training_us": round(training),
        "state_bytes_per_parameter": round(kept / count, 3),
    }
