"""What the project says of its dependencies, its commands and itself agrees."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
CONDA_NAMES = {"pytorch": "torch", "playwright-python": "playwright"}


@pytest.fixture
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def required(project):
    lines = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


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


def test_the_gate_runs_the_tests_with_the_optional_dendrites_at_a_pinned_version(project):
    (extra,) = map(Requirement, project["optional-dependencies"]["dendrites"])
    (pin,) = locked()[extra.name].specifier
    assert pin.operator == "==" and extra.specifier.contains(pin.version)
    assert {"cryptography", "pyyaml", "requests", "safetensors"} <= set(locked())
    assert "torchvision" not in locked()
    assert "\nmake dendrites\nmake test\n" in (ROOT / ".ci/run").read_text()


def test_every_import_of_the_package_is_a_declared_dependency(project):
    modules = {
        "sklearn": "scikit-learn",
        "IPython": "jupyterlab",
        "nbclient": "papermill",
        "nbformat": "papermill",
        "nbconvert": "jupyterlab",
    }
    known = set(required(project)) | {"sp", "selective-plasticity"}
    for path in [*ROOT.glob("sp/**/*.py"), *ROOT.glob("selective_plasticity/*.py")]:
        for module in re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE):
            if module not in __import__("sys").stdlib_module_names:
                assert modules.get(module, module).replace("_", "-") in known, f"{path.name} imports {module}"


def test_versions_and_licence_agree(project):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    import sp

    assert project["version"] == sp.__version__ == citation["version"]
    assert project["license"] == citation["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_the_gate_and_the_workflow_call_the_readme_s_commands():
    readme = (ROOT / "README.md").read_text()
    workflow = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())
    runs = [step["run"] for step in workflow["jobs"]["test"]["steps"] if "run" in step]
    assert runs == ["make figures", "make test", "make test-browser"]
    assert all(f"\n{command}" in readme for command in runs)
    assert (ROOT / ".ci/run").read_text().rstrip().endswith("\nmake test\nmake test-browser")


def test_every_make_target_of_the_readme_exists():
    readme = (ROOT / "README.md").read_text()
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`|\s)make ([a-z][a-z-]*)", readme))
    assert named and named <= targets


def test_help_lists_the_targets():
    text = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("figures", "test", "lab", "bench"):
        assert f"make {target}" in text
