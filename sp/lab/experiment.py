"""One run: an `Experiment` holds every choice, `run` makes its `Result`, and `sp.lab.ledger` keeps it."""

import hashlib
import json
import math
import platform
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

import sp
from sp.checks import check_choice, check_flag, check_integer
from sp.files import DATASETS
from sp.lab.data import Evaluation, Kind, Scenario, Tasks, load, make_stream
from sp.lab.networks import MODELS
from sp.lab.own import Own, given
from sp.replay import POLICIES, ReplayBuffer
from sp.rivals import METHODS, GradientLearner, ReplaySource, cross_entropy, make_learner, masked, rehearses

RULES_VERSION = 2  # increased whenever a change to the code changes results, so that kept ones are not taken for new
# Increased instead if a change affects the results of one method only, or of one method on one model or base.
METHOD_VERSIONS = {
    "agem": 2,
    "mas": 2,
    "si": 2,
    "coincidence": 10,
    "coincidence, mlp": 6,  # perceptrons of up to two hidden layers have been the same since
    "dendrites, coincidence": 5,
    "active_dendrites, coincidence": 5,
}

_ALLOWED = {
    "dataset": tuple(DATASETS),
    "stream": get_args(Kind),
    "scenario": get_args(Scenario),
    "evaluation": get_args(Evaluation),
    "model": tuple(MODELS),
    "optimizer": tuple(METHODS),
    "replay_policy": POLICIES,
    "replay_adds": ("current", "whole"),
}
_MAY_BE_OWN = ("stream", "model", "optimizer", "loss")
OWN_DATA = "own"  # the data set of a stream of user-supplied arrays
_LOWEST = {
    "tasks": 1,
    "samples_per_task": 1,
    "epochs": 1,
    "batch_size": 1,
    "replay_capacity": 0,
    "replay_batch": 1,
    "seed": 0,
    "curve_points": 0,
}


def _widths(hidden: Any) -> tuple[int, ...]:
    widths = tuple(hidden) if isinstance(hidden, list | tuple) else (hidden,)
    for width in widths:
        check_integer("hidden", width, 1)
    return tuple(int(width) for width in widths)


def _plain(name: str, value: Any) -> Any:
    """A value as JSON returns it, but with lists as tuples, so that it compares and hashes equal."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, list | tuple):
        return tuple(_plain(name, part) for part in value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"{name} must be a number, a string, True, False, None or a list of these, got {value!r} of type "
        f"{type(value).__name__}: convert it, for example with float(...)"
    )


@dataclass(frozen=True)
class Experiment:
    """All choices of one run. Hashable; equal experiments give equal results to the last bit on one machine.

    Stream, model, optimizer and loss may each be an `Own` instead of a name; `sp.lab.compare` makes these.

    Attributes:
        dataset: a name in `sp.files.DATASETS`; ``"own"`` for a stream of user-supplied arrays.
        stream, tasks, scenario, samples_per_task, evaluation: as in `sp.lab.data.make_stream`.
            ``evaluation="validation"`` holds out training images, so that nothing is tuned on test images.
        model, hidden: a name in `sp.lab.networks.MODELS` and its hidden widths.
        optimizer: a name in `sp.rivals.METHODS`: an optimizer for the network, or a method with its own optimizer.
            ``"ridge"`` and ``"ranpac"`` have ``hidden[0]`` random features and no network, ``"slda"`` has neither.
        loss: None for the stream's usual loss, or an `Own` function of outputs and targets.
        options: arguments of the optimizer or method; a dict is accepted too, and kept as sorted pairs.
        epochs: passes over each task's data. batch_size: new examples per batch.
        replay_capacity: size of the replay buffer, 0 for none. replay_policy, replay_distinct: as in `ReplayBuffer`.
        replay_batch: stored examples added to each batch. replay_adds: what goes into the buffer after a step:
            ``"current"`` examples only, or the ``"whole"`` batch including replayed ones, as in the published loop.
        seed: seed for weights, data order, permutations and buffer. Methods with equal seeds share all of these.
        curve_points: number of times during each task that every task is tested; 0 means only at its end.
    """

    dataset: str = "digits"
    stream: str | Own = "split"
    tasks: int = 2
    scenario: str = "class"
    samples_per_task: int | None = None
    evaluation: str = "test"
    model: str | Own = "mlp"
    hidden: tuple[int, ...] = (100, 100)
    optimizer: str | Own = "adam"
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
    loss: Own | None = None

    def __post_init__(self):
        pairs = self.options.items() if isinstance(self.options, dict) else self.options
        options = sorted((str(name), _plain(f"option {name}", value)) for name, value in pairs)
        object.__setattr__(self, "options", tuple(options))
        object.__setattr__(self, "hidden", _widths(self.hidden))
        if isinstance(self.stream, Own):
            object.__setattr__(self, "dataset", OWN_DATA)
        for name, allowed in _ALLOWED.items():
            value = getattr(self, name)
            if not isinstance(value, Own) and not (name == "dataset" and isinstance(self.stream, Own)):
                check_choice(name, value, allowed)
        if not isinstance(self.loss, Own | None):
            raise TypeError(
                f"loss must be None or an Own, got {self.loss!r}: give the function to sp.lab.compare, or as "
                "Own.of('own loss', function)"
            )
        for name, low in _LOWEST.items():
            if name != "samples_per_task" or self.samples_per_task is not None:
                check_integer(name, getattr(self, name), low)
                object.__setattr__(self, name, int(getattr(self, name)))  # NumPy integers are not JSON
        if self.replay_distinct is not None:
            check_flag("replay_distinct", self.replay_distinct)
        if self.optimizer == "active_dendrites" and self.replay_capacity:
            raise ValueError(
                "optimizer 'active_dendrites' takes all examples, even stored ones, to be from the current task: give "
                f"replay_capacity 0, got {self.replay_capacity!r}"
            )
        if rehearses(self.optimizer) and (not self.replay_capacity or self.replay_adds != "current"):
            raise ValueError(
                f"optimizer {self.optimizer!r} stores the new examples of each batch: give replay_capacity >= 1 and "
                f"leave replay_adds at 'current', got {self.replay_capacity!r} and {self.replay_adds!r}"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; `Experiment.from_dict` reads them back, except for the content of an `Own`."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        if self.loss is None:
            del values["loss"]
        own = {name: value.as_dict() for name, value in values.items() if isinstance(value, Own)}
        return {**values, "hidden": list(self.hidden), "options": dict(self.options), **own}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Experiment":
        """The experiment with these choices, in the form that `as_dict` returns."""
        own = {name: Own(**values[name]) for name in _MAY_BE_OWN if isinstance(values.get(name), dict)}
        return cls(**{**values, **own})

    @property
    def own(self) -> dict[str, Own]:
        """The user-supplied parts, by the name of the choice."""
        return {name: value for name in _MAY_BE_OWN if isinstance(value := getattr(self, name), Own)}

    @property
    def chosen(self) -> dict[str, Any]:
        """The part of `as_dict` that differs from the defaults."""
        return {name: value for name, value in self.as_dict().items() if value != _DEFAULTS.get(name)}

    def with_options(self, **options: Any) -> "Experiment":
        """A copy with the named options of the optimizer replaced; the others stay."""
        return replace(self, options={**dict(self.options), **options})

    def bare(self) -> "Experiment":
        """An equal experiment without the content of its user-supplied parts."""
        return replace(self, **{name: replace(own, content=None) for name, own in self.own.items()})

    @property
    def method_version(self) -> int | None:
        """The entry of `METHOD_VERSIONS` for the method on this model or base, else for the method; None if absent."""
        base = dict(self.options).get("base")
        model = "deep mlp" if self.model == "mlp" and len(self.hidden) > 2 else self.model
        names = (f"{self.optimizer}, {model}", f"{self.optimizer}, {base}", self.optimizer)
        return next((METHOD_VERSIONS[name] for name in names if name in METHOD_VERSIONS), None)

    def key(self) -> str:
        """Name of the experiment in a ledger: a hash of every choice that differs from its default.

        The hash includes the version of the rules and the digests of user-supplied parts.
        """
        chosen = self.chosen | {name: {"digest": own.digest} for name, own in self.own.items()}
        made_by = {"rules_version": RULES_VERSION}
        if self.method_version is not None:
            made_by["method_version"] = self.method_version
        text = json.dumps({**made_by, **chosen}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


_DEFAULTS = Experiment().as_dict()


@dataclass(frozen=True)
class Result:
    """What a run measured.

    Attributes:
        experiment: what was run.
        accuracy: ``accuracy[i, j]`` is the test accuracy on task j after training on task i, in [0, 1], to six digits;
            (T, T), NaN for j > i + 1. None for a run that was carried over from a table of its measures.
        initial: accuracy on each task before any training; (T,). None as above.
        curve: one dict per measurement during a task: ``step`` (optimizer steps since the beginning), ``training`` and
            ``task`` (numbers, from 0, of the task being learnt and the task being tested), ``accuracy``.
        buffer: label -> number of examples with it in the replay buffer at the end; empty without replay.
        seconds: wall time of training and tests. versions: software versions, and the kind of processor.
        parameters: number of parameters trained at the end; None if there is no network.
        diverged: whether outputs in a test were NaN or +infinity, which makes the accuracies meaningless.
        measures: measures by name, of a run that was carried over or that something else was measured in.
    """

    experiment: Experiment
    accuracy: np.ndarray | None
    initial: np.ndarray | None
    curve: list[dict[str, float]] = field(default_factory=list)
    buffer: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)
    parameters: int | None = None
    diverged: bool = False
    measures: dict[str, float] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        """Plain JSON values; `Result.from_row` reads them back, bit for bit."""
        row = {"experiment": self.experiment.chosen, "seconds": round(self.seconds, 3), "versions": self.versions}
        if self.accuracy is not None:
            seen = np.where(np.isnan(self.accuracy), None, self.accuracy).tolist()  # JSON has no NaN
            tested = [accuracies[: task + 2] for task, accuracies in enumerate(seen)]
            row |= {"accuracy": tested, "initial": self.initial.tolist()}
        curve = [[point[name] for name in CURVE] for point in self.curve]
        optional = {
            "curve": curve,
            "buffer": self.buffer,
            "parameters": self.parameters,
            "diverged": self.diverged,
            "measures": self.measures,
        }
        return row | {name: value for name, value in optional.items() if value}

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Result":
        """The result that `as_row` wrote."""
        experiment = Experiment.from_dict(row["experiment"])
        accuracy = initial = None
        if "accuracy" in row:
            whole = [accuracies + [None] * (experiment.tasks - len(accuracies)) for accuracies in row["accuracy"]]
            accuracy, initial = (np.array(values, dtype=float) for values in (whole, row["initial"]))
        curve = [dict(zip(CURVE, point, strict=True)) for point in row.get("curve", ())]
        return cls(**{**row, "experiment": experiment, "accuracy": accuracy, "initial": initial, "curve": curve})


CURVE = ("step", "training", "task", "accuracy")


@dataclass(frozen=True)
class Moment:
    """The state of a run right after a step.

    Attributes:
        step: optimizer steps so far. task: number of the task being learnt, from 1. first, last: whether this was the
            task's first or last step.
        learner: the learner in its current state; its network's gradients are those of the step.
        stream: the tasks. curve: the measurements of earlier steps, as in `Result`.
    """

    step: int
    task: int
    first: bool
    last: bool
    learner: Any
    stream: Tasks
    curve: list[dict[str, float]]


class Enough(Exception):
    """Raised by a ``look`` callback to stop a run."""


def stream_of(experiment: Experiment) -> Tasks:
    """The tasks of an experiment."""
    if isinstance(experiment.stream, Own):
        return experiment.stream.given().tasks_for(experiment.evaluation)
    return make_stream(
        load(experiment.dataset),
        experiment.stream,
        experiment.tasks,
        experiment.scenario,
        experiment.seed,
        samples_per_task=experiment.samples_per_task,
        evaluation=experiment.evaluation,
    )


def run(
    experiment: Experiment,
    device: str | torch.device = "cpu",
    look: Callable[[Moment], None] | None = None,
    until: int | None = None,
) -> Result:
    """Train one network on the stream, task by task. After each it is tested on the tasks so far and the next one.

    The run uses one thread and leaves the global random states (PyTorch's, NumPy's, Python's) and the number of threads
    as they were.

    Args:
        device: device to train on; results on the CPU and a GPU differ in the last digits.
        look: called after every step; any change it makes to the learner persists.
        until: number of the last task to learn, from 1; None: the stream's last. Later rows of the accuracy are NaN.
    """
    if until is not None:
        check_integer("until", until, 1, experiment.tasks)
    with _isolated(experiment.seed, device):
        return _Run(experiment, stream_of(experiment), torch.device(device), look).train(until)


run.counts_as = ("sp.lab.experiment.run", RULES_VERSION)  # for `sp.lab.digest`: the keys of its runs contain versions


def network_of(experiment: Experiment, stream: Tasks) -> nn.Module:
    """A new network with weights drawn from the global random state."""
    if isinstance(experiment.model, Own):
        return experiment.model.given()()
    return MODELS[experiment.model](stream.inputs, experiment.hidden, stream.outputs)


def loss_of(experiment: Experiment, stream: Tasks) -> Callable[[Tensor, Tensor], Tensor]:
    """The experiment's own loss, or else cross-entropy, or the mean squared error if targets are numbers."""
    if experiment.loss is not None:
        return experiment.loss.given()
    return nn.functional.mse_loss if stream.numbers else cross_entropy


def _processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


class _Run:
    """The network, optimizer and buffer of a run as it goes through the stream."""

    def __init__(self, experiment: Experiment, stream: Tasks, device: torch.device, look: Callable | None):
        self.start = time.perf_counter()
        self.experiment, self.stream, self.device, self.look = experiment, stream, device, look
        self.unit_task = _task_of_each_unit(stream, device)
        self.order = torch.Generator().manual_seed(experiment.seed)
        self.buffer = replayed = None
        if experiment.replay_capacity:
            buffer = ReplayBuffer(
                experiment.replay_capacity, experiment.replay_policy, experiment.replay_distinct, seed=experiment.seed
            )
            if rehearses(experiment.optimizer):
                replayed = ReplaySource(buffer, experiment.replay_batch, self._allowed)
            else:
                self.buffer = buffer
        self.learner = make_learner(
            given(experiment.optimizer),
            lambda: network_of(experiment, stream).to(device),
            (stream.inputs, experiment.hidden, stream.outputs),
            device,
            dict(experiment.options),
            replayed,
        )
        criterion = loss_of(experiment, stream)
        if criterion is not cross_entropy:
            self.learner.criterion = criterion
        self.curve: list[dict[str, float]] = []
        self.steps = 0
        self.diverged = False
        self.answers: list[tuple[Tensor, Tensor]] = []  # without boundaries: for every batch before it was learnt
        self.accuracy = np.full((len(stream.tasks), len(stream.tasks)), np.nan)

    def train(self, until: int | None) -> Result:
        tests = [self._on_device(task.outputs, *task.test()) for task in self.stream.tasks]
        initial = np.array([self._accuracy(j, test) for j, test in enumerate(tests)])
        boundaries = self.learner.needs.boundaries and self.stream.scored_from is None
        for i, task in enumerate(self.stream.tasks[:until]):
            x, y = self._on_device(task.outputs, *task.train())
            self._train_task(i, x, y, tests)
            if boundaries and self._finite():
                self.learner.end_task(x, y, self._allowed(y))
            # Of the tasks still to come, only the next one is tested, for forward transfer.
            self.accuracy[i, : i + 2] = [self._accuracy(j, test) for j, test in enumerate(tests[: i + 2])]
        if self.stream.scored_from is not None:
            self.accuracy[0, 0] = self._score(*self._answered(self.stream.scored_from))
        return Result(
            experiment=self.experiment,
            accuracy=self.accuracy,
            initial=initial,
            curve=self.curve,
            buffer={str(label): count for label, count in self._class_counts().items()},
            seconds=time.perf_counter() - self.start,
            versions={
                "sp": sp.__version__,
                "torch": torch.__version__,
                "python": platform.python_version(),
                "processor": _processor(self.device),
            },
            parameters=self._trained(),
            diverged=self.diverged,
        )

    def _train_task(self, number: int, x: Tensor, y: Tensor, tests: list) -> None:
        size = self.experiment.batch_size
        batches = -(-len(x) // size)
        total = self.experiment.epochs * batches
        points = np.linspace(0, total, self.experiment.curve_points + 1)[1:].round().astype(int)
        in_order, since = self.stream.scored_from is not None, 0
        for epoch in range(self.experiment.epochs):
            order = torch.arange(len(x)) if in_order else torch.randperm(len(x), generator=self.order)
            for number_of_batch, index in enumerate(order.to(self.device).split(size), 1):
                if in_order:
                    self._test_before(x[index], y[index])
                self._train_batch(x[index], y[index])
                step = epoch * batches + number_of_batch
                if self.look is not None:
                    place = self.steps, number + 1, step == 1, step == total
                    self.look(Moment(*place, self.learner, self.stream, self.curve))
                if step in points:
                    if in_order:
                        accuracies = [self._score(*self._answered(since * size))]
                    else:
                        accuracies = [self._accuracy(j, test) for j, test in enumerate(tests)]
                    since = step
                    for j, accuracy in enumerate(accuracies):
                        measured = {"training": number, "task": j, "accuracy": accuracy}
                        self.curve.append({"step": self.steps, **measured})

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

    @torch.no_grad()
    def _test_before(self, x: Tensor, y: Tensor) -> None:
        outputs = self.learner.logits(x)
        self._watch(outputs)
        self.answers.append((self._answer(outputs), y))

    def _answered(self, start: int) -> tuple[Tensor, ...]:
        """Answers and targets, from this example on."""
        return tuple(torch.cat(column)[start:] for column in zip(*self.answers, strict=True))

    def _finite(self) -> bool:
        """Whether the network has not diverged; a diverged one knows nothing that a method could keep about a task."""
        model = getattr(self.learner, "model", None)
        return model is None or all(p.isfinite().all() for p in model.parameters())

    def _trained(self) -> int | None:
        if getattr(self.learner, "model", None) is None:
            return None
        learner = self.learner
        own = isinstance(learner, GradientLearner)
        trained = learner.parameters if own else [p for p in learner.model.parameters() if p.requires_grad]
        return sum(p.numel() for p in trained)

    def _class_counts(self) -> dict[int, int]:
        if self.buffer is None or self.buffer.sample(1)[1].dim() > 1:  # numbers and sequences have no single class
            return {}
        return self.buffer.class_counts()

    def _allowed(self, y: Tensor) -> Tensor | None:
        """In a task-incremental stream, the units of each example's own task; (B, outputs)."""
        return None if self.unit_task is None else self.unit_task == self.unit_task[y, None]

    @torch.no_grad()
    def _accuracy(self, task: int, test: tuple[Tensor, Tensor]) -> float:
        x, y = test
        logits = self.learner.logits(x, task) if self.learner.needs.task else self.learner.logits(x)
        self._watch(logits)
        return self._score(self._answer(masked(logits, self._allowed(y))), y)

    def _watch(self, outputs: Tensor) -> None:
        # -infinity may be intended: it rules out a class.
        if (outputs.isnan() | outputs.isposinf()).any():
            self.diverged = True

    def _answer(self, outputs: Tensor) -> Tensor:
        return outputs if self.stream.numbers else outputs.argmax(-1)

    def _score(self, answers: Tensor, y: Tensor) -> float:
        score = explained_variance(answers, y) if self.stream.numbers else (answers == y).double().mean().item()
        return round(score, 6)  # as the ledger keeps it

    def _on_device(self, outputs: tuple[int, ...] | None, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The data, with labels that name output units in every scenario."""
        labels = y if outputs is None else torch.tensor(outputs)[y]
        if x.dim() > 2 and isinstance(self.experiment.model, str):
            x = x.flatten(1)  # the named networks take flat inputs
        return x.to(self.device), labels.to(self.device)


def explained_variance(answers: Tensor, y: Tensor) -> float:
    """R2, the mean over outputs of ``1 - sum (y - answers)^2 / sum (y - mean y)^2``, or 0 if that is negative.

    answers, y: (n, outputs).
    """
    answers, y = answers.double(), y.double()
    total = (y - y.mean(0)).square().sum(0).clamp(min=1e-12)
    share = (1 - (y - answers).square().sum(0) / total).mean().item()
    return max(share, 0.0) if math.isfinite(share) else 0.0


def _task_of_each_unit(stream: Tasks, device: torch.device) -> Tensor | None:
    """The task that each output unit belongs to, if tasks have their own units; (outputs,)."""
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
    """Use one thread, a private random state and the usual default device: a run depends on its experiment alone."""
    threads, python, numpy = torch.get_num_threads(), random.getstate(), np.random.get_state()
    on_gpu = torch.device(device).type == "cuda"
    # Setting a default device slows every call to PyTorch a little.
    usual = nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
    with _ONE_RUN, usual, torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.manual_seed(seed)
        random.seed(seed)  # a user-supplied method may draw from these
        np.random.seed(seed % 2**32)
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            random.setstate(python)
            np.random.set_state(numpy)
