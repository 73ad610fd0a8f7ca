"""One run: an `Experiment` says everything that was chosen, `run` makes its `Result`; `sp.store` remembers it."""

import hashlib
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

import sp
from sp import checkpoint, files
from sp.baselines import METHODS, ReplaySource, make_learner, masked, rehearses
from sp.checks import check_choice, check_flag, check_integer
from sp.data import DATASETS, Evaluation, Kind, Scenario, Stream, load, look_alike, make_stream
from sp.models import MODELS
from sp.replay import POLICIES, ReplayBuffer

RULES_VERSION = 2  # raised whenever a change of the code changes results, so that stored ones are not taken for new
# Raised instead where a change concerns the results of one method only, or of one method on one model or base.
METHOD_VERSIONS = {"mas": 2, "si": 2, "coincidence": 4, "dendrites, coincidence": 3, "active_dendrites, coincidence": 3}

_ALLOWED = {
    "dataset": DATASETS,
    "stream": get_args(Kind),
    "scenario": get_args(Scenario),
    "evaluation": get_args(Evaluation),
    "model": tuple(MODELS),
    "optimizer": tuple(METHODS),
    "replay_policy": POLICIES,
    "replay_adds": ("current", "whole"),
}
_LOWEST = {
    "tasks": 1,
    "epochs": 1,
    "batch_size": 1,
    "replay_capacity": 0,
    "replay_batch": 1,
    "seed": 0,
    "curve_points": 0,
}


def _widths(hidden: Any) -> tuple[int, ...]:
    if isinstance(hidden, str):
        try:
            hidden = tuple(int(width) for width in hidden.split("-"))
        except ValueError as error:
            raise ValueError(f"hidden must be widths such as 64-64, got {hidden!r}") from error
    widths = tuple(hidden) if isinstance(hidden, list | tuple) else (hidden,)
    for width in widths:
        check_integer("hidden", width, 1)
    return tuple(int(width) for width in widths)


def _plain(name: str, value: Any) -> Any:
    """A value as JSON gives it back, lists as tuples, so that it compares and hashes equal."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return tuple(_plain(name, part) for part in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{name} must be a number, a text, True, False, None or a list of these, got {value!r} of type "
        f"{type(value).__name__}: give a plain one, such as float(...) of it"
    )


@dataclass(frozen=True)
class Experiment:
    """Every choice of one run. Hashable; equal experiments give equal results to the last bit on one machine.

    Attributes:
        dataset: ``"digits"``, ``"mnist"`` or ``"fashion_mnist"``.
        stream, tasks, scenario, samples_per_task, first_identity, evaluation: as in `sp.data.make_stream`.
            ``evaluation="validation"`` holds out training images, so that nothing is tuned on test images.
        model, hidden: a name in `sp.models.MODELS` and its hidden widths, a tuple or a text such as "64-64".
        optimizer: a name in `sp.baselines.METHODS`: an optimizer of the network, or a method with one of its own.
            ``"ridge"`` has ``hidden[0]`` random features and no network.
        options: arguments of the optimizer or method; a dict is taken as well, and kept as sorted pairs.
        epochs: passes over each task's data. batch_size: new examples in a batch.
        replay_capacity: size of the replay buffer, 0 for none. replay_policy, replay_distinct: as in `ReplayBuffer`.
        replay_batch: stored examples added to each batch. replay_adds: what goes into the buffer after a step:
            ``"current"`` examples only, or the ``"whole"`` batch with the replayed ones, as the published loop does.
        seed: of weights, data order, permutations and buffer. Arms with equal seeds share all of these.
        curve_points: how often in each task every task is tested, 0 for at its end only.
    """

    dataset: str = "digits"
    stream: str = "split"
    tasks: int = 2
    scenario: str = "class"
    samples_per_task: int | None = None
    first_identity: bool = True
    evaluation: str = "test"
    model: str = "mlp"
    hidden: tuple[int, ...] = (100, 100)
    optimizer: str = "adam"
    options: tuple[tuple[str, Any], ...] = ()
    epochs: int = 1
    batch_size: int = 32
    replay_capacity: int = 0
    replay_policy: str = "reservoir"
    replay_distinct: bool | None = None
    replay_batch: int = 32
    replay_adds: str = "current"
    seed: int = 0
    curve_points: int = 0

    def __post_init__(self):
        pairs = self.options.items() if isinstance(self.options, dict) else self.options
        options = sorted((str(name), _plain(f"option {name}", value)) for name, value in pairs)
        object.__setattr__(self, "options", tuple(options))
        object.__setattr__(self, "hidden", _widths(self.hidden))
        for name, allowed in _ALLOWED.items():
            check_choice(name, getattr(self, name), allowed)
        for name, low in _LOWEST.items():
            check_integer(name, getattr(self, name), low)
            object.__setattr__(self, name, int(getattr(self, name)))  # NumPy's is not JSON
        if self.samples_per_task is not None:
            check_integer("samples_per_task", self.samples_per_task, 1)
            object.__setattr__(self, "samples_per_task", int(self.samples_per_task))
        check_flag("first_identity", self.first_identity)
        if self.replay_distinct is not None:
            check_flag("replay_distinct", self.replay_distinct)
        if self.optimizer == "active_dendrites" and self.replay_capacity:
            raise ValueError(
                "optimizer 'active_dendrites' takes every example for one of the present task, stored ones too: give "
                f"replay_capacity 0, got {self.replay_capacity!r}"
            )
        if rehearses(self.optimizer) and (not self.replay_capacity or self.replay_adds != "current"):
            raise ValueError(
                f"optimizer {self.optimizer!r} stores the new examples of each batch: give replay_capacity >= 1 and "
                f"leave replay_adds at 'current', got {self.replay_capacity!r} and {self.replay_adds!r}"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `Experiment.from_dict` reads them back."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**values, "hidden": list(self.hidden), "options": dict(self.options)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Experiment":
        """The experiment with these choices; an unknown name is a ValueError that lists the known ones."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"unknown choice(s) {', '.join(unknown)}; an Experiment has {', '.join(known)}")
        return cls(**values)

    @property
    def method_version(self) -> int | None:
        """What `METHOD_VERSIONS` has of the method on this model or base, or else of the method; None where of none."""
        base = dict(self.options).get("base")
        names = (f"{self.optimizer}, {self.model}", f"{self.optimizer}, {base}", self.optimizer)
        return next((METHOD_VERSIONS[name] for name in names if name in METHOD_VERSIONS), None)

    def key(self) -> str:
        """Name of the experiment in a store: a hash of every choice that differs from its default.

        The version of the rules is part of it, and so is the content of data that stand in for a known set.
        """
        chosen = {name: value for name, value in self.as_dict().items() if value != _DEFAULTS[name]}
        made_by = {"rules_version": RULES_VERSION}
        if self.method_version is not None:
            made_by["method_version"] = self.method_version
        if content := look_alike(self.dataset):
            made_by["data"] = content
        text = json.dumps({**made_by, **chosen}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


_DEFAULTS = Experiment().as_dict()


@dataclass(frozen=True)
class Result:
    """What a run measured.

    Attributes:
        experiment: what was run.
        accuracy: ``accuracy[i, j]``, test accuracy on task j after training on task i, in [0, 1]; (T, T), NaN for
            j > i + 1.
        initial: accuracy on each task before any training; (T,).
        curve: one dict for each measurement inside a task: ``step`` (optimizer steps since the beginning), ``training``
            and ``task`` (numbers, from 0, of the task that was learnt and of the one that was tested), ``accuracy``.
        buffer: label -> how many of the replay buffer's examples have it, at the end; empty without replay.
        seconds: wall time of training and tests. versions: of the software that made the result.
        parameters: how many were trained at the end; None where there is no network, and in results of older versions.
    """

    experiment: Experiment
    accuracy: np.ndarray
    initial: np.ndarray
    curve: list[dict[str, float]]
    buffer: dict[str, int]
    seconds: float
    versions: dict[str, str]
    parameters: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `Result.from_dict` reads them back, bit by bit."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        seen = np.where(np.isnan(self.accuracy), None, self.accuracy)  # JSON has no NaN
        arrays = {"accuracy": seen.tolist(), "initial": self.initial.tolist()}
        return {**values, **arrays, "experiment": self.experiment.as_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Result":
        arrays = {name: np.array(values[name], dtype=float) for name in ("accuracy", "initial")}
        return cls(**{**values, **arrays, "experiment": Experiment.from_dict(values["experiment"])})


@dataclass(frozen=True)
class Moment:
    """Where a run is, right after a step.

    Attributes:
        step: optimizer steps so far. task: number of the task that is being learnt, from 1. first, last: whether this
            was the task's first or last step.
        learner: as it is now; the gradients of its network are those of the step.
        stream: the tasks.
    """

    step: int
    task: int
    first: bool
    last: bool
    learner: Any
    stream: Stream


def stream_of(experiment: Experiment) -> Stream:
    """The tasks of an experiment."""
    return make_stream(
        load(experiment.dataset),
        experiment.stream,
        experiment.tasks,
        experiment.scenario,
        experiment.seed,
        samples_per_task=experiment.samples_per_task,
        evaluation=experiment.evaluation,
        first_identity=experiment.first_identity,
    )


def run(
    experiment: Experiment,
    device: str | torch.device = "cpu",
    progress: bool = False,
    look: Callable[[Moment], None] | None = None,
    until: int | None = None,
    checkpoint_path: str | os.PathLike | None = None,
    checkpoint_every: int = 200,
) -> Result:
    """Train one network on the stream, task by task, and test it on every task after each.

    The run uses one thread and leaves the global random state and the number of threads as they were.

    With a checkpoint, a run that was killed ends with the same weights and the same result as one that was not. It
    keeps weights, optimizer, buffer and random states, and is deleted at the end.

    Args:
        experiment: what to run.
        device: where to train; the CPU and a GPU differ in the last digits.
        progress: show a bar over the epochs.
        look: called after every step; what it does to the learner is done.
        until: number of the last task to learn, from 1; None: the stream's last. Later rows of the accuracy are NaN.
        checkpoint_path: a file that is written on the way, and from which the run goes on where it is there already.
            ``look`` then sees only the steps that are left. A damaged file is warned of, and the run begins again.
        checkpoint_every: steps between two writes, >= 1.

    Raises:
        ValueError, TypeError: ``until`` or ``checkpoint_every`` is out of range, the stream cannot be made
            (`sp.data.make_stream`), the file is another experiment's, or the method has no state that could be kept.
        DataError: a file of the data set is missing or damaged.
        OSError: the checkpoint cannot be written.
    """
    check_integer("checkpoint_every", checkpoint_every, 1)
    if until is not None:
        check_integer("until", until, 1, experiment.tasks)
    with _isolated(experiment.seed, device):
        training = _Run(experiment, stream_of(experiment), torch.device(device), look)
        if checkpoint_path is not None:
            training.keep_in(Path(checkpoint_path), checkpoint_every)
        return training.train(progress, until)


class _Run:
    """A network, its optimizer and its buffer on their way through a stream."""

    def __init__(self, experiment: Experiment, stream: Stream, device: torch.device, look: Callable | None):
        self.start = time.perf_counter()
        self.experiment, self.stream, self.device, self.look = experiment, stream, device, look
        self.unit_task = _task_of_each_unit(stream, device)
        self.order = torch.Generator().manual_seed(experiment.seed)
        self.buffer = store = None
        if experiment.replay_capacity:
            buffer = ReplayBuffer(
                experiment.replay_capacity, experiment.replay_policy, experiment.replay_distinct, seed=experiment.seed
            )
            if rehearses(experiment.optimizer):
                store = ReplaySource(buffer, experiment.replay_batch, self._allowed)
            else:
                self.buffer = buffer
        sizes = (stream.inputs, experiment.hidden, stream.outputs)
        self.learner = make_learner(
            experiment.optimizer,
            lambda: MODELS[experiment.model](*sizes).to(device),
            sizes,
            device,
            dict(experiment.options),
            store,
        )
        self.curve: list[dict[str, float]] = []
        self.steps = 0
        self.place = {"task": 0, "epoch": 0, "batch": 0}  # what is done: tasks, epochs of the next one, batches of that
        self.order_at_epoch = self.order.get_state()
        self.accuracy = np.full((len(stream.tasks), len(stream.tasks)), np.nan)
        self.initial: np.ndarray | None = None
        self.checkpoint: tuple[Path, int] | None = None

    def keep_in(self, path: Path, every: int) -> None:
        """Write checkpoints from now on; go on from the one that is there."""
        if "state_dict" not in vars(type(self.learner)):  # an inherited one would leave out what the rival keeps
            raise ValueError(
                f"optimizer {self.experiment.optimizer!r} has no state_dict of its own, so it cannot be checkpointed: "
                "leave out checkpoint_path (in a Store or a sweep, checkpoint_every)"
            )
        self.checkpoint = (path, every)
        state = checkpoint.load(path, self.experiment.key())
        if state is None:
            return
        self.start -= state["seconds"]
        self.learner.load_state_dict(state["learner"])
        if self.buffer is not None:
            self.buffer.load_state_dict(state["buffer"])
        self.place, self.steps, self.curve = state["place"], state["steps"], state["curve"]
        self.order.set_state(state["order"])
        self.accuracy, self.initial = state["accuracy"].numpy(), state["initial"].numpy()
        torch.set_rng_state(state["random"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["random_cuda"], self.device)

    def _keep(self) -> None:
        on_gpu = self.device.type == "cuda"
        state = {
            "key": self.experiment.key(),
            "seconds": time.perf_counter() - self.start,
            "learner": self.learner.state_dict(),
            "buffer": None if self.buffer is None else self.buffer.state_dict(),
            "place": self.place,
            "steps": self.steps,
            "curve": self.curve,
            "order": self.order_at_epoch,
            "accuracy": torch.from_numpy(self.accuracy),
            "initial": torch.from_numpy(self.initial),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(self.device) if on_gpu else None,
        }
        checkpoint.save(self.checkpoint[0], state)

    def train(self, progress: bool, until: int | None) -> Result:
        tests = [self._on_device(task.outputs, *task.test()) for task in self.stream.tasks]
        if self.initial is None:
            self.initial = np.array([self._accuracy(j, test) for j, test in enumerate(tests)])
        epochs = self.experiment.epochs
        done = self.place["task"] * epochs + self.place["epoch"]
        with files.bar(total=len(tests) * epochs, initial=done, unit="epoch", progress=progress) as bar:
            for i, task in enumerate(self.stream.tasks[:until]):
                if i < self.place["task"]:
                    continue
                x, y = self._on_device(task.outputs, *task.train())
                self._train_task(i, x, y, tests, bar)
                if self.learner.needs.boundaries and self._finite():
                    self.learner.end_task(x, y, self._allowed(y))
                # Of the tasks still to come only the next one is tested, which forward transfer needs.
                self.accuracy[i, : i + 2] = [self._accuracy(j, test) for j, test in enumerate(tests[: i + 2])]
                self.place = {"task": i + 1, "epoch": 0, "batch": 0}
        if self.checkpoint is not None:
            self.checkpoint[0].unlink(missing_ok=True)
        return Result(
            experiment=self.experiment,
            accuracy=self.accuracy,
            initial=self.initial,
            curve=self.curve,
            buffer={str(label): count for label, count in self._class_counts().items()},
            seconds=time.perf_counter() - self.start,
            versions={"sp": sp.__version__, "torch": torch.__version__, "python": platform.python_version()},
            parameters=self._trained(),
        )

    def _train_task(self, number: int, x: Tensor, y: Tensor, tests: list, bar: Any) -> None:
        size = self.experiment.batch_size
        batches = -(-len(x) // size)
        total = self.experiment.epochs * batches
        points = np.linspace(0, total, self.experiment.curve_points + 1)[1:].round().astype(int)
        for epoch in range(self.place["epoch"], self.experiment.epochs):
            self.order_at_epoch = self.order.get_state()
            order = torch.randperm(len(x), generator=self.order).to(self.device).split(size)
            for index in order[self.place["batch"] :]:
                self._train_batch(x[index], y[index])
                self.place = {"task": number, "epoch": epoch, "batch": self.place["batch"] + 1}
                step = epoch * batches + self.place["batch"]
                if self.look is not None:
                    place = {"first": step == 1, "last": step == total}
                    self.look(Moment(self.steps, number + 1, **place, learner=self.learner, stream=self.stream))
                if step in points:
                    for j, test in enumerate(tests):
                        measured = {"training": number, "task": j, "accuracy": self._accuracy(j, test)}
                        self.curve.append({"step": self.steps, **measured})
                if self.checkpoint is not None and self.steps % self.checkpoint[1] == 0:
                    self._keep()
            self.place = {"task": number, "epoch": epoch + 1, "batch": 0}
            bar.update()

    def _train_batch(self, x: Tensor, y: Tensor) -> None:
        seen_x, seen_y = x, y
        if self.buffer is not None and len(self.buffer):
            old_x, old_y = self.buffer.sample(self.experiment.replay_batch)
            seen_x, seen_y = torch.cat([x, old_x]), torch.cat([y, old_y])
        self.learner.learn(seen_x, seen_y, self._allowed(seen_y))
        if self.buffer is not None:
            whole = self.experiment.replay_adds == "whole"
            self.buffer.add(*((seen_x, seen_y) if whole else (x, y)))
        self.steps += 1

    def _finite(self) -> bool:
        """Whether the network has not diverged; one that has knows nothing that a method could keep of a task."""
        model = getattr(self.learner, "model", None)
        return model is None or all(p.isfinite().all() for p in model.parameters())

    def _trained(self) -> int | None:
        if getattr(self.learner, "model", None) is None:
            return None
        return sum(p.numel() for p in self.learner.parameters)

    def _class_counts(self) -> dict[int, int]:
        if rehearses(self.experiment.optimizer):
            return self.learner.class_counts()
        return {} if self.buffer is None else self.buffer.class_counts()

    def _allowed(self, y: Tensor) -> Tensor | None:
        """In a task-incremental stream, the units of each example's own task; (B, outputs)."""
        return None if self.unit_task is None else self.unit_task == self.unit_task[y, None]

    @torch.no_grad()
    def _accuracy(self, task: int, test: tuple[Tensor, Tensor]) -> float:
        x, y = test
        logits = self.learner.logits(x, task) if self.learner.needs.task else self.learner.logits(x)
        return (masked(logits, self._allowed(y)).argmax(1) == y).float().mean().item()

    def _on_device(self, outputs: tuple[int, ...] | None, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The data, with labels that name output units whichever the scenario."""
        labels = y if outputs is None else torch.tensor(outputs)[y]
        return x.to(self.device), labels.to(self.device)


def _task_of_each_unit(stream: Stream, device: torch.device) -> Tensor | None:
    """Which task each output unit belongs to, where tasks have units of their own; (outputs,)."""
    if stream.tasks[0].outputs is None:
        return None
    owner = torch.empty(stream.outputs, dtype=torch.int64)
    for number, task in enumerate(stream.tasks):
        owner[list(task.outputs)] = number
    return owner.to(device)


# The random state and the number of threads belong to the process, and a dask worker may have several threads.
_ONE_RUN = threading.RLock()


@contextmanager
def _isolated(seed: int, device: str | torch.device) -> Iterator[None]:
    """One thread and a random state of its own, so that a run depends on nothing but its experiment."""
    threads = torch.get_num_threads()
    on_gpu = torch.device(device).type == "cuda"
    with _ONE_RUN, torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.manual_seed(seed)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
