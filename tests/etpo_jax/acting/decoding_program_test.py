"""What compilers make of decoding: nothing large is copied, and nothing waits for data inside."""

import importlib.util

import jax
import pytest

from etpo_jax.config import Config
from etpo_jax.devices import aot, compiled_figures, compiled_program, lowering
from etpo_jax.devices.mesh import build_mesh
from models.config import DecoderConfig
from models.repository import config_folder

# The larger number of tokens makes two loops, which read different parts of the cache.
SETTINGS = {"max_prompt_length": 32, "num_envs": 4, "max_new_tokens": 128}
SETTINGS |= {"model": "tiny", "top_k": 50, "top_p": 0.9, "support_threshold": 0.0}
# A cache of one layer has 2 MiB and the smallest kernel more than this.
SMALL_BYTES = 4096


def program_of_this_machine(config):
    decoder, mesh = DecoderConfig.from_folder(config_folder(config.model.model)), build_mesh()
    with jax.set_mesh(mesh):
        lowered = lowering.lower_generation(config, decoder, mesh)
    return compiled_program.parse(lowered.compile().as_text())


def test_loops_of_a_cpu_copy_no_cache_and_no_weights():
    program = program_of_this_machine(Config.from_dict(SETTINGS))
    largest = max(loop.num_bytes for loop in program.loops())
    loops = [loop for loop in program.loops() if loop.num_bytes > largest / 2]
    assert len(loops) >= 2
    for loop in loops:
        seen = compiled_figures.figures(program, loop.called("body"))
        assert seen.kernels > 10
        assert seen.largest_copy < SMALL_BYTES


@pytest.mark.slow
@pytest.mark.parametrize(
    ("device", "compiler"), [("h200", "jax_cuda13_plugin"), ("v5e:1x1", "libtpu")]
)
def test_a_token_of_an_accelerator_has_no_loop_that_depends_on_data(device, compiler):
    if importlib.util.find_spec(compiler) is None:
        pytest.skip(f"needs {compiler}")
    config = Config.from_dict({**SETTINGS, "dtype": "bfloat16"})
    (generation,) = aot.compile_for(config, device, ["generation"])
    assert generation.error == ""
    assert generation.figures.kernels > 10
    assert generation.figures.data_dependent_loops == 0
    assert generation.figures.largest_copy < SMALL_BYTES
