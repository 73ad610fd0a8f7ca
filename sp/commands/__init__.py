"""What commands share. Each command is the module of the same name; `running` and `grid` run notebooks for them."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sp.checks import did_you_mean


class Parser(argparse.ArgumentParser):
    """Argument parser that suggests corrections for misspelt words, as Python does from 3.14 on."""

    def __init__(self, *words, **named):
        super().__init__(*words, allow_abbrev=False, **named)  # --seed must not be accepted for --seeds

    def error(self, message):
        choice = re.search(r"invalid choice: '(.+?)' \(choose from (.*)\)", message)
        option = re.search(r"unrecognized arguments: (\S+)", message)
        if choice:
            message += did_you_mean(choice[1], re.findall(r"\w[\w-]*", choice[2]))
        elif option:
            message += did_you_mean(option[1], re.findall(r"(?<!\S)--[\w-]+", self.format_help()))
        super().error(message)


def positive(text: str) -> int:
    """A whole number >= 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number >= 1, got {text!r}")
    return int(text)


def add_dataset(parser: argparse.ArgumentParser) -> None:
    """Add ``--dataset``, digits by default."""
    from sp.files import DATASETS  # needs packages that `sp.lab` checks for; listing the commands does not

    about = f"{', '.join(DATASETS)} (default: digits)"
    parser.add_argument("--dataset", default="digits", choices=DATASETS, metavar="NAME", help=about)


def add_values(parser: argparse.ArgumentParser, about: str) -> None:
    """Add ``-p NAME VALUES``, given once for each name that varies; `values_of` reads them."""
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUES"), help=about)


def values_of(pairs: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Name -> values, from what was given after ``-p``."""
    from sp.lab import choices

    varied = {}
    for name, text in pairs:
        if name in varied:
            raise ValueError(f"-p {name} was given twice: give all its values at once, as v1,v2,...")
        try:
            varied[name] = choices.parse(text)
        except ValueError as error:
            raise ValueError(f"-p {name}: {error}") from error
    return varied


def all_notebooks() -> list[Path]:
    """The notebooks of the collection, in order; raises FileNotFoundError if the working directory has none."""
    found = sorted(Path("notebooks").glob("*.ipynb"))
    if not found:
        raise FileNotFoundError(f"{Path('notebooks').absolute()} has no notebooks: go to the project's folder first")
    return found


def carry_out(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Parse arguments, call the parser's default ``run`` with them, and return the exit status.

    Returns:
        What ``run`` returns, or 0 for None; 2 for an error whose message says what to do; 1 if runs failed;
        130 if the command was stopped.
    """
    chosen = parser.parse_args(arguments)
    chosen.arguments = arguments
    try:
        return chosen.run(chosen) or 0
    except KeyboardInterrupt:
        print("Stopped. Finished work is stored: run the same command again to continue.", file=sys.stderr)
        return 130
    except (OSError, ValueError, ImportError, LookupError) as error:
        if isinstance(error, KeyError | IndexError):  # a bug in the program
            raise
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        from sp.lab.sweep import SweepError

        if not isinstance(error, SweepError):
            raise
        print(error, file=sys.stderr)
        return 1
