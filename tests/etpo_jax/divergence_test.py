import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from etpo_jax import divergence


def test_kl_and_entropy_of_a_hand_worked_pair():
    p = np.array([0.5, 0.25, 0.25], np.float32)
    r = np.array([0.25, 0.25, 0.5], np.float32)
    # 0.5 ln 2 + 0 + 0.25 ln 0.5
    np.testing.assert_allclose(
        divergence.categorical_kl(jnp.log(p), jnp.log(r) + 3.0), 0.25 * np.log(2.0), rtol=1e-6
    )
    np.testing.assert_allclose(divergence.entropy(jnp.log(p) - 1.0), 1.5 * np.log(2.0), rtol=1e-6)


def test_kl_and_entropy_agree_with_scipy():
    rng = np.random.default_rng(0)
    policy, reference = jnp.asarray(rng.normal(size=(2, 4, 3, 17)) * 3, jnp.float32)
    p, r = jax.nn.softmax(policy), jax.nn.softmax(reference)
    np.testing.assert_allclose(
        divergence.categorical_kl(policy, reference), scipy.stats.entropy(p, r, axis=-1), rtol=1e-4
    )
    np.testing.assert_allclose(
        divergence.entropy(policy), scipy.stats.entropy(p, axis=-1), rtol=1e-4
    )


def test_masked_tokens_add_nothing():
    policy = jnp.array([1.0, 2.0, -1e9])
    reference = jnp.array([0.5, 0.1, -1e9])
    np.testing.assert_allclose(
        divergence.categorical_kl(policy, reference),
        divergence.categorical_kl(policy[:2], reference[:2]),
        rtol=1e-6,
    )
    gradient = jax.grad(lambda logits: divergence.categorical_kl(logits, reference))(policy)
    assert np.isfinite(gradient).all()
    assert gradient[2] == 0.0


def test_masked_mean_divides_by_real_entries_and_drops_nan():
    values = jnp.array([[1.0, 2.0, jnp.nan], [6.0, jnp.inf, jnp.nan]])
    mask = jnp.array([[True, True, False], [True, False, False]])
    assert divergence.masked_mean(values, mask) == 3.0
    assert divergence.masked_mean(values, jnp.zeros_like(mask)) == 0.0
