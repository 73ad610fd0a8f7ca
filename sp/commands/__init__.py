"""What the commands have in common: words that are checked, and exit statuses. Each is the module of its name."""

import argparse
import re
import sys
from collections.abc import Callable, Collection, Sequence
from difflib import get_close_matches
from typing import Any


class Parser(argparse.ArgumentParser):
    """Arguments of a command, with a suggestion where an option is misspelt, as Python gives from 3.14 on."""

    def parse_args(self, args=None, namespace=None):
        chosen, unknown = self.parse_known_args(args, namespace)
        if unknown:
            known = re.findall(r"(?<!\S)--[\w-]+", self.format_help())
            self.error(f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(unknown[0], known)}")
        return chosen


def did_you_mean(word: str, known: Collection[str]) -> str:
    """The end of a message about an unknown word: the known one that comes nearest, or nothing."""
    near = get_close_matches(word, known, 1, 0.5)
    return f": did you mean {near[0]!r}?" if near else ""


def one_of(known: Collection[str]) -> Callable[[str], str]:
    """The ``type`` of an argument that is one of these words."""

    def word(text: str) -> str:
        if text not in known:
            hint = did_you_mean(text, known) or f": it must be one of {', '.join(known)}"
            raise argparse.ArgumentTypeError(f"{text!r} is not known{hint}")
        return text

    return word


def positive(text: str) -> int:
    """A whole number >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """``--dataset``, digits by default."""
    from sp.files import DATASETS  # needs what `sp.extras` looks for, and the list of commands does not

    about = f"{', '.join(DATASETS)} (default: digits)"
    parser.add_argument("--dataset", default="digits", type=one_of(DATASETS), metavar="NAME", help=about)


def add_values(parser: argparse.ArgumentParser, about: str) -> None:
    """``-p NAME VALUES``, once for each name that varies; `values_of` reads them."""
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUES"), help=about)


def values_of(pairs: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Name -> values, of what was given after ``-p``.

    Raises:
        ValueError: a name is given twice, or its values cannot be read.
    """
    from sp.lab import choices

    varied = {}
    for name, text in pairs:
        if name in varied:
            raise ValueError(f"-p {name} is given twice: put all its values into one, v1,v2,...")
        try:
            varied[name] = choices.parse(text)
        except ValueError as error:
            raise ValueError(f"-p {name}: {error}") from error
    return varied


def carry_out(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Parse arguments, call the parser's default ``run`` with them, and return the exit status.

    Returns:
        What ``run`` returns, or 0 for None; 2 for an error that tells the caller what to do, 1 where that is that runs
        failed; 130 when it was stopped.
    """
    chosen = parser.parse_args(arguments)
    chosen.arguments = arguments
    try:
        return chosen.run(chosen) or 0
    except KeyboardInterrupt:
        print("Stopped. What is finished is stored: the same command goes on.", file=sys.stderr)
        return 130
    except (OSError, ValueError, ImportError, LookupError, RuntimeError) as error:
        status = _status(error)
        if status is None:
            raise
        print(error if status == 1 else f"{parser.prog}: {error}", file=sys.stderr)
        return status


def _status(error: Exception) -> int | None:
    """Exit status of an error that tells the caller what to do; None for a fault of the program."""
    if isinstance(error, RuntimeError):
        from sp.lab.data import DataError
        from sp.lab.sweep import SweepError

        return 1 if isinstance(error, SweepError) else 2 if isinstance(error, DataError) else None
    return None if isinstance(error, KeyError | IndexError) else 2
