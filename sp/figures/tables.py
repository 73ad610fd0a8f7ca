"""Interval tables (`sp.lab.metrics.interval_table`) as text: Markdown, and LaTeX for a paper."""

import re
import textwrap
from collections.abc import Sequence

import pandas as pd

from sp.checks import check_choice
from sp.lab import metrics

INTERVALS = "Mean [95\u202f% bootstrap interval] over n seeds."
TITLES = {
    "final_1": "task A",
    "final_2": "task B",
    "average_accuracy": "all tasks",
    "learning_accuracy": "after training",
    "backward_transfer": "backward transfer",
    "split2_class": "Split, 2 tasks, class-incremental",
    "split5_class": "Split, 5 tasks, class-incremental",
    "split5_domain": "Split, 5 tasks, domain-incremental",
    "split5_task": "Split, 5 tasks, task-incremental",
    "permuted10": "Permuted, 10 tasks",
    "permuted30": "Permuted, 30 tasks",
    "rotated5": "Rotated, 5 tasks",
    "split2_domain": "Split, 2 tasks, domain-incremental",
    "split2_task": "Split, 2 tasks, task-incremental",
}
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "\u00a0": "~",
        "\u202f": r"\,",
        "β": r"$\beta$",
        "θ": r"$\theta$",
        "×": r"$\times$",
        "→": r"$\rightarrow$",
        "≥": r"$\geq$",
        "≤": r"$\leq$",
        "−": "$-$",
    }
)


def across_streams(
    table: pd.DataFrame, metric: str, streams: Sequence[str] | None = None, capacity: int = 0
) -> pd.DataFrame:
    """One metric of a table with a column ``stream``, as an interval table with streams instead of metrics.

    Args:
        streams: streams to keep, in this order; None: all. capacity: replay buffer size, if there is such a column.
    """
    table = table[(table.metric == metric) & (table.get("capacity", 0) == capacity)]
    for stream in streams or ():
        check_choice("streams", stream, dict.fromkeys(table.stream))
    if streams is not None:
        table = pd.concat([table[table.stream == stream] for stream in streams])
    return table.drop(columns="metric").rename(columns={"stream": "metric"})


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """An interval table as text: one row per method, one column per metric, "mean [low, high]", n in the header."""
    text = metrics.readable(table[["method", "metric", "mean", "low", "high", "n"]])
    counts = {metric: ", ".join(map(str, sorted(set(n)))) for metric, n in table.groupby("metric").n}
    heads = {metric: f"{TITLES.get(metric, metric)} (n = {counts[metric]})" for metric in text}
    return text.fillna("").rename(columns=heads).rename_axis(columns=None)


def of_methods(table: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The rows of these methods, in this order."""
    for method in methods:
        check_choice("methods", method, dict.fromkeys(table.method))
    return pd.concat([table[table.method == method] for method in methods])


def means(table: pd.DataFrame, decimals: int) -> pd.DataFrame:
    """An interval table as text: only means, with the best of each column in bold, not counting joint training."""
    columns = {}
    for metric in dict.fromkeys(table.metric):
        values = table[table.metric == metric].set_index("method")["mean"]
        text = values.map(lambda mean: f"{mean:.{decimals}f}")
        best = text[values.drop("Joint training", errors="ignore").idxmax()]
        bold = (text == best) & (text.index != "Joint training")
        columns[TITLES.get(metric, metric)] = text.mask(bold, "**" + text + "**")
    return pd.DataFrame(columns, pd.Index(dict.fromkeys(table.method), name="method")).fillna("")


def markdown(table: pd.DataFrame, decimals: int | None = None) -> str:
    """An interval table as Markdown, one row per method: `wide`, or `means` if ``decimals`` is given."""
    text = wide(table) if decimals is None else means(table, decimals)
    lines = ["| | " + " | ".join(text.columns) + " |", "|---" * (len(text.columns) + 1) + "|"]
    lines += [
        f"| {method} | " + " | ".join(row) + " |" for method, row in zip(text.index, text.to_numpy(), strict=True)
    ]
    return "\n".join(lines) + "\n"


def cost_columns(costs: pd.DataFrame, methods: Sequence[str], capacity: int = 0) -> pd.DataFrame:
    """Cost of a step and what is kept, as text for a table of these methods; missing if unknown.

    Args:
        costs: as returned by `studies.comparison.costs`. methods: the rows. capacity: buffer size; 0: without replay.
    """
    cost = costs[costs.capacity == capacity].set_index("method")
    cost = cost.reindex([method.removesuffix(", tuned") for method in methods]).set_axis(
        pd.Index(methods, name="method")
    )
    heads = {"step (Adam = 1)": cost.step_ratio, "kept (weights = 1)": cost.kept}
    return pd.DataFrame({head: column.map("{:.1f}".format, na_action="ignore") for head, column in heads.items()})


def latex(text: str) -> str:
    """Escape special characters for LaTeX, and replace the few Greek letters and signs that occur here."""
    return text.translate(_LATEX)


def latex_figure(name: str, caption: str, wide: bool = False) -> str:
    """A ``figure`` environment with the file of that name at its natural size; ``wide``: across both columns."""
    kind = "figure*" if wide else "figure"
    lines = [rf"\begin{{{kind}}}", r"\centering", rf"\includegraphics{{{name}}}", rf"\caption{{{latex(caption)}}}"]
    return "\n".join([*lines, rf"\label{{fig:{name}}}", rf"\end{{{kind}}}", ""])


def latex_table(table: pd.DataFrame, caption: str, name: str, columns: str | None = None) -> str:
    """A ``table*`` environment (packages booktabs and graphicx), no wider than the text.

    Args:
        table: text, with row names in the index. caption: unescaped text. name: used in the label ``tab:name``.
        columns: LaTeX column format; None: left-aligned names, centred figures.
    """
    columns = columns or "l" + "c" * table.shape[1]
    escaped = table.rename(index=latex, columns=_head).map(lambda cell: latex(str(cell))).rename_axis(None)
    body = escaped.to_latex(escape=False, column_format=columns).rstrip()
    lines = [r"\begin{table*}", r"\centering", rf"\caption{{{latex(caption)}}}", rf"\label{{tab:{name}}}"]
    return "\n".join([*lines, r"\resizebox{\textwidth}{!}{%", body + "}", r"\end{table*}", ""])


def _head(text: str) -> str:
    """A column header; one that is wider than an interval is split into lines."""
    together = re.sub(r"\(n = .*?\)", lambda match: match[0].replace(" ", "\u00a0"), text)
    lines = [latex(line) for line in textwrap.wrap(together, 22, break_on_hyphens=False)]
    return r"\shortstack{" + r" \\ ".join(lines) + "}" if len(lines) > 1 else latex(text)
