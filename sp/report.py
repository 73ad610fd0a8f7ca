"""Tables in the README, each written from a committed CSV between two marks."""

import re
from pathlib import Path

import pandas as pd

MARKS = re.compile(r"(<!-- table: (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
COLUMNS = {
    "final_1": "task A",
    "final_2": "task B",
    "average_accuracy": "both",
}


def fill_tables(text: str, root: Path = Path()) -> str:
    """The text with every ``<!-- table: FILE.csv -->`` ... ``<!-- end -->`` filled from that file under ``root``.

    The file is an interval table: ``arm``, ``metric``, ``mean``, ``low``, ``high`` (see `sp.metrics.interval_table`).
    """
    return MARKS.sub(lambda match: match[1] + markdown(pd.read_csv(root / match[2])) + match[4], text)


def markdown(table: pd.DataFrame) -> str:
    """An interval table as Markdown: a row for each arm, a column for each metric, "mean [low, high]"."""
    metrics = list(dict.fromkeys(table.metric))
    lines = ["| | " + " | ".join(COLUMNS.get(metric, metric) for metric in metrics) + " |"]
    lines.append("|---" * (len(metrics) + 1) + "|")
    for arm, rows in table.groupby("arm", sort=False):
        cells = rows.set_index("metric").loc[metrics]
        text = [f"{row['mean']:.3f} [{row.low:.3f}, {row.high:.3f}]" for _, row in cells.iterrows()]
        lines.append(f"| {arm} | " + " | ".join(text) + " |")
    return "\n".join(lines) + "\n"
