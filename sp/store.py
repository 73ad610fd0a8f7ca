"""Finished runs on disk: what was run once is read, not run again."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from sp import files
from sp.experiment import Experiment, Result, run


class Store:
    """Finished runs in a folder, a JSON file each, named by the experiment's hash.

    Beside a result, tables of what was seen in the run may be kept. Writes are atomic, so a run that is killed leaves
    no half file and several processes may share a store. Files hold data only: reading one cannot run code. A damaged
    file is recomputed, with a warning.

    Args:
        folder: where; default is `sp.files.folder("store")`.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self.folder = Path(folder) if folder is not None else files.folder("store")

    def path(self, experiment: Experiment) -> Path:
        """Where the result of an experiment lies, or would."""
        key = experiment.key()
        return self.folder / key[:2] / f"{key}.json"

    def get(self, experiment: Experiment) -> Result | None:
        """The stored result, or None where there is none that can be trusted."""
        path = self.path(experiment)
        result = _read(path, _result)
        if result is not None and result.experiment != experiment:
            warnings.warn(f"{path} holds another experiment and is computed again", stacklevel=2)
            return None
        return result

    def all(self) -> list[Result]:
        """Every stored result that can be trusted and that the present rules made, in the order of their names."""
        read = ((path, _read(path, _result)) for path in sorted(self.folder.glob("??/*.json")) if "-" not in path.name)
        return [result for path, result in read if result is not None and self.path(result.experiment) == path]

    def get_table(self, experiment: Experiment, name: str) -> pd.DataFrame | None:
        """The table kept under this name beside the result, or None as in `get`."""
        return _read(self._table_path(experiment, name), lambda body: pd.DataFrame(json.loads(body)))

    def put_table(self, experiment: Experiment, name: str, table: pd.DataFrame) -> None:
        """Keep a table of plain numbers and names beside the result; errors as in `put`."""
        body = json.dumps(table.to_dict(orient="list"))
        files.write_atomically(self._table_path(experiment, name), _sealed(body))

    def _table_path(self, experiment: Experiment, name: str) -> Path:
        return self.path(experiment).with_name(f"{experiment.key()}-{name}.json")

    def put(self, result: Result) -> None:
        """Keep a result.

        Raises:
            OSError: the folder cannot be written; the message names it. What was stored before is untouched.
        """
        body = json.dumps(result.as_dict(), sort_keys=True)
        files.write_atomically(self.path(result.experiment), _sealed(body))

    def check_writable(self) -> None:
        """Write something and delete it again, so that a long run does not end where its result cannot be kept.

        Raises:
            OSError: as `put`.
        """
        probe = self.folder / f".probe{os.getpid()}"
        files.write_atomically(probe, bytes(2**16))
        probe.unlink(missing_ok=True)

    def run(self, experiment: Experiment, progress: bool = False, checkpoint_every: int | None = None) -> Result:
        """The stored result, else a new one, stored.

        With ``checkpoint_every``, a run that is killed goes on at the next call from a checkpoint beside its result.
        """
        result = self.get(experiment)
        if result is None:
            options = {}
            if checkpoint_every is not None:
                path = self.path(experiment).with_suffix(".checkpoint")
                options = {"checkpoint_path": path, "checkpoint_every": checkpoint_every}
            result = run(experiment, progress=progress, **options)
            self.put(result)
        return result


def _sealed(body: str) -> str:
    return json.dumps({"sha256": hashlib.sha256(body.encode()).hexdigest(), "result": body})


def _read(path: Path, parse: Callable[[str], Any]) -> Any:
    """What a sealed file holds, or None where it is missing, or damaged, which is warned of."""
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        envelope = json.loads(content.decode())
        if hashlib.sha256(envelope["result"].encode()).hexdigest() != envelope["sha256"]:
            raise ValueError("its checksum is wrong")
        return parse(envelope["result"])
    except (ValueError, KeyError, TypeError) as damage:
        warnings.warn(f"{path} is damaged ({damage}) and is computed again", stacklevel=3)
        return None


def _result(body: str) -> Result:
    return Result.from_dict(json.loads(body))
