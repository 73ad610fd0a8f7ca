"""The results panel: every finished run in the ledger, by stream, metric, method and varied option."""

from collections.abc import Iterator
from dataclasses import fields
from numbers import Real
from typing import Any

import ipywidgets as widgets
import pandas as pd

from sp.explore.panel import Answer, Panel
from sp.lab import metrics, tables
from sp.lab.experiment import Experiment
from sp.lab.ledger import Ledger, opened
from sp.rivals import TITLES

METRICS = {  # name -> range of the axis
    "average_accuracy": (0, 1),
    "learning_accuracy": (0, 1),
    "anytime_accuracy": (0, 1),
    "backward_transfer": (-1, 0.2),
    "forgetting": (-0.2, 1),
    "forward_transfer": (-0.5, 0.5),
}
STREAM = ("dataset", "stream", "tasks", "scenario", "samples_per_task", "evaluation")
NEVER_VARIED = ("seed", "curve_points", "optimizer")
BESIDE = "methods"  # the axis on which methods stand side by side


def results_panel(ledger: Ledger | None = None) -> Panel:
    """Choose a stream, a metric, methods and an axis, and see a table and a figure of the runs in the ledger.

    Runs that finish later are shown only by a new panel.

    Args:
        ledger: default `sp.lab.ledger.opened()`.

    Raises:
        LookupError: the ledger holds no run.
    """
    ledger = ledger or opened()
    rows = finished_runs(ledger)
    controls = {
        "stream": widgets.Dropdown(
            options=list(dict.fromkeys(rows.stream_name)),
            description="stream",
            tooltip="Data set, stream and scenario; a stream tested on held-out training images says so.",
        ),
        "metric": widgets.Dropdown(
            options=[(_readable(name), name) for name in METRICS],
            description="metric",
            tooltip="As defined in sp.lab.metrics; fractions, without a unit.",
        ),
        "axis": widgets.Dropdown(
            options=[BESIDE],
            description="axis",
            tooltip="Methods side by side, or a choice that was varied along the axis.",
        ),
        "methods": widgets.SelectMultiple(
            options=[""], rows=9, description="methods", tooltip="Which methods to show; Ctrl or Shift adds more."
        ),
    }

    def adjust(moved: str) -> None:
        of_stream = rows[rows.stream_name == controls["stream"].value]
        if moved in ("", "stream"):
            controls["axis"].options = [(_readable(name), name) for name in (BESIDE, *_varied(of_stream))]
        if moved in ("", "stream", "axis"):
            controls["methods"].options = labels(of_stream, controls["axis"].value)
            controls["methods"].value = controls["methods"].options[:8]

    def make(choices: dict) -> Iterator[Answer]:
        yield results_answer(rows, **choices)

    adjust("")
    return Panel(
        "results",
        "Finished runs: table and figure",
        "Dots are means over seeds, lines 95 % bootstrap intervals; only a paired test can say whether two methods "
        "differ (notebook 01). Brackets tell variants of a method apart.",
        controls,
        make,
        _code,
        adjust,
        wide=True,
    )


def finished_runs(ledger: Ledger) -> pd.DataFrame:
    """`sp.lab.tables.table` of all runs in a ledger, with a column ``stream_name``.

    Custom parts that share a title have the start of their digest after it.

    Raises:
        LookupError: the ledger holds no run.
    """
    results = ledger.results()
    if not results:
        how = "run a notebook or make figures first, or set SP_STORE to another folder"
        raise LookupError(f"{ledger.folder} holds no finished runs: {how}")
    rows = tables.table(results)
    for name in {name for result in results for name in result.experiment.own}:
        owns = [result.experiment.own.get(name) for result in results]
        digests = pd.Series([own.digest[:4] if own else "" for own in owns], rows.index)
        alike = digests.groupby(rows[name]).transform("nunique") > 1
        rows.loc[alike, name] = (rows[name] + " " + digests).str.strip()
    rows["stream_name"] = [_stream_name(row) for row in rows[list(STREAM)].to_dict("records")]
    return rows.sort_values(["stream_name", "optimizer", "replay_capacity", "seed"], kind="stable")


def labels(rows: pd.DataFrame, axis: str = BESIDE) -> tuple[str, ...]:
    """Labels of the methods in rows of one stream on an axis, for `results_answer`."""
    return tuple(dict.fromkeys(_labelled(rows, axis).method))


def results_answer(rows: pd.DataFrame, stream: str, metric: str, axis: str, methods: tuple[str, ...]) -> Answer:
    """What the results panel shows.

    Args:
        rows: as returned by `finished_runs`. stream: one of their ``stream_name``. metric: one of `METRICS`.
        axis: ``"methods"``, or a column that was varied. methods: labels, in display order.

    Raises:
        ValueError: no method is chosen, or no finished run matches.
    """
    shown = _labelled(rows[rows.stream_name == stream], axis)
    shown = shown[shown.method.isin(methods)].dropna(subset=[metric])
    if shown.empty:
        what = f"no finished run of {stream!r} has {metric} for the methods {list(methods)}"
        raise ValueError(f"{what}: choose at least one method")
    by = ["method"] if axis == BESIDE else ["method", axis]
    shown = shown.drop_duplicates([*by, "seed"])
    shown["method"] = pd.Categorical(shown.method, methods)
    shown = shown.sort_values(by).astype({"method": str})
    table = metrics.interval_table(shown, by, [metric])
    title = metric.replace("_", " ").capitalize()
    if axis == BESIDE:
        kind, options = "interval_plot", {"panels": {metric: ""}, "label": title}
    else:
        kind, options = "line_panels", {"x": axis, "panels": {"mean": ""}, "limits": list(METRICS[metric])}
        options |= {"labels": [_readable(axis).capitalize(), title], "height": 2.6}
        options |= {"log": "x" if shown[axis].min() > 0 and shown[axis].max() > 20 * shown[axis].min() else ""}
    text = f"{len(shown)} runs of {stream}."
    counted = metrics.readable(table).join(table.set_index(by).n)
    counted.index.names = [_readable(name) for name in by]
    counted = counted.rename(columns={metric: f"{title}: mean [95 % interval]", "n": "seeds"})
    return Answer(kind, table, text, counted, options)


def _code(choices: dict) -> str:
    lines = [f"    {name}={value!r}," for name, value in choices.items()]
    lines = ["rows = results.finished_runs(opened())", "answer = results.results_answer(", "    rows,", *lines, ")"]
    return "\n".join(["from sp.explore import results", "from sp.lab.ledger import opened", "", *lines])


def _stream_name(row: dict[str, Any]) -> str:
    parts = [row["dataset"], row["stream"], f"{row['tasks']} tasks", f"{row['scenario']}-incremental"]
    if not pd.isna(row["samples_per_task"]):
        parts.append(f"{row['samples_per_task']:.0f} images a task")
    if row["evaluation"] != "test":
        parts.append("held-out training images")
    return ", ".join(parts)


def _choices(rows: pd.DataFrame) -> list[str]:
    chosen = {field.name for field in fields(Experiment)} - {*STREAM, *NEVER_VARIED}
    return [name for name in rows.columns if name in chosen or name.startswith("option_")]


def _varied(rows: pd.DataFrame) -> list[str]:
    """Numerical choices that differ between runs of one method."""
    numbers = rows[_choices(rows)].select_dtypes("number")
    differ = numbers.groupby(rows.optimizer).nunique().max() > 1
    return list(numbers.columns[differ])


def _labelled(rows: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The runs that have a value on an axis, with ``method``: its name, and what tells its variants apart."""
    rows = rows if axis == BESIDE else rows.dropna(subset=[axis])
    labels = pd.Series("", rows.index)
    for optimizer, group in rows.groupby("optimizer"):
        replay = group.replay_capacity.gt(0).map({True: " + replay", False: ""})
        differ = [name for name in _choices(rows) if name != axis and group[name].nunique(dropna=False) > 1]
        # The label already says whether there is replay.
        if "replay_capacity" in differ and group.replay_capacity.nunique() == 2 and (group.replay_capacity == 0).any():
            differ.remove("replay_capacity")
        for index, row in group.iterrows():
            told = row[differ].dropna()
            known = [
                f"{_readable(name)} {value:g}" if isinstance(value, Real) else f"{_readable(name)} {value}"
                for name, value in told.items()
                if not isinstance(value, str)
            ]
            known += [value for value in told if isinstance(value, str)]
            brackets = f" ({', '.join(known)})" if known else ""
            labels[index] = (
                TITLES.get(optimizer, optimizer) + ("" if axis == "replay_capacity" else replay[index]) + brackets
            )
    return rows.assign(method=labels)


def _readable(name: str) -> str:
    return name.removeprefix("option_").replace("_", " ")
