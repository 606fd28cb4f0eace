"""The distribution: what wheel and sdist hold, and that each requirement is stated alike."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from env.version import __version__
from etpo_jax import cli

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PACKAGES = ("env", "etpo_jax", "models")


def call(*command, cwd, **environment):
    """Runs a command to its end; its standard output."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(kind, source, folder):
    """Builds a "wheel" or "sdist" as an installer does, with the backend that is installed."""
    program = f"import sys; from setuptools import build_meta; build_meta.build_{kind}(sys.argv[1])"
    folder.mkdir(exist_ok=True)
    call(sys.executable, "-c", program, str(folder), cwd=source)
    (archive,) = folder.iterdir()
    return archive


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the files that belong to the project."""
    tree = tmp_path_factory.mktemp("tree")
    listed = call(
        *("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"), cwd=ROOT
    )
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, tree / name)
    return tree


@pytest.fixture(scope="module")
def wheel(tree, tmp_path_factory):
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tree, tmp_path_factory):
    return build("sdist", tree, tmp_path_factory.mktemp("sdist"))


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module_the_stand_in_and_the_flagfiles(wheel, tree):
    expected = {
        str(path.relative_to(tree)) for name in PACKAGES for path in (tree / name).rglob("*.py")
    }
    for pattern in ("*/py.typed", "env/tables/*.toml", "models/tiny/*", "models/stand_in/*.json"):
        expected |= {str(path.relative_to(tree)) for path in tree.glob(pattern)}
    for path in (tree / "models" / "configs").rglob("*.*"):
        expected.add(str(path.relative_to(tree)))
    for path in (tree / "launch").rglob("*.flags"):
        expected.add(f"etpo_jax/{path.relative_to(tree)}")
    held = {name for name in names(wheel) if f"-{__version__}.dist-info/" not in name}
    assert held == expected


def test_the_source_distribution_makes_the_same_wheel(sdist, wheel, tmp_path):
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    for name in ("README.md", "LICENSE", "CITATION.cff", "docs", "tests", "launch/slurm.sh"):
        assert (source / name).exists()
    assert names(build("wheel", source, tmp_path / "wheel")) == names(wheel)


def test_version_and_command_are_those_of_the_project(wheel):
    assert wheel.name == f"etpo_jax-{__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        information = f"etpo_jax-{__version__}.dist-info"
        commands = archive.read(f"{information}/entry_points.txt").decode()
        metadata = archive.read(f"{information}/METADATA").decode()
    assert "etpo = etpo_jax.cli:main" in commands
    required = re.findall(r"^Requires-Dist: (.*)$", metadata, re.MULTILINE)
    ours = [normal(text) for text in required if "extra ==" not in text]
    assert sorted(ours) == sorted(lines("requirements.txt"))


def normal(requirement):
    """A requirement without what different writers write differently."""
    name, _, marker = requirement.replace('"', "'").partition(";")
    name, bounds = re.fullmatch(r"\s*([^<>=!~ ]+)\s*(.*?)\s*", name).groups()
    return name.lower(), frozenset(filter(None, bounds.split(","))), marker.strip()


def lines(name):
    """The requirements of a file, without those that it includes."""
    text = re.sub(r"(^|\s)#.*", "", (ROOT / name).read_text())
    return [
        normal(line) for line in text.splitlines() if line.strip() and not line.startswith("-r")
    ]


@pytest.mark.parametrize(
    "extra", sorted(path.stem.partition("-")[2] for path in ROOT.glob("requirements-*.txt"))
)
def test_extras_agree_with_the_requirements_files(extra):
    listed = PROJECT["optional-dependencies"][extra]
    assert [normal(line) for line in listed] == lines(f"requirements-{extra}.txt")


def test_the_citation_names_the_authors_and_the_license_of_the_package():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["authors"] == PROJECT["authors"]
    assert citation["license"] == PROJECT["license"]
    assert citation["preferred-citation"]["url"] == PROJECT["urls"]["Paper"]


def test_every_program_of_the_command_exists():
    programs = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for package in PACKAGES
        for path in (ROOT / package).glob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    }
    assert {module for module, _ in cli.PROGRAMS.values()} == programs
