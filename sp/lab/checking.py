"""Checks that report what is wrong with a method, network or loss before any long run starts."""

import inspect
import pickle
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sp.lab.data import Task, Tasks
from sp.lab.experiment import Enough, Experiment, Moment, loss_of, network_of, run, stream_of
from sp.lab.methods import ANY_LOSS
from sp.lab.own import Own, given
from sp.replay import ReplayBuffer
from sp.rivals import ReplaySource, make_learner


def check(tried: dict[str, list[Experiment]], device: str, sent: bool, tuned: bool) -> None:
    """Build everything once and take one step with whatever is user-supplied; an error says what cannot run.

    Args:
        tried: title -> the experiments of that method, which differ in their options.
        device: device to train on. sent: whether runs are sent to other processes.
        tuned: whether there are also runs on held-out training data.
    """
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {device!r} cannot be used ({error}): give 'cpu'") from error
    one = next(iter(tried.values()))[0]
    stream = stream_of(one)
    learnt = [*stream.tasks, *(stream_of(replace(one, evaluation="validation")).tasks if tuned else ())]
    x, y = (column[:2] for column in stream.tasks[0].train())
    with torch.random.fork_rng(devices=[]):
        _check_network(one, stream, x, y, learnt)
        usual = "loss" not in one.own and not stream.numbers and y.dim() == 1
        for title, experiments in tried.items():
            for experiment in experiments:
                _check_method(title, experiment, stream, usual)
    if sent:
        for own in {own for experiments in tried.values() for own in experiments[0].own.values()}:
            _check_sending(own)
    for title, (experiment, *_) in tried.items():
        if experiment.own:
            _first_step(title, experiment, device)


def _check_sending(own: Own) -> None:
    try:
        if callable(own.content):
            pickle.dumps(own)
    except Exception as error:
        raise ValueError(
            f"{own.title!r} cannot be sent to another process ({error}): create inside it what it closes over, or give "
            "workers=1"
        ) from error


def _check_network(experiment: Experiment, stream: Tasks, x: Tensor, y: Tensor, learnt: list[Task]) -> None:
    own = experiment.own.get("model")
    if own is None:
        if not x.is_floating_point():
            raise ValueError("x holds whole numbers: give floats, such as x / 255, or a network that takes integers")
        if y.dim() > 1 and not stream.numbers:
            raise ValueError(
                "for sequences, y of shape (n, T), network must be your own: a callable whose module returns "
                "(n, T, outputs). For one class per example give y of shape (n,), such as y.argmax(1) of one-hot rows"
            )
        x = x.flatten(1)
    model = network_of(experiment, stream)
    if not isinstance(model, nn.Module):
        raise TypeError(f"network must return a torch.nn.Module, got {type(model).__name__}")
    if not any(p.requires_grad for p in model.parameters()):
        raise ValueError("network has nothing to train: none of its parameters has requires_grad=True")
    if own and {id(p) for p in model.parameters()} & {id(p) for p in network_of(experiment, stream).parameters()}:
        raise ValueError("network must return a new module each time, got the same parameters twice: build it inside")
    try:
        outputs = model(x)
    except Exception as error:
        raise ValueError(f"network cannot take x of shape {tuple(x.shape)} and type {x.dtype}: {error}") from error
    wanted = (*y.shape[:1], stream.outputs) if stream.numbers else (*y.shape, stream.outputs)
    if getattr(outputs, "shape", None) != wanted:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"network must return outputs of shape {wanted} for {len(x)} examples, got "
            f"{got}{_advice(got, wanted, stream, isinstance(experiment.stream, Own))}"
        )
    try:
        model(x[:1])
    except Exception as error:  # only now count the batches, because that needs all the data
        if any(len(task.train()[1]) % experiment.batch_size == 1 for task in learnt):
            raise ValueError(
                f"network cannot take a batch of one example, and batch_size {experiment.batch_size} leaves one at the "
                f"end of a task: give another batch_size ({error})"
            ) from error
    if "loss" in experiment.own:
        try:
            value = loss_of(experiment, stream)(outputs, y)
        except Exception as error:
            raise ValueError(
                f"loss fails with outputs of shape {tuple(outputs.shape)} and y of shape {tuple(y.shape)}: {error}. It "
                "must be a function of these two, such as nn.HuberLoss() or a lambda"
            ) from error
        if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
            raise ValueError("loss must return one number, a tensor with a gradient, such as the mean over the batch")


def _advice(got: tuple[int, ...] | str, wanted: tuple[int, ...], stream: Tasks, own_arrays: bool) -> str:
    """What to change in a network whose outputs have the wrong shape; a text is the type of what it returns."""
    if isinstance(got, str):
        return ": return one tensor, such as the first part of what a recurrent layer returns"
    if got[:-1] == wanted[:-1]:
        return f": make its last layer {wanted[-1]} wide{_labels(stream, own_arrays)}"
    if len(got) < len(wanted) and stream.numbers:
        return ": keep the last dimension, even if there is one number for each example"
    if len(got) < len(wanted):
        return ": y of shape (n, T) has a class for each time step, so return outputs for each"
    return ": return one row per example, such as that of the last time step or the mean over them"


def _labels(stream: Tasks, own_arrays: bool) -> str:
    """The reason for the number of outputs, if it is the labels, and how to change it for custom arrays."""
    if stream.numbers:
        return ""
    labels = torch.cat([task.train()[1].flatten() for task in stream.tasks])
    low, high = int(labels.min()), int(labels.max())
    reason = f", since labels go from {low} to {high}" if high + 1 == stream.outputs else ""
    return reason + (", or give the stream outputs=..." if own_arrays else "")


def _check_method(title: str, experiment: Experiment, stream: Tasks, usual: bool) -> None:
    method, options = experiment.optimizer, dict(experiment.options)
    if isinstance(method, str) and not usual and method not in ANY_LOSS:
        raise ValueError(
            f"method {title!r} is only for classes and cross-entropy; for numbers, sequences and your own losses, use "
            f"{', '.join(ANY_LOSS)} or your own method"
        )
    sizes = (stream.inputs, experiment.hidden, stream.outputs)
    network = partial(network_of, experiment, stream)
    try:
        learner = _made_once(method, network, sizes, options)
    except Exception as error:
        chosen = f" with options {options}" if options else ""
        raise ValueError(f"method {title!r}{chosen} cannot be built: {_why(error, options)}") from error
    if stream.scored_from is not None and learner.needs.boundaries:
        raise ValueError(f"method {title!r} must know when a task ends, but an online stream has none: leave it out")
    optimizer = getattr(learner, "optimizer", None)
    step = inspect.unwrap(getattr(optimizer, "step", None))  # torch wraps it
    if step is inspect.unwrap(torch.optim.Optimizer.step):
        raise ValueError(f"method {title!r}: its optimizer, {type(optimizer).__name__}, has no step method: write one")
    if isinstance(method, Own) and isinstance(optimizer, torch.optim.Optimizer) and getattr(learner, "model", None):
        known = {id(p) for p in learner.model.parameters()}
        if not known & {id(p) for group in optimizer.param_groups for p in group["params"]}:
            raise ValueError(
                f"method {title!r} trains none of the network's parameters: use the model that it is given"
            )


def check_points(experiments: Iterable[Experiment]) -> None:
    """Build each stream and each method on its network once, so that wrong choices are found before any run starts."""
    for experiment in dict.fromkeys(replace(one, seed=0) for one in experiments):
        _check_method(str(experiment.optimizer), experiment, stream_of(experiment), usual=True)


def _why(error: Exception, options: dict[str, Any]) -> str:
    """The message of an error, plus the options that are strings if a number may have been expected there."""
    texts = [f"{name} is the string {value!r}" for name, value in options.items() if isinstance(value, str)]
    return f"{' and '.join(texts)}, not a number ({error})" if texts and isinstance(error, TypeError) else str(error)


def _made_once(method: str | Own, network: Callable[[], nn.Module], sizes: tuple, options: dict[str, Any]) -> Any:
    replayed = ReplaySource(ReplayBuffer(1), 1, lambda y: None)
    return make_learner(given(method), network, sizes, torch.device("cpu"), options, replayed)


def _first_step(title: str, experiment: Experiment, device: str) -> None:
    def look(_: Moment) -> None:
        raise Enough

    try:
        run(experiment, device, look=look)
    except Enough:
        pass
    except Exception as error:
        raise ValueError(f"method {title!r} fails at its first step: {type(error).__name__}: {error}") from error
