"""Bytes that stay on a device are exact; those of programs agree with the TPU compiler's.

`tests/benchmarks/plan_against_compiler_test.py` has the figures of the compiler for NVIDIA cards.
"""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from etpo_jax.config import Config
from etpo_jax.devices import memory
from etpo_jax.devices.memory import total
from etpo_jax.devices.mesh import abstract_mesh, build_mesh
from models.config import DecoderConfig
from models.convert import abstract_parameters
from models.repository import config_folder
from models.transformer import Decoder
from tests.models.small import small_decoder

SMALL = small_decoder(vocab_size=32, intermediate_size=32)
GIB = 2**30


def by_name(items):
    return {item.name: item.num_bytes for item in items}


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"finetune": "lora:rank=3", "q_parameterization": "dueling"},
        {"dtype": "bfloat16", "finetune": "full:dtype=bfloat16", "optimizer": "lion"},
        {"policy_loss": "tied", "trust_region": 0.0},
        {"algorithm": "poad"},
        {"algorithm": "ppo_kl", "baseline": "leave_one_out", "finetune": "lora"},
    ],
    ids=["float32", "lora", "bfloat16", "tied", "poad", "ppo_kl"],
)
def test_what_stays_is_what_a_run_allocates(flags):
    config = Config.from_dict({**flags, "support_threshold": 0.0})
    dtype = jnp.dtype(config.model.compute_dtype)
    model = Decoder(SMALL, dtype=dtype, param_dtype=dtype, lora=config.finetune.adapters)
    base = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), abstract_parameters(SMALL, dtype)
    )
    state = config.algorithm(model, base, config, build_mesh()).state
    resident = by_name(memory.estimate(config, SMALL, abstract_mesh("fsdp:1")).resident)
    allocated = {
        "base (reference)": base,
        "policy": state.policy,
        "critic": state.critic,
        "target critic": getattr(state, "target_critic", None),
        "policy optimizer": state.policy_optimizer,
        "critic optimizer": state.critic_optimizer,
    }
    sizes = {
        name: sum(leaf.nbytes for leaf in jax.tree.leaves(tree)) for name, tree in allocated.items()
    }
    assert resident == {name: size for name, size in sizes.items() if size}


def test_shards_follow_the_partition_table():
    whole = memory.estimate(Config(), SMALL, abstract_mesh("fsdp:1")).resident[0]
    parts = memory.estimate(Config(), SMALL, abstract_mesh("fsdp:4,tensor:2")).resident[0]
    norms = 4 * 16 * (2 * 2 + 1)  # float32 scales, which every device has whole
    assert parts.num_bytes == (whole.num_bytes - norms) // 8 + norms
    assert parts.num_parameters == whole.num_parameters


def test_the_reference_is_laid_out_for_generation_where_a_support_mask_reads_it():
    with_mask, without = (
        memory.estimate(
            Config.from_dict({"support_threshold": threshold}), SMALL, abstract_mesh("fsdp:1")
        )
        for threshold in (1e-3, 0.0)
    )
    name = "reference's weights of generation"
    assert by_name(with_mask.resident)[name] == by_name(without.generation)["weights of generation"]
    caches = [by_name(m.generation)["keys and values"] for m in (with_mask, without)]
    assert caches[0] == 2 * caches[1] == 4 * (2 * 2 * 4 * 16 * 2 * (256 + 64) * 8)


def test_weights_of_generation_stay_only_where_they_are_needed_again():
    """See `etpo_jax.loop`: learning before the last collection of an update."""
    cases = ((1, 4, 64, False), (2, 1, 64, False), (2, 4, 64, True), (2, 4, 32, False))
    for steps, updates, replay, expected in cases:
        flags = {
            "steps_per_update": steps,
            "gradient_steps_per_update": updates,
            "replay_size": replay,
        }
        needed = memory.estimate(Config.from_dict(flags), SMALL, abstract_mesh("fsdp:1"))
        assert ("weights of generation" in by_name(needed.gradient_step)) == expected


def test_cudnn_keeps_no_scores():
    plain, fused = (
        by_name(estimate_7b("fsdp:1", attention=name).gradient_step)["activations of a layer"]
        for name in ("reference", "cudnn")
    )
    assert plain - fused == 8 * 4 * 16 * 32 * 768 * 768


def test_untrained_runs_hold_the_base_alone():
    config = Config.from_dict({"algorithm": "reflection", "support_threshold": 0.0})
    needed = memory.estimate(config, SMALL, abstract_mesh("fsdp:1"))
    assert list(by_name(needed.resident)) == ["base (reference)"]
    assert needed.gradient_step == ()
    assert needed.peak == total(needed.resident) + total(needed.generation)


# CodeLlama-7B in bfloat16, prompts of 512 and actions of 256 tokens, 16 transitions: temporaries in
# GiB per chip that the TPU compiler reported (jax 0.10.2, libtpu 0.0.42, `etpo_jax.devices.aot`).
LORA = {"finetune": "lora"}
FULL = {"finetune": "full:dtype=bfloat16"}
WIDE = {"finetune": "full"}
CHUNKS = {"remat": "full:logits=32"}
UPDATES = [
    ("fsdp:16", LORA, 1.56),
    ("fsdp:16", LORA | CHUNKS, 1.43),
    ("fsdp:16", FULL, 2.49),
    ("fsdp:4", LORA, 5.15),
    ("fsdp:4", LORA | CHUNKS, 4.55),
    ("fsdp:4", LORA | CHUNKS | {"remat": "dots"}, 46.35),
    ("fsdp:4", LORA | CHUNKS | {"remat": "none"}, 115.2),
    ("fsdp:4", FULL | CHUNKS, 8.41),
    ("fsdp:4", FULL | CHUNKS | {"microbatch_size": 4}, 18.22),
    ("fsdp:4", WIDE | CHUNKS, 11.66),
    ("fsdp:2,tensor:2", LORA | CHUNKS, 6.78),
    ("fsdp:1", LORA | CHUNKS, 16.85),
]
GENERATIONS = [("fsdp:16", 16, 1.41), ("fsdp:4", 64, 13.60), ("fsdp:1", 8, 11.98)]
SEVEN_B = DecoderConfig.from_folder(config_folder("codellama/CodeLlama-7b-hf"))


def estimate_7b(mesh, **flags):
    common = {"dtype": "bfloat16", "optimizer": "lion", "max_prompt_length": 512}
    common |= {"max_new_tokens": 256, "support_threshold": 0.0}
    config = Config.from_dict({**common, **flags})
    return memory.estimate(config, SEVEN_B, abstract_mesh(mesh))


@pytest.mark.parametrize(("mesh", "flags", "measured"), UPDATES)
def test_a_gradient_step_agrees_with_the_compiler(mesh, flags, measured):
    needed = estimate_7b(mesh, **flags)
    assert total(needed.gradient_step) / GIB == pytest.approx(measured, rel=0.12)


@pytest.mark.parametrize(("mesh", "num_envs", "measured"), GENERATIONS)
def test_generation_agrees_with_the_compiler(mesh, num_envs, measured):
    needed = estimate_7b(mesh, num_envs=num_envs)
    beside = [item for item in needed.generation if item.name != "weights of generation"]
    assert total(beside) / GIB == pytest.approx(measured, rel=0.12)


def test_tied_embeddings_are_stored_twice_for_generation():
    tied = dataclasses.replace(SMALL, tie_word_embeddings=True)
    weights = [
        by_name(memory.estimate(Config(), decoder, abstract_mesh("fsdp:1")).generation)
        for decoder in (tied, SMALL)
    ]
    assert weights[0]["weights of generation"] == weights[1]["weights of generation"]
