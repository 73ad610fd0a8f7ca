"""Multi-panel figures and tables of a paper, made from what is stored in ``figures/``."""

import io
import json
import string
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure, SubFigure

from sp import files
from sp.figures.kit import PLOTS
from sp.figures.record import stored, versions
from sp.figures.style import figure
from sp.figures.tables import INTERVALS, across_streams, cost_columns, latex_figure, latex_table, wide

PREFERRED = ("mnist", "digits")  # data sets; the first one that is stored is used


# Name -> start of the caption, and rows. A row has a height in inches, and stored figures ({} stands for the data set)
# with their shares of the width.
FIGURES: dict[str, tuple[str, list[tuple[float, dict[str, float]]]]] = {
    "figure1_mechanism": (
        "Why a trace that accumulates remembers, and what a memory of inputs adds.",
        [
            (2.1, {"02_consolidation/{}_traces": 1, "02_consolidation/{}_gate": 1.2}),
            (2.2, {"03_coincidence/{}_spectrum": 1.2, "03_coincidence/{}_novelty": 1}),
            (1.9, {"03_coincidence/{}_gradient": 1, "03_coincidence/{}": 1.3}),
        ],
    ),
    "figure2_claims": (
        "The published claims on trial.",
        [
            (2.5, {"01_forgetting/{}_curves": 1, "01_forgetting/{}": 1}),
            (2.6, {"10_claims/{}_replay": 1.1, "08_permuted/{}_tasks": 1}),
        ],
    ),
    "figure3_retention": (
        "Retention across streams, without replay unless it is said.",
        [
            (1.9, {"02_consolidation/{}_split5_class_matrices": 1}),
            (3.5, {"09_comparison/{}_accuracy": 1}),
            (2.0, {"03_coincidence/{}_capacity": 1, "03_coincidence/{}_beyond": 1}),
        ],
    ),
    "figure4_ablation": (
        "Which choices of the rules matter.",
        [
            (3.1, {"06_ablation/{}_published": 1}),
            (2.1, {"06_ablation/{}_coincidence": 1.5, "06_ablation/{}_consolidation": 1}),
        ],
    ),
    "figure5_cost": (
        "What retention costs.",
        [(2.8, {"09_comparison/{}_memory": 1}), (2.8, {"12_overhead/size": 1})],
    ),
}


def table_retention() -> str:
    """Average accuracy of every method without replay on four streams."""
    _, dataset, table = _table("09_comparison/{}")
    streams = ["split2_class", "split5_class", "split5_domain", "permuted10"]
    table = across_streams(table, "average_accuracy", streams)
    caption = f"Final accuracy, without replay, {dataset}. {INTERVALS}"
    return latex_table(wide(table), caption, "retention")


def table_claims() -> str:
    """The published claims, what was measured, and the verdicts; the sentences of advice (P21) are given as counts."""
    name, dataset, table = _table("10_claims/{}")
    advice = table[table.promise == "P21"]
    counted = "; ".join(f"{verdict}: {count}" for verdict, count in advice.verdict.value_counts().items())
    holding = (advice.verdict == "holds").sum()
    row = ("P21", f"the advice on tuning, {len(advice)} sentences", counted, f"{holding} of {len(advice)} hold")
    parts = [table[table.promise < "P21"], pd.DataFrame([row], columns=table.columns), table[table.promise > "P21"]]
    table = pd.concat(parts)
    caption = f"The published claims and what was measured, {dataset}. Verdicts are rules in code."
    heads = {column: column.capitalize() for column in table}
    table = table.rename(columns=heads).set_index("Promise")
    return latex_table(table, caption, name, "lp{0.29\\textwidth}p{0.42\\textwidth}p{0.13\\textwidth}")


def table_cost() -> str:
    """Every method without replay on five class-incremental tasks: what it retains, and at what cost."""
    name, dataset, table = _table("09_comparison/{}")
    costs = pd.read_csv(_made(f"{name}_costs"))
    table = table[(table.stream == "split5_class") & (table.capacity == 0)].drop(columns=["stream", "capacity"])
    order = table[table.metric == "average_accuracy"].sort_values("mean", ascending=False).method
    text = wide(table[table.metric.isin(["average_accuracy", "backward_transfer"])]).loc[order]
    text = text.join(cost_columns(costs, order)).fillna("")
    caption = (
        f"Methods without replay on five class-incremental tasks, {dataset}, best first; time of a training step, and "
        f"extra memory from step to step. {INTERVALS}"
    )
    return latex_table(text, caption, name)


TABLES: dict[str, Callable[[], str]] = {
    "table1_retention": table_retention,
    "table2_claims": table_claims,
    "table3_cost": table_cost,
}


def sheet(name: str, journal: str = "icml") -> tuple[Figure, str, dict]:
    """A multi-panel figure, its caption and its provenance.

    Args:
        name: one in `FIGURES`. journal: a name in `sp.figures.JOURNALS`.

    Raises:
        FileNotFoundError: a panel is not stored; the message gives the command that makes it.
    """
    begins, rows = FIGURES[name]
    read = {panel: _first(panel, stored) for _, panels in rows for panel in panels}
    fig, ax = figure("page", sum(height for height, _ in rows), journal)
    ax.remove()
    letters = iter(string.ascii_lowercase)
    captions, made_from = [], {}
    lines = fig.subfigures(len(rows), 1, height_ratios=[height for height, _ in rows], squeeze=False)[:, 0]
    for line, (_, panels) in zip(lines, rows, strict=True):
        parts = line.subfigures(1, len(panels), width_ratios=list(panels.values()), squeeze=False)[0]
        for part, panel in zip(parts, panels, strict=True):
            stem, _, (record, table) = read[panel]
            PLOTS[record["kind"]](partial(_part, part), table, **record["options"])
            letter = next(letters)
            part.suptitle(letter, x=0.01, ha="left", fontsize=8, fontweight="bold")
            captions.append(f"({letter}) {record['caption']}")
            made_from[stem] = {key: record["provenance"][key] for key in ("command", "experiments")}
    return fig, " ".join([begins, *captions]), {"made_from": made_from, "versions": versions()}


def make(target: Path = Path("build/paper"), journal: str = "icml") -> list[Path]:
    """Write the five figures (PDF) and three tables, with LaTeX for all of them; return the paths written.

    Raises:
        FileNotFoundError: something is not stored; the message gives the command that makes it.
    """
    written = []
    for name in FIGURES:
        fig, caption, provenance = sheet(name, journal)
        buffer = io.BytesIO()
        subject = json.dumps(provenance, sort_keys=True)
        fig.savefig(buffer, format="pdf", metadata={"CreationDate": None, "Producer": None, "Subject": subject})
        plt.close(fig)
        files.write_atomically(target / f"{name}.pdf", buffer.getvalue())
        files.write_atomically(target / f"{name}.tex", latex_figure(name, caption, wide=True))
        written += [target / f"{name}.pdf", target / f"{name}.tex"]
    for name, table in TABLES.items():
        files.write_atomically(target / f"{name}.tex", table())
        written.append(target / f"{name}.tex")
    return written


def _part(part: SubFigure, _: float, **subplots: Any) -> tuple[SubFigure, Any]:
    """Canvas of a plot that is one panel of a sheet, which sets the height."""
    return part, part.subplots(**subplots)


def _first(name: str, read: Callable[[str], Any]) -> tuple[str, str, Any]:
    """Name, data set and contents of the first of `PREFERRED` that is stored."""
    missing = None
    for dataset in PREFERRED:
        try:
            return name.format(dataset), files.DATASETS[dataset], read(name.format(dataset))
        except FileNotFoundError as error:
            missing = error
    raise missing


def _table(name: str) -> tuple[str, str, pd.DataFrame]:
    return _first(name, lambda stem: pd.read_csv(_made(stem)))


def _made(name: str) -> Path:
    return files.existing(files.folder("figures") / f"{name}.csv")
