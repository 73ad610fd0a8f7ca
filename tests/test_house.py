"""The rooms of the package import in one direction, never in a circle, and never the studies."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From bottom to top: a room imports those below it. Rooms on one line do not import each other.
ORDER = [
    ("checks", "files"),
    ("rules",),
    ("biology",),
    ("optim",),
    ("replay",),
    ("sp",),  # what the package offers to a user's own model
    ("rivals",),
    ("lab",),
    ("figures",),
    ("explore",),
    ("commands",),
]
HEART = ("checks", "rules", "biology", "optim", "replay", "sp")
# Modules that lie outside the room they belong to.
ROOM_OF = {"__main__": "commands"}
MODULES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "sp").rglob("*.py")}
MODULES = {path: name.removesuffix(".__init__") for path, name in MODULES.items()}
NAMES = set(MODULES.values())


def imported(path: Path, top_only: bool = False) -> Iterator[str]:
    """Modules that a file imports; with ``top_only`` those that it imports when it is itself imported."""
    tree = ast.parse(path.read_text())
    for node in _at_import(tree) if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in NAMES else node.module


def _at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run at import: not the bodies of functions, nor what is only for type checkers."""
    for child in ast.iter_child_nodes(node):
        types_alone = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not (types_alone or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            yield child
            yield from _at_import(child)


def room(module: str) -> str:
    inside = module.removeprefix("sp.")
    first = inside.partition(".")[0]
    return ROOM_OF.get(inside, ROOM_OF.get(first, first))


def on_request(module: str, other: str) -> bool:
    """Whether an import may happen inside a function, on request.

    A comparison is data, and draws itself on request: `Runs.plot` and `Runs.save`.
    """
    return module == "sp.lab.runs" and room(other) == "figures"


LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_room_imports_only_from_those_below_it(path):
    module, at_once = MODULES[path], set(imported(path, top_only=True))
    for other in imported(path):
        if other not in NAMES or room(other) == room(module) or (on_request(module, other) and other not in at_once):
            continue
        assert LEVEL[room(other)] < LEVEL[room(module)] or other == "sp", f"{module} imports {other}, which lies above"


def test_the_heart_needs_nothing_but_torch():
    for path, module in MODULES.items():
        for other in imported(path) if room(module) in HEART else ():
            its_own = other in NAMES - {"sp"} and room(other) in HEART
            outside = other.split(".")[0] in {"torch", *sys.stdlib_module_names}
            assert its_own or outside, f"{module} imports {other}"


def test_no_module_imports_itself_in_a_circle():
    edges = {
        module: {other for other in imported(path) if other in NAMES - {"sp"} and not on_request(module, other)}
        for path, module in MODULES.items()
    }
    TopologicalSorter(edges).prepare()  # a CycleError names the circle


def test_nobody_in_the_package_imports_the_studies():
    for path, module in MODULES.items():
        assert not [name for name in imported(path) if name.split(".")[0] == "studies"], module
