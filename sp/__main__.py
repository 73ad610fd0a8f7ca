"""Commands of the package: ``python -m sp --help``."""

import argparse
import os
import sys
from importlib import import_module

from sp.commands import Parser, carry_out

# Each command is the module of the same name in `sp.commands`, imported on demand because some take seconds.
COMMANDS = {
    "explore": {
        "compare": "compare methods, including your own, on one stream",
        "sweep": "run a grid or a sample of experiments, with every seed",
    },
    "reproduce": {
        "figures": "run notebooks for their figures, optionally with other parameters or over a grid",
        "paper": "make figures and tables for a paper from stored results, at a journal's size",
        "audit": "recompute a random sample of the committed runs, and fail if one differs",
    },
    "maintain": {
        "refresh": "rerun notebooks in place, storing the outputs that the tests compare",
        "readme": "write the tables of the documents, the gallery of figures and the index of notebooks",
    },
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        Exit status: 0; 1 if runs or notebooks failed; 2 if the command cannot be carried out; 130 if it was stopped.
    """
    known = {name: about for group in COMMANDS.values() for name, about in group.items()}
    parser = Parser(
        prog="python -m sp",
        usage="%(prog)s COMMAND ...",
        description="Options of a command:  python -m sp COMMAND --help",
        epilog="\n\n".join(
            "\n".join([f"{group}:", *(f"  {name:9}{about}" for name, about in members.items())])
            for group, members in COMMANDS.items()
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=known, metavar="COMMAND", help=argparse.SUPPRESS)
    arguments = sys.argv[1:] if arguments is None else arguments
    name = parser.parse_args(arguments[:1]).command
    try:
        import_module("sp.lab")  # says what to install if something is missing
        command = import_module(f"sp.commands.{name}")
    except ImportError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # these imports take seconds
        return 130
    parser = Parser(prog=f"python -m sp {name}", description=command.__doc__)
    command.add_arguments(parser)
    parser.set_defaults(run=command.run)
    return carry_out(parser, arguments[1:])


if __name__ == "__main__":
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    sys.exit(main())
