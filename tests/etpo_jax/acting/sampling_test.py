"""Truncation against sorting in NumPy, and draws against the distribution they invert."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from etpo_jax.acting import sampling
from etpo_jax.acting.sampling import Truncation
from etpo_jax.config import SamplingConfig

V = 37


def logits(seed=0, rows=5, scale=2.0):
    return np.random.default_rng(seed).normal(0, scale, (rows, V)).astype(np.float32)


def settings(**options):
    """Sampling from all tokens but for these options."""
    return SamplingConfig(**{"support_threshold": 0.0} | options)


def probabilities(logits_bv, reference_bv=None, **options):
    """Probabilities from `sampling.weights`, normalised."""
    truncation = Truncation.of(settings(**options))
    weights_bv = np.asarray(sampling.weights(logits_bv, truncation, reference_bv), np.float64)
    return weights_bv / weights_bv.sum(axis=1, keepdims=True)


def expected_probabilities(logits_v, reference_v, temperature, support_threshold, top_k, top_p):
    """The truncated distribution of one row, computed by sorting."""
    p_v = scipy.special.softmax(logits_v.astype(np.float64) / temperature)
    rho_v = scipy.special.softmax(reference_v.astype(np.float64) / temperature)
    p_v[(rho_v < support_threshold) & (rho_v < rho_v.max())] = 0
    p_v[np.argsort(-p_v)[top_k or V :]] = 0
    p_v /= p_v.sum()
    order = np.argsort(-p_v)
    before = np.cumsum(p_v[order]) - p_v[order]
    p_v[order[before >= top_p]] = 0
    return p_v / p_v.sum()


SEARCHES = ("_bisect", "_search_in_passes")


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"temperature": 2.0, "top_k": 7},
        {"top_k": 1},
        {"top_k": V + 5},
        {"top_p": 0.9},
        {"top_p": 0.3, "temperature": 0.7},
        {"support_threshold": 0.03},
        {"support_threshold": 0.5},
        {"temperature": 1.5, "support_threshold": 0.01, "top_k": 12, "top_p": 0.8},
    ],
    ids=str,
)
def test_distribution_equals_sorting(monkeypatch, options, search):
    monkeypatch.setattr(sampling, "_bisect", getattr(sampling, search))  # that of CPUs
    logits_bv, reference_bv = logits(0), logits(1)
    values = {"temperature": 1.0, "support_threshold": 0.0, "top_k": 0, "top_p": 1.0} | options
    expected = [
        expected_probabilities(row, reference_row, **values)
        for row, reference_row in zip(logits_bv, reference_bv, strict=True)
    ]
    actual = probabilities(logits_bv, reference_bv, **options)
    np.testing.assert_array_equal(actual > 0, np.array(expected) > 0)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_ties_with_the_last_kept_token_are_kept():
    logits_bv = np.array([[3.0, 1.0, 2.0, 1.0, 0.0]], np.float32)
    assert ((probabilities(logits_bv, top_k=3) > 0) == [[1, 1, 1, 1, 0]]).all()


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_all_tokens_as_likely_as_the_last_are_kept(monkeypatch, search, scale):
    """Against a sort, with few distinct logits, weights down to zero and every k."""
    monkeypatch.setattr(sampling, "_bisect", getattr(sampling, search))
    logits_bv = np.round(logits(4, rows=8, scale=3.0)) * np.float32(scale)
    keep = jax.jit(lambda *arguments: sampling.weights(*arguments))  # nothing cached
    for k in (1, 2, 5, V - 1, V, V + 1):
        weights_bv = np.asarray(keep(logits_bv, Truncation.of(settings(top_k=k))))
        last_b1 = np.sort(logits_bv, axis=1)[:, ::-1][:, [min(k, V) - 1]]
        untouched_bv = np.asarray(keep(logits_bv, Truncation.of(settings())))
        np.testing.assert_array_equal(
            weights_bv, np.where(logits_bv >= last_b1, untouched_bv, 0), err_msg=f"{k=}"
        )


def test_support_mask_needs_the_reference():
    with pytest.raises(ValueError, match="support_threshold"):
        probabilities(logits(), support_threshold=0.1)


def test_other_values_do_not_compile_again():
    weights = jax.jit(sampling.weights)
    for options in ({"top_k": 5, "top_p": 0.5}, {"temperature": 2.0, "top_k": 6, "top_p": 0.4}):
        weights(logits(), Truncation.of(settings(**options)))
    assert weights._cache_size() == 1


@pytest.mark.parametrize("size", [1, 2, 37, 64, 1000])
def test_draw_inverts_the_distribution(size):
    rng = np.random.default_rng(size)
    weights_v = rng.exponential(size=size).astype(np.float32) * (rng.random(size) < 0.7)
    weights_v[rng.integers(size)] = 1
    points = 1 << 14
    quantile_b = ((np.arange(points) + 0.5) / points).astype(np.float32)
    token_b, log_prob_b = jax.jit(sampling.draw)(
        np.broadcast_to(weights_v, (points, size)), quantile_b
    )
    share_v = weights_v / weights_v.sum(dtype=np.float64)
    assert (np.diff(token_b) >= 0).all()
    # The number of grid points in an interval is off by less than one, plus float32 boundaries.
    counts_v = np.bincount(token_b, minlength=size)
    np.testing.assert_allclose(counts_v, share_v * points, atol=1.1)
    np.testing.assert_allclose(log_prob_b, np.log(share_v[token_b]), atol=1e-5)


@pytest.mark.parametrize("quantile", [2.0**-24, 1 - 2.0**-24])
def test_draw_never_chooses_a_weight_of_zero(quantile):
    rng = np.random.default_rng(0)
    weights_bv = rng.exponential(size=(4096, 50)).astype(np.float32)
    weights_bv *= rng.random((4096, 50)) < 0.1
    weights_bv[np.arange(4096), rng.integers(50, size=4096)] = 1e-3
    token_b, log_prob_b = sampling.draw(weights_bv, jnp.full(4096, quantile, jnp.float32))
    assert (weights_bv[np.arange(4096), token_b] > 0).all()
    assert np.isfinite(log_prob_b).all()


def test_frequencies_follow_the_distribution():
    draws = 20_000
    logits_1v = logits(rows=1)
    weights_1v = sampling.weights(logits_1v, Truncation.of(settings(top_k=20)))
    uniform_b = sampling.uniform(jax.random.split(jax.random.key(0), draws), jnp.int32(3))
    token_b, _ = sampling.draw(jnp.broadcast_to(weights_1v, (draws, V)), uniform_b)
    expected_v = probabilities(logits_1v, top_k=20)[0] * draws
    counts_v = np.bincount(token_b, minlength=V)
    assert counts_v[expected_v == 0].sum() == 0
    kept = expected_v > 0
    assert scipy.stats.chisquare(counts_v[kept], expected_v[kept]).pvalue > 0.01


def test_steps_of_a_row_are_drawn_anew():
    keys_b = jax.random.split(jax.random.key(0), 1000)
    first_b, second_b = (np.asarray(sampling.uniform(keys_b, jnp.int32(j))) for j in (0, 1))
    assert abs(np.corrcoef(first_b, second_b)[0, 1]) < 0.1
    # The middle of each of 2^23 cells: never 0 or 1, and no cell is favoured.
    np.testing.assert_array_equal(first_b * 2.0**24 % 2, 1)
    assert first_b.max() < 1
