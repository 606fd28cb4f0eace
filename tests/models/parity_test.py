"""Live parity with the PyTorch models of transformers, for configurations that no golden has.

One command: `python -m pytest tests/models/parity_test.py`, with torch installed. float32 logits
agree to 1e-4 of the largest.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="live parity needs torch")
transformers = pytest.importorskip("transformers")

import models  # noqa: E402
from models import lora  # noqa: E402
from models.config import LinearRope, Llama3Rope  # noqa: E402
from models.convert import abstract_parameters  # noqa: E402
from models.lora import TARGETS, LoraConfig  # noqa: E402
from models.transformer import Decoder, positions  # noqa: E402
from tests.golden.make_logits import FAMILIES, load, make_inputs, make_model, torch_logits  # noqa: E402
from tests.models.small import small_decoder  # noqa: E402


def ours(folder, tokens, mask):
    model, params = models.load(folder)
    model = model.clone(precision="highest")
    mask = jnp.asarray(mask)
    return np.asarray(models.apply(model, params, jnp.asarray(tokens), positions(mask), mask))


def assert_close(one, other, mask):
    largest = np.abs(other[mask]).max()
    np.testing.assert_allclose(one[mask], other[mask], rtol=0, atol=1e-4 * largest)


@pytest.mark.parametrize("family", FAMILIES)
def test_random_model_of_a_family(tmp_path, family):
    model = make_model(family, seed=17)
    model.save_pretrained(tmp_path)
    tokens, mask = make_inputs(model.config.vocab_size, seed=18)
    assert_close(ours(tmp_path, tokens, mask), torch_logits(model, tokens, mask), mask)


CONFIG = small_decoder(
    vocab_size=56,
    hidden_size=24,
    intermediate_size=40,
    num_heads=6,
    num_kv_heads=3,
    rms_norm_eps=1e-6,
)


def random_tree(abstract, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), jnp.float32), abstract
    )


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"rope_scaling": LinearRope(2.0), "tie_word_embeddings": True},
        {"rope_scaling": Llama3Rope(4.0, 1.0, 2.0, 32)},
        {"attention_bias": True, "head_dim": 4},
        {"query_key_norm": True, "head_dim": 12},
        {"sliding_window": 5},
    ],
)
def test_what_we_save_loads_there(tmp_path, change):
    config = dataclasses.replace(CONFIG, **change)
    params = random_tree(abstract_parameters(config, jnp.float32), seed=3)
    models.save(tmp_path, config, params, max_file_bytes=10_000)
    theirs = load(transformers.AutoModelForCausalLM, tmp_path, "float32")
    tokens, mask = make_inputs(config.vocab_size, seed=4)
    logits = models.apply(
        Decoder(config, precision="highest"),
        params,
        jnp.asarray(tokens),
        positions(jnp.asarray(mask)),
        mask,
    )
    assert_close(np.asarray(logits), torch_logits(theirs, tokens, mask), mask)


def test_merged_adapters_load_there(tmp_path):
    adapted = LoraConfig(rank=2, alpha=4.0, targets=tuple(TARGETS))
    params = random_tree(abstract_parameters(CONFIG, jnp.float32), seed=5)
    start = jax.eval_shape(lambda key: lora.init(key, params, adapted), jax.random.key(0))
    adapters = random_tree(start, seed=6)
    models.save(tmp_path, CONFIG, lora.merge(params, adapters, adapted))
    theirs = load(transformers.AutoModelForCausalLM, tmp_path, "float32")
    tokens, mask = make_inputs(CONFIG.vocab_size, seed=7)
    model = Decoder(CONFIG, lora=adapted, precision="highest")
    real = jnp.asarray(mask)
    logits = jax.jit(model.apply)(
        {"params": params, "lora": adapters}, jnp.asarray(tokens), positions(real), real
    )
    assert_close(np.asarray(logits), torch_logits(theirs, tokens, mask), mask)
