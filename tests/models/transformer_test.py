"""Contracts of the decoder; `golden_test` compares its values with PyTorch."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.config import DecoderConfig
from models.convert import abstract_parameters
from models.lora import TARGETS, LoraConfig
from models.transformer import REMAT, Decoder, positions
from tests.models.small import products, small_decoder

CONFIG = small_decoder(attention_bias=True)
CODE_LLAMA_7B = DecoderConfig(
    vocab_size=32016,
    hidden_size=4096,
    intermediate_size=11008,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    rope_theta=1e6,
    rope_scaling=None,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    attention_bias=False,
    max_position_embeddings=16384,
)


def random_params(config, seed=0):
    """Parameters large enough that every part of the network matters."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32),
        abstract_parameters(config, jnp.float32),
    )


def random_inputs(batch=3, length=10, seed=0):
    tokens = np.random.default_rng(seed).integers(0, CONFIG.vocab_size, (batch, length), np.int32)
    return jnp.asarray(tokens), jnp.ones((batch, length), bool)


@jax.jit
def logits_of(params, tokens, mask):
    return Decoder(CONFIG).apply({"params": params}, tokens, positions(mask), mask)


@functools.partial(jax.jit, static_argnums=0)
def hidden_of(model, params, tokens, mask):
    return model.apply({"params": params}, tokens, positions(mask), mask, method="hidden")


def shapes(tree):
    return jax.tree.map(lambda leaf: leaf.shape, tree)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("biased", [False, True])
def test_new_parameters_are_those_of_the_table(tied, biased):
    config = dataclasses.replace(CONFIG, tie_word_embeddings=tied, attention_bias=biased)
    tokens, mask = random_inputs()
    model = Decoder(config, param_dtype=jnp.bfloat16)
    made = jax.eval_shape(model.init, jax.random.key(0), tokens, positions(mask), mask)
    assert set(made) == {"params"}
    assert shapes(made["params"]) == shapes(abstract_parameters(config, jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype(jnp.bfloat16)}


def test_positions_count_real_tokens():
    mask = jnp.array([[0, 0, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]], bool)
    expected = [[0, 0, 0, 1], [0, 1, 0, 0], [0, 1, 2, 3]]
    np.testing.assert_array_equal(positions(mask), expected)
    assert positions(mask).dtype == jnp.int32


def test_padding_moves_nothing():
    params = random_params(CONFIG)
    tokens, mask = random_inputs(batch=1, length=6)
    plain = logits_of(params, tokens, mask)[0]
    rows = [(4, 0), (0, 4), (1, 3)]
    padded = jnp.concatenate([jnp.pad(tokens, ((0, 0), row), constant_values=7) for row in rows])
    real = jnp.concatenate([jnp.pad(mask, ((0, 0), row)) for row in rows])
    logits = logits_of(params, padded, real)
    assert np.isfinite(logits).all()
    # Whatever the ids of padding are, not a bit of a real position moves.
    other = logits_of(params, jnp.where(real, padded, 11), real)
    for row, (left, _) in enumerate(rows):
        np.testing.assert_allclose(logits[row, left : left + 6], plain, atol=1e-4)
        np.testing.assert_array_equal(logits[row, left : left + 6], other[row, left : left + 6])


def test_later_tokens_change_nothing():
    params = random_params(CONFIG)
    tokens, mask = random_inputs()
    before = logits_of(params, tokens, mask)
    after = logits_of(params, tokens.at[:, 6].add(1) % CONFIG.vocab_size, mask)
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert np.abs(before[:, 6:] - after[:, 6:]).max() > 0.1


def test_hidden_then_logits_of_chosen_positions():
    params = random_params(CONFIG)
    tokens, mask = random_inputs()
    model = Decoder(CONFIG)
    hidden = hidden_of(model, params, tokens, mask)
    logits = model.apply({"params": params}, hidden[:, 4:7], method="logits")
    assert hidden.shape == (3, 10, 16)
    np.testing.assert_allclose(logits, logits_of(params, tokens, mask)[:, 4:7], atol=1e-5)


@pytest.mark.parametrize("num_layers", [1, 2, 5])
def test_the_last_positions_alone_are_those_of_all(num_layers):
    """Values and gradients agree, whether or not the last layer is computed there alone."""
    config = dataclasses.replace(CONFIG, num_layers=num_layers)
    params = random_params(config)
    tokens, mask = random_inputs()
    mask = mask.at[0, :3].set(False)

    def last_four(params, last):
        model = Decoder(config, remat="full")
        hidden = model.apply(
            {"params": params}, tokens, positions(mask), mask, last, method="hidden"
        )[:, -4:]
        return jnp.sum(jnp.sin(hidden)), hidden

    gradient = jax.jit(jax.grad(last_four, has_aux=True), static_argnums=1)
    (one, whole), (other, alone) = gradient(params, None), gradient(params, 4)
    assert alone.shape == (3, 4, 16)
    np.testing.assert_allclose(alone, whole, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), one, other)


def loss(model, params, tokens, mask):
    logits = model.apply({"params": params}, tokens, positions(mask), mask)
    return jnp.mean(jax.nn.logsumexp(logits, -1) - logits[..., 3])


@functools.partial(jax.jit, static_argnums=0)
def gradient_of(model, params, tokens, mask):
    return jax.grad(lambda p: loss(model, p, tokens, mask))(params)


def test_remat_changes_memory_and_no_gradient():
    config = dataclasses.replace(CONFIG, tie_word_embeddings=True)
    params = random_params(config)
    tokens, mask = random_inputs()
    tokens = tokens % 20  # the rest of the vocabulary is only written
    gradients, saved = {}, {}
    for remat in REMAT:
        model = Decoder(config, remat=remat)
        if remat != "dots":  # one compilation less
            gradients[remat] = gradient_of(model, params, tokens, mask)
        _, pull = jax.eval_shape(
            lambda p, model=model: jax.vjp(lambda p: loss(model, p, tokens, mask), p), params
        )
        saved[remat] = sum(leaf.size for leaf in jax.tree.leaves(pull))
    assert saved["full"] < saved["dots"] < saved["none"]
    jax.tree.map(
        lambda one, other: np.testing.assert_allclose(one, other, atol=1e-5),
        gradients["none"],
        gradients["full"],
    )
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients["none"]))
    # A tied embedding learns from both ends: tokens that are read, and any that is written.
    rows = np.abs(gradients["none"]["embedder"]["embedding"]).max(-1)
    assert rows[:20].mean() > rows[20:].mean() > 0
    with pytest.raises(ValueError, match="remat=some: must be one of none, full, dots"):
        gradient_of(Decoder(CONFIG, remat="some"), params, tokens, mask)


def test_bfloat16_computes_on_float32_masters():
    params = random_params(CONFIG)
    tokens, mask = random_inputs()
    model = Decoder(CONFIG, dtype=jnp.bfloat16)
    hidden = hidden_of(model, params, tokens, mask)
    logits = model.apply({"params": params}, hidden, method="logits")
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    exact = logits_of(params, tokens, mask)
    error = np.sqrt(np.mean((logits - exact) ** 2) / np.mean(exact**2))
    assert 1e-4 < error < 0.03  # 8 bits of mantissa
    gradients = jax.eval_shape(functools.partial(gradient_of, model), params, tokens, mask)
    assert {leaf.dtype for leaf in jax.tree.leaves(gradients)} == {jnp.dtype(jnp.float32)}


def test_program_does_not_grow_with_layers():
    tokens, mask = random_inputs()

    def size(num_layers):
        config = dataclasses.replace(CONFIG, num_layers=num_layers)
        params = abstract_parameters(config, jnp.float32)
        model = Decoder(config, remat="full")
        step = jax.jit(jax.grad(lambda p: loss(model, p, tokens, mask)))
        return len(step.lower(params).as_text())

    assert size(12) < 1.01 * size(2)


def test_code_llama_7b_in_full_size():
    """Abstract evaluation gives shapes, parameter count, and a gradient with all adapters."""
    lora = LoraConfig(rank=16, alpha=32.0, targets=tuple(TARGETS))
    model = Decoder(CODE_LLAMA_7B, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, lora=lora)
    model = model.clone(remat="full")
    tokens = jax.ShapeDtypeStruct((16, 406), jnp.int32)
    mask = jax.ShapeDtypeStruct((16, 406), jnp.bool_)
    variables = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens, mask)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    assert count == 6_738_546_688
    adapters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["lora"]))
    assert adapters == 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11008))

    def total(lora, params, tokens, mask):
        variables = {"params": params, "lora": lora}
        return model.apply(variables, tokens, positions(mask), mask).sum()

    gradient = jax.eval_shape(jax.grad(total), variables["lora"], variables["params"], tokens, mask)
    assert shapes(gradient) == shapes(variables["lora"])
    logits = jax.eval_shape(model.apply, variables, tokens, tokens, mask)
    assert (logits.shape, logits.dtype) == ((16, 406, 32016), jnp.float32)


def test_the_library_s_attention_gives_the_same_with_padding():
    params = random_params(CONFIG)
    tokens, mask = random_inputs()
    mask = mask.at[0, :4].set(False).at[1, 7:].set(False)

    def losses(implementation):
        model = Decoder(CONFIG, remat="full", attention_implementation=implementation)

        def loss(params):
            logits = model.apply({"params": params}, tokens, positions(mask), mask)
            return jnp.mean(jnp.where(mask[..., None], logits, 0.0) ** 2)

        return jax.jit(jax.value_and_grad(loss))(params)

    ours, gradients = losses("reference")
    theirs, their_gradients = losses("xla")
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)
    for one, other in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(their_gradients), strict=True
    ):
        np.testing.assert_allclose(other, one, rtol=1e-3, atol=1e-5 * np.abs(one).max())


@pytest.mark.parametrize("remat", REMAT)
def test_every_product_has_the_chosen_precision(remat):
    """Also those of gradients, whose program is made outside of the network's methods."""
    params, (tokens_bs, mask_bs) = random_params(CONFIG), random_inputs()

    def precisions(name):
        model = Decoder(CONFIG, remat=remat, precision=name)

        def loss(params):
            return model.apply({"params": params}, tokens_bs, positions(mask_bs), mask_bs).sum()

        return {
            equation.params["precision"]
            for equation in products(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
        }

    highest = jax.lax.Precision.HIGHEST
    assert precisions("highest") == {(highest, highest)}
    assert precisions("default") == {None}
    with jax.default_matmul_precision("highest"):  # a user's own setting holds
        assert precisions("default") == {(highest, highest)}
