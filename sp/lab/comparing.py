"""One call from methods, a stream and seeds to their runs: tuned alike, paired by seed, kept in the ledger."""

import inspect
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from sp import files, tables
from sp.baselines import make_learner, rehearses
from sp.choices import grid
from sp.experiment import Experiment, Moment, loss_of, network_of, run, stream_of
from sp.lab.methods import ANY_LOSS, Method, check_name, titled
from sp.lab.runs import Runs
from sp.lab.streams import Stream
from sp.ledger import Ledger, opened
from sp.models import MODELS
from sp.own import Own
from sp.studies import TUNING_SEEDS
from sp.sweep import plan, run_all

Tune = Mapping[str, Mapping[str, Sequence[Any]]]


def compare(
    methods: Mapping[str, Method] | Iterable[str],
    stream: Stream,
    network: str | Callable[[], nn.Module] | None = None,
    seeds: int | Sequence[int] = 5,
    tune: Tune | None = None,
    *,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    hidden: tuple[int, ...] | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
    replay_capacity: int = 0,
    device: str = "cpu",
    baseline: str | None = None,
    workers: int | None = None,
    cluster: str | None = None,
    ledger: Ledger | None = None,
    progress: bool = True,
) -> Runs:
    """Every method with every seed on one stream.

    Methods of one seed begin with the same weights and see the same data in the same order. Everything is checked
    before anything long runs; then one sentence says how long it should take. Runs that the ledger has are read, others
    are kept as they finish; those with a callable of which `sp.digest` cannot tell whether it changed are not kept.

    Args:
        methods: title -> a name of `sp.baselines.METHODS` or one that was registered, or a callable that gives, of the
            network, an optimizer of it (or a learner, see `sp.lab.register`). A list of names has their usual titles.
        stream: what is learnt.
        network: a name in `sp.models.MODELS`, or a callable without arguments that makes a new module each time; None:
            a perceptron of the stream's usual widths.
        seeds: how many, from 0, or which ones.
        tune: title -> option -> values. Every combination is tried on the seeds `sp.studies.TUNING_SEEDS` and on
            training data that were held out; the one with the highest mean accuracy runs. All methods that are tuned
            must have as many points. A callable gets its options as keyword arguments: ``method(model, lr=...)``.
        loss: of outputs and targets, in place of the stream's usual one; gives the mean over a batch.
        hidden: widths of a network by name. epochs: passes over each task; 1 online. batch_size: of new examples.
        replay_capacity: examples in a buffer that every method gets, 0 for none.
        device: where to train. workers: processes; default: as many as there are cores. cluster: address of a dask
            scheduler on whose workers to run instead. ledger: default `sp.ledger.opened()`.
        baseline: title of the method that the others are set against; default: the first.
        progress: say how long it takes, and show bars.

    Raises:
        ValueError, TypeError: something cannot run, or is not known; the message says what to do.
        sp.sweep.SweepError: some runs failed; the others are kept.
    """
    arms, tune = titled(methods), dict(tune or {})
    baseline = baseline if baseline is not None else next(iter(arms))
    check_name("baseline", baseline, arms)
    for title in tune:
        check_name("tune", title, arms)
    usual = {**stream.usual, "hidden": hidden, "epochs": epochs, "batch_size": batch_size}
    usual = {name: stream.usual[name] if value is None else value for name, value in usual.items()}
    if stream.arrays is not None and stream.arrays.is_online:
        if usual["epochs"] != 1:
            raise ValueError(f"epochs must be 1 online, where data are seen once, got {usual['epochs']}")
        usual["curve_points"] = 20
    shared = {**stream.choices, **usual, "replay_capacity": replay_capacity}
    shared |= _network(network, shared["hidden"])
    if loss is not None:
        shared["loss"] = Own.of("own loss", loss)
    points = {title: grid(options) for title, options in tune.items()}
    if len({len(found) for found in points.values()}) > 1:
        counts = ", ".join(f"{title}: {len(found)}" for title, found in points.items())
        raise ValueError(f"tune must have as many points for each method, to be fair, got {counts}")
    seeds = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not seeds or (tune and set(seeds) & set(TUNING_SEEDS)):
        raise ValueError(f"seeds must be one or more, and none of the tuning seeds {TUNING_SEEDS}, got {seeds}")
    experiments = {title: Experiment(optimizer=method, seed=seeds[0], **shared) for title, method in arms.items()}
    trials = {title: [replace(experiments[title], options=point) for point in points[title]] for title in points}
    _check({title: trials.get(title, [experiments[title]]) for title in arms}, device, workers, cluster)

    ledger = ledger or opened()
    options = {"ledger": ledger, "workers": workers, "progress": progress, "cluster": cluster, "device": device}
    tuning = [
        (title, point, replace(trial, seed=seed, evaluation="validation", curve_points=0))
        for title, tried in trials.items()
        for point, trial in enumerate(tried)
        for seed in TUNING_SEEDS
    ]
    first = {title: trials[title][0] if title in trials else experiments[title] for title in arms}
    reported = [replace(experiment, seed=seed) for experiment in first.values() for seed in seeds]
    _announce([*(trial for *_, trial in tuning), *reported], ledger, workers, device, progress)
    judged = _judged(tuning, run_all([trial for *_, trial in tuning], **options))
    for title, tried in trials.items():
        chosen = judged[(judged.method == title) & judged.chosen].point.item()
        experiments[title] = tried[chosen]
    named = [(title, replace(one, seed=seed)) for title, one in experiments.items() for seed in seeds]
    results = run_all([experiment for _, experiment in named], **options)
    rows = tables.table(results)
    rows.insert(0, "method", [title for title, _ in named])
    return Runs(rows, baseline, stream, results, judged)


def _network(network: Any, hidden: tuple[int, ...]) -> dict[str, Any]:
    if network is None or isinstance(network, str):
        check_name("network", network or "mlp", MODELS)
        return {"model": network or "mlp", "hidden": hidden}
    if isinstance(network, nn.Module) or not callable(network):
        raise TypeError(
            "network must be a name or a callable that makes a new module, such as  lambda: MyNetwork() , got "
            f"{type(network).__name__}"
        )
    return {"model": Own.of("own network", network), "hidden": Experiment().hidden}


def _judged(tuning: list[tuple[str, int, Experiment]], results: list) -> pd.DataFrame:
    """A row for each method and point: its ``options``, the ``accuracy`` on held-out data, and whether it is chosen."""
    rows = [
        {"method": title, "point": point, "options": dict(trial.options), "accuracy": result.accuracy[-1].mean()}
        for (title, point, trial), result in zip(tuning, results, strict=True)
    ]
    if not rows:
        return pd.DataFrame(columns=["method", "point", "options", "accuracy", "chosen"])
    table = pd.DataFrame(rows).groupby(["method", "point"], sort=False)
    table = table.agg(options=("options", "first"), accuracy=("accuracy", "mean")).reset_index()
    best = table.groupby("method", sort=False).accuracy.idxmax()
    return table.assign(chosen=table.index.isin(best))


def _announce(experiments: list[Experiment], ledger: Ledger, workers: int | None, device: str, progress: bool) -> None:
    kept = {name: own.obstacle for one in experiments for name, own in one.own.items() if own.obstacle}
    if kept:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in kept.items())
        warnings.warn(
            f"runs are computed and not kept, for it cannot be told whether they change: {reasons}", stacklevel=3
        )
    planned = plan(experiments, ledger, device)
    if planned.missing and not files.quiet(progress):
        print(planned.describe(workers), file=sys.stderr, flush=True)


def _check(arms: dict[str, list[Experiment]], device: str, workers: int | None, cluster: str | None) -> None:
    """Make everything once, and take one step with what is somebody's own."""
    one = next(iter(arms.values()))[0]
    stream = stream_of(one)
    if any(len(tried) > 1 for tried in arms.values()):
        stream_of(replace(one, evaluation="validation"))
    with torch.random.fork_rng(devices=[]):
        _check_network(one, stream)
        for title, tried in arms.items():
            for experiment in tried:
                _check_method(title, experiment, stream)
    for own in {own for tried in arms.values() for own in tried[0].own.values() if callable(own.content)}:
        if workers != 1 or cluster:
            try:
                pickle.dumps(own)
            except Exception as error:
                raise ValueError(
                    f"{own.title!r} cannot be sent to another process ({error}): make inside it what it closes over, "
                    "or give workers=1"
                ) from error
    for title, (experiment, *_) in arms.items():
        if experiment.own:
            _first_step(title, experiment, device)


def _check_network(experiment: Experiment, stream: Any) -> None:
    x, y = (column[:2] for column in stream.tasks[0].train())
    own = experiment.own.get("model")
    if own is None:
        if not x.is_floating_point():
            raise ValueError("x holds whole numbers: give floating ones, such as x / 255, or a network that takes them")
        if y.dim() > 1 and not stream.numbers:
            raise ValueError("network must be your own for sequences: a callable whose module gives (n, T, outputs)")
        x = x.flatten(1)
    model = network_of(experiment, stream)
    if not isinstance(model, nn.Module):
        raise TypeError(f"network must make a torch.nn.Module, got {type(model).__name__}")
    if own and {id(p) for p in model.parameters()} & {id(p) for p in network_of(experiment, stream).parameters()}:
        raise ValueError("network must make a new module each time, got the same parameters twice: build it inside")
    try:
        outputs = model(x)
    except Exception as error:
        raise ValueError(f"network cannot take x of shape {tuple(x.shape)} and type {x.dtype}: {error}") from error
    wanted = (*y.shape[:1], stream.outputs) if stream.numbers else (*y.shape, stream.outputs)
    if getattr(outputs, "shape", None) != wanted:
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(
            f"network must give outputs of shape {wanted} for {len(x)} examples, got {got}: make its last layer "
            f"{stream.outputs} wide" + ("" if own is None or stream.numbers else ", or give the stream outputs=...")
        )
    if "loss" in experiment.own:
        value = loss_of(experiment, stream)(outputs, y)
        if not isinstance(value, Tensor) or value.dim() or not value.requires_grad:
            raise ValueError("loss must return one number, a tensor with a gradient, such as the mean over the batch")


def _check_method(title: str, experiment: Experiment, stream: Any) -> None:
    method, options = experiment.optimizer, dict(experiment.options)
    if isinstance(method, str):
        plain = "loss" not in experiment.own and not stream.numbers and stream.tasks[0].train()[1].dim() == 1
        if not plain and method not in ANY_LOSS:
            raise ValueError(
                f"method {title!r} is written for classes and cross-entropy; numbers, sequences and own losses are for "
                f"{', '.join(ANY_LOSS)} and your own"
            )
        if rehearses(method):
            return
    if isinstance(method, Own):
        _check_options(title, method.content, options)
    models = []

    def network() -> nn.Module:
        models.append(network_of(experiment, stream))
        return models[-1]

    try:
        sizes = (stream.inputs, experiment.hidden, stream.outputs)
        learner = make_learner(method, network, sizes, torch.device("cpu"), options)
    except Exception as error:
        chosen = f" with options {options}" if options else ""
        raise ValueError(f"method {title!r}{chosen} cannot be made: {error}") from error
    if stream.scored_from is not None and learner.needs.boundaries:
        raise ValueError(f"method {title!r} is told when a task ends, and an online stream has no tasks: leave it out")
    optimizer = getattr(learner, "optimizer", None)
    if isinstance(method, Own) and isinstance(optimizer, torch.optim.Optimizer) and getattr(learner, "model", None):
        known = {id(p) for p in learner.model.parameters()}
        if not known & {id(p) for group in optimizer.param_groups for p in group["params"]}:
            raise ValueError(
                f"method {title!r} trains none of the network's parameters: use the model that it is given"
            )


def _check_options(title: str, method: Callable[..., Any], options: dict[str, Any]) -> None:
    try:
        taken = inspect.signature(method).parameters.values()
    except ValueError:  # of compiled code, which has none
        return
    names = [parameter.name for parameter in taken if parameter.kind != parameter.POSITIONAL_ONLY]
    for option in options:
        if option not in names and all(parameter.kind != parameter.VAR_KEYWORD for parameter in taken):
            raise ValueError(
                f"method {title!r} does not take the option {option!r}, it takes {', '.join(names[1:]) or 'none'}: "
                f"give it such an argument,  lambda model, {option}=...: ..."
            )


class _Stop(Exception):
    """Raised to leave a run after its first step."""


def _first_step(title: str, experiment: Experiment, device: str) -> None:
    def look(_: Moment) -> None:
        raise _Stop

    try:
        run(experiment, device, look=look)
    except _Stop:
        pass
    except Exception as error:
        raise ValueError(f"method {title!r} fails at its first step: {type(error).__name__}: {error}") from error
