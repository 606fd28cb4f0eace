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
COMPILED = ROOT / ".pytest_cache" / "compiled"


DEMONSTRATION = ("-m", "etpo_jax.train", "--flagfile=tiny.flags", "--num_env_steps=16")


def call(*command, cwd, **environment):
    """Runs a command to its end; its standard output."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(COMPILED), **environment},
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
def rebuilt(sdist, tmp_path_factory):
    """The wheel that is built from the sdist, as an installer without wheels makes it."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (source,) = folder.iterdir()
    for name in ("README.md", "LICENSE", "CITATION.cff", "docs", "tests", "launch/slurm.sh"):
        assert (source / name).exists()
    return build("wheel", source, tmp_path_factory.mktemp("rebuilt"))


def install(wheel, folder):
    """Unpacks a wheel; a caller of Python from a folder that holds nothing of the project."""
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")

    def python(*arguments):
        return call(sys.executable, *arguments, cwd=elsewhere, PYTHONPATH=str(folder / "site"))

    return python


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    return install(wheel, tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def run_dir(python, tmp_path_factory):
    """A finished run of the demonstration's first update."""
    path = tmp_path_factory.mktemp("runs") / "first"
    python(*DEMONSTRATION, f"--run_dir={path}")
    return path


def names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_module_the_stand_in_and_the_flagfiles(wheel, tree):
    expected = {
        str(path.relative_to(tree)) for name in PACKAGES for path in (tree / name).rglob("*.py")
    }
    patterns = ("*/py.typed", "env/tables/*.toml", "models/tiny/*", "models/stand_in/*.json")
    patterns += ("models/stand_in/*.md", "etpo_jax/devices/targets/*.txtpb")
    patterns += tuple(f"etpo_jax/re*/*.{end}" for end in ("css", "toml"))
    patterns += tuple(f"etpo_jax/runs/*.{end}" for end in ("css", "html", "js"))
    for pattern in patterns:
        expected |= {str(path.relative_to(tree)) for path in tree.glob(pattern)}
    for path in (tree / "models" / "configs").rglob("*.*"):
        expected.add(str(path.relative_to(tree)))
    for path in (tree / "launch").rglob("*.flags"):
        expected.add(f"etpo_jax/{path.relative_to(tree)}")
    held = {name for name in names(wheel) if f"-{__version__}.dist-info/" not in name}
    assert held == expected


def test_the_source_distribution_makes_the_same_wheel(rebuilt, wheel):
    assert names(rebuilt) == names(wheel)


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


def rows(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_the_demonstration_runs_outside_the_checkout(run_dir):
    (row,) = rows(run_dir)
    assert row["env_step"] == 16
    assert (run_dir / "report.html").exists()


@pytest.mark.slow
def test_the_wheel_of_the_source_distribution_trains_alike(rebuilt, run_dir, tmp_path):
    install(rebuilt, tmp_path)(*DEMONSTRATION, f"--run_dir={tmp_path / 'run'}")
    (row,), (expected,) = rows(tmp_path / "run"), rows(run_dir)
    for name in ("env_step", "reward_mean", "critic_loss", "policy_loss"):
        assert row[name] == expected[name]


@pytest.mark.slow
def test_evaluation_and_export_run_outside_the_checkout(python, run_dir, tmp_path):
    python("-m", "etpo_jax.export", f"--run_dir={run_dir}", f"--output={tmp_path / 'model'}")
    options = ("--num_samples=8", "--num_envs=8", "--json")
    text = python("-m", "etpo_jax.evaluate", f"--model={tmp_path / 'model'}", *options)
    assert -1 <= json.loads(text)["reward_mean"] <= 1


@pytest.mark.slow
def test_the_example_of_an_own_reward_runs_outside_the_checkout(python, tmp_path):
    shutil.copy(ROOT / "examples" / "own_reward.py", tmp_path)
    program = "import own_reward, sys; own_reward.main(sys.argv[1], num_env_steps=16)"
    program = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {program}"
    assert "A sample of the policy:" in python("-c", program, str(tmp_path / "run"))
    (row,) = rows(tmp_path / "run")
    assert row["env_step"] == 16


@pytest.mark.slow
def test_a_grid_of_two_algorithms_runs_outside_the_checkout(python, tmp_path):
    text = python(
        *("-m", "etpo_jax.reproduce", "--algorithms=etpo,ppo_kl", "--datasets=balance_scale"),
        *("--seeds=0", "--num_env_steps=20", "--tables=2", "--figures=3", f"--output={tmp_path}"),
    )
    assert "2 of 2 cells" in text
    for algorithm in ("etpo", "ppo_kl"):
        assert rows(tmp_path / "runs" / algorithm / "balance_scale" / "0")[-1]["env_step"] == 20
    assert "| balance_scale |" in (tmp_path / "report.md").read_text()


def test_a_plan_is_made_outside_the_checkout(python):
    assert "balance_scale" in python("-m", "etpo_jax.plan", "--flagfile=tiny.flags")
