import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from etpo_jax.algorithms import optimizer
from etpo_jax.config import Config


def test_stochastic_rounding_chooses_a_neighbour_and_keeps_the_mean():
    rng = np.random.default_rng(0)
    values = (rng.normal(size=50) * 10.0 ** rng.uniform(-6, 3, 50)).astype(np.float32)
    draws = 4000
    rounded = np.asarray(
        optimizer.stochastic_round(jnp.tile(values, (draws, 1)), jax.random.key(0)), np.float64
    )
    toward_zero = (values.view(np.uint32) & 0xFFFF0000).view(np.float32)
    away = ((values.view(np.uint32) & 0xFFFF0000) + 0x10000).view(np.float32)
    assert np.all((rounded == toward_zero) | (rounded == away))
    spacing = np.abs(away.astype(np.float64) - toward_zero)
    # The mean of draws of a Bernoulli variable: 5 standard errors at most.
    assert np.all(np.abs(rounded.mean(0) - values) < 5 * 0.5 * spacing / np.sqrt(draws))


def test_stochastic_rounding_keeps_what_bfloat16_has():
    values = np.array([0.0, -0.0, 1.0, -2.5, np.inf, -np.inf, np.nan], np.float32)
    rounded = optimizer.stochastic_round(jnp.asarray(values), jax.random.key(1))
    # As float32: whether NumPy knows a NaN in bfloat16 depends on what was imported first.
    expected = values.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(rounded, np.float32), expected)


def test_a_step_in_float32_is_the_optimiser_s():
    transformation = optimizer.build(Config.from_dict({"optimizer": "lion:clip_norm=1e9"}))
    parameters = {"w": jnp.array([1.0, 2.0, 3.0])}
    state = optimizer.initial(transformation, parameters)
    gradients = {"w": jnp.array([0.5, -3.0, 0.0])}
    moved, _ = optimizer.step(
        transformation, gradients, state, parameters, jnp.float32(0.25), jax.random.key(0)
    )
    np.testing.assert_allclose(moved["w"], [0.75, 2.25, 3.0])


def test_moments_of_narrow_weights():
    parameters = {"w": jnp.ones(3, jnp.bfloat16)}
    for name, moments in (("lion", ("bfloat16",)), ("adamw", ("bfloat16", "float32"))):
        settings = {"optimizer": name, "finetune": "full:dtype=bfloat16"}
        transformation = optimizer.build(Config.from_dict(settings))
        state = optimizer.initial(transformation, parameters)[1]
        found = [state.mu["w"].dtype] + ([state.nu["w"].dtype] if name == "adamw" else [])
        assert [str(dtype) for dtype in found] == list(moments)
