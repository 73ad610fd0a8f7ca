"""The result of a comparison: its rows, and tables and figures made from them."""

import math
from dataclasses import dataclass, field
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sp.checks import check_choice
from sp.lab import metrics, tables
from sp.lab.experiment import Result
from sp.lab.streams import Stream

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLOTS = ("accuracy", "matrix", "curve")


@dataclass(frozen=True)
class Runs:
    """The runs of a comparison.

    Attributes:
        data: one row per run: ``method`` (its title), all choices and all measurements, as in `sp.lab.tables.table`.
        baseline: title of the method that the others are compared with.
        stream: the stream that was learnt.
        results: the runs themselves, in the order of the rows.
        tuning: one row per point tried: ``method``, ``options``, ``accuracy`` on held-out data, ``chosen``.
    """

    data: pd.DataFrame
    baseline: str
    stream: Stream
    results: list[Result] = field(repr=False)
    tuning: pd.DataFrame = field(repr=False)

    def __repr__(self) -> str:
        return f"{len(self.data)} runs on {self.stream.title}\n{self.table().to_string()}"

    @property
    def score(self) -> str:
        """Name of the score: accuracy, or R2 if the targets are numbers."""
        return "R2 (0 where negative)" if self.stream.arrays is not None and self.stream.arrays.numbers else "accuracy"

    @property
    def _measures(self) -> dict[str, str]:
        if self.stream.is_online:
            return {"average_accuracy": f"{self.score} before learning"}
        after = {"learning_accuracy": f"{self.score} right after each task"}
        return {"average_accuracy": f"final {self.score}", **(after if self.data.tasks.iloc[0] > 1 else {})}

    def table(self, digits: int = 3) -> pd.DataFrame:
        """Text table, one row per method: mean and 95 % bootstrap interval over n seeds, and the paired verdict.

        The verdict is on the difference in final accuracy from the baseline (`sp.lab.metrics.paired_difference`).
        Where runs diverged (`sp.lab.experiment.Result`), a last column says how many.
        """
        rows, form = self.data, f".{digits}f"
        text = metrics.readable(metrics.interval_table(rows, ["method"], list(self._measures)), digits)
        text = text.rename(columns=self._measures).rename_axis(index="method", columns=None)
        others = [title for title in text.index if title != self.baseline]
        found = {title: metrics.difference(rows, title, self.baseline) for title in others}
        text["n"] = rows.groupby("method").seed.nunique().reindex(text.index)
        differences = {title: metrics.interval_text(*one[:3], f"+{form}") for title, one in found.items()}
        text[f"minus {self.baseline}"] = pd.Series(differences, dtype=object).reindex(text.index).fillna("")
        verdicts = {title: one.verdict for title, one in found.items()}
        text["verdict"] = pd.Series(verdicts, dtype=object).reindex(text.index).fillna("baseline")
        if rows.diverged.any():
            text["diverged"] = rows.groupby("method").diverged.sum().reindex(text.index)
        return text

    def matrix(self, title: str) -> np.ndarray:
        """Accuracy of a method on task j after training on task i, averaged over seeds; shape (T, T)."""
        check_choice("method", title, dict.fromkeys(self.data.method))
        chosen = [result.accuracy for result, own in zip(self.results, self.data.method, strict=True) if own == title]
        return np.mean(chosen, axis=0)

    def curve(self) -> pd.DataFrame:
        """Table of ``method``, ``seed``, ``step`` and ``accuracy``, the mean on the tasks so far after ``step`` tasks.

        Online, it is the accuracy on the data since the previous step, before they were learnt.
        """
        if self.stream.is_online:
            named = zip(self.data.method, self.results, strict=True)
            return pd.concat([tables.curves([result]).assign(method=title) for title, result in named])
        steps = range(1, int(self.data.tasks.iloc[0]) + 1)
        long = self.data.melt(["method", "seed"], [f"after_{n}" for n in steps], "step", "accuracy")
        return long.assign(step=long.step.str.removeprefix("after_").astype(int))

    def plot(self, kind: str = "accuracy") -> "Figure":
        """A figure in the house style: ``"accuracy"``, ``"matrix"`` or ``"curve"``."""
        from sp import figures

        plot, table, options = self._plot(kind)
        return figures.picture(plot, table, options)

    def save(self, name: str, kind: str = "accuracy", **words: Any) -> "Figure":
        """Draw the `plot` and write ``NAME.pdf``, ``.png``, ``.csv`` and ``.json``, as `sp.figures.draw` does.

        Args:
            name: name of the files. kind: as for `plot`. words: arguments of `sp.figures.draw`, such as ``question``
                and ``caption`` to replace the defaults, ``width`` or ``journal``.
        """
        from sp import figures

        plot, table, options = self._plot(kind)
        usual = {"question": f"Which method is best on {self.stream.title}?", "caption": self._caption(kind)}
        return figures.draw(plot, name, table, **{"keys": self.data.key, **usual, **words}, **options)

    def _caption(self, kind: str) -> str:
        what = {"accuracy": "", "matrix": " on each task after each", "curve": " as the stream goes on"}[kind]
        return f"{next(iter(self._measures.values())).capitalize()}{what}: {self.stream.title}."

    def _plot(self, kind: str) -> tuple[str, pd.DataFrame, dict[str, Any]]:
        """Name of the plot, its table and its options."""
        check_choice("kind", kind, PLOTS)
        label = self.score[0].upper() + self.score[1:]
        titles = {title: title for title in dict.fromkeys(self.data.method)}
        if kind == "accuracy":
            table = metrics.interval_table(self.data, ["method"], list(self._measures))
            panels = {name: text[0].upper() + text[1:] for name, text in self._measures.items()}
            return "interval_plot", table, {"panels": panels, "label": label}
        if kind == "matrix":
            if self.stream.is_online:
                raise ValueError("kind 'matrix' needs tasks, and an online stream has none: use 'accuracy' or 'curve'")
            table = tables.matrices(zip(self.data.method, self.results, strict=True))
            return (
                "heat_maps",
                table,
                {"panels": titles, "value": "accuracy", "labels": [label, "After task", "On task"]},
            )
        table = self.curve()
        x = "Training step" if self.stream.is_online else "Tasks learnt"
        shown = f"{label} before learning" if self.stream.is_online else f"{label} on these tasks"
        options = {"x": "step", "panels": {"accuracy": ""}, "labels": [x, shown], "limits": [-0.02, 1.02]}
        return "line_panels", table[["method", "seed", "step", "accuracy"]], options


LONGER = "a longer list may do better"


def tuned(tuning: pd.DataFrame) -> dict[str, str]:
    """Title of a method -> the options that tuning chose, and whether any is at an end of its list.

    Args:
        tuning: as in `Runs`. Ends are reported only for lists of three or more different numbers.
    """
    found = {}
    for title, points in tuning.groupby("method", sort=False):
        (chosen,) = points.options[points.chosen]
        tried = {name: {options[name] for options in points.options} for name in chosen}
        found[title] = "; ".join(f"{name}={value!r}{_end(value, tried[name])}" for name, value in chosen.items())
    return found


def _end(value: Any, tried: set[Any]) -> str:
    if len(tried) < 3 or not all(isinstance(one, Real) and math.isfinite(one) for one in tried):
        return ""
    if min(tried) < value < max(tried):
        return ""
    return f", the {'lowest' if value == min(tried) else 'highest'} in the list: {LONGER}"
