"""The tilt of a distribution against NumPy in float64, and its gradient against a formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from etpo_jax.distribution import NUM_TILTS, Distribution, tilt_statistics

V = 41
COEFFICIENTS = np.array([0.3, -0.2, 1.1, 0.4, -0.7, -0.6, 0.8, 0.5, -0.9, 1.3])


def logits(seed, scale=2.5):
    return np.random.default_rng(seed).normal(0, scale, (6, V)).astype(np.float32)


def statistics(log_rho):
    """The statistics as `tilt_statistics` describes them, one token at a time."""
    found = np.zeros((*log_rho.shape, NUM_TILTS))
    entropy = scipy.stats.entropy(np.exp(log_rho), axis=-1)
    for index, log_prob in np.ndenumerate(log_rho):
        values = []
        for value in (log_prob, log_prob + entropy[index[:-1]]):
            value = max(value, -12.0)
            ramps = [np.interp(value, [edge - 0.25, edge], [-1.0, 0.0]) for edge in (-2, -3, -4)]
            values += [min(0.0, value + 1), min(0.0, value + 2), *ramps]
        found[index] = values
    return found


def processed(logits_bv, reference_bv, temperature, threshold):
    """Masked logits of a network, and log rho, at a temperature and within the support."""
    rho_bv = scipy.special.softmax(reference_bv.astype(np.float64) / temperature, axis=-1)
    inside_bv = (rho_bv >= threshold) | (rho_bv == rho_bv.max(-1, keepdims=True))
    masked_bv = np.where(inside_bv, reference_bv.astype(np.float64) / temperature, -1e9)
    log_rho_bv = scipy.special.log_softmax(masked_bv, axis=-1)
    return np.where(inside_bv, logits_bv.astype(np.float64) / temperature, -1e9), log_rho_bv


@pytest.mark.parametrize(("temperature", "threshold"), [(1.0, 0.0), (0.7, 0.01), (1.3, 0.5)])
def test_the_tilt_multiplies_probabilities_by_exp_of_the_statistics(temperature, threshold):
    logits_bv, reference_bv = logits(0), logits(1)
    scaled_bv, log_rho_bv = processed(logits_bv, reference_bv, temperature, threshold)
    expected_bv = scipy.special.softmax(scaled_bv + statistics(log_rho_bv) @ COEFFICIENTS, axis=-1)
    distribution = Distribution(jnp.float32(temperature), jnp.float32(threshold))
    reference = distribution.reference(jnp.asarray(reference_bv))
    tilted_bv = distribution.tilted(
        jnp.asarray(logits_bv), reference, jnp.asarray(COEFFICIENTS, jnp.float32)
    )
    np.testing.assert_allclose(jax.nn.softmax(tilted_bv), expected_bv, rtol=2e-5, atol=1e-7)


def test_zeros_and_no_coefficients_change_no_bit():
    distribution = Distribution(jnp.float32(0.7), jnp.float32(0.02))
    reference = distribution.reference(jnp.asarray(logits(1)))
    plain = distribution.logits(jnp.asarray(logits(0)), reference.support_bjv)
    for coefficients in (None, jnp.zeros(NUM_TILTS)):
        tilted = distribution.tilted(jnp.asarray(logits(0)), reference, coefficients)
        np.testing.assert_array_equal(tilted, plain)


def test_the_gradient_is_the_statistic_less_its_mean():
    """d log pi(w) / d theta = phi(w) - E_pi[phi], as in any exponential family."""
    logits_bv, reference_bv = logits(2), logits(3)
    scaled_bv, log_rho_bv = processed(logits_bv, reference_bv, 1.0, 0.01)
    phi_bvt = statistics(log_rho_bv)
    pi_bv = scipy.special.softmax(scaled_bv + phi_bvt @ COEFFICIENTS, axis=-1)
    token_b = log_rho_bv.argmax(-1)
    expected_bt = phi_bvt[np.arange(6), token_b] - np.einsum("bv,bvt->bt", pi_bv, phi_bvt)
    distribution = Distribution(jnp.float32(1.0), jnp.float32(0.01))
    reference = distribution.reference(jnp.asarray(reference_bv))

    def log_probs(coefficients):
        tilted_bv = distribution.tilted(jnp.asarray(logits_bv), reference, coefficients)
        return jax.nn.log_softmax(tilted_bv)[np.arange(6), token_b]

    found_bt = jax.jacobian(log_probs)(jnp.asarray(COEFFICIENTS, jnp.float32))
    assert np.abs(expected_bt).max() > 0.3
    np.testing.assert_allclose(found_bt, expected_bt, rtol=1e-4, atol=1e-5)


def test_statistics_of_the_rarest_tokens_are_bounded():
    # One token has all the probability: the entropy is 0 and both halves agree.
    found = np.array(tilt_statistics(jnp.array([0.0, -1e3, -1e9])))
    for half in (found[:5], found[5:]):
        np.testing.assert_array_equal(half[:, 0], 0.0)
        for column in (1, 2):
            np.testing.assert_array_equal(half[:, column], [-11.0, -10.0, -1.0, -1.0, -1.0])


def test_a_rare_token_is_typical_where_the_reference_is_unsure():
    flat = np.array(tilt_statistics(jnp.full(20, -np.log(20.0))))
    sure = np.array(tilt_statistics(jnp.log(jnp.array([0.95, 0.05]))))
    np.testing.assert_allclose(flat[:5, 0], sure[:5, 1], atol=1e-5)
    np.testing.assert_allclose(flat[5:, 0], 0.0, atol=1e-5)
    assert sure[5, 1] < -1.5
