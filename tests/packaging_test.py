"""The distribution: what wheel and sdist hold, and programs of the wheel outside the checkout.

Nothing here asks a network. The wheel is built from the tracked files, unpacked into a folder of
its own and run from yet another one, with the libraries of this environment.
"""

import json
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


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The wheel unpacked, and a program's call from a folder that holds nothing of the project."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(module, *arguments):
        return call(
            *(sys.executable, "-m", module, *arguments), cwd=elsewhere, PYTHONPATH=str(site)
        )

    return run


@pytest.fixture(scope="module")
def run_dir(installed, tmp_path_factory):
    """A finished run of the demonstration's first update."""
    path = tmp_path_factory.mktemp("runs") / "first"
    installed("etpo_jax.train", "--flagfile=tiny.flags", "--num_env_steps=16", f"--run_dir={path}")
    return path


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module_the_stand_in_and_the_flagfiles(wheel, tree):
    expected = {
        str(path.relative_to(tree)) for name in PACKAGES for path in (tree / name).rglob("*.py")
    }
    patterns = ("*/py.typed", "env/tables/*.toml", "models/tiny/*", "models/stand_in/*.json")
    patterns += (
        "models/stand_in/*.md",
        *(f"etpo_jax/runs/*.{end}" for end in ("css", "html", "js")),
    )
    for pattern in patterns:
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


@pytest.mark.slow
def test_the_demonstration_runs_outside_the_checkout(run_dir):
    (row,) = map(json.loads, (run_dir / "metrics.jsonl").read_text().splitlines())
    assert row["env_step"] == 16
    assert (run_dir / "report.html").exists()


@pytest.mark.slow
def test_evaluation_and_export_run_outside_the_checkout(installed, run_dir, tmp_path):
    installed("etpo_jax.export", f"--run_dir={run_dir}", f"--output={tmp_path / 'model'}")
    options = ("--num_samples=8", "--num_envs=8", "--json")
    text = installed("etpo_jax.evaluate", f"--model={tmp_path / 'model'}", *options)
    assert -1 <= json.loads(text)["reward_mean"] <= 1


def test_a_plan_is_made_outside_the_checkout(installed):
    assert "balance_scale" in installed("etpo_jax.plan", "--flagfile=tiny.flags")
