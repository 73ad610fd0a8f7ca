"""Observing a network while it learns a stream of tasks: traces, gates and memories.

`follow` trains like `sp.lab.experiment.run` and, at chosen steps, passes a `Moment` to a *look*: a function that
measures something and returns rows for a table. Looks do not affect training: a followed network ends up the same as
an unwatched one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch.nn.functional as F
from torch import Tensor

from sp.biology import Events, PlasticityCounter
from sp.lab import tables
from sp.lab.experiment import Experiment, Moment, run
from sp.lab.ledger import Ledger, opened
from sp.lab.sweep import Named, run_all, with_seeds
from sp.rivals import WITHOUT_NETWORK

Look = Callable[[Moment], list[dict]]


def follow(experiment: Experiment, look: Look, until: int | None = None) -> pd.DataFrame:
    """Run an experiment and call ``look`` after every step.

    Args:
        experiment: what to run; its optimizer must train a network.
        look: takes the measurements; returns an empty list if there is nothing to record.
        until: number of the last task to learn, from 1; None means the last task of the stream.

    Returns:
        All rows that ``look`` returned, with ``step`` and ``task``. To store them, call
        ``sp.lab.ledger.opened().table(follow, experiment, look)``.
    """
    if experiment.optimizer in WITHOUT_NETWORK:
        raise ValueError(f"experiment must train a network, got optimizer={experiment.optimizer!r}")
    rows = []

    def record(moment: Moment) -> None:
        rows.extend({"step": moment.step, "task": moment.task, **row} for row in look(moment))

    run(experiment, look=record, until=until)
    return pd.DataFrame(rows)


class Plasticity:
    """A look that records LTP and LTD events and the mean gate of each layer, task by task.

    Attributes:
        events: rows of `PlasticityCounter.rows`, with ``task``.
        gates: rows of ``task``, ``parameter``, ``row``, ``column`` and ``gate``: the mean over the looks in the task
            and over a block of synapses. A weight has at most ``blocks`` blocks in each direction. Empty for an
            optimizer without a gate.
        last_events: `PlasticityCounter.events` of the last task that ended, synapse by synapse.

    Args:
        every: number of steps between two looks. blocks: see ``gates``.
    """

    def __init__(self, every: int = 5, blocks: int = 25):
        self.every, self.blocks = every, blocks
        self.events: list[dict] = []
        self.gates: list[dict] = []
        self.last_events: dict[str, Events] = {}
        self._counter: PlasticityCounter | None = None
        self._sums: dict[str, Tensor] = {}
        self._looks = 0

    def __call__(self, moment: Moment) -> list[dict]:
        model, optimizer = moment.learner.model, moment.learner.optimizer
        if self._counter is None:
            self._counter = PlasticityCounter(model, self.every)
        if hasattr(optimizer, "get_param_gate") and (moment.step % self.every == 0 or moment.last):
            self._looks += 1
            for name, p in model.named_parameters():
                if p.dim() > 1:
                    gate = optimizer.get_param_gate(p).flatten(1)
                    size = [min(length, self.blocks) for length in gate.shape]
                    seen = F.adaptive_avg_pool2d(gate[None], size)[0]
                    self._sums[name] = self._sums.get(name, 0) + seen
        if moment.last:
            self.last_events = self._counter.events
            self.events += [{**row, "task": moment.task} for row in self._counter.rows()]
            self._counter.reset()
            for name, total in self._sums.items():
                means = (total / self._looks).tolist()
                for row, values in enumerate(means):
                    for column, value in enumerate(values):
                        place = {"task": moment.task, "parameter": name, "row": row, "column": column}
                        self.gates.append({**place, "gate": round(value, 4)})
            self._sums, self._looks = {}, 0
        return []


@dataclass(frozen=True)
class Observed:
    """What was observed in a run.

    Attributes:
        accuracy: as in `sp.lab.experiment.Result`, None before the end. curve: `sp.lab.tables.curves`.
        events, gates: those of `Plasticity`.
    """

    accuracy: np.ndarray | None
    curve: pd.DataFrame
    events: pd.DataFrame
    gates: pd.DataFrame


def observe(
    experiment: Experiment,
    ledger: Ledger | None = None,
    missing_too: bool = True,
    tell: Callable[[Plasticity, Moment], None] | None = None,
) -> Observed | None:
    """Run an experiment and observe its plasticity, or read the observations from the ledger.

    Args:
        missing_too: if False, return None for a run that is not in the ledger.
        tell: called after every step of a run with the observations so far; an exception ends the run.
    """
    seen = (ledger or opened()).table(_observed, experiment, missing_too=missing_too, tell=tell)
    if seen is None:
        return None
    accuracy = seen[seen.part == "accuracy"].pivot(index="after", columns="on", values="accuracy").to_numpy(float)
    return Observed(accuracy, *(_part(seen, name, columns) for name, columns in PARTS.items()))


def so_far(look: Plasticity, moment: Moment) -> Observed:
    """Observations of a run so far: the curve, and events and gates of the tasks that have ended; no accuracy."""
    parts = {"curve": moment.curve, "events": look.events, "gates": look.gates}
    tables = {name: pd.DataFrame(rows, columns=PARTS[name]) for name, rows in parts.items()}
    counted = {name: tables["curve"][name] + 1 for name in ("training", "task")}  # from 1, as in `sp.lab.tables.curves`
    return Observed(None, **{**tables, "curve": tables["curve"].assign(**counted)})


# Columns of each table of an observed run; those that count something are integers.
PARTS = {
    "curve": ["key", "seed", "step", "training", "task", "accuracy"],
    "events": ["task", "parameter", "synapses", "looks", "ltp", "ltd", "shut"],
    "gates": ["task", "parameter", "row", "column", "gate"],
}


def _part(seen: pd.DataFrame, name: str, columns: list[str]) -> pd.DataFrame:
    rows = seen[seen.part == name].reindex(columns=columns).reset_index(drop=True)
    return rows.astype({column: int for column in columns if column not in ("key", "parameter", "accuracy", "gate")})


def _observed(experiment: Experiment, tell: Callable[[Plasticity, Moment], None] | None = None) -> pd.DataFrame:
    look = Plasticity()

    def watch(moment: Moment) -> None:
        look(moment)
        if tell is not None:
            tell(look, moment)

    result = run(experiment, look=watch)
    R = result.accuracy
    accuracy = [{"after": i, "on": j, "accuracy": R[i, j]} for i in range(len(R)) for j in range(len(R))]
    gates = pd.DataFrame(look.gates, columns=["task", "parameter", "row", "column", "gate"])
    parts = {
        "accuracy": pd.DataFrame(accuracy),
        "curve": tables.curves([result]),
        "events": pd.DataFrame(look.events),
        "gates": gates,
    }
    return pd.concat([rows.assign(part=name) for name, rows in parts.items()], ignore_index=True)


def runs_with(look: Callable[[Moment], None], named: Named) -> pd.DataFrame:
    """`sp.lab.sweep.runs` for runs that a look changes; their rows are stored separately from those of plain runs."""
    rows = [opened().table(_changed, experiment, look).assign(method=method) for method, experiment in named]
    return pd.concat(rows, ignore_index=True)


def _changed(experiment: Experiment, look: Callable[[Moment], None]) -> pd.DataFrame:
    return tables.table([run(experiment, look=look)])


def accuracy_by_task(methods: dict[str, Experiment], seeds: Sequence[int]) -> pd.DataFrame:
    """`sp.lab.tables.matrices` for every method with every seed. Runs in the ledger are not repeated."""
    named = with_seeds(methods, seeds)
    results = run_all([experiment for _, experiment in named])
    return tables.matrices((method, result) for (method, _), result in zip(named, results, strict=True))
