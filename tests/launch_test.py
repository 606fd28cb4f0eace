"""Every flagfile parses, and its settings are consistent."""

import pathlib

import pytest
from absl import flags

from etpo_jax import config

ROOT = pathlib.Path(__file__).parent.parent
FLAGFILES = sorted((ROOT / "launch").rglob("*.flags"))


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
