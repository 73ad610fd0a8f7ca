"""Figures and tables for a paper, from what is stored in ``figures/``: ``python -m sp figure``, ``table``, ``paper``.

Nothing here trains, and nothing needs PyTorch.
"""

import argparse
import io
import json
import string
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure, SubFigure

from sp import figures, files, report
from sp.checks import check_choice
from sp.plots import PLOTS

PREFERRED = ("mnist", "digits")  # data sets; the first that is stored is taken


class Panel(NamedTuple):
    """A stored figure as a panel: its name with ``{}`` for the data set, and its share of the row."""

    name: str
    share: float = 1


class Sheet(NamedTuple):
    """A figure of several panels: what its caption begins with, and its rows: height in inches, and panels."""

    caption: str
    rows: list[tuple[float, list[Panel]]]


FIGURES = {
    "figure1_mechanism": Sheet(
        "Why a trace that accumulates remembers, and what a memory of inputs adds.",
        [
            (2.1, [Panel("02_consolidation_{}_traces", 1), Panel("02_consolidation_{}_gate", 1.2)]),
            (2.2, [Panel("03_coincidence_{}_spectrum", 1.2), Panel("03_coincidence_{}_novelty", 1)]),
            (1.9, [Panel("03_coincidence_{}_gradient"), Panel("03_coincidence_{}", 1.3)]),
        ],
    ),
    "figure2_claims": Sheet(
        "The published claims on trial.",
        [
            (2.5, [Panel("01_forgetting_{}_curves"), Panel("01_forgetting_{}")]),
            (2.6, [Panel("10_claims_{}_replay", 1.1), Panel("08_permuted_{}_tasks")]),
        ],
    ),
    "figure3_retention": Sheet(
        "Retention across streams, without replay unless it is said.",
        [
            (2.1, [Panel("02_consolidation_{}_split5_class_matrices")]),
            (2.2, [Panel("02_consolidation_{}")]),
            (2.2, [Panel("03_coincidence_{}_capacity"), Panel("03_coincidence_{}_beyond")]),
        ],
    ),
    "figure4_ablation": Sheet(
        "Which choices of the rules matter.",
        [
            (3.1, [Panel("06_ablation_{}_published")]),
            (2.1, [Panel("06_ablation_{}_coincidence", 1.5), Panel("06_ablation_{}_consolidation", 1)]),
        ],
    ),
    "figure5_cost": Sheet(
        "What retention costs.",
        [(4.5, [Panel("09_comparison_{}")]), (2.8, [Panel("12_overhead")])],
    ),
}


def table_retention() -> str:
    """Average accuracy of every method without replay on four streams."""
    _, dataset, table = _table("comparison_{}")
    streams = ["split2_class", "split5_class", "split5_domain", "permuted10"]
    table = report.across_streams(table, "average_accuracy", streams)
    caption = f"Average accuracy over all tasks at the end, without replay, {dataset}. {report.INTERVALS}"
    return report.latex_table(report.wide(table), caption, "retention")


def table_claims() -> str:
    """The published claims, what was measured, and the verdicts; the sentences of advice (P21) are counted."""
    name, dataset, table = _table("10_claims_{}")
    advice = table[table.promise == "P21"]
    counted = "; ".join(f"{verdict}: {count}" for verdict, count in advice.verdict.value_counts().items())
    holding = (advice.verdict == "holds").sum()
    row = ("P21", f"the advice on tuning, {len(advice)} sentences", counted, f"{holding} of {len(advice)} hold")
    parts = [table[table.promise < "P21"], pd.DataFrame([row], columns=table.columns), table[table.promise > "P21"]]
    table = pd.concat(parts)
    caption = f"The published claims and what was measured, {dataset}. Verdicts are rules in code."
    heads = {column: column.capitalize() for column in table}
    table = table.rename(columns=heads).set_index("Promise")
    return report.latex_table(table, caption, name, "lp{0.29\\textwidth}p{0.42\\textwidth}p{0.13\\textwidth}")


def table_cost() -> str:
    """Every method without replay on five class-incremental tasks: what it keeps, and what that costs."""
    name, dataset, table = _table("comparison_{}")
    costs = pd.read_csv(_made(f"comparison_costs_{name.removeprefix('comparison_')}.csv"))
    table = table[(table.stream == "split5_class") & (table.capacity == 0)].drop(columns=["stream", "capacity"])
    order = table[table.metric == "average_accuracy"].sort_values("mean", ascending=False).method
    text = report.wide(table[table.metric.isin(["average_accuracy", "backward_transfer"])]).loc[order]
    text = text.join(report.cost_columns(costs, order)).fillna("")
    caption = (
        f"Methods without replay on five class-incremental tasks, {dataset}, best first; time of a training step, and "
        f"what is kept from step to step besides the weights. {report.INTERVALS}"
    )
    return report.latex_table(text, caption, name)


TABLES: dict[str, Callable[[], str]] = {
    "table1_retention": table_retention,
    "table2_claims": table_claims,
    "table3_cost": table_cost,
}


def sheet(name: str, journal: str = "icml") -> tuple[Figure, str, dict]:
    """A figure of several panels, its caption and its provenance.

    Args:
        name: one in `FIGURES`. journal: a name in `sp.figures.JOURNALS`.

    Raises:
        FileNotFoundError: a panel is not stored; the message gives the command that makes it.
    """
    rows = FIGURES[name].rows
    read = {panel: _first(panel.name, figures.stored) for _, panels in rows for panel in panels}
    fig, ax = figures.figure("page", sum(height for height, _ in rows), journal)
    ax.remove()
    letters = iter(string.ascii_lowercase)
    captions, made_from = [], {}
    lines = fig.subfigures(len(rows), 1, height_ratios=[height for height, _ in rows], squeeze=False)[:, 0]
    for line, (_, panels) in zip(lines, rows, strict=True):
        parts = line.subfigures(1, len(panels), width_ratios=[panel.share for panel in panels], squeeze=False)[0]
        for part, panel in zip(parts, panels, strict=True):
            stem, _, (record, table) = read[panel]
            PLOTS[record["kind"]](partial(_part, part), table, **record["options"])
            letter = next(letters)
            part.suptitle(letter, x=0.01, ha="left", fontsize=8, fontweight="bold")
            captions.append(f"({letter}) {record['caption']}")
            made_from[stem] = {key: record["provenance"][key] for key in ("command", "experiments")}
    return fig, " ".join([FIGURES[name].caption, *captions]), {"made_from": made_from, "versions": figures.versions()}


def make(target: Path = Path("build/paper"), journal: str = "icml") -> list[Path]:
    """Write the five figures (PDF) and three tables, and the LaTeX of all of them; returns what was written.

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
        files.write_atomically(target / f"{name}.tex", report.latex_figure(name, caption, wide=True))
        written += [target / f"{name}.pdf", target / f"{name}.tex"]
    for name, table in TABLES.items():
        files.write_atomically(target / f"{name}.tex", table())
        written.append(target / f"{name}.tex")
    return written


def _part(part: SubFigure, _: float, **subplots: Any) -> tuple[SubFigure, Any]:
    """The canvas of a plot that is one of several: the sheet gives the height."""
    return part, part.subplots(**subplots)


def _first(name: str, read: Callable[[str], Any]) -> tuple[str, str, Any]:
    """The first of the `PREFERRED` that is stored: name, data set, what was read."""
    missing = None
    for dataset in PREFERRED:
        try:
            return name.format(dataset), figures.DATASETS[dataset], read(name.format(dataset))
        except FileNotFoundError as error:
            missing = error
    raise missing


def _table(name: str) -> tuple[str, str, pd.DataFrame]:
    return _first(name, lambda stem: pd.read_csv(_made(f"{stem}.csv")))


def _made(name: str) -> Path:
    return files.existing(files.folder("figures") / name)


def add_commands(commands) -> None:
    """``figure``, ``table`` and ``paper``."""
    again = commands.add_parser("figure", help="draw figures again from their CSV, at the size of a journal")
    again.add_argument("names", nargs="+", metavar="NAME", help="of the files in figures/, without a suffix")
    again.add_argument("--journal", choices=figures.JOURNALS, help="whose widths; default: as it was")
    again.add_argument("--width", choices=figures.WIDTHS, help="a column or the page; default: as it was")
    again.add_argument("--format", nargs="+", choices=figures.FORMATS, default=["pdf", "png"], dest="formats")
    again.add_argument("--to", type=Path, help="folder; default: in place")
    again.add_argument("--latex", action="store_true", help="also NAME.tex, with the caption")
    again.set_defaults(run=_figure)

    table = commands.add_parser("table", help="write a table of figures/ as LaTeX (booktabs)")
    table.add_argument("name", metavar="NAME", help="a CSV with method, metric, mean, low, high, n; without a suffix")
    table.add_argument("metric", metavar="METRIC", nargs="?", help="where it has streams: which metric of each")
    table.add_argument("--caption", default="", help="what stands above the table, before the intervals are explained")
    table.add_argument("--to", type=Path, help="folder of NAME.tex; default: print it")
    table.set_defaults(run=_latex_table)

    paper = commands.add_parser("paper", help="five figures and three tables for a paper, from stored results")
    paper.add_argument("--journal", choices=figures.JOURNALS, default="icml", help="whose width (default: icml)")
    paper.add_argument("--to", type=Path, default=Path("build/paper"), help="folder (default: build/paper)")
    paper.set_defaults(run=_paper)


def _figure(chosen: argparse.Namespace) -> int:
    folder = chosen.to or files.folder("figures")
    for name in chosen.names:
        options = {"width": chosen.width, "journal": chosen.journal, "formats": chosen.formats}
        plt.close(figures.redraw(name, to=folder, **options))
        if chosen.latex:
            caption = figures.stored(name)[0]["caption"]
            wide = (chosen.width or figures.stored(name)[0]["width"]) == "page"
            files.write_atomically(folder / f"{name}.tex", report.latex_figure(name, caption, wide))
    return 0


def _latex_table(chosen: argparse.Namespace) -> int:
    table = pd.read_csv(_made(f"{chosen.name}.csv"))
    if missing := [column for column in ("method", "metric", "mean", "low", "high", "n") if column not in table]:
        raise ValueError(f"{chosen.name}.csv is not a table of intervals: it has no column {missing[0]!r}")
    if "stream" in table:
        check_choice("METRIC", chosen.metric, table.metric.unique())
    elif chosen.metric:
        raise ValueError(f"{chosen.name} has one stream and all its metrics in one table: leave METRIC out")
    table = report.across_streams(table, chosen.metric) if chosen.metric else table
    text = report.latex_table(report.wide(table), f"{chosen.caption} {report.INTERVALS}".strip(), chosen.name)
    if chosen.to:
        files.write_atomically(chosen.to / f"{chosen.name}.tex", text)
    else:
        print(text, end="")
    return 0


def _paper(chosen: argparse.Namespace) -> int:
    for path in make(chosen.to, chosen.journal):
        print(path)
    return 0
