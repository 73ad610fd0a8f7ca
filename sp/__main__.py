"""Commands: ``python -m sp --help``."""

import argparse
import os
import sys
from pathlib import Path

from sp.figures import documents
from sp.figures.commands import add_commands as add_drawing
from sp.files import write_atomically


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        Exit status: 0; 1 when runs or notebooks failed; 2 when the command cannot be carried out; 130 when it was
        stopped.
    """
    parser = argparse.ArgumentParser(prog="python -m sp", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    arguments = sys.argv[1:] if arguments is None else arguments
    add_drawing(commands)
    if not arguments or arguments[0] not in commands.choices:
        # What the other commands need takes seconds to import, which drawing a figure again must not wait for.
        from sp.commands import add_commands

        add_commands(commands)
        _add_readme(commands)
    return carry_out(parser, arguments)


def carry_out(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Parse arguments, run the command that they name, and return its exit status."""
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


def _add_readme(commands) -> None:
    parser = commands.add_parser(
        "readme",
        help="write the tables of the documents, the gallery of figures, the index of notebooks",
    )
    parser.set_defaults(run=_readme)


def _readme(_: argparse.Namespace) -> None:
    for page in map(Path, documents.FILLED):
        write_atomically(page, documents.fill_tables(page.read_text()))
    write_atomically(Path("figures/README.md"), documents.gallery())
    write_atomically(Path("notebooks/README.md"), documents.index())


if __name__ == "__main__":
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    sys.exit(main())
