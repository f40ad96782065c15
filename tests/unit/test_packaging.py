"""What the sdist and the wheel hold, what they say of themselves, and the licences of what they bring."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PERMISSIVE = re.compile(
    r"(new |3-clause |mit-)?(0?bsd|mit|apache|isc|mpl|mozilla|psf|python software foundation|zlib|cc0|cnri|bsl|llvm)\b"
)


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """The sdist and the wheel made from it, of what git tracks."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(dist) -> zipfile.ZipFile:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as file:
        yield file


@pytest.fixture(scope="module")
def about(wheel) -> Message:
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_is_the_package_with_its_types_and_data_and_nothing_else(wheel):
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    package = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert package >= {name.removeprefix("src/") for name in tracked.splitlines()}
    assert {name.split("/")[0] for name in package} == {"seedtune"}
    assert {"seedtune/py.typed", "seedtune/tasks/data/conciseness_train.jsonl"} <= package
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())


def test_the_wheel_says_its_name_pythons_extras_and_command(wheel, about):
    assert (about["Name"], about["License-Expression"]) == ("seedtune", "Apache-2.0")
    assert about["Requires-Python"] == ">=3.11"
    assert set(about.get_all("Provides-Extra")) == {name.replace("_", "-") for name in PROJECT["optional-dependencies"]}
    for version in ("3.11", "3.12", "3.13"):
        assert f"Programming Language :: Python :: {version}" in about.get_all("Classifier")
    entry = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "seedtune = seedtune.cli:main" in wheel.read(entry).decode()


def test_the_sdist_holds_what_tests_and_documentation_need(dist, about):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "constraints.txt", "mkdocs.yml"} <= names
    assert {"tests/conftest.py", "docs/index.md", "examples/toy.yaml", "scripts/test", "PKG-INFO"} <= names
    assert next(dist.glob("*.tar.gz")).name == f"seedtune-{about['Version']}.tar.gz"


def version_in(folder: Path) -> str:
    code = "import sys; from hatchling.builders.wheel import WheelBuilder as B; print(B('.').metadata.version)"
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_version_is_that_of_the_tag_or_the_next_or_the_fallback(tmp_path):
    pytest.importorskip("hatch_vcs")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.com"]
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"), encoding="utf-8")
    assert version_in(tmp_path) == "0.1.0.dev0"
    for command in ["init -q", "add .", "commit -qm one"]:
        subprocess.run([*git, *command.split()], check=True)
    assert version_in(tmp_path) == "0.1.0.dev1"
    subprocess.run([*git, "tag", "v0.2.0"], check=True)
    assert version_in(tmp_path) == "0.2.0"
    subprocess.run([*git, "commit", "-qm", "two", "--allow-empty"], check=True)
    assert version_in(tmp_path) == "0.2.1.dev1"


def test_a_checkout_on_the_path_that_is_not_installed_has_a_version():
    command = [sys.executable, "-S", "-c", "import seedtune; print(seedtune.__version__)"]
    environment = {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "0+unknown\n"


def test_every_extra_is_documented():
    text = (ROOT / "docs" / "installation.md").read_text(encoding="utf-8")
    assert [name for name in PROJECT["optional-dependencies"] if f"| `{name}` |" not in text] == []


def test_no_package_brought_along_has_another_licence_than_a_permissive_one_or_the_mpl():
    licences = runpy.run_path(str(ROOT / "scripts" / "licences"))["licences"]()
    assert {"numpy", "torch", "datasets"} <= licences.keys()
    for name, (licence, _) in licences.items():
        for part in re.split(r" AND | OR | WITH |, ", licence.lower().replace("(", "").replace(")", "")):
            assert not licence or PERMISSIVE.match(part), f"{name}: {licence}"


def test_every_package_brought_along_is_on_the_page_of_licences():
    licences = runpy.run_path(str(ROOT / "scripts" / "licences"))["licences"]()
    page = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    missing = [name for name, (licence, _) in licences.items() if licence and f"| {name} |" not in page]
    assert missing == [], "run scripts/licences > docs/licences.md"
