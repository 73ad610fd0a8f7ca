"""Compare methods, including your own, on one stream.

Methods are paired by seed, and tuned with the same number of points on other seeds and held-out data. Runs in the
ledger are reused. FILE.py:NAME is a callable or a stream in your own file.
"""

import argparse
import importlib.util
import shlex
import sys
from numbers import Real
from pathlib import Path
from traceback import extract_tb
from typing import Any

from sp import figures, files
from sp.checks import check_choice, did_you_mean
from sp.commands import add_dataset, positive
from sp.lab import Stream, choices, compare
from sp.lab.networks import MODELS
from sp.lab.runs import PLOTS, tuned
from sp.lab.settings import STREAMS
from sp.rivals import METHODS, TITLES

_FOLDERS: list[Path] = []  # of the files read so far
WITH_DEFAULTS = "coincidence"  # the method that is meant to run with its defaults


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: what to compare, and what to write."""
    parser.epilog = (
        "example: python -m sp compare --method adam --method mine.py:lion --stream split5 --tune adam:lr=1e-4,3e-4 "
        f"--tune lion:lr=3e-5,1e-4 --figure lion. Methods: {', '.join(METHODS)}."
    )
    add = parser.add_argument
    add("--method", action="append", required=True, metavar="NAME|FILE.py:NAME", help="once per method, baseline first")
    add(
        "--stream",
        default="split5",
        metavar="NAME|FILE.py:NAME",
        help=f"{', '.join(STREAMS)}, or a name like split5, rotated5_task (default: split5)",
    )
    add("--samples-per-task", type=positive, help="training images per task; default: all")
    add("--network", metavar="NAME|FILE.py:NAME", help=f"{', '.join(MODELS)} (default: mlp)")
    add("--hidden", type=_widths, metavar="W1,W2,...", help="hidden widths of a named network, such as 256,256")
    add("--tune", action="append", default=[], metavar="METHOD:OPTION=v1,v2,...", help="can be repeated")
    add("--seeds", type=positive, default=6, help="number of seeds (default: 6; fewer than six give no verdict)")
    add("--epochs", type=positive, help="passes over each task")
    add("--batch-size", type=positive)
    add("--replay-capacity", type=int, default=0, help="examples in each method's replay buffer (default: 0)")
    add("--baseline", metavar="METHOD", help="default: the first method")
    add("--device", default="cpu", help="such as cuda (default: cpu)")
    add("--workers", type=positive, help="processes (default: one per core)")
    add("--cluster", metavar="tcp://HOST:PORT", help="dask scheduler whose workers to use")
    add("--figure", metavar="NAME", help="draw the figure figures/NAME")
    add("--kind", choices=PLOTS, help="kind of figure (default: accuracy)")
    add("--csv", type=Path, help="write the table of all runs to this file")
    add_dataset(parser)


def run(chosen: argparse.Namespace) -> None:
    """Compare, print the table, and write the files that were asked for."""
    if chosen.kind and not chosen.figure:
        raise ValueError(f"--kind {chosen.kind} needs a figure: give --figure NAME as well")
    if chosen.figure and (made := files.made_by(chosen.figure)):
        raise ValueError(f"--figure {chosen.figure} is drawn by  {made} : give another name, without its folder")
    titles = _titles(chosen.method)
    methods = {title: named(word) for word, title in titles.items()}
    try:
        runs = compare(
            methods,
            _stream(chosen.stream, chosen.dataset, chosen.samples_per_task),
            chosen.network and named(chosen.network),
            chosen.seeds,
            _tune(chosen.tune, titles),
            hidden=chosen.hidden,
            epochs=chosen.epochs,
            batch_size=chosen.batch_size,
            replay_capacity=chosen.replay_capacity,
            device=chosen.device,
            baseline=titles.get(chosen.baseline, chosen.baseline),
            workers=chosen.workers,
            cluster=chosen.cluster,
        )
    except TypeError as error:  # a name that is not a method, network or stream
        raise ValueError(str(error)) from error
    table = runs.table()
    print(table.to_string())
    if set(table.verdict) & {"higher", "lower"}:
        print("higher or lower: the interval excludes 0 and a sign-flip test agrees")
    for title, options in tuned(runs.tuning).items():
        print(f"{title}: {options}")
    if chosen.csv:
        files.write_atomically(chosen.csv, runs.data.to_csv(index=False))
    if chosen.figure:
        command = shlex.join(["python", "-m", "sp", "compare", *chosen.arguments])
        runs.save(chosen.figure, chosen.kind or "accuracy", command=command)
        print(f"The figure is {figures.path_of(chosen.figure)}.pdf.")


def _widths(text: str) -> tuple[int, ...]:
    return tuple(positive(word) for word in text.split(","))


def named(text: str) -> Any:
    """A plain name unchanged, or the object that ``FILE.py:NAME`` refers to."""
    file, colon, name = text.rpartition(":")
    if not colon:
        if text.endswith(".py"):
            raise ValueError(f"{text} is a file: say which object in it, as {text}:NAME")
        return text
    path = Path(file).absolute()
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give FILE.py:NAME")
    key = f"own_{path.stem}"
    module = sys.modules.get(key)
    if module is None or module.__file__ != str(path):
        spec = importlib.util.spec_from_file_location(key, path)
        module = sys.modules[key] = importlib.util.module_from_spec(spec)
        if str(path.parent) not in sys.path:
            _refuse_another_helper(path)
            sys.path.insert(0, str(path.parent))  # it may import modules beside it
            _FOLDERS.append(path.parent)
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[key]
            lines = [at.lineno for at in extract_tb(error.__traceback__) if at.filename == str(path)]
            where = f"{path}, line {lines[-1]}" if lines else path
            raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
    if not hasattr(module, name):
        raise ValueError(f"{path} has no {name!r}{did_you_mean(name, dir(module))}")
    return getattr(module, name)


def _refuse_another_helper(path: Path) -> None:
    """Refuse a file if it would import the module of a file that was read before, instead of the one beside it."""
    for beside in path.parent.glob("*.py"):
        loaded = getattr(sys.modules.get(beside.stem), "__file__", None)
        if loaded and Path(loaded).parent in _FOLDERS:
            raise ValueError(
                f"{path} may import {beside.name} beside it, but {loaded} has been imported under that name: rename one"
            )


def _titles(words: list[str]) -> dict[str, str]:
    """The title of each method in tables: NAME of FILE.py:NAME, as ``FILE: NAME`` if two files have the same NAME."""
    for word in words:
        if ":" not in word and not word.endswith(".py"):
            check_choice("--method, unless it is FILE.py:NAME,", word, METHODS)
    if len(set(words)) < len(words):
        raise ValueError(f"--method must name each method once, got {', '.join(words)}")
    parts = [word.rpartition(":") for word in words]
    names = [TITLES.get(word, name) for word, (_, _, name) in zip(words, parts, strict=True)]
    longer = [f"{Path(file).stem}: {name}" for file, _, name in parts]
    found = {}
    for word, name, with_file in zip(words, names, longer, strict=True):
        if names.count(name) == 1:
            found[word] = name
        else:
            found[word] = with_file if longer.count(with_file) == 1 else word
    return found


def _stream(text: str, dataset: str, samples_per_task: int | None) -> Stream:
    found = named(text)
    if isinstance(found, str):
        return Stream.named(text, dataset, samples_per_task)
    if callable(found):
        found = found()
    if not isinstance(found, Stream):
        raise ValueError(f"--stream {text} must be an sp.lab.Stream, got {type(found).__name__}")
    return found


def _tune(texts: list[str], titles: dict[str, str]) -> dict[str, dict[str, list]]:
    """Title -> option -> values, from ``METHOD:lr=1e-4,1e-3``, or from ``lr=1e-4,1e-3`` if there is one method."""
    found: dict[str, dict[str, list]] = {}
    words = list(titles)
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals:
            raise ValueError(f"--tune must be METHOD:OPTION=v1,v2,..., got {text!r}")
        method, colon, option = name.rpartition(":")
        if option in (*titles, *titles.values()):
            raise ValueError(f"--tune {text} names a method and no option: write, say,  --tune {option}:lr={values}")
        if not colon and len(words) > 1:
            each = [f"--tune {word.rpartition(':')[2]}:{text}" for word in words if word != WITH_DEFAULTS]
            raise ValueError(
                f"--tune {text} does not say for which method, and what suits one seldom suits another: write, say,  "
                f"{' '.join(each)}"
            )
        parsed = choices.parse(values)
        if isinstance(parsed, choices.Range):
            raise ValueError(f"--tune {text} is a range: list its values, as v1,v2,...")
        _check_one_kind(text, parsed)
        method = method or words[0]
        found.setdefault(titles.get(method, method), {})[option] = parsed
    return found


def _check_one_kind(text: str, values: list[Any]) -> None:
    """Raise ValueError for a value that is no number among numbers, or several that are not separated by commas."""
    words = [value for value in values if isinstance(value, str)]
    if words and (" " in words[0] or any(isinstance(value, Real) for value in values)):
        raise ValueError(f"--tune {text}: {words[0]!r} is not a number; separate values by commas, as v1,v2,...")
