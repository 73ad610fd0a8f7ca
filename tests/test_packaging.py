"""What the project says about its dependencies, its commands and itself is consistent."""

import importlib
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from setuptools import find_packages

from sp import lab as laboratory
from sp.__main__ import main

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"pytorch": "torch", "playwright-python": "playwright"}
IMPORT_NAMES = {"scikit-learn": "sklearn"}
NAME = "selective-plasticity"


@pytest.fixture
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def required(project, extra="test"):
    """What an installation with an extra requires; an extra may name other extras of the package."""
    found = {}
    for line in [*project["dependencies"], *project["optional-dependencies"][extra]]:
        requirement = Requirement(line)
        if requirement.name == NAME:
            for other in requirement.extras:
                found |= required(project, other)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def locked():
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.lock").read_text().splitlines()]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines if line}


def test_conda_environment_names_the_same_dependencies_with_the_same_ranges(project):
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    conda = [Requirement(line) for line in dependencies if isinstance(line, str)]
    ranges = {CONDA_NAMES.get(r.name, r.name): str(r.specifier) for r in conda if r.name != "pip"}
    assert ranges.pop("python") == project["requires-python"]
    assert ranges == {name: str(r.specifier) for name, r in required(project).items()}


def test_lock_pins_every_dependency_within_its_range(project):
    pins = locked()
    for name, requirement in required(project).items():
        assert name in pins, f"{name} is not in requirements.lock"
        (pin,) = pins[name].specifier
        assert pin.operator == "==" and requirement.specifier.contains(pin.version)
    assert str(pins["torch"].specifier) == "==2.13.0"


def test_what_is_locked_installs_on_the_oldest_python_that_is_allowed(project):
    """Otherwise pip searches for minutes for another set that goes together, and finds none."""
    (oldest,) = SpecifierSet(project["requires-python"])
    installed = {
        canonicalize_name(found.metadata["Name"]): found.metadata.get("Requires-Python") for found in distributions()
    }
    needs = {name: installed[name] for name in locked() if name in installed}
    assert len(needs) > 100
    refused = {name: need for name, need in needs.items() if need and not SpecifierSet(need).contains(oldest.version)}
    assert not refused


def test_torch_alone_is_installed_unless_an_extra_is_asked_for(project):
    assert [Requirement(line).name for line in project["dependencies"]] == ["torch"]
    assert {*required(project, "lab"), *required(project, "cluster")} < set(required(project))
    lab = set(required(project, "lab")) - {"torch"}
    assert {IMPORT_NAMES.get(name, name) for name in lab} | {"IPython"} == set(laboratory.LAB)


def test_what_is_missing_is_said_with_the_command_that_brings_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pandas", None)  # how Python marks a missing module
    monkeypatch.delitem(sys.modules, "sp.lab", raising=False)
    with pytest.raises(ImportError, match=r"^sp\.lab needs pandas: .* pip install 'selective-plasticity\[lab\]'$"):
        importlib.import_module("sp.lab")
    assert main(["compare", "--method", "adam"]) == 2
    assert capsys.readouterr().err == (
        "sp.lab needs pandas: install what is missing with  pip install 'selective-plasticity[lab]'\n"
    )


def test_the_optional_dendrites_are_pinned(project):
    (extra,) = map(Requirement, project["optional-dependencies"]["dendrites"])
    (pin,) = locked()[extra.name].specifier
    assert pin.operator == "==" and extra.specifier.contains(pin.version)
    assert {"cryptography", "pyyaml", "requests", "safetensors"} <= set(locked())
    assert "torchvision" not in locked()


def test_every_import_of_the_package_is_a_declared_dependency(project):
    modules = {
        "sklearn": "scikit-learn",
        "IPython": "jupyterlab",
        "nbclient": "papermill",
        "nbformat": "papermill",
        "nbconvert": "jupyterlab",
    }
    known = set(required(project, "lab")) | {"sp", "selective-plasticity"}
    for path in [*ROOT.glob("sp/**/*.py"), *ROOT.glob("selective_plasticity/*.py")]:
        for module in re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE):
            if module not in __import__("sys").stdlib_module_names:
                assert modules.get(module, module).replace("_", "-") in known, f"{path.name} imports {module}"


def test_the_wheel_has_every_package_and_says_that_it_is_typed():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = set(find_packages(ROOT, **setuptools["packages"]["find"]))
    folders = {path.parent for room in ("sp", "selective_plasticity") for path in ROOT.glob(f"{room}/**/*.py")}
    assert found == {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    for name in ("sp", "selective_plasticity"):
        assert (ROOT / name / "py.typed").is_file() and "py.typed" in setuptools["package-data"][name]


def test_versions_and_licence_agree(project):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    import sp

    assert project["version"] == sp.__version__ == citation["version"]
    assert project["license"] == citation["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_the_gate_and_the_workflow_call_the_readme_s_commands():
    readme = (ROOT / "README.md").read_text()
    workflows = [yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")]
    steps = [step for workflow in workflows for job in workflow["jobs"].values() for step in job["steps"]]
    runs = {step["run"] for step in steps if "run" in step}
    gate = set(re.findall(r"^make .*", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    promised = {command for command in runs | gate if f"\n{command}" in readme}
    assert promised >= {"make figures", "make test"} and promised <= runs and promised - {"make figures"} <= gate
    assert "make test-alone" in runs & gate


def test_every_make_target_of_the_readme_exists():
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`|\s)make ([a-z][a-z-]*)", readme))
    assert named and named <= targets


def test_help_lists_the_targets():
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("figures", "test", "lab", "bench"):
        assert f"make {target}" in text
