"""Documents generated from stored results: the README's tables, the gallery, the index of notebooks."""

import json
import re
from pathlib import Path

import pandas as pd

from sp.figures.tables import across_streams, markdown, of_methods

MARKS = re.compile(r"(<!-- table: (\S+)((?: \S+)*) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
WORDS = ("metric", "streams", "capacity", "methods", "decimals")  # options of a table mark, after its file
FILLED = ("README.md", "docs/comparison.md", "docs/results.md")  # documents whose tables come from files


def fill_tables(text: str, root: Path = Path()) -> str:
    """Fill every ``<!-- table: FILE.csv -->`` ... ``<!-- end -->`` in a text from that file under ``root``.

    The file is an interval table (`sp.lab.metrics.interval_table`), with columns ``method, metric, mean, low, high,
    n``. If options follow its name, it also has a column ``stream``, and the table has one column per stream:

    - ``metric=NAME``: the metric to show.
    - ``streams=NAME,NAME``: the streams to show, in this order; default: all.
    - ``capacity=N``: size of the replay buffer, if the file has such a column; default 0, no buffer.
    - ``methods=NAME,NAME``: the rows to show, in this order, with ``_`` for a space; default: all.
    - ``decimals=N``: only means, with N decimals and the best of each column in bold, not counting joint training.

    Raises:
        ValueError: an unknown option, options without ``metric=``, or a stream or method that is not in the file.
    """

    def filled(match: re.Match) -> str:
        table, words = pd.read_csv(root / match[2]), dict(word.partition("=")[::2] for word in match[3].split())
        if unknown := set(words) - set(WORDS):
            raise ValueError(f"a table mark takes {'=, '.join(WORDS)}=, got {sorted(unknown)}")
        if words and "metric" not in words:
            raise ValueError(f"a table mark with {sorted(words)} needs metric= as well")
        if words:
            streams = words["streams"].split(",") if "streams" in words else None
            table = across_streams(table, words["metric"], streams, int(words.get("capacity", 0)))
        if "methods" in words:
            table = of_methods(table, words["methods"].replace("_", " ").split(","))
        return match[1] + markdown(table, int(words["decimals"]) if "decimals" in words else None) + match[5]

    return MARKS.sub(filled, text)


def gallery(root: Path = Path()) -> str:
    """The page of all figures in ``figures/`` with a record: thumbnail, question, notebook and command."""
    lines = [
        "# Figures",
        "",
        "Each figure is a PDF and a PNG in the folder of its notebook. Beside it are the CSV it was drawn from and a",
        "JSON record: kind of plot, options, caption, keys of the experiments, versions. `python -m sp paper NAME`",
        "redraws it from these two, with its caption in LaTeX: at the size of a journal (`--journal nature --width",
        "page`), as SVG (`--format svg`), or in your own style (`--only`, `--rename`, `--colour`). `make paper` makes",
        "multi-panel figures and tables. `make readme` writes this page.",
    ]
    for folder in sorted({path.parent for path in (root / "figures").glob("[0-9][0-9]_*/*.json")}):
        lines += ["", f"## [`{folder.name}`](../notebooks/{folder.name}.ipynb)", ""]
        lines += ["| figure | question it answers | data made by |", "|---|---|---|"]
        for path in sorted(folder.glob("*.json")):
            record, name = json.loads(path.read_text()), f"{folder.name}/{path.stem}"
            picture = f'<a href="{name}.pdf"><img src="{name}.png" width="240" alt="{name}"></a>'
            following = f"<br>`{name}` ([CSV]({name}.csv))"
            lines.append(f"| {picture}{following} | {record['question']} | `{record['provenance']['command']}` |")
    return "\n".join(lines) + "\n"


PICTURES = {  # for notebooks whose first figure is less telling
    "01_forgetting": "digits_curves",
    "02_consolidation": "digits_traces",
    "03_coincidence": "digits_spectrum",
    "04_biology": "nmda",
    "05_explore": "learning_selective",
    "06_ablation": "digits_published",
    "13_dendrites": "digits_streams",
}


def index(root: Path = Path()) -> str:
    """The page of all notebooks in ``notebooks/``, each with a picture and its title, which is a question."""
    lines = [
        "# Notebooks",
        "",
        "They tell one story in this order, and each also stands alone. `make lab` opens them, `make figures` runs all",
        "of them on the built-in digits, and `make site` turns them into web pages. `make readme` writes this page.",
        "",
        "| | asks |",
        "|---|---|",
    ]
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        heading = json.loads(path.read_text())["cells"][0]["source"][0]
        title = heading.strip().removeprefix("# ")
        pictures = sorted(picture.stem for picture in (root / "figures" / path.stem).glob("*.png"))
        if not pictures:
            raise FileNotFoundError(f"{path.stem} has no figures yet: python -m sp refresh notebooks/{path.name}")
        name = f"{path.stem}/{PICTURES.get(path.stem, pictures[0])}"
        picture = f'<img src="../figures/{name}.png" width="240" alt="{name}">'
        lines.append(f"| [{picture}]({path.name}) | **[`{path.stem}`]({path.name})**<br>{title} |")
    return "\n".join(lines) + "\n"
