"""What installs the package: environment file, constraints, README commands."""

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def requirements(project, *extras):
    texts = list(project["dependencies"])
    for extra in extras:
        texts += project["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


def test_constraints_pin_every_dependency(project, pins):
    """Each was installed from the registry at this version, so each exists."""
    extras = set(project["optional-dependencies"]) - {"flash-attn", "all"}
    for requirement in requirements(project, *extras):
        if requirement.name == "maxtoki_toolkit":
            continue
        version = pins[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(version, prereleases=True), f"{requirement} and {version}"


def test_flash_attention_is_never_required(project):
    for extra, texts in project["optional-dependencies"].items():
        if extra != "flash-attn":
            assert not any("flash" in text for text in texts), extra
    assert not any("flash" in text for text in project["dependencies"])


def test_extras(project):
    expected = {
        "train",
        "census",
        "interp",
        "validation",
        "notebook",
        "distributed",
        "files",
        "onnx",
        "flash-attn",
        "all",
        "docs",
        "test",
    }
    assert set(project["optional-dependencies"]) == expected


def test_environment_file(project):
    """It parses, takes only Python and pip from conda-forge, and installs this package with known extras."""
    content = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert content["channels"][0] == "conda-forge"
    conda = [entry for entry in content["dependencies"] if isinstance(entry, str)]
    assert [re.split("[=<>]", entry)[0] for entry in conda] == ["python", "pip"]
    (pip,) = (entry["pip"] for entry in content["dependencies"] if isinstance(entry, dict))
    constraint, package = pip
    assert (ROOT / constraint.removeprefix("-c ")).is_file()
    extras = Requirement(package.replace("-e .", "maxtoki_toolkit")).extras
    assert extras <= set(project["optional-dependencies"])
    assert "3.11" in conda[0]
    assert project["requires-python"] == ">=3.11"


def test_readme_commands_are_those_that_ci_runs():
    readme = (ROOT / "README.md").read_text()
    for marker in ("demo", "tests"):
        found = re.search(rf"<!-- {marker} -->\n```bash\n(.+?)\n```", readme, re.DOTALL)
        assert found, marker
        assert "constraints.txt" in found[1]
    assert "maxtoki demo" in readme
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_shipped_files_are_small():
    resources = ROOT / "maxtoki_toolkit" / "resources"
    data = [resources / "heart_nuclei.h5ad", resources / "myoblast_timecourse.h5ad"]
    assert sum(path.stat().st_size for path in data) < 6e6
    assert sum(path.stat().st_size for path in (resources / "demo").iterdir()) < 16e6


def test_numbers_in_the_readmes_are_those_on_record():
    """Tables are written by benchmarks/tables.py from benchmarks/results, and nobody has touched either since."""
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    found = set()
    for path in tables.FILES:
        text = path.read_text()
        assert tables.fill(text) == text, path
        found |= {name for _, name, _ in tables.MARKED.findall(text)}
    assert found == set(tables.TABLES)
