"""The rooms of the package import in one direction, nothing in a circle, and nobody in it the studies."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# From below to above: a room imports those below it. Rooms of one line do not import each other.
ORDER = [
    ("checks", "files", "extras"),
    ("rules",),
    ("biology",),
    ("optim",),
    ("replay",),
    ("sp",),  # what the package offers to a model of one's own
    ("rivals",),
    ("lab",),
    ("figures",),
    ("explore",),
    ("commands",),
]
HEART = ("checks", "rules", "biology", "optim", "replay", "sp")
# Modules that lie beside the rooms they belong to.
ROOM_OF = {
    **dict.fromkeys(("__main__", "notebooks", "pages"), "commands"),
}
MODULES = {path: ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "sp").rglob("*.py")}
MODULES = {path: name.removesuffix(".__init__") for path, name in MODULES.items()}
NAMES = set(MODULES.values())
# Imported inside a function, when somebody asks for it: a comparison is data and draws itself on request (`Runs.plot`,
# `Runs.save`, `Runs.latex`).
ON_REQUEST = {("sp.lab.runs", "sp.figures"), ("sp.lab.runs", "sp.figures.tables")}


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
    """Without the bodies of functions, and without what is for type checkers alone."""
    for child in ast.iter_child_nodes(node):
        types_alone = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
        if not (types_alone or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            yield child
            yield from _at_import(child)


def room(module: str) -> str:
    parts = module.split(".")
    if parts[-1] == "parameters":  # a figure's record has those of its notebook
        return "figures"
    name = parts[1] if len(parts) > 1 else "sp"
    return ROOM_OF.get(name, name)


LEVEL = {name: level for level, names in enumerate(ORDER) for name in names}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_room_imports_only_from_those_below_it(path):
    module = MODULES[path]
    for other in imported(path):
        if other not in NAMES or room(other) == room(module) or (module, other) in ON_REQUEST:
            continue
        assert LEVEL[room(other)] < LEVEL[room(module)] or other == "sp", f"{module} imports {other}, which lies above"


def test_the_heart_needs_nothing_but_torch():
    for path, module in MODULES.items():
        if room(module) in HEART:
            others = {name.split(".")[0] for name in imported(path, top_only=True)} - {"sp", "torch"}
            assert others <= set(sys.stdlib_module_names), f"{module} imports {others}"


def test_no_module_imports_itself_in_a_circle():
    edges = {module: {n for n in imported(path) if n in NAMES - {"sp"}} for path, module in MODULES.items()}
    for module, other in ON_REQUEST:
        edges[module].remove(other)
    TopologicalSorter(edges).prepare()  # a CycleError names the circle


def test_nobody_in_the_package_imports_the_studies():
    for path, module in MODULES.items():
        assert not [name for name in imported(path) if name.split(".")[0] == "studies"], module
