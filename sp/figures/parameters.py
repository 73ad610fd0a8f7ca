"""Notebook parameters: a notebook's own, committed with it, and names for runs with other ones."""

import ast
import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sp import files

LONGEST_NAME = 120  # characters; file systems allow 255 bytes
OWN = "own"  # name of a run with the notebook's own parameters
_WORD = re.compile(r"(?!(?:True|False|None)$)[A-Za-z_]\w*", re.ASCII)  # text that needs no quotes


def file() -> Path:
    """``notebooks/parameters.json``: every notebook's own parameters, by notebook name, as written by `refresh`."""
    return files.project() / "notebooks" / "parameters.json"


def own(notebook: str) -> dict[str, Any]:
    """A notebook's own parameters, given a name such as ``01_forgetting``, in the order of its ``parameters`` cell."""
    if not file().is_file():
        raise FileNotFoundError(
            f"{file()} does not exist: run the notebook in the project's folder (papermill --cwd notebooks), or write "
            "the file with  python -m sp refresh"
        )
    known = json.loads(file().read_text())
    if notebook not in known:
        raise ValueError(
            f"{file()} has no parameters for {notebook!r}, only for {', '.join(known)}: write them with  "
            "python -m sp refresh"
        )
    return known[notebook]


def of(notebook: Path) -> dict[str, Any]:
    """The values in a notebook's cell tagged ``parameters``, in order; empty if there is no such cell."""
    import nbformat
    import papermill  # takes a second, which every figure would wait for

    content = nbformat.read(notebook, as_version=4)
    content.metadata |= {"kernelspec": {"name": "python3", "language": "python"}}  # not every editor writes it
    found = {}
    for name, about in papermill.inspect_notebook(content).items():
        try:
            found[name] = plain(ast.literal_eval(about["default"]))
        except (ValueError, SyntaxError) as error:
            raise ValueError(
                f"{notebook}: the value of {name} must be a number, a string, or a list or dict of these, got "
                f"{about['default']}: write it out, or compute it in a later cell"
            ) from error
    return found


def of_all(notebooks: Iterable[Path]) -> str:
    """The text of `file`, from the ``parameters`` cells of the notebooks that have one."""
    found = {path.stem: values for path in notebooks if (values := of(path))}
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def checked(point: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The point with `plain` values; raises ValueError unless its names and types are those of the notebook's own."""
    if unknown := sorted(set(point) - set(own)):
        known = ", ".join(f"{name} = {value!r}" for name, value in own.items())
        raise ValueError(f"unknown parameter(s) {', '.join(unknown)}; the notebook has {known or 'none'}")
    point = {name: plain(value, own[name]) for name, value in point.items()}
    for name, value in point.items():
        if own[name] is not None and type(value) is not type(own[name]):
            hint = ": put it in quotes, \"'...'\"" if isinstance(own[name], str) else ""
            kind = type(own[name]).__name__
            raise ValueError(f"{name} must be of type {kind}, such as {own[name]!r}, got {value!r}{hint}")
    return point


def plain(value: Any, own: Any = None) -> Any:
    """A value of JSON types: tuples, arrays and tensors become lists, and 1 becomes 1.0 if the notebook's own is 0.5.

    Args:
        value: None, a boolean, number or string, or any nesting of these. own: the notebook's own value.
    """
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple | range):
        return [plain(one) for one in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist(), own)
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(
            f"a parameter must be None, True or False, a number, a string, or a list or dict of these, got {value!r}: "
            "build other objects from it in a later cell"
        )
    return float(value) if type(own) is float and type(value) is int else value


def changed(values: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The values that differ from the notebook's own, in the order of its cell."""
    return {
        name: values[name]
        for name in own
        if name in values and json.dumps(plain(values[name], own[name])) != json.dumps(plain(own[name]))
    }


def written(value: Any) -> str:
    """A value as typed on a command line after ``-p NAME``."""
    return value if isinstance(value, str) and _WORD.fullmatch(value) else repr(value)


def run_name(changed: Mapping[str, Any]) -> str:
    """A file name that lists these parameters and differs for any others: ``seeds=3,lr=0.1``."""
    if not changed:
        return OWN
    exact = ",".join(f"{name}={written(value)}" for name, value in changed.items())
    name = re.sub(r"[^\w.+=,-]+", "-", exact, flags=re.ASCII)
    if name == exact and len(name) <= LONGEST_NAME:
        return name
    return f"{name[:LONGEST_NAME]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def command(notebook: str, changed: Mapping[str, Any]) -> str:
    """The command that runs a notebook of the collection with these parameters instead of its own."""
    chosen = [word for name, value in changed.items() for word in ("-p", name, written(value))]
    return shlex.join(["python", "-m", "sp", "figures", f"notebooks/{notebook}.ipynb", *chosen])
