"""Programs of a run are lowered from shapes alone; compiling them is tested in plan_test."""

import jax
import pytest

from etpo_jax.acting.endings import AUTOMATA
from etpo_jax.config import Config
from etpo_jax.devices import lowering
from etpo_jax.devices.mesh import build_mesh
from models.config import DecoderConfig
from models.repository import config_folder


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithm": "etpo"},
        {"algorithm": "ppo_kl"},
        {"algorithm": "poad", "finetune": "lora", "microbatch_size": 4},
    ],
    ids=lambda settings: settings["algorithm"],
)
def test_a_gradient_step_is_lowered_without_arrays(settings):
    config = Config.from_dict({"max_prompt_length": 16, "max_new_tokens": 8, **settings})
    mesh = build_mesh()
    decoder = DecoderConfig.from_folder(config_folder("tiny"))
    with jax.set_mesh(mesh):
        lowered = lowering.lower_gradient_step(config, decoder, mesh)
    state, metrics = lowered.out_info
    assert state.policy.keys() == {"lora" if "finetune" in settings else "params"}
    assert {"critic_loss", "policy_grad_norm", "is_finite"} <= metrics.keys()
    assert all(metric.shape == () for metric in metrics.values())


def test_generation_is_lowered_with_room_for_every_ending():
    config = Config.from_dict({"max_prompt_length": 16, "max_new_tokens": 8, "num_envs": 2})
    mesh = build_mesh()
    decoder = DecoderConfig.from_folder(config_folder("tiny"))
    with jax.set_mesh(mesh):
        lowered = lowering.lower_generation(config, decoder, mesh)
    assert lowered.out_info.action_tokens_bj.shape == (2, 8)
    largest = max(len(next_sk) for next_sk in AUTOMATA.values())
    assert f"tensor<{largest}x{decoder.vocab_size}xui8>" in lowered.as_text()


def test_nothing_is_lowered_where_nothing_is_learnt():
    config = Config.from_dict({"algorithm": "reflection"})
    mesh = build_mesh()
    decoder = DecoderConfig.from_folder(config_folder("tiny"))
    with jax.set_mesh(mesh):
        assert lowering.lower_gradient_step(config, decoder, mesh) is None
