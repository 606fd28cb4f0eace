"""Logits equal those that PyTorch's implementations gave for the same files.

float32: the tolerance is 1e-4 of the largest logit; sums in another order give about 1e-6.
bfloat16: 8 bits of mantissa, rounded in other places in each implementation, through three layers
with large weights: the typical error (root mean square) is below 2 % of the typical logit, for our
bfloat16 as for theirs, both measured from float32.
"""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import models
from models.transformer import positions
from tests.golden.make_logits import FAMILIES, FOLDER, STAND_IN, digest


def logits_of(folder, tokens, mask, dtype=jnp.float32):
    model, params = models.load(folder, dtype=dtype)
    model = model.clone(precision="highest")
    mask = jnp.asarray(mask)
    return np.asarray(
        models.apply(model, params, jnp.asarray(tokens, jnp.int32), positions(mask), mask)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_logits_of_stored_weights(family):
    golden = np.load(FOLDER / family / "logits.npz")
    logits = logits_of(FOLDER / family, golden["tokens"], golden["mask"])[golden["mask"]]
    largest = np.abs(golden["float32"]).max()
    np.testing.assert_allclose(logits, golden["float32"], rtol=0, atol=1e-4 * largest)


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_logits_are_as_near_as_theirs(family):
    golden = np.load(FOLDER / family / "logits.npz")
    exact = golden["float32"]
    theirs = golden["bfloat16"].view(ml_dtypes.bfloat16).astype(np.float32)
    ours = logits_of(FOLDER / family, golden["tokens"], golden["mask"], jnp.bfloat16)
    typical = np.sqrt(np.mean(exact**2))
    our_error = np.sqrt(np.mean((ours[golden["mask"]] - exact) ** 2)) / typical
    their_error = np.sqrt(np.mean((theirs - exact) ** 2)) / typical
    assert our_error < 0.02
    assert our_error < 1.5 * their_error


@pytest.mark.skipif(not STAND_IN.is_dir(), reason="models/tiny is not there")
def test_stand_in():
    golden = np.load(FOLDER / "stand_in_logits.npz")
    assert str(golden["digest"]) == digest(STAND_IN), (
        "models/tiny has new weights: python -m tests.golden.make_logits stand_in"
    )
    mask = golden["mask"]
    logits = logits_of(STAND_IN, golden["tokens"], mask)
    last = np.stack([row[real][-1] for row, real in zip(logits, mask, strict=True)])
    largest = np.abs(golden["last"]).max()
    np.testing.assert_allclose(last, golden["last"], rtol=0, atol=1e-4 * largest)
    np.testing.assert_allclose(logits[mask][:, ::37], golden["some"], rtol=0, atol=1e-4 * largest)


def test_goldens_tell_small_changes_apart():
    """Each constant that a family adds moves its logits far more than the tolerance."""
    for family, change in (
        ("llama3", {"rope_scaling": None}),
        ("deepseek", {"rope_scaling": None}),
        ("codellama", {"rope_theta": 10000.0}),
        ("qwen2", {"rms_norm_eps": 1e-2}),
        ("qwen3", {"query_key_norm": False}),
        ("mistral", {"sliding_window": None}),
    ):
        golden = np.load(FOLDER / family / "logits.npz")
        model, params = models.load(FOLDER / family)
        model = model.clone(precision="highest")
        fields = {name: getattr(model.config, name) for name in model.config.__dataclass_fields__}
        model = model.clone(config=type(model.config)(**{**fields, **change}))
        mask = jnp.asarray(golden["mask"])
        tokens = jnp.asarray(golden["tokens"], jnp.int32)
        logits = models.apply(model, params, tokens, positions(mask), mask)[golden["mask"]]
        moved = np.abs(logits - golden["float32"]).max() / np.abs(golden["float32"]).max()
        assert moved > 1e-2, (family, change)
