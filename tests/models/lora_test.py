"""Adapters: a zero delta at the start, W + alpha / r * A B afterwards, absent when not given."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import lora
from models.blocks import linear
from models.convert import abstract_parameters
from models.lora import TARGETS, LoraConfig
from models.transformer import Decoder, positions
from tests.models.small import small_decoder

CONFIG = small_decoder()
ADAPTED = LoraConfig(rank=3, alpha=6.0, targets=("q", "o", "down"))
TOKENS = jnp.arange(12, dtype=jnp.int32).reshape(2, 6)
MASK = jnp.ones((2, 6), bool)
MODEL = Decoder(CONFIG, lora=ADAPTED)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(MODEL.init)(jax.random.key(0), TOKENS, positions(MASK), MASK)


def logits(variables, model=MODEL):
    return apply(model, variables)


@functools.partial(jax.jit, static_argnums=0)
def apply(model, variables):
    return model.apply(variables, TOKENS, positions(MASK), MASK)


def filled(tree, seed=1):
    """A tree of the same shapes with random values, none of them zero."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), tree
    )


def test_both_ways_of_making_adapters_agree(variables):
    for params in (variables["params"], abstract_parameters(CONFIG, jnp.bfloat16)):
        made = lora.init(jax.random.key(1), params, ADAPTED)
        described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), made)
        assert described == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), variables["lora"])
        for module, name in (("attention", "q"), ("attention", "o"), ("mlp", "down")):
            for tree in (made, variables["lora"]):
                pair = tree["layers"][module][name]
                bound = pair["a"].shape[1] ** -0.5
                assert 0.8 * bound < np.abs(pair["a"]).max() <= bound
                assert (
                    np.abs(pair["a"][0] - pair["a"][1]).max() > 0.1 * bound
                )  # not one key for all
                np.testing.assert_array_equal(pair["b"], 0)


def test_starts_as_the_base_model_which_remains_without_the_collection(variables):
    base = logits({"params": variables["params"]}, Decoder(CONFIG))
    np.testing.assert_array_equal(logits(variables), base)
    np.testing.assert_array_equal(logits({"params": variables["params"]}), base)


def test_merged_parameters_give_the_same_logits(variables):
    adapters = filled(variables["lora"])
    adapted = logits({"params": variables["params"], "lora": adapters})
    merged = lora.merge(variables["params"], adapters, ADAPTED)
    assert jax.tree.structure(merged) == jax.tree.structure(variables["params"])
    np.testing.assert_allclose(logits({"params": merged}, Decoder(CONFIG)), adapted, atol=1e-5)
    assert np.abs(adapted - logits(variables)).max() > 0.1


def test_merging_keeps_the_stored_type_and_adds_in_float32(variables):
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables["params"])
    adapters = filled(variables["lora"])
    merged = lora.merge(params, adapters, ADAPTED)["layers"]["mlp"]["down"]["kernel"]
    pair = adapters["layers"]["mlp"]["down"]
    kernel = np.asarray(params["layers"]["mlp"]["down"]["kernel"], np.float64)
    exact = kernel + 2.0 * np.asarray(pair["a"], np.float64) @ np.asarray(pair["b"], np.float64)
    assert merged.dtype == jnp.bfloat16
    # Rounded once, at the end: all but a few sums next to a boundary are the nearest number.
    nearest = np.asarray(jnp.asarray(exact, jnp.float32).astype(jnp.bfloat16))
    assert np.mean(np.asarray(merged) == nearest) > 0.99


def test_gradient_reaches_every_factor(variables):
    def total(adapters):
        tree = {"params": variables["params"], "lora": adapters}
        return (MODEL.apply(tree, TOKENS, positions(MASK), MASK) ** 2).sum()

    for leaf in jax.tree.leaves(jax.jit(jax.grad(total))(filled(variables["lora"]))):
        assert all(np.abs(layer).max() > 0 for layer in leaf)


def test_linear_by_hand():
    p = {
        "kernel": jnp.array([[1.0, 0.0], [0.0, 1.0]]),
        "bias": jnp.array([10.0, 20.0]),
        "a": jnp.array([[1.0], [2.0]]),
        "b": jnp.array([[3.0, 4.0]]),
    }
    np.testing.assert_array_equal(linear(p, jnp.array([[1.0, 1.0]])), [[20.0, 33.0]])


def test_adapters_of_a_kernel_that_is_no_target_are_refused(variables):
    for model in (Decoder(CONFIG), Decoder(CONFIG, lora=LoraConfig(3, 6.0, ("k", "o", "down")))):
        with pytest.raises(ValueError, match="there is an adapter for q, which is no LoRA target"):
            logits(variables, model)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 1.0, ("q",)), "rank=0"),
        ((4, 0.0, ("q",)), "alpha=0.0"),
        ((4, float("nan"), ("q",)), "alpha=nan"),
        ((4, 1.0, ()), "targets=: must be distinct names of q, k"),
        ((4, 1.0, ("q", "lm_head")), "targets=q,lm_head"),
        ((4, 1.0, ("q", "q")), "targets=q,q"),
    ],
)
def test_bad_settings_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(*values)


def test_every_target_is_a_kernel():
    made = lora.init(
        jax.random.key(0), abstract_parameters(CONFIG, jnp.float32), LoraConfig(2, 2.0, (*TARGETS,))
    )
    names = {(m, name) for m, targets in made["layers"].items() for name in targets}
    assert names == {(module, name) for name, module in TARGETS.items()}
