"""Streams of tasks to learn, made from a named data set or from user-supplied arrays."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sp.checks import check_choice, check_integer
from sp.lab import data
from sp.lab.data import Evaluation, Scenario
from sp.lab.own import Own
from sp.lab.settings import on_stream, settings

TARGETS = ("classes", "numbers")
HELD_OUT = 5  # methods are tuned on one training row in this many
OWN_SETTINGS = {"hidden": (100, 100), "batch_size": 32, "epochs": 5}
NAMES = ("x", "y", "x_test", "y_test")
MANY = 100  # most outputs per class that occurs, unless a number of outputs is given


@dataclass(frozen=True, eq=False)
class Stream:
    """Tasks in the order in which they are learnt. Create one with `named`, `split`, `from_arrays` and so on.

    Attributes:
        title: used in captions.
        choices: the choices of an `sp.lab.experiment.Experiment` that define the stream.
        usual: default hidden widths, batch size and epochs of a comparison.
    """

    title: str
    choices: dict[str, Any] = field(repr=False)
    usual: dict[str, Any] = field(repr=False)

    @classmethod
    def split(
        cls, dataset: str = "digits", tasks: int = 5, scenario: Scenario = "class", samples_per_task: int | None = None
    ) -> "Stream":
        """Each task has its own classes. Arguments and errors as in `sp.lab.data.make_stream`."""
        return cls._named("split", dataset, tasks, scenario, samples_per_task)

    @classmethod
    def permuted(
        cls,
        dataset: str = "digits",
        tasks: int = 10,
        scenario: Scenario = "domain",
        samples_per_task: int | None = None,
    ) -> "Stream":
        """Each task has all classes and its own pixel order. Arguments and errors as in `sp.lab.data.make_stream`."""
        return cls._named("permuted", dataset, tasks, scenario, samples_per_task)

    @classmethod
    def rotated(
        cls, dataset: str = "digits", tasks: int = 5, scenario: Scenario = "domain", samples_per_task: int | None = None
    ) -> "Stream":
        """Each task has all classes, rotated by its own angle. Arguments and errors as in `sp.lab.data.make_stream`."""
        return cls._named("rotated", dataset, tasks, scenario, samples_per_task)

    @classmethod
    def named(cls, name: str, dataset: str = "digits", samples_per_task: int | None = None) -> "Stream":
        """A stream given by any name that `sp.lab.settings.on_stream` knows, such as ``"split5"``."""
        one = on_stream(name, dataset)
        samples = one.samples_per_task if samples_per_task is None else samples_per_task
        return cls._named(one.stream, dataset, one.tasks, one.scenario, samples)

    @classmethod
    def _named(cls, kind: str, dataset: str, tasks: int, scenario: str, samples_per_task: int | None) -> "Stream":
        choices = {"dataset": dataset, "stream": kind, "tasks": tasks, "scenario": scenario}
        usual = {name: settings(dataset)[name] for name in OWN_SETTINGS}
        title = f"{dataset}, {kind}, {tasks} tasks, {scenario}-incremental"
        return cls(title, {**choices, "samples_per_task": samples_per_task}, usual)

    @classmethod
    def from_arrays(
        cls,
        tasks: Iterable[Sequence[ArrayLike | Tensor]],
        scenario: Scenario = "class",
        target: str = "classes",
        outputs: int | None = None,
        title: str = "own arrays",
    ) -> "Stream":
        """Tasks from user-supplied arrays. Tuning holds out a fifth of each task's training rows, drawn once.

        Args:
            tasks: one ``(x, y, x_test, y_test)`` per task, arrays or tensors. x: (n, ...), floats (cast to float32) or
                integers (int64, such as tokens); rows have the same shape in all tasks. y: integers from 0, (n,),
                or (n, T) for sequences, whose network returns (n, T, outputs); or numbers, (n,) or (n, outputs).
            scenario: what the labels mean. ``"class"``: classes are numbered across the whole stream, each belongs to
                one task, and all share the output units. ``"domain"``: all tasks have the same classes. ``"task"``: as
                in ``"class"``, but methods are told the task, and only its units count.
            target: ``"classes"``, learnt with cross-entropy, or ``"numbers"``, with the mean squared error. For
                numbers, every accuracy is R2 instead, the share of the variance that is explained, clipped at 0.
            outputs: number of output units of the network; None means the number of classes or columns.
            title: used in captions.
        """
        if not isinstance(scenario, str):
            raise TypeError(
                f"scenario must be text, got a {type(scenario).__name__}: tasks is a single list, "
                "[(x, y, x_test, y_test), ...]"
            )
        check_choice("scenario", scenario, get_args(Scenario))
        parts = []
        for number, task in enumerate(tasks, 1):
            if not isinstance(task, tuple | list | np.ndarray | Tensor):
                raise TypeError(f"task {number} must be a tuple (x, y, x_test, y_test), got a {type(task).__name__}")
            if len(task) != len(NAMES):
                raise ValueError(
                    f"task {number} must be (x, y, x_test, y_test), got {len(task)} values: tasks is a list of such "
                    "tuples, so put the tuple in a list, even if there is only one task"
                )
            where = [f"{name} of task {number}" for name in NAMES]
            x, y = _pair(where[:2], task[:2], target)
            parts.append((x, y, *_pair(where[2:], task[2:], target)))
        if not parts:
            raise ValueError("tasks is empty: give one (x, y, x_test, y_test) for each task")
        _check_rows([array for part in parts for array in part[::2]])
        width = _outputs([array for part in parts for array in part[1::2]], target, outputs)
        if target == "classes":
            _check_classes(parts, scenario)
        elif scenario != "domain":
            raise ValueError(f"scenario must be 'domain' when target is 'numbers', got {scenario!r}")
        return cls._own(title, Arrays(tuple(parts), width, scenario, target == "numbers"))

    @classmethod
    def online(
        cls,
        x: ArrayLike | Tensor,
        y: ArrayLike | Tensor,
        target: str = "classes",
        outputs: int | None = None,
        title: str = "own arrays, online",
    ) -> "Stream":
        """One pass over the data in order, without task boundaries; each batch is tested before it is learnt.

        The accuracy covers all rows except the first fifth, on which methods are tuned. Arguments as in `from_arrays`.
        """
        parts = ((*_pair(["x", "y"], (x, y), target),),)
        if len(parts[0][0]) < HELD_OUT:
            raise ValueError(f"x must have at least {HELD_OUT} rows, got {len(parts[0][0])}")
        width = _outputs([parts[0][1]], target, outputs)
        return cls._own(title, Arrays(parts, width, "domain", target == "numbers", is_online=True))

    @classmethod
    def _own(cls, title: str, arrays: "Arrays") -> "Stream":
        plain = [arrays.outputs, arrays.scenario, arrays.numbers, arrays.is_online, *map(list, arrays.parts)]
        choices = {
            "stream": Own.of(title, arrays, counts_as=plain),
            "tasks": len(arrays.parts),
            "scenario": arrays.scenario,
        }
        return cls(title, choices, {**OWN_SETTINGS, "epochs": 1} if arrays.is_online else OWN_SETTINGS)

    @property
    def is_online(self) -> bool:
        """Whether the stream is one pass over the data in order, without task boundaries."""
        return self.arrays is not None and self.arrays.is_online

    @property
    def arrays(self) -> "Arrays | None":
        """The user-supplied arrays, or None for a named data set."""
        return self.choices["stream"].content if isinstance(self.choices["stream"], Own) else None


@dataclass(frozen=True, eq=False)
class Arrays:
    """User-supplied tasks: x, y, x_test, y_test for each, or only x and y if the stream is online."""

    parts: tuple[tuple[np.ndarray, ...], ...] = field(repr=False)
    outputs: int
    scenario: str
    numbers: bool = False
    is_online: bool = False

    def tasks_for(self, evaluation: Evaluation) -> data.Tasks:
        """The tasks in the form that a run uses."""
        tasks = []
        for number, (x, y, *test) in enumerate(self.parts, 1):
            units = None
            if self.scenario == "task":
                units = np.unique(y)
                y, test = np.searchsorted(units, y), [test[0], np.searchsorted(units, test[1])]
            rows, held = _held_out(len(y), self.is_online)
            if evaluation == "validation":
                x, y, test = x[rows], y[rows], [x[held], y[held]]
            train, test = partial(_tensors, x, y), partial(_tensors, *(test or (x, y)))
            tasks.append(data.Task(f"task {number}", None if units is None else tuple(units.tolist()), train, test))
        shape = self.parts[0][0].shape[1:]
        scored_from = None
        if self.is_online:
            scored_from = 0 if evaluation == "validation" else len(self.parts[0][0]) // HELD_OUT
        return data.Tasks(tuple(tasks), int(np.prod(shape)), self.outputs, shape, self.numbers, scored_from)


def _held_out(count: int, is_online: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows to learn and rows to test on when tuning; for an online stream, both are its first fifth."""
    if is_online:
        return (first := np.arange(count // HELD_OUT)), first
    order = np.random.default_rng(0).permutation(count)
    kept = count - max(1, count // HELD_OUT)
    return np.sort(order[:kept]), np.sort(order[kept:])


def _tensors(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.tensor(x), torch.tensor(y)


def _pair(names: Sequence[str], values: Sequence[Any], target: str) -> tuple[np.ndarray, np.ndarray]:
    check_choice("target", target, TARGETS)
    (x_name, y_name), (x, y) = names, (_array(name, value) for name, value in zip(names, values, strict=True))
    if x.ndim < 2:
        raise ValueError(f"{x_name} must have one row per example, shape (n, ...), got shape {x.shape}")
    if y.ndim == 0 or len(x) != len(y) or len(x) < 2:
        raise ValueError(
            f"{x_name} and {y_name} must have the same number of rows, at least two: got shapes {x.shape} and {y.shape}"
        )
    if target == "classes" and y.ndim == 2 and y.shape[1] == 1:
        raise ValueError(f"{y_name} must have shape (n,), one class per example, got {y.shape}: give y[:, 0]")
    if y.ndim > 2:
        raise ValueError(f"{y_name} must have shape (n,) or (n, T), got {y.shape}")
    if target == "numbers":
        y = y.astype(np.float32)
        y = y[:, None] if y.ndim == 1 else y
        if constant := [column for column in range(y.shape[1]) if np.ptp(y[:, column]) == 0]:
            raise ValueError(f"{y_name} has only one value in column {constant[0]}: there is nothing to explain")
    elif y.dtype != np.int64:
        raise ValueError(
            f"{y_name} must hold classes, whole numbers from 0, got {y.flat[0]} of type {y.dtype}: turn them into "
            "integers, or give target='numbers' to learn them with the squared error"
        )
    elif y.min() < 0:
        raise ValueError(f"{y_name} must hold classes, whole numbers from 0, got {y.min()}")
    return x, y


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.is_floating_point() else value).numpy()
    if value is None or isinstance(value, Dataset | DataLoader) or hasattr(value, "toarray"):
        how = ".toarray()" if hasattr(value, "toarray") else "all of its rows, in one array"
        raise TypeError(f"{name} must be an array or a tensor, got a {type(value).__name__}: give {how}")
    if np.ma.is_masked(value):
        raise ValueError(f"{name} has masked values: leave such rows out, or fill them")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} must be an array whose rows all have the same shape ({error})") from error
    if array.dtype.kind not in "fiub":
        advice = "turn text into whole numbers" if array.dtype.kind in "US" else "give all of it one type of numbers"
        raise TypeError(f"{name} must hold real numbers, got an array of type {array.dtype}: {advice}")
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            cast = array.astype(np.float32)
        wrong = np.argwhere(~np.isfinite(cast))
        if len(wrong):
            at, got = ", ".join(map(str, wrong[0])), array[tuple(wrong[0])]
            raise ValueError(f"{name} must be finite in float32, got {got} at [{at}]: leave such rows out")
        return cast
    if array.size and array.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must hold whole numbers below 2**63, got {array.max()}: give floats")
    return array.astype(np.int64)


def _check_rows(inputs: list[np.ndarray]) -> None:
    first = inputs[0]
    for x in inputs:
        if (x.shape[1:], x.dtype) != (first.shape[1:], first.dtype):
            raise ValueError(
                f"the rows of x must have the same shape and type in all tasks and tests, got {first.shape[1:]} of "
                f"{first.dtype} and {x.shape[1:]} of {x.dtype}"
            )


def _outputs(targets: list[np.ndarray], target: str, outputs: int | None) -> int:
    if outputs is not None:
        check_integer("outputs", outputs, 1)
    if len({y.shape[1:] for y in targets}) > 1 and (target == "numbers" or len({y.ndim for y in targets}) > 1):
        raise ValueError(f"y must have equally many columns in all tasks, got shapes {[y.shape for y in targets]}")
    needed = targets[0].shape[1] if target == "numbers" else 1 + max(int(y.max()) for y in targets)
    if outputs is not None and (outputs < needed or (target == "numbers" and outputs != needed)):
        must, what = ("", f"{needed} columns") if target == "numbers" else ("at least ", f"class {needed - 1}")
        raise ValueError(f"outputs must be {must}{needed}, because y has {what}, got {outputs}")
    if outputs is None and target != "numbers":
        classes = len(np.unique(np.concatenate([y.ravel() for y in targets])))
        if needed > MANY * classes:
            raise ValueError(
                f"y has {classes} classes with numbers up to {needed - 1}, and a network has an output for each "
                f"number: number them from 0, or give outputs={needed}"
            )
    return outputs or needed


def _check_classes(parts: list[tuple[np.ndarray, ...]], scenario: str) -> None:
    learnt = [set(np.unique(y).tolist()) for _, y, *_ in parts]
    for number, (classes, part) in enumerate(zip(learnt, parts, strict=True), 1):
        # In scenario "task" an unknown class would be scored as another; otherwise, sequences may have rare classes.
        checked = part[1].ndim == 1 or scenario == "task"
        if checked and (unknown := set(np.unique(part[3]).tolist()) - classes):
            raise ValueError(f"y_test of task {number} has class {min(unknown)}, which is not in y of task {number}")
        others = set().union(*(other for place, other in enumerate(learnt, 1) if place != number))
        if scenario == "domain" and len(parts) > 1 and not classes & others:
            raise ValueError(
                f"in scenario 'domain' all tasks have the same classes, but no other task has those of task {number}: "
                "number them alike, or give scenario='class'"
            )
        if scenario != "domain" and (shared := classes & others):
            raise ValueError(
                f"class {min(shared)} is in task {number} and in another one, but in scenario {scenario!r} each class "
                "belongs to one task: number them across the stream (0, 1 in the first task, 2, 3 in the second), or "
                "give scenario='domain'"
            )
