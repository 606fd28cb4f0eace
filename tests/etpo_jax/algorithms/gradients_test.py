"""Compiled gradient steps have the gradient of one network in memory at a time."""

import importlib.util
import json

import jax
import pytest

from etpo_jax.config import Config
from etpo_jax.devices import aot, lowering, memory
from etpo_jax.devices.mesh import abstract_mesh, build_mesh
from models.config import DecoderConfig
from models.repository import config_folder
from tests.models.small import small_decoder

# Parameters take far more memory than the activations of two short rows.
DECODER = small_decoder(
    vocab_size=32,
    hidden_size=128,
    intermediate_size=512,
    num_layers=8,
    num_heads=2,
    num_kv_heads=2,
    head_dim=64,
)
SETTINGS = {
    "support_threshold": 0.0,
    "remat": "full",
    "minibatch_size": 2,
    "max_prompt_length": 32,
    "max_new_tokens": 16,
}


@pytest.mark.parametrize("microbatch_size", [0, 1])
@pytest.mark.parametrize("algorithm", ["etpo", "poad"])
def test_one_gradient_is_alive_at_a_time(algorithm, microbatch_size):
    """With both gradients, or their sums over microbatches, it would be more than four times."""
    flags = {"algorithm": algorithm, "microbatch_size": microbatch_size}
    config = Config.from_dict({**SETTINGS, **flags})
    mesh = build_mesh()
    with jax.set_mesh(mesh):
        compiled = lowering.lower_gradient_step(config, DECODER, mesh).compile()
    resident = memory.estimate(config, DECODER, mesh.abstract_mesh).resident
    (policy,) = [item.num_bytes for item in resident if item.name == "policy"]
    assert compiled.memory_analysis().temp_size_in_bytes < 3.5 * policy


@pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None,
    reason="needs JAX's CUDA plugin (requirements-cuda.txt)",
)
@pytest.mark.slow
@pytest.mark.parametrize("microbatch_size", [0, 1])
def test_one_gradient_is_alive_at_a_time_on_a_card(tmp_path, microbatch_size):
    published = config_folder("codellama/CodeLlama-7b-hf") / "config.json"
    sizes = {
        "vocab_size": 64,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
    }
    (tmp_path / "config.json").write_text(
        json.dumps({**json.loads(published.read_text()), **sizes})
    )
    flags = {**SETTINGS, "model": str(tmp_path), "microbatch_size": microbatch_size}
    config = Config.from_dict({**flags, "mesh": "fsdp:1"})
    (step,) = aot.compile_for(config, "h200", ["gradient_step"])
    decoder = DecoderConfig.from_folder(tmp_path)
    resident = memory.estimate(config, decoder, abstract_mesh("fsdp:1"), "gpu").resident
    (policy,) = [item.num_bytes for item in resident if item.name == "policy"]
    assert step.error == ""
    assert step.temporaries < 3 * policy
