"""Cached decoding against the full forward pass of the decoder that training uses."""

import dataclasses
import functools
import unittest.mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import decode, lora
from models.config import Llama3Rope
from models.decode import decode_step, num_slots, prefill, unstack
from models.kernels import flash_decode, splash
from models.transformer import Decoder, positions
from tests.models.small import perturbed, small_decoder

PLAIN = small_decoder(vocab_size=37, hidden_size=32, intermediate_size=48, rope_theta=100.0)
BIASED = dataclasses.replace(
    PLAIN,
    num_layers=1,
    num_kv_heads=1,
    tie_word_embeddings=True,
    attention_bias=True,
    rope_scaling=Llama3Rope(8.0, 1.0, 4.0, 16),
)
NORMED = dataclasses.replace(PLAIN, query_key_norm=True)
WINDOWED = dataclasses.replace(PLAIN, sliding_window=4)
MANY_HEADS = dataclasses.replace(PLAIN, num_kv_heads=4, num_layers=1)
PROMPT = 6


def parameters(config):
    """Random parameters with biases, and norms that are not 1."""
    tokens = jnp.zeros((1, 2), jnp.int32)
    params = Decoder(config).init(jax.random.key(0), tokens, tokens, tokens == 0)["params"]
    return perturbed(params, seed=1, scale=0.2)


def sequences(length=11):
    """Rows whose prompts, left padded to `PROMPT`, hold 6, 4 and 1 tokens."""
    tokens_bs = np.random.default_rng(0).integers(0, 37, (3, length), np.int32)
    mask_bs = np.arange(length) >= PROMPT - np.array([[6], [4], [1]])
    return tokens_bs, mask_bs


def full_forward(model, variables, tokens_bs, mask_bs):
    """Logits after the prompt and after each later token."""
    logits_bsv = jax.jit(model.apply)(variables, tokens_bs, positions(mask_bs), mask_bs)
    return logits_bsv[:, PROMPT - 1 :]


def cached(weights, config, tokens_bs, mask_bs, prompt=PROMPT, spare=2, attention="reference"):
    """Logits of `full_forward`, from a prefill and one step per token."""
    slots = num_slots(tokens_bs.shape[1] + spare, attention)
    step = jax.jit(decode_step, static_argnums=1, static_argnames="attention")
    read = jax.jit(prefill, static_argnums=(1, 4), static_argnames="attention")
    prompts = tokens_bs[:, :prompt], mask_bs[:, :prompt]
    logits_bv, cache = read(weights, config, *prompts, slots, attention=attention)
    steps = [logits_bv]
    real_bm = np.pad(mask_bs, ((0, 0), (0, slots - mask_bs.shape[1])))
    for slot in range(prompt, tokens_bs.shape[1]):
        key_mask_bm = real_bm & (np.arange(slots) <= slot)
        logits_bv, cache = step(
            weights,
            config,
            tokens_bs[:, slot],
            mask_bs[:, :slot].sum(axis=1),
            jnp.int32(slot),
            cache,
            key_mask_bm,
            attention=attention,
        )
        steps.append(logits_bv)
    return jnp.stack(steps, axis=1)


@pytest.mark.parametrize(
    "config",
    [PLAIN, BIASED, MANY_HEADS, NORMED, WINDOWED],
    ids=["plain", "biased", "mha", "normed", "windowed"],
)
def test_cached_decode_equals_full_forward(config):
    params = parameters(config)
    tokens_bs, mask_bs = sequences()
    expected = full_forward(Decoder(config), {"params": params}, tokens_bs, mask_bs)
    actual = cached(unstack(params, config), config, tokens_bs, mask_bs)
    assert actual.dtype == jnp.float32
    assert np.ptp(expected) > 1  # the comparison means something
    # Sums of other order in float32; logits are of order 1.
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("config", [PLAIN, WINDOWED], ids=["plain", "windowed"])
@pytest.mark.parametrize("attention", ["xla", "splash"])
def test_the_chosen_attention(monkeypatch, attention, config):
    kernels = {}
    for module, name in ((splash, "attend_causal"), (flash_decode, "attend_newest")):
        interpreted = functools.partial(getattr(module, name), interpret=True)
        kernels[name] = unittest.mock.Mock(side_effect=interpreted)
        monkeypatch.setattr(module, name, kernels[name])
    weights = unstack(parameters(config), config)
    arguments = weights, config, *sequences()
    actual = cached(*arguments, attention=attention)
    calls = config.num_layers if attention == "splash" else 0
    assert [kernel.call_count for kernel in kernels.values()] == [calls, calls]
    np.testing.assert_allclose(actual, cached(*arguments), atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 4, PROMPT])
@pytest.mark.parametrize("attention", ["reference", "splash"])
@pytest.mark.parametrize("config", [PLAIN, WINDOWED], ids=["plain", "windowed"])
def test_reading_prompts_in_chunks_changes_nothing(monkeypatch, config, attention, chunk):
    for module, name in ((splash, "attend_causal"), (flash_decode, "attend_newest")):
        monkeypatch.setattr(module, name, functools.partial(getattr(module, name), interpret=True))
    arguments = unstack(parameters(config), config), config, *sequences()
    expected = cached(*arguments)
    monkeypatch.setattr(decode, "CHUNK", chunk)
    actual = cached(*arguments, attention=attention)
    np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_chunks_bound_what_a_long_prompt_needs(monkeypatch):
    weights = jax.eval_shape(lambda: unstack(parameters(PLAIN), PLAIN))
    tokens_bp = jax.ShapeDtypeStruct((2, 1024), jnp.int32)
    mask_bp = jax.ShapeDtypeStruct((2, 1024), jnp.bool_)

    def temporaries(chunk):
        monkeypatch.setattr(decode, "CHUNK", chunk)
        read = jax.jit(lambda *arguments: prefill(arguments[0], PLAIN, *arguments[1:], 1024))
        return (
            read.lower(weights, tokens_bp, mask_bp).compile().memory_analysis().temp_size_in_bytes
        )

    assert temporaries(128) < temporaries(1024) / 4


@pytest.mark.parametrize("config", [PLAIN, WINDOWED], ids=["plain", "windowed"])
def test_padding_changes_nothing(config):
    params = parameters(config)
    tokens_bs, mask_bs = sequences()
    weights = unstack(params, config)
    padded_tokens_bs = np.pad(tokens_bs, ((0, 0), (5, 0)), constant_values=36)
    padded_mask_bs = np.pad(mask_bs, ((0, 0), (5, 0)))
    np.testing.assert_allclose(
        cached(weights, config, padded_tokens_bs, padded_mask_bs, prompt=PROMPT + 5),
        cached(weights, config, tokens_bs, mask_bs),
        atol=1e-5,
    )


def test_adapters_are_merged():
    adapter_config = lora.LoraConfig(rank=2, alpha=6.0, targets=("q", "v", "o", "up"))
    params = parameters(PLAIN)
    adapters = lora.init(jax.random.key(2), params, adapter_config)
    adapters = jax.tree.map(lambda x: x + 0.1, adapters)
    tokens_bs, mask_bs = sequences()
    expected = full_forward(
        Decoder(PLAIN, lora=adapter_config),
        {"params": params, "lora": adapters},
        tokens_bs,
        mask_bs,
    )
    weights = unstack(params, PLAIN, lora=adapters, lora_config=adapter_config)
    actual = cached(weights, PLAIN, tokens_bs, mask_bs)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    without = cached(unstack(params, PLAIN), PLAIN, tokens_bs, mask_bs)
    assert np.abs(without - expected).max() > 0.1


def test_bfloat16_weights_give_bfloat16_computation_and_float32_logits():
    params = parameters(PLAIN)
    tokens_bs, mask_bs = sequences()
    model = Decoder(PLAIN, dtype=jnp.bfloat16)
    expected = full_forward(model, {"params": params}, tokens_bs, mask_bs)
    weights = jax.jit(lambda p: unstack(p, PLAIN, dtype=jnp.bfloat16))(params)
    assert weights["layers"][0]["attention"]["qkv"]["kernel"].dtype == jnp.bfloat16
    assert weights["final_norm"]["scale"].dtype == jnp.float32
    _, cache = jax.eval_shape(lambda w: prefill(w, PLAIN, tokens_bs, mask_bs, 11), weights)
    assert {leaf.dtype for leaf in jax.tree.leaves(cache)} == {jnp.dtype(jnp.bfloat16)}
    actual = cached(weights, PLAIN, tokens_bs, mask_bs)
    assert actual.dtype == jnp.float32
    # Three significant digits per operation; logits reach 6.
    np.testing.assert_allclose(actual, expected, atol=0.15)


def test_bad_arguments_are_named():
    params = parameters(PLAIN)
    tokens_bs, mask_bs = sequences()
    with pytest.raises(ValueError, match="cache_length=10"):
        prefill(unstack(params, PLAIN), PLAIN, tokens_bs, mask_bs, 10)
    with pytest.raises(ValueError, match="lora and lora_config"):
        unstack(params, PLAIN, lora={"layers": {}})
