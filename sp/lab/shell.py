"""``python -m sp compare``: methods, network and stream by name, or as ``FILE.py:NAME``."""

import importlib.util
import re
import sys
from argparse import Namespace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sp import figures
from sp.files import write_atomically
from sp.lab import choices
from sp.lab.comparing import compare
from sp.lab.streams import Stream
from sp.rivals import TITLES

_STREAM = re.compile(r"(split|permuted|rotated)(\d+)(?:_(class|domain|task))?")


def run(chosen: Namespace, command: str) -> None:
    """Compare what the arguments name, print the table, and leave what they ask for.

    Raises:
        ValueError, OSError: as `sp.lab.compare`, or something is not there.
    """
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
        runs.save(chosen.figure, chosen.kind, command=command)
        print(f"The figure is {figures.path_of(chosen.figure)}.pdf.")


def named(text: str) -> Any:
    """A name as it is, or what ``FILE.py:NAME`` names.

    Raises:
        FileNotFoundError: there is no such file. ValueError: it has nothing of that name.
    """
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
        near = get_close_matches(name, dir(module), 1, 0.5)
        hint = f": did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{path} has no {name!r}{hint}")
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
