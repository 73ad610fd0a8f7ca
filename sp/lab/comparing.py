"""Compare methods on a stream in one call: tuned alike, paired by seed, kept in the ledger."""

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from sp import files
from sp.checks import check_choice
from sp.lab import tables
from sp.lab.checking import check
from sp.lab.choices import grid
from sp.lab.experiment import Experiment
from sp.lab.ledger import Ledger, opened
from sp.lab.methods import Method, titled
from sp.lab.networks import MODELS, WIDTHS
from sp.lab.own import Own
from sp.lab.runs import LONGER, Runs, tuned
from sp.lab.settings import TUNING_SEEDS
from sp.lab.streams import Stream
from sp.lab.sweep import missing, plan, run_all, with_seeds

POINTS_ONLINE = 20  # points on the curve
Tune = Mapping[str, Mapping[str, Sequence[Any]]]
Options = Mapping[str, Any] | Iterable[tuple[str, Any]]


def compare(
    methods: Mapping[str, Method] | Iterable[str],
    stream: Stream,
    network: str | Callable[[], nn.Module] | None = None,
    seeds: int | Sequence[int] = 6,
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
    """Run every method with every seed on one stream.

    With the same seed, all methods start from the same weights and see the same data in the same order. Everything is
    checked before any long run starts; then one sentence says how long it should take. Runs in the ledger are read, and
    others are kept as they finish, unless they use a callable that `sp.lab.digest` cannot check for changes.

    Args:
        methods: title -> a name in `sp.rivals.METHODS` or a registered one, or a callable that takes the network and
            returns an optimizer for it (or a learner, see `sp.lab.register`). A list of names gets the usual titles.
        stream: the stream to learn.
        network: a name in `sp.lab.networks.MODELS`, or a callable without arguments that makes a new module each time;
            None: a perceptron with the stream's usual widths.
        seeds: the number of seeds, counted from 0, or a list of seeds. With fewer than six, no verdict is given.
        tune: title -> option -> list of values. Every combination is tried with the seeds
            `sp.lab.settings.TUNING_SEEDS` on held-out training data, and the one with the highest mean accuracy is run.
            A warning says if it lies at an end of a list of three or more numbers. All tuned methods must have the same
            number of points. A callable gets its options as keyword arguments: ``method(model, lr=...)``.
        loss: function of outputs and targets that replaces the stream's usual loss; returns the mean over a batch.
        hidden: widths of a named network. epochs: passes over each task; 1 online. batch_size: new examples per batch.
            None: what is usual for the network and the stream.
        replay_capacity: number of examples in the buffer that every method gets, 0 for none.
        device: device to train on. workers: number of processes; default: one per core. cluster: address of a dask
            scheduler whose workers are used instead. ledger: default `sp.lab.ledger.opened()`.
        baseline: title of the method that the others are compared with; default: the first.
        progress: report the expected time and show progress bars.

    Raises:
        sp.lab.sweep.SweepError: some runs failed; the others are kept.
    """
    if not isinstance(stream, Stream):
        given = repr(stream) if isinstance(stream, str) else f"a {type(stream).__name__}"
        raise TypeError(
            "stream must be made by Stream.split(...), Stream.from_arrays([(x, y, x_test, y_test), ...]) or similar, "
            f"got {given}"
        )
    titles, tune = titled(methods), dict(tune or {})
    baseline = next(iter(titles)) if baseline is None else baseline
    check_choice("baseline", baseline, titles)
    seeds = _seeds(seeds, bool(tune))
    usual = {"epochs": epochs, "batch_size": batch_size}
    usual = {name: stream.usual[name] if value is None else value for name, value in usual.items()}
    if hidden is not None and callable(network):
        own = getattr(network, "__name__", type(network).__name__)
        raise ValueError(f"hidden is only for networks given by name, got {hidden!r} with {own}: leave it out")
    model = _network(network, WIDTHS.get(str(network), stream.usual["hidden"]) if hidden is None else hidden)
    choices = {**stream.choices, **usual, **model, "replay_capacity": replay_capacity}
    if loss is not None:
        choices["loss"] = Own.of("own loss", loss)
    if stream.is_online:
        if choices["epochs"] != 1:
            raise ValueError(f"epochs must be 1 for an online stream, whose data are seen once, got {epochs!r}")
        choices["curve_points"] = POINTS_ONLINE
    base = {title: Experiment(optimizer=method, seed=seeds[0], **choices) for title, method in titles.items()}
    tried = _tried(base, tune)
    check(tried, device, sent=workers != 1 or cluster is not None, tuned=bool(tune))

    tuning = [
        replace(one, seed=seed, evaluation="validation", curve_points=0)
        for title in tune
        for one in tried[title]
        for seed in TUNING_SEEDS
    ]
    ledger = ledger or opened()
    _warn_of_what_is_not_kept(base.values())

    def say_how_long(points: dict[str, Experiment]) -> None:
        if not files.quiet(progress):
            planned = plan([*tuning, *(one for _, one in with_seeds(points, seeds))], ledger, device)
            if planned.missing:
                print(planned.describe(workers), file=sys.stderr, flush=True)

    options = {"ledger": ledger, "workers": workers, "progress": progress, "cluster": cluster, "device": device}
    to_tune = missing(tuning, ledger)
    if to_tune:  # the choice is not known yet, but one point takes as long as another
        say_how_long({title: points[0] for title, points in tried.items()})
    accuracies = [result.accuracy[-1].mean() for result in run_all(tuning, **options)]
    tuned_on = judged({title: [one.options for one in tried[title]] for title in tune}, accuracies, TUNING_SEEDS)
    best = {row.method: row.point for row in tuned_on.itertuples() if row.chosen}
    chosen = {title: tried[title][best.get(title, 0)] for title in titles}
    if to_tune:
        _warn_of_ends(tuned_on)
    else:
        say_how_long(chosen)
    named = with_seeds(chosen, seeds)
    experiments = [experiment for _, experiment in named]
    # Results from the ledger have the titles under which they were kept.
    results = [
        replace(result, experiment=e) for result, e in zip(run_all(experiments, **options), experiments, strict=True)
    ]
    rows = tables.table(results)
    rows.insert(0, "method", [title for title, _ in named])
    return Runs(rows, baseline, stream, results, tuned_on)


def _seeds(seeds: int | Sequence[int], tuned: bool) -> list[int]:
    found = list(seeds) if isinstance(seeds, Iterable) else list(range(seeds)) if isinstance(seeds, Integral) else []
    whole = all(isinstance(seed, Integral) for seed in found)
    if not found or not whole or len(set(found)) < len(found) or (tuned and set(found) & set(TUNING_SEEDS)):
        raise ValueError(
            f"seeds must be a count, or distinct whole numbers that are not tuning seeds {TUNING_SEEDS}, got {seeds!r}"
        )
    return [int(seed) for seed in found]


def _tried(base: dict[str, Experiment], tune: Tune) -> dict[str, list[Experiment]]:
    """For each method, the experiments that tuning chooses from; a single one if it is not tuned."""
    for title, options in tune.items():
        check_choice("each key of tune, the title of a method,", title, base)
        lists = isinstance(options, Mapping) and all(isinstance(one, list | tuple) and one for one in options.values())
        if not lists:
            raise TypeError(f"tune must look like {{{title!r}: {{'lr': [1e-4, 1e-3]}}}}, got {options!r} for {title!r}")
    points = {title: grid(options) for title, options in tune.items()}
    if len({len(found) for found in points.values()}) > 1:
        counts = ", ".join(f"{title}: {len(found)}" for title, found in points.items())
        raise ValueError(f"tune must have the same number of points for every method, to be fair, got {counts}")
    return {title: [replace(one, options=point) for point in points.get(title, [{}])] for title, one in base.items()}


def _network(network: Any, hidden: tuple[int, ...]) -> dict[str, Any]:
    if network is None or isinstance(network, str):
        check_choice("network", network or "mlp", MODELS)
        return {"model": network or "mlp", "hidden": hidden}
    if isinstance(network, nn.Module) or not callable(network):
        raise TypeError(
            "network must be a name or a callable that returns a new module, such as  lambda: MyNetwork() , got "
            f"{type(network).__name__}"
        )
    return {"model": Own.of("own network", network), "hidden": Experiment().hidden}


def judged(tried: Mapping[str, Sequence[Options]], accuracies: Iterable[float], seeds: Sequence[int]) -> pd.DataFrame:
    """What tuning chose: one row per method and point, with ``options``, mean ``accuracy`` and whether it is chosen.

    Args:
        tried: the points of each method. accuracies: on held-out data, point by point, and seed by seed within each.
        seeds: the seeds used for tuning.
    """
    remaining, rows = iter(accuracies), []
    for title, points in tried.items():
        means = [float(np.mean([next(remaining) for _ in seeds])) for _ in points]
        for i, point in enumerate(points):
            row = {"method": title, "point": i, "options": dict(point), "accuracy": means[i]}
            rows.append({**row, "chosen": i == int(np.argmax(means))})
    return pd.DataFrame(rows, columns=["method", "point", "options", "accuracy", "chosen"])


def _warn_of_ends(judged: pd.DataFrame) -> None:
    """Warn once, when tuning runs: a comparison read from the ledger has nothing new to report."""
    ends = [f"{title}: {options}" for title, options in tuned(judged).items() if LONGER in options]
    if ends:
        warnings.warn(f"tuning chose a value at the end of its list: {'; '.join(ends)}", stacklevel=3)


def _warn_of_what_is_not_kept(experiments: Iterable[Experiment]) -> None:
    reasons = {own.title: own.obstacle for one in experiments for own in one.own.values() if own.obstacle}
    if reasons:
        said = "; ".join(f"{title}: {reason}" for title, reason in reasons.items())
        warnings.warn(
            f"runs are computed but not kept, because it cannot be determined whether they change: {said}", stacklevel=3
        )
