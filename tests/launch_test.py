"""Every flagfile parses, and its settings are consistent."""

import pathlib

import pytest
from absl import flags

from etpo_jax import accelerators, config, memory
from etpo_jax.mesh import abstract_mesh
from models.config import DecoderConfig
from models.repository import config_folder

ROOT = pathlib.Path(__file__).parent.parent
FLAGFILES = sorted((ROOT / "launch").rglob("*.flags"))
# What each machine has: its kind of device and their number.
MACHINES = {
    "codellama_7b_h200": ("h200", 1),
    "codellama_7b_a100x4": ("a100-40", 4),
    "codellama_7b_v5e_16": ("v5e", 16),
    "codellama_7b_v4_32": ("v4", 16),
    "codellama_7b_v5p_8": ("v5p", 4),
}


@pytest.fixture(autouse=True)
def in_the_root(monkeypatch):
    """Where flagfiles that name others are meant to be used."""
    monkeypatch.chdir(ROOT)


def parse(path):
    values = flags.FlagValues()
    config.define_flags(values)
    flags.DEFINE_string("flagfile", None, "", flag_values=values)
    values(["test", f"--flagfile={path}"])
    return config.from_flags(values)


@pytest.mark.parametrize("path", FLAGFILES, ids=lambda path: path.stem)
def test_flagfile_is_a_configuration(path):
    parse(path)


def test_the_demonstration_is_the_stand_in_on_an_embedded_table():
    demonstration = parse(ROOT / "launch" / "tiny.flags")
    assert demonstration.model.model == "models/tiny"
    assert demonstration.task.dataset == "balance_scale"
    assert demonstration.run.num_env_steps == 480


def test_every_machine_has_its_flagfile():
    names = {path.stem for path in FLAGFILES if path.stem.startswith("codellama_7b_")}
    assert names == set(MACHINES)


@pytest.mark.parametrize("name", MACHINES)
def test_the_plan_fits_the_machine(name):
    kind, count = MACHINES[name]
    run = parse(ROOT / "launch" / f"{name}.flags")
    mesh = abstract_mesh(run.model.mesh)
    assert mesh.size == count
    # Otherwise every device would hold the caches and activations of all rows.
    for rows in (run.learning.num_envs, run.learning.minibatch_size):
        assert rows % mesh.shape["fsdp"] == 0
    decoder = DecoderConfig.from_folder(config_folder(run.model.model))
    assert memory.estimate(run, decoder, mesh).peak <= accelerators.find(kind).num_bytes
