"""What is written from stored results: tables of the README, the gallery of the figures, and LaTeX for a paper."""

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from sp import files
from sp.checks import check_choice
from sp.lab import metrics

MARKS = re.compile(r"(<!-- table: (\S+)((?: \S+)*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
FILLED = ("README.md", "docs/comparison.md", "docs/results.md")  # whose tables come from files
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


def fill_tables(text: str, root: Path = Path()) -> str:
    """The text with every ``<!-- table: FILE.csv -->`` ... ``<!-- end -->`` filled from that file under ``root``.

    The file is an interval table (`sp.lab.metrics.interval_table`), with columns ``arm, metric, mean, low, high, n``.
    With more words after its name it has a column ``stream`` as well, and the table one column a stream:

    - ``metric=NAME``: the metric to show.
    - ``streams=NAME,NAME``: which streams, in this order; default: all.
    - ``capacity=N``: size of the replay buffer, where the file has such a column; default 0, without one.
    - ``methods=NAME,NAME``: which rows, in this order, with ``_`` for a space; default: all.
    - ``decimals=N``: means alone, with so many decimals, the best of each column in bold, joint training left aside.

    Raises:
        ValueError: another word, words without ``metric=``, or a stream or method that the file does not have.
    """
    words_known = ("metric", "streams", "capacity", "methods", "decimals")

    def filled(match: re.Match) -> str:
        table, words = pd.read_csv(root / match[2]), dict(word.partition("=")[::2] for word in match[3].split())
        if unknown := set(words) - set(words_known):
            raise ValueError(f"a table mark knows {'=, '.join(words_known)}=, got {sorted(unknown)}")
        if words and "metric" not in words:
            raise ValueError(f"a table mark with {sorted(words)} needs metric= as well")
        if words:
            streams = words["streams"].split(",") if "streams" in words else None
            table = across_streams(table, words["metric"], streams, int(words.get("capacity", 0)))
        if "methods" in words:
            table = of_methods(table, words["methods"].replace("_", " ").split(","))
        text = _means(table, int(words["decimals"])) if "decimals" in words else wide(table)
        return match[1] + markdown(text) + match[5]

    return MARKS.sub(filled, text)


def across_streams(
    table: pd.DataFrame, metric: str, streams: Sequence[str] | None = None, capacity: int = 0
) -> pd.DataFrame:
    """One metric of a table with a column ``stream``, as an interval table with the streams in place of metrics.

    Args:
        streams: which ones, in this order; None: all. capacity: of the replay buffer, where there is such a column.
    """
    table = table[(table.metric == metric) & (table.get("capacity", 0) == capacity)]
    for stream in streams or ():
        check_choice("streams", stream, dict.fromkeys(table.stream))
    if streams is not None:
        table = pd.concat([table[table.stream == stream] for stream in streams])
    return table.drop(columns="metric").rename(columns={"stream": "metric"})


def of_methods(table: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """The rows of these methods, in this order."""
    for method in methods:
        check_choice("methods", method, dict.fromkeys(table.arm))
    return pd.concat([table[table.arm == method] for method in methods])


def _means(table: pd.DataFrame, decimals: int) -> pd.DataFrame:
    """An interval table as text: means alone, the best of each column in bold, joint training left aside."""
    columns = {}
    for metric in dict.fromkeys(table.metric):
        means = table[table.metric == metric].set_index("arm")["mean"]
        text = means.map(lambda mean: f"{mean:.{decimals}f}")
        best = text[means.drop("Joint training", errors="ignore").idxmax()]
        bold = (text == best) & (text.index != "Joint training")
        columns[TITLES.get(metric, metric)] = text.mask(bold, "**" + text + "**")
    return pd.DataFrame(columns, pd.Index(dict.fromkeys(table.arm), name="arm")).fillna("")


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """An interval table as text: a row for each arm, a column for each metric, "mean [low, high]", n in its head."""
    columns = {}
    for metric in dict.fromkeys(table.metric):
        rows = table[table.metric == metric].set_index("arm")
        seeds = ", ".join(map(str, sorted(set(rows.n))))
        text = [metrics.interval_text(*row) for row in rows[["mean", "low", "high"]].to_numpy()]
        columns[f"{TITLES.get(metric, metric)} (n = {seeds})"] = pd.Series(text, rows.index)
    arms = pd.Index(dict.fromkeys(table.arm), name="arm")
    return pd.DataFrame({head: column.reindex(arms).fillna("") for head, column in columns.items()}, arms)


def markdown(text: pd.DataFrame) -> str:
    """A table of text, such as `wide` makes it, as Markdown."""
    lines = ["| | " + " | ".join(text.columns) + " |", "|---" * (len(text.columns) + 1) + "|"]
    lines += [f"| {arm} | " + " | ".join(row) + " |" for arm, row in zip(text.index, text.to_numpy(), strict=True)]
    return "\n".join(lines) + "\n"


def cost_columns(costs: pd.DataFrame, arms: Sequence[str], capacity: int = 0) -> pd.DataFrame:
    """What a step costs and what is kept, as text for a table of these arms; missing where it is not known.

    Args:
        costs: as `studies.comparison.costs` returns it. arms: rows. capacity: of the buffer; 0: without replay.
    """
    cost = costs[costs.capacity == capacity].set_index("arm")
    cost = cost.reindex([arm.removesuffix(", tuned") for arm in arms]).set_axis(pd.Index(arms, name="arm"))
    heads = {"step (Adam = 1)": cost.step_ratio, "kept (weights = 1)": cost.kept}
    return pd.DataFrame({head: column.map("{:.1f}".format, na_action="ignore") for head, column in heads.items()})


def gallery(root: Path = Path()) -> str:
    """The page of all figures in ``figures/`` that have a record: thumbnail, question, notebook, command."""
    lines = [
        "# Figures",
        "",
        "Each figure is PDF and PNG beside the CSV that it was drawn from and a JSON record: kind of plot, options,",
        "caption, keys of the experiments, versions. `python -m sp figure NAME` draws it again from these two, also",
        "at the size of a journal (`--journal nature --width page`), as SVG (`--format svg`), or with its caption in",
        "LaTeX (`--latex`). `make paper` makes sheets of several panels, and tables. `make readme` writes this page.",
    ]
    section = ""
    for path in sorted((root / "figures").glob("*.json")):
        record, name = json.loads(path.read_text()), path.stem
        notebook, _ = files.made_from(name)
        heading = f"[`{notebook}`](../notebooks/{notebook}.ipynb)" if notebook else "Tables across notebooks"
        if heading != section:
            section = heading
            lines += ["", f"## {heading}", ""]
            lines += ["| figure | the question that it answers | data made by |", "|---|---|---|"]
        picture = f'<a href="{name}.pdf"><img src="{name}.png" width="240" alt="{name}"></a>'
        following = f"<br>`{name}` ([CSV]({name}.csv))"
        lines.append(f"| {picture}{following} | {record['question']} | `{record['provenance']['command']}` |")
    return "\n".join(lines) + "\n"


PICTURES = {  # of notebooks whose first figure says less
    "01_forgetting": "01_forgetting_digits_curves",
    "02_consolidation": "02_consolidation_digits_traces",
    "03_coincidence": "03_coincidence_digits_spectrum",
    "04_biology": "04_biology_nmda",
    "05_explore": "05_explore_learning_selective",
    "06_ablation": "06_ablation_digits_published",
    "13_dendrites": "13_dendrites_digits_streams",
}


def title_of(notebook: Path) -> str:
    """The heading of a notebook, which is the question it asks."""
    return "".join(json.loads(notebook.read_text())["cells"][0]["source"]).splitlines()[0].removeprefix("# ")


def index(root: Path = Path()) -> str:
    """The page of all notebooks in ``notebooks/``: each with a picture, and the question that is its title."""
    lines = [
        "# Notebooks",
        "",
        "In this order they tell one story; each starts by itself. `make lab` opens them, `make figures` runs them all",
        "on the built-in digits, `make site` writes them as pages. `make readme` writes this page.",
        "",
        "| | asks |",
        "|---|---|",
    ]
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        title = title_of(path)
        drawn = sorted(picture.stem for picture in (root / "figures").glob(f"{path.stem}*.png"))
        name = PICTURES.get(path.stem, drawn[0])
        picture = f'<img src="../figures/{name}.png" width="240" alt="{name}">'
        lines.append(f"| [{picture}]({path.name}) | **[`{path.stem}`]({path.name})**<br>{title} |")
    return "\n".join(lines) + "\n"


INTERVALS = "Mean [95\u202f% bootstrap interval] over n seeds."
_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
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


def latex(text: str) -> str:
    """Text as LaTeX shows it: special characters escaped, and the few Greek letters and signs that occur here."""
    return text.translate(_LATEX)


def latex_figure(name: str, caption: str, wide: bool = False) -> str:
    """A ``figure`` environment with ``name.pdf`` at its own size; ``wide``: across both columns."""
    kind = "figure*" if wide else "figure"
    lines = [rf"\begin{{{kind}}}", r"\centering", rf"\includegraphics{{{name}.pdf}}", rf"\caption{{{latex(caption)}}}"]
    return "\n".join([*lines, rf"\label{{fig:{name}}}", rf"\end{{{kind}}}", ""])


def _latex_head(text: str) -> str:
    """A head that is wider than an interval, in lines of its own."""
    together = re.sub(r"\(n = .*?\)", lambda match: match[0].replace(" ", "\u00a0"), text)
    lines = [latex(line).replace("\u00a0", "~") for line in textwrap.wrap(together, 22, break_on_hyphens=False)]
    if len(lines) < 2:
        return latex(text)
    return "\n".join([r"\begin{tabular}{@{}c@{}}", " \\\\\n".join(lines), r"\end{tabular}"])


def latex_table(table: pd.DataFrame, caption: str, name: str, columns: str | None = None) -> str:
    """A ``table*`` environment (packages booktabs and graphicx), no wider than the text.

    Args:
        table: text, with row names in its index. caption: unescaped. name: for the label ``tab:name``.
        columns: LaTeX column format; None: names to the left, figures centred.
    """
    columns = columns or "l" + "c" * table.shape[1]
    escaped = table.rename(index=latex, columns=_latex_head).map(lambda cell: latex(str(cell))).rename_axis(None)
    body = escaped.to_latex(escape=False, column_format=columns).rstrip()
    lines = [r"\begin{table*}", r"\centering", rf"\caption{{{latex(caption)}}}", rf"\label{{tab:{name}}}"]
    return "\n".join([*lines, r"\resizebox{\textwidth}{!}{%", body + "}", r"\end{table*}", ""])
