"""Tables in the README, each written from a committed CSV between two marks."""

import re
from pathlib import Path

import pandas as pd

MARKS = re.compile(r"(<!-- table: (\S+)(?: (\S+))? -->\n)(.*?)(<!-- end -->)", re.DOTALL)
COLUMNS = {
    "final_1": "task A",
    "final_2": "task B",
    "average_accuracy": "all tasks",
    "learning_accuracy": "just learnt",
    "backward_transfer": "backward transfer",
    "split2_class": "Split, 2 tasks, class-incremental",
    "split5_class": "Split, 5 tasks, class-incremental",
    "split5_domain": "Split, 5 tasks, domain-incremental",
    "split5_task": "Split, 5 tasks, task-incremental",
    "permuted10": "Permuted, 10 tasks",
    "permuted30": "Permuted, 30 tasks of 20,000",
    "rotated10": "Rotated, 10 tasks",
    "split2_domain": "Split, 2 tasks, domain-incremental",
    "split2_task": "Split, 2 tasks, task-incremental",
}


def fill_tables(text: str, root: Path = Path()) -> str:
    """The text with every ``<!-- table: FILE.csv -->`` ... ``<!-- end -->`` filled from that file under ``root``.

    The file is an interval table (`sp.metrics.interval_table`), with columns ``arm, metric, mean, low, high, n``.
    With a metric after its name, the file has a column ``stream``, and the table one column a stream for that metric.
    Where it has a column ``capacity`` as well, the size of a replay buffer, only rows without one are taken.
    """

    def filled(match: re.Match) -> str:
        table = pd.read_csv(root / match[2])
        if match[3]:
            table = table[(table.metric == match[3]) & (table.get("capacity", 0) == 0)]
            table = table.drop(columns="metric").rename(columns={"stream": "metric"})
        return match[1] + markdown(table) + match[5]

    return MARKS.sub(filled, text)


def markdown(table: pd.DataFrame) -> str:
    """An interval table as Markdown: a row for each arm, a column for each metric, "mean [low, high]"."""
    metrics = list(dict.fromkeys(table.metric))
    seeds = {metric: set(table[table.metric == metric].n) for metric in metrics}
    heads = [f"{COLUMNS.get(m, m)} (n = {', '.join(map(str, sorted(seeds[m])))})" for m in metrics]
    lines = ["| | " + " | ".join(heads) + " |"]
    lines.append("|---" * (len(metrics) + 1) + "|")
    for arm, rows in table.groupby("arm", sort=False):
        cells = rows.set_index("metric").reindex(metrics)
        text = [
            "" if pd.isna(row["mean"]) else f"{row['mean']:.3f} [{row.low:.3f}, {row.high:.3f}]"
            for _, row in cells.iterrows()
        ]
        lines.append(f"| {arm} | " + " | ".join(text) + " |")
    return "\n".join(lines) + "\n"
