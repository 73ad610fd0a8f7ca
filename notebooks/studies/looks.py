"""What notebooks 02 to 04 observe during training: traces, gates, thresholds, memories of inputs, gradients.

A look receives a `sp.lab.experiment.Moment` after every step and returns rows for a table; `sp.lab.watch.follow`
collects them.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from sp import rules
from sp.biology import Synapses
from sp.lab.experiment import Experiment, Moment, run
from sp.lab.sweep import with_seeds
from sp.lab.watch import Plasticity, follow, runs_with
from sp.optim import ConsolidatingPlasticityOptimizer
from sp.optim.coincidence import memories
from sp.optim.common import scalar_dtype


class Traces:
    """Look: how many of the synapses that mattered to task A are still marked by two traces of the same gradients.

    A synapse matters to task A if its sum of ``|g|`` over task A is among the largest ``share`` of all. A trace marks a
    synapse that is among its own largest ``share`` now. The accumulating trace is also used with the threshold that
    this gave at the end of task A, as the consolidating rule does. A trace that knows nothing about task A scores
    ``share``.

    Args:
        decay: decay factor of the decaying trace, the mean of recent ``|g|``.
        share: fraction of all synapses, in (0, 1).
        every: steps between two rows.
    """

    def __init__(self, decay: float = 0.99, share: float = 0.25, every: int = 5):
        self.decay, self.share, self.every = decay, share, every
        self.eligibility: Tensor | float = 0.0
        self.consolidated: Tensor | float = 0.0
        self.used: Tensor | float = 0.0
        self.mattered: Tensor | None = None
        self.threshold: Tensor | float = 0.0

    def __call__(self, moment: Moment) -> list[dict]:
        gradient = torch.cat([p.grad.flatten() for p in moment.learner.model.parameters()])
        self.eligibility = self.decay * self.eligibility + (1 - self.decay) * gradient.abs()
        self.consolidated = self.consolidated + gradient**2
        if moment.task == 1:
            self.used = self.used + gradient.abs()
            if moment.last:
                self.mattered = self._largest(self.used)
                self.threshold = self.consolidated[self._largest(self.consolidated)].min()
        if self.mattered is None or (moment.step % self.every and not moment.last):
            return []
        marked = {
            "Decaying trace": self._largest(self.eligibility),
            "Accumulating trace": self._largest(self.consolidated),
            "Accumulating trace, fixed threshold": self.consolidated >= self.threshold,
        }
        return [{"trace": name, "share": mark[self.mattered].float().mean().item()} for name, mark in marked.items()]

    def _largest(self, values: Tensor) -> Tensor:
        largest = torch.zeros_like(values, dtype=torch.bool)
        return largest.index_fill_(0, values.topk(round(self.share * len(values))).indices, True)


def gate_quantiles(moment: Moment, quantiles: Sequence[float] = (0.1, 0.5, 0.9), every: int = 20) -> list[dict]:
    """Look: quantiles of the gate ``theta / (theta + C)`` of the diagonal rule over the weights of each layer."""
    if moment.step % every and not moment.last:
        return []
    theta = moment.learner.optimizer.param_groups[0]["shared"]["threshold"]
    weights = [p for p in moment.learner.model.parameters() if p.dim() > 1]
    return [
        {"layer": number, "quantile": q, "gate": value}
        for number, weight in enumerate(weights, 1)
        for q, value in zip(
            quantiles,
            rules.consolidation_gate(moment.learner.optimizer.state[weight]["consolidated"], theta)
            .flatten()
            .quantile(torch.tensor(quantiles))
            .tolist(),
            strict=True,
        )
    ]


def thresholds(moment: Moment) -> list[dict]:
    """Look: the published rule's threshold of each layer's weights, in units of the gradient; none before it is set."""
    state = moment.learner.optimizer.state
    weights = [p for p in moment.learner.model.parameters() if p.dim() > 1]
    values = [state[weight]["threshold"].item() for weight in weights]
    return [{"layer": f"Layer {n}", "threshold": value} for n, value in enumerate(values, 1) if np.isfinite(value)]


def busiest(experiment: Experiment, parameter: str, units: int = 8) -> pd.DataFrame:
    """LTP minus LTD events, and how often the gate was shut, for a layer's units with the most LTP in the last task.

    Args:
        parameter: name of the layer's weight in the network.

    Returns:
        One row per unit and ``kind`` ("LTP - LTD", "gate shut"), and one column per input.
    """
    look = Plasticity()
    run(experiment, look=look)
    events = look.last_events[parameter]
    rows = events.ltp.sum(1).topk(units).indices
    maps = {"LTP - LTD": events.ltp - events.ltd, "gate shut": events.shut}
    found = [pd.DataFrame(m[rows].numpy()).rename(columns=str).assign(kind=kind) for kind, m in maps.items()]
    return pd.concat(found, ignore_index=True)


def memory(optimizer: ConsolidatingPlasticityOptimizer, synapses: Synapses) -> Tensor:
    """The presynaptic memory A of a watched layer without groups as a matrix, (d, d), exact or from its sketch."""
    inputs, _ = memories(synapses, optimizer.group_of(synapses.weight))
    (A,) = inputs.matrix(optimizer.state[synapses.weight])
    return A


def retention(optimizer: ConsolidatingPlasticityOptimizer, synapses: Synapses) -> float:
    """The retention r of the parameter group that a watched layer belongs to."""
    return optimizer.group_of(synapses.weight)["retention"]


def spectrum(moment: Moment, layer: int = 0) -> list[dict]:
    """Look: after each task, the eigenvalues of ``r A`` of a layer's memory A, largest first."""
    if not moment.last:
        return []
    synapses = moment.learner.optimizer.coincidence.synapses[layer]
    scaled = memory(moment.learner.optimizer, synapses) * retention(moment.learner.optimizer, synapses)
    values = torch.linalg.eigvalsh(scaled.double()).flip(0).clamp(min=0)
    return [{"direction": number, "weight": value} for number, value in enumerate(values.tolist(), 1)]


def input_novelty(moment: Moment) -> list[dict]:
    """Look: after each task, how new the test images of every task are to the first layer: mean of ``x'Px / x'x``."""
    if not moment.last:
        return []
    synapses = moment.learner.optimizer.coincidence.synapses[0]
    P = rules.novelty(memory(moment.learner.optimizer, synapses), retention(moment.learner.optimizer, synapses))
    rows = []
    for on, task in enumerate(moment.stream.tasks, 1):
        x = _with_one(task.test()[0], synapses)
        new = ((x @ P) * x).sum(1) / x.square().sum(1)
        rows.append({"on": on, "novelty": new.mean().item()})
    return rows


@dataclass(frozen=True)
class FirstGradient:
    """The first layer's gradient in the first step of a task, raw and with what is known projected out.

    Attributes:
        raw: G, (units, pixels). projected: the same columns of G P. Q is left out, since it mixes units.
        mean_image: mean training image of the task, (pixels,).
        effects: table of ``step`` ("raw", "projected"), ``inputs`` ("old tasks", "new task") and ``change``: the root
            mean square change that a step along the gradient makes in the layer's response to the inputs, in units of
            the raw one's change on the new task.
    """

    raw: Tensor
    projected: Tensor
    mean_image: Tensor
    effects: pd.DataFrame


def first_gradient(experiment: Experiment, task: int) -> FirstGradient:
    """Train up to the first step of a task, and take the first layer's gradient there.

    Args:
        experiment: one with ``optimizer="coincidence"`` and a fully connected first layer.
        task: number of the task, from 2.
    """
    found: dict[str, Tensor] = {}

    def look(moment: Moment) -> list[dict]:
        if moment.last and moment.task == task - 1:
            found["A"] = memory(moment.learner.optimizer, moment.learner.optimizer.coincidence.synapses[0]).clone()
        if not (moment.first and moment.task == task):
            return []
        synapses = moment.learner.optimizer.coincidence.synapses[0]
        P = rules.novelty(found["A"], retention(moment.learner.optimizer, synapses))
        (raw,) = synapses.gradient()
        projected = raw @ P
        images = [_with_one(one.train()[0], synapses) for one in moment.stream.tasks[:task]]
        parts = {"old tasks": torch.cat(images[:-1]), "new task": images[-1]}
        unit = (parts["new task"] @ raw.T).square().mean().sqrt()
        rows = [
            {"step_kind": kind, "inputs": name, "change": ((x @ G.T).square().mean().sqrt() / unit).item()}
            for kind, G in (("raw", raw), ("projected", projected))
            for name, x in parts.items()
        ]
        pixels = synapses.weight.shape[1]
        found.update(raw=raw[:, :pixels], projected=projected[:, :pixels], mean=images[-1][:, :pixels].mean(0))
        return rows

    effects = follow(experiment, look, until=task).rename(columns={"step": "at", "step_kind": "step"})
    return FirstGradient(found["raw"], found["projected"], found["mean"], effects[["step", "inputs", "change"]])


def first_gradient_table(experiment: Experiment, task: int, units: int = 6) -> pd.DataFrame:
    """`first_gradient` as one table.

    Returns:
        Rows with ``part`` "effects" have the columns of ``effects``. Rows with ``part`` "images" have a ``row`` ("mean
        image", "raw", "projected") and one column per pixel, for the ``units`` units with the largest gradient.
    """
    step = first_gradient(experiment, task)
    largest = step.raw.norm(dim=1).topk(units).indices
    images = {"mean image": step.mean_image[None], "raw": step.raw[largest], "projected": step.projected[largest]}
    rows = [pd.DataFrame(pixels.numpy()).rename(columns=str).assign(row=name) for name, pixels in images.items()]
    return pd.concat([step.effects.assign(part="effects"), pd.concat(rows).assign(part="images")], ignore_index=True)


def forget(moment: Moment) -> None:
    """Wipe the presynaptic memories of all layers.

    Passed to `sp.lab.experiment.run`, it changes the training: a layer steps as if the batch were the first it has met.
    """
    optimizer = moment.learner.optimizer
    for synapses in optimizer.coincidence.synapses:
        groups, _, width = synapses.shape
        inputs, _ = memories(synapses, optimizer.group_of(synapses.weight))
        like = torch.empty((), dtype=scalar_dtype(synapses.weight), device=synapses.weight.device)
        inputs.initialise(optimizer.state[synapses.weight], groups, width, like)


def without_memory(methods: dict[str, Experiment], seeds: Iterable[int]) -> pd.DataFrame:
    """Runs in which, after every step, all layers forget the inputs they have met.

    Args:
        methods: name -> experiment with ``optimizer="coincidence"``.
        seeds: seeds of the runs.

    Returns:
        One row per run, as in `sp.lab.tables.table`, and ``method``.
    """
    return runs_with(forget, with_seeds(methods, seeds))


def by_number_of_tasks(accuracies: pd.DataFrame) -> pd.DataFrame:
    """From `sp.lab.watch.accuracy_by_task`: for each method, seed and number of ``tasks`` learnt, the accuracy on the
    ``newest`` task and the ``average`` over all of them."""
    keys = ["method", "seed", "after"]
    average = accuracies.groupby(keys, sort=False).accuracy.mean().rename("average")
    newest = accuracies[accuracies.after == accuracies.on].set_index(keys).accuracy.rename("newest")
    return pd.concat([newest, average], axis=1).reset_index().rename(columns={"after": "tasks"})


def _with_one(x: Tensor, synapses: Synapses) -> Tensor:
    return x if synapses.bias is None else torch.cat([x, x.new_ones(len(x), 1)], 1)
