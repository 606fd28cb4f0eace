"""Flagfiles parse, fit the machines that they are for, and are what launchers start."""

import json
import math
import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml
from absl import flags

from env.flagfiles import expand_flagfiles
from etpo_jax import flags as settings_flags
from etpo_jax.config import Config
from etpo_jax.devices import accelerators, hosts, memory
from etpo_jax.devices.mesh import abstract_mesh
from models.config import DecoderConfig
from models.repository import config_folder

ROOT = pathlib.Path(__file__).parent.parent
LAUNCH = ROOT / "launch"
FLAGFILES = sorted(LAUNCH.rglob("*.flags"))
FULL = "codellama_7b_full.flags"
"""Follows the file of a machine and trains all weights in place of adapters."""
# Kind and number of the devices of each machine.
MACHINES = {
    "codellama_7b_h200": ("h200", 1),
    "codellama_7b_a100x4": ("a100-40", 4),
    "codellama_7b_v5e_16": ("v5e", 16),
    "codellama_7b_v4_32": ("v4", 16),
    "codellama_7b_v5p_8": ("v5p", 4),
}


def parse(*names):
    """Settings of flagfiles in `launch`, one after the other."""
    values = flags.FlagValues()
    settings_flags.define_flags(values)
    arguments = [f"--flagfile={LAUNCH / name}" for name in names]
    values(["test", *expand_flagfiles(arguments)])
    return settings_flags.from_flags(values)


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_flagfile_is_a_configuration(path):
    machine = ["codellama_7b.flags"] if path.name == FULL else []
    parse(*machine, path)


def test_the_demonstration_is_the_stand_in_on_an_embedded_table():
    demonstration = parse("tiny.flags")
    assert demonstration.model.model == "tiny"
    assert demonstration.task.dataset == "balance_scale"
    assert demonstration.run.num_env_steps == 480


def test_the_demonstration_is_the_recommended_method():
    """Nothing that is learnt differs from the defaults of the program."""
    assert parse("tiny.flags").learning == Config().learning


def test_every_machine_has_its_flagfile():
    names = {path.name for path in FLAGFILES if path.name.startswith("codellama_7b_")}
    assert names == {f"{name}.flags" for name in MACHINES} | {FULL}


@pytest.mark.parametrize("finetune", ["lora", "full"])
@pytest.mark.parametrize("name", MACHINES)
def test_the_plan_fits_the_machine(name, finetune, monkeypatch):
    kind, count = MACHINES[name]
    run = parse(f"{name}.flags", *([FULL] if finetune == "full" else []))
    assert (run.finetune.adapters is not None) == (finetune == "lora")
    mesh = abstract_mesh(run.model.mesh)
    assert mesh.size == count
    # Otherwise every device would hold the caches and activations of all rows.
    for rows in (run.run.num_envs, run.learning.minibatch_size):
        assert rows % mesh.shape["fsdp"] == 0
    decoder = DecoderConfig.from_folder(config_folder(run.model.model))
    device = accelerators.find(kind)
    peak = memory.estimate(run, decoder, mesh, device.platform).peak
    for variable in accelerators.FRACTIONS:
        monkeypatch.delenv(variable, raising=False)
    if finetune == "full":
        # The share of a GPU's memory that the flagfile names.
        share = re.search(rf"{accelerators.FRACTION}=([\d.]+)", (LAUNCH / FULL).read_text())
        monkeypatch.setenv(accelerators.FRACTION, share.group(1))
    assert peak <= accelerators.stated_limit(device).num_bytes


# What scripts start lies here, so that it prints its arguments and starts nothing.
ARGUMENTS = '#!/bin/sh\nfor argument in "$@"; do printf \'%s\\n\' "$argument"; done\n'


def start(script, *arguments, path):
    for name in ("gcloud", "srun"):
        (path / name).write_text(ARGUMENTS)
        (path / name).chmod(0o755)
    return subprocess.run(
        ["bash", str(ROOT / "launch" / script), *arguments],
        env={"PATH": f"{path}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "6"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("script", ["tpu_pod.sh", "slurm.sh"])
def test_scripts_say_how_they_are_used(script, tmp_path):
    subprocess.run(["bash", "-n", str(ROOT / "launch" / script)], check=True)
    done = start(script, "only-one", path=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ")


def test_a_pod_starts_the_run_on_every_host(tmp_path):
    flagfile = "launch/codellama_7b_v5e_16.flags"
    arguments = ("etpo", "us-west4-a", flagfile, "/mnt/a run", "--task_description=two words")
    done = start("tpu_pod.sh", *arguments, path=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:7] == [
        "compute",
        "tpus",
        "tpu-vm",
        "ssh",
        "etpo",
        "--zone=us-west4-a",
        "--worker=all",
    ]
    # The remote shell reads it as these words.
    remote = lines[7].removeprefix("--command=cd etpo_jax && exec ")
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {remote}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words == [
        ".venv/bin/python",
        "-m",
        "etpo_jax.train",
        f"--flagfile={flagfile}",
        "--run_dir=/mnt/a run",
        "--hosts=auto",
        "--task_description=two words",
    ]


def test_slurm_starts_a_process_for_each_gpu(tmp_path):
    flagfile = "launch/codellama_7b_a100x4.flags"
    done = start("slurm.sh", flagfile, "runs/a b", "--seed=1", path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        ".venv/bin/python",
        "-m",
        "etpo_jax.train",
        f"--flagfile={flagfile}",
        "--run_dir=runs/a b",
        "--hosts=auto",
        "--executor=local:workers=6",
        "--seed=1",
    ]
    text = (ROOT / "launch" / "slurm.sh").read_text()
    tasks, gpus = (
        int(re.search(rf"#SBATCH --{name}-per-node=(\d+)", text).group(1))
        for name in ("ntasks", "gpus")
    )
    assert tasks == gpus == MACHINES["codellama_7b_a100x4"][1]


def test_offline_carries_what_the_other_machine_lacks(tmp_path):
    python = tmp_path / "python"
    python.write_text(
        """#!/bin/bash
echo "$@" >>"$(dirname "$0")/calls"
[[ $3 == download ]] || exit 0
while [[ $1 != --dest ]]; do shift; done
touch "$2"/{jax-0.11.2,openpyxl-3.1.5,Jinja2-3.1.6,ml_dtypes-0.5.4}-py3-none-any.whl
"""
    )
    python.chmod(0o755)
    installed = tmp_path / "installed.txt"
    installed.write_text("jax==0.11.2\njinja2==3.1.6\nml-dtypes==0.5.4\nopen==1\n")
    environment = {**os.environ, "PYTHON": str(python), "JAX": "0.11.2"}
    script = str(LAUNCH / "offline.sh")
    carried = {}
    for name, arguments in {"all": [], "lacking": [str(installed)]}.items():
        folder = tmp_path / name
        subprocess.run([script, str(folder), *arguments], env=environment, check=True)
        assert (folder / "etpo_jax.tar.gz").stat().st_size > 10_000
        carried[name] = sorted(path.name.split("-")[0] for path in (folder / "wheels").iterdir())
    assert carried == {"all": ["Jinja2", "jax", "ml_dtypes", "openpyxl"], "lacking": ["openpyxl"]}
    whole, lacking = [
        line for line in (tmp_path / "calls").read_text().splitlines() if "pip download" in line
    ]
    assert whole.endswith(
        "jax==0.11.2 jaxlib==0.11.2 --requirement " + str(ROOT / "requirements-cuda.txt")
    )
    assert lacking.endswith(str(ROOT / "requirements.txt"))
    assert "--platform manylinux_2_28_x86_64" in whole
    assert "manylinux_2_29" not in whole


def test_the_jobset_has_the_chips_of_its_flagfile():
    jobset = yaml.safe_load((ROOT / "launch" / "jobset.yaml").read_text())
    (job,) = jobset["spec"]["replicatedJobs"]
    job = job["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    command = container["command"]
    assert command[:3] == ["python", "-m", "etpo_jax.train"]
    values = flags.FlagValues()
    settings_flags.define_flags(values)
    flags.DEFINE_string("hosts", "", "", flag_values=values)
    assert len(values(expand_flagfiles(command[2:], [LAUNCH]))) == 1, "an argument that is no flag"
    assert values["hosts"].value == hosts.AUTOMATIC
    mesh = abstract_mesh(settings_flags.from_flags(values).model.mesh)
    topology = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    chips = int(container["resources"]["limits"]["google.com/tpu"])
    assert mesh.size == math.prod(map(int, topology.split("x"))) == chips * job["parallelism"]
    assert job["parallelism"] == job["completions"]


@pytest.mark.skipif(
    not os.environ.get("ETPO_NETWORK_TESTS"), reason="asks a package index: ETPO_NETWORK_TESTS=1"
)
@pytest.mark.slow
@pytest.mark.parametrize(("platform", "plugin"), [("cuda", "jax-cuda13-plugin"), ("tpu", "libtpu")])
def test_requirements_can_be_met(tmp_path, platform, plugin):
    report = tmp_path / "report.json"
    command = ["install", "--dry-run", "--ignore-installed", "--quiet", f"--report={report}"]
    requirements = ROOT / f"requirements-{platform}.txt"
    subprocess.run(
        [sys.executable, "-m", "pip", *command, f"--requirement={requirements}"], check=True
    )
    found = {
        entry["metadata"]["name"]: entry["metadata"]["version"]
        for entry in json.loads(report.read_text())["install"]
    }
    assert plugin in found
    assert found["jax"] == found["jaxlib"] == found.get("jax-cuda13-plugin", found["jax"])
