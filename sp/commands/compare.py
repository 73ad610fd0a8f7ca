"""Compare methods, your own among them, on one stream.

Methods are paired by seed, and tuned with as many points each on other seeds and held-out data. Runs that the ledger
has are read. FILE.py:NAME is a callable, or a stream, in a file of yours.
"""

import argparse
import importlib.util
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from sp import figures
from sp.checks import did_you_mean
from sp.commands import add_dataset, positive
from sp.files import write_atomically
from sp.lab import Stream, choices, compare
from sp.rivals import METHODS, TITLES

_STREAM = re.compile(r"(split|permuted|rotated)(\d+)(?:_(class|domain|task))?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to compare, and what to leave of it."""
    parser.epilog = (
        "example: python -m sp compare --method adam --method mine.py:lion --stream split5 --tune lr=1e-4,3e-4,1e-3 "
        f"--figure lion. Methods: {', '.join(METHODS)}."
    )
    add = parser.add_argument
    add("--method", action="append", required=True, metavar="NAME|FILE.py:NAME", help="once for each; first: baseline")
    add(
        "--stream",
        default="split5",
        metavar="NAME|FILE.py:NAME",
        help="split5, split5_domain, permuted10, rotated5, ...",
    )
    add("--samples-per-task", type=positive, help="training images of each task; default: all")
    add("--network", metavar="NAME|FILE.py:NAME", help="default: a perceptron")
    add("--tune", action="append", default=[], metavar="[METHOD:]OPTION=v1,v2,...", help="of one method, or of each")
    add("--seeds", type=positive, default=6, help="how many seeds (default: 6; below six no verdict is given)")
    add("--epochs", type=positive, help="passes over each task")
    add("--batch-size", type=positive)
    add("--replay-capacity", type=int, default=0, help="examples in a buffer of every method (default: 0)")
    add("--baseline", metavar="METHOD", help="default: the first method")
    add("--device", default="cpu", help="such as cuda (default: cpu)")
    add("--workers", type=positive, help="processes (default: one a core)")
    add("--cluster", metavar="tcp://HOST:PORT", help="a dask scheduler on whose workers to run")
    add("--figure", metavar="NAME", help="draw the figure figures/NAME")
    add("--kind", default="accuracy", choices=("accuracy", "matrix", "curve"), help="of figure (default: accuracy)")
    add("--csv", type=Path, help="write the table of all runs to this file")
    add_dataset(parser)


def run(chosen: argparse.Namespace) -> None:
    """Compare, print the table, and leave what was asked for."""
    methods = dict(_titled(word) for word in chosen.method)
    if len(methods) < len(chosen.method):
        raise ValueError(f"--method must name each method once, got {', '.join(chosen.method)}")
    try:
        runs = compare(
            methods,
            _stream(chosen.stream, chosen.dataset, chosen.samples_per_task),
            chosen.network and named(chosen.network),
            chosen.seeds,
            _tune(chosen.tune, methods),
            epochs=chosen.epochs,
            batch_size=chosen.batch_size,
            replay_capacity=chosen.replay_capacity,
            device=chosen.device,
            baseline=chosen.baseline and _titled(chosen.baseline)[0],
            workers=chosen.workers,
            cluster=chosen.cluster,
        )
    except TypeError as error:  # something was named that is no method, network or stream
        raise ValueError(str(error)) from error
    print(runs.table().to_string())
    if chosen.csv:
        write_atomically(chosen.csv, runs.data.to_csv(index=False))
    if chosen.figure:
        runs.save(chosen.figure, chosen.kind, command=shlex.join(["python", "-m", "sp", "compare", *chosen.arguments]))
        print(f"The figure is {figures.path_of(chosen.figure)}.pdf.")


def named(text: str) -> Any:
    """A name as it is, or what ``FILE.py:NAME`` names."""
    file, colon, name = text.rpartition(":")
    if not colon:
        return text
    path = Path(file).absolute()
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: name a file as FILE.py:NAME")
    key = f"own_{path.stem}"
    module = sys.modules.get(key)
    if module is None or module.__file__ != str(path):
        spec = importlib.util.spec_from_file_location(key, path)
        module = sys.modules[key] = importlib.util.module_from_spec(spec)
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))  # what it imports lies beside it
        spec.loader.exec_module(module)
    if not hasattr(module, name):
        raise ValueError(f"{path} has no {name!r}{did_you_mean(name, dir(module))}")
    return getattr(module, name)


def _titled(word: str) -> tuple[str, Any]:
    return (TITLES.get(word, word), word) if ":" not in word else (word.rpartition(":")[2], named(word))


def _stream(text: str, dataset: str, samples_per_task: int | None) -> Stream:
    if ":" in text:
        if not isinstance(found := named(text), Stream):
            raise ValueError(f"--stream {text} must be an sp.lab.Stream, got {type(found).__name__}")
        return found
    match = _STREAM.fullmatch(text)
    if match is None:
        raise ValueError(f"--stream must be such as split5, split5_domain, permuted10 or FILE.py:NAME, got {text!r}")
    kind, tasks, scenario = match.groups()
    scenario = {"scenario": scenario} if scenario else {}
    return getattr(Stream, kind)(dataset, int(tasks), samples_per_task=samples_per_task, **scenario)


def _tune(texts: list[str], methods: dict[str, Any]) -> dict[str, dict[str, list]]:
    """``lr=1e-4,1e-3`` of every method, or ``METHOD:lr=1e-4,1e-3`` of one."""
    found: dict[str, dict[str, list]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals:
            raise ValueError(f"--tune must be OPTION=v1,v2,... or METHOD:OPTION=v1,v2,..., got {text!r}")
        method, colon, option = name.rpartition(":")
        parsed = choices.parse(values)
        choices.grid({option: parsed})  # refuses a range
        for title in [_title_of(method, methods)] if colon else methods:
            found.setdefault(title, {})[option] = parsed
    return found


def _title_of(word: str, methods: dict[str, Any]) -> str:
    return word if word in methods else _titled(word)[0]
