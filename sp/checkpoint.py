"""A run's state on disk, so that one that is killed goes on where it was, to the last bit.

The file is a checksum and what ``torch.save`` writes of tensors and plain values: reading it cannot run code.
"""

import hashlib
import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from sp import files


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a state, whole or not at all.

    Args:
        path: the file; its folder is made where it is missing.
        state: tensors, numbers, strings, and lists and dicts of these.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    files.write_atomically(path, hashlib.sha256(buffer.getbuffer()).digest() + buffer.getvalue())


def load(path: Path, key: str) -> dict[str, Any] | None:
    """The state in a file, or None where there is none that can be trusted (a damaged file is warned of).

    Args:
        path: the file.
        key: of the experiment, which the state's ``"key"`` has to be.

    Raises:
        ValueError: the file is intact and belongs to another experiment, or to other rules or data; its state is not
            thrown away.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise ValueError("its checksum is wrong")
        state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as damage:
        warnings.warn(f"{path} is damaged ({damage}) and the run begins again", stacklevel=3)
        return None
    if state.get("key") != key:
        raise ValueError(
            f"{path} is the checkpoint of another experiment, or of another version of the rules or the data: delete "
            "it, or name another file"
        )
    return state
