"""The ledger: one row per finished run, in two layers of one format. A run already in it is read, not run again.

The *user's* layer grows as runs finish. The *committed* layer comes with the repository and holds the runs behind its
figures and tables. Both are folders of text files with one row per line: ``KEY SEAL JSON``. The seal is a hash of key
and JSON, so that a damaged or swapped row is detected and computed again. Rows are data: reading one cannot run code.

Each process appends to its own file, so that several can share a folder, and one that is killed loses at most the row
that it was writing.
"""

import hashlib
import json
import os
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from sp import files
from sp.lab.digest import NoDigest, digest
from sp.lab.experiment import OWN_DATA, Experiment, Result

SEAL = 16  # hexadecimal digits
TABLES = "tables"  # names the file of tables in the committed layer; files of runs are named after data sets


class Ledger:
    """Finished runs, and tables of what was found in them.

    Args:
        folder: folder of the user's layer; default: `sp.files.folder("store")`.
        committed: folder of the committed layer; default: `sp.files.folder("ledger")` if ``folder`` is the default,
            otherwise none.

    With ``SP_FRESH=DATASET`` in the environment, the default committed layer omits that data set's runs and all tables.
    With ``SP_LEDGER_LOG=FILE`` in the environment, a line is added to that file for every row that is used: ``read
    KEY`` or ``computed KEY``.
    """

    def __init__(self, folder: str | os.PathLike | None = None, committed: str | os.PathLike | None = None):
        self.folder = Path(folder) if folder is not None else files.folder("store")
        self._own = _Layer(self.folder)
        self._layers = [self._own]
        left_out = ()
        if committed is None and folder is None:
            committed = files.folder("ledger")
            if dataset := files.fresh():
                left_out = (f"{dataset}.jsonl", f"{TABLES}.jsonl")
        if committed is not None:
            self._layers.append(_Layer(Path(committed), left_out))

    def get(self, experiment: Experiment) -> Result | None:
        """The result of an experiment, or None if there is none that can be trusted."""
        key = experiment.key()
        result = self._find(key, Result.from_row)
        if result is None:
            return None
        if result.experiment != experiment:
            warnings.warn(f"row {key} of the ledger belongs to another experiment and is recomputed", stacklevel=2)
            return None
        _log("read", key)
        return result

    def put(self, result: Result) -> None:
        """Keep a result, unless something in its experiment has no digest; an OSError if it cannot be written."""
        if any(own.obstacle for own in result.experiment.own.values()):
            return
        key = result.experiment.key()
        self._own.append(key, result.as_row())
        _log("computed", key)

    def table(
        self, make: Callable[..., pd.DataFrame], *arguments: Any, missing_too: bool = True, **aside: Any
    ) -> pd.DataFrame | None:
        """What ``make(*arguments, **aside)`` returns, read from the ledger or computed now and kept.

        The key includes a digest of the function's code and of what it calls, so that a table made by other code is
        never taken for this one. If no digest can be made, the table is recomputed each time.

        Args:
            make: returns a table of plain numbers and strings.
            arguments: experiments, functions, plain values.
            missing_too: if False, return None for a table that is not kept.
            aside: arguments that do not change the table, such as a progress callback; not part of the key.
        """
        try:
            parts = [digest(make), *(_part(argument) for argument in arguments)]
        except NoDigest as reason:
            warnings.warn(f"the table of {make.__qualname__} is not kept: {reason}", stacklevel=2)
            return make(*arguments, **aside) if missing_too else None
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]
        kept = self._find(key, lambda row: pd.DataFrame(row["table"]))
        if kept is not None:
            _log("read", key)
            return kept
        if not missing_too:
            return None
        row = {"made_by": make.__qualname__, "table": _columns(make(*arguments, **aside))}
        self._own.append(key, row)
        _log("computed", key)
        return pd.DataFrame(json.loads(json.dumps(row["table"])))  # as it will be read

    def results(self) -> list[Result]:
        """Every result that can be trusted and was made under the present rules, sorted by key."""
        return [result for key, result in self.by_key().items() if result.experiment.key() == key]

    def by_key(self) -> dict[str, Result]:
        """Every result by the key under which it is kept, including those made under older rules."""
        keys = sorted({key for layer in self._layers for key in layer.known()})
        rows = {key: self._find(key, lambda row: Result.from_row(row) if "experiment" in row else None) for key in keys}
        return {key: result for key, result in rows.items() if result is not None}

    def check_writable(self) -> None:
        """Write a file and delete it again, so that a long run does not end with a result that cannot be kept."""
        probe = self.folder / f".probe{os.getpid()}"
        files.write_atomically(probe, bytes(2**16))
        probe.unlink(missing_ok=True)

    def commit(self, keys: Iterable[str], instead_of: str | None = None) -> int:
        """Write rows from either layer into the project's committed layer, one file per data set.

        Rows that the present rules would not make are left out. If ``instead_of`` names a data set, so are
        tables, rows on it and rows on user-supplied arrays, unless they are in ``keys``.

        Returns:
            The number of rows that the committed layer then has.
        """
        folder = files.folder("ledger")
        wanted = set(keys)
        before = _Layer(folder)
        rows: dict[str, dict[str, dict]] = {}
        for key in sorted({*wanted, *before.known()}):
            row = self._find(key, dict) or before.find(key)
            if row is None:
                continue
            name = TABLES
            if "experiment" in row:
                try:
                    experiment = Experiment.from_dict(row["experiment"])
                except ValueError:  # it names a method or network that no longer exists
                    continue
                name = experiment.dataset
                if experiment.key() != key:
                    continue
            if key not in wanted and instead_of is not None and name in (instead_of, TABLES, OWN_DATA):
                continue
            rows.setdefault(name, {})[key] = row
        for path in folder.glob("*.jsonl"):
            if path.stem not in rows:
                path.unlink()
        for name, found in rows.items():
            lines = b"".join(_line(key, row) for key, row in found.items())
            files.write_atomically(folder / f"{name}.jsonl", lines)
        return sum(map(len, rows.values()))

    def _find(self, key: str, read: Callable[[dict], Any]) -> Any:
        for layer in self._layers:
            try:
                row = layer.find(key)
                if row is not None:
                    return read(row)
            except (ValueError, KeyError, TypeError, AttributeError) as damage:
                warnings.warn(f"row {key} of {layer.folder} is damaged ({damage}); it is recomputed", stacklevel=3)
        return None


def opened() -> Ledger:
    """The ledger of the project, opened once per process."""
    return _opened(files.folder("store"), files.folder("ledger"), files.fresh())


@cache
def _opened(*place: Any) -> Ledger:
    return Ledger()


@dataclass
class _Layer:
    """Rows in a folder, by key. If two rows share a key, the later one wins. Files in ``left_out`` are not read."""

    folder: Path
    left_out: tuple[str, ...] = ()
    _rows: dict[str, bytes] = field(default_factory=dict)
    _read: dict[str, tuple[int, int, bytes]] = field(default_factory=dict)  # per file: inode, bytes read, last line
    _file: Path | None = None
    _reading: threading.Lock = field(default_factory=threading.Lock)  # a panel reads in its own thread

    def known(self) -> list[str]:
        self._catch_up()
        return list(self._rows)

    def find(self, key: str) -> dict | None:
        if key not in self._rows:
            self._catch_up()
        content = self._rows.get(key)
        return None if content is None else json.loads(content)

    def append(self, key: str, row: dict) -> None:
        if self._file is None:
            self._file = self.folder / f"{uuid.uuid4().hex}.jsonl"
        line = _line(key, row)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab", buffering=0) as file:
                if file.write(line) != len(line):
                    raise OSError("only part of it could be written: the disk is full")
        except OSError as error:
            self._file = None  # the next row must not follow half a line
            raise files.cannot_write(self.folder, error) from error
        self._rows[key] = _content(line)

    def _catch_up(self) -> None:
        """Read what was added since the last time, also by other processes."""
        try:
            names = {entry.name for entry in os.scandir(self.folder) if entry.name.endswith(".jsonl")}
        except (FileNotFoundError, NotADirectoryError):
            return
        with self._reading:
            for name in sorted(names.difference(self.left_out)):
                self._rows.update(self._new_rows(name))

    def _new_rows(self, name: str) -> Iterator[tuple[str, bytes]]:
        path = self.folder / name
        if path.is_dir():
            return
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            inode, start, last = self._read.get(name, (about.st_ino, 0, b""))
            file.seek(start - len(last))
            # A file that replaced another, for example in `Ledger.commit`, may get the inode of an earlier one.
            if inode != about.st_ino or file.read(len(last)) != last:
                start, last = 0, b""
                file.seek(0)
            added = file.read()
        # A last line without a newline is still being written, or its process was killed while writing it.
        whole = added[: added.rfind(b"\n") + 1]
        last = whole[whole.rfind(b"\n", 0, -1) + 1 :] or last
        self._read[name] = about.st_ino, start + len(whole), last
        damaged = 0
        for line in whole.splitlines():
            key, _, rest = line.partition(b" ")
            seal, _, content = rest.partition(b" ")
            if seal == _seal(key, content):
                yield key.decode(), content
            else:
                damaged += 1
        if damaged:
            warnings.warn(f"{path}: {damaged} damaged row(s), which are recomputed", stacklevel=5)


def _line(key: str, row: dict) -> bytes:
    content = json.dumps(row, separators=(",", ":")).encode()
    return b" ".join((key.encode(), _seal(key.encode(), content), content)) + b"\n"


def _content(line: bytes) -> bytes:
    return line.split(b" ", 2)[2].rstrip(b"\n")


def _seal(key: bytes, content: bytes) -> bytes:
    return hashlib.sha256(key + b" " + content).hexdigest()[:SEAL].encode()


def _columns(table: pd.DataFrame) -> dict[str, list]:
    """Plain values by column, numbers to six digits, which is more than any of them warrants."""
    columns = {}
    for name in table:
        values = table[name].astype(object).where(table[name].notna(), None)
        columns[name] = [float(f"{value:.6g}") if isinstance(value, float) else value for value in values]
    return columns


def _part(argument: Any) -> Any:
    """What represents an argument in a key."""
    if isinstance(argument, Experiment):
        return argument.key()
    return digest(argument) if callable(argument) else {"value": argument}


def _log(what: str, key: str) -> None:
    if path := os.environ.get("SP_LEDGER_LOG"):
        with open(path, "ab", buffering=0) as file:
            file.write(f"{what} {key}\n".encode())
