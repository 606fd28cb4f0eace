"""Attention against a plain loop in float64, and the keys that each query sees."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models.attention import attend, causal_mask
from tests.models.small import products


def loop(q, k, v, mask):
    """Softmax attention, one query and head at a time."""
    b, s, n, h = q.shape
    out = np.zeros((b, s, n, h))
    group = n // k.shape[2]
    for row in range(b):
        for query in range(s):
            for head in range(n):
                seen = np.flatnonzero(mask[row, query])
                scores = k[row, seen, head // group] @ q[row, query, head] / np.sqrt(h)
                weights = np.exp(scores - scores.max())
                out[row, query, head] = weights / weights.sum() @ v[row, seen, head // group]
    return out


def random_inputs(n, k, s=5, m=7, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((2, s, n, 4), (2, m, k, 4), (2, m, k, 4))
    mask = rng.random((2, s, m)) < 0.6
    mask[..., 0] |= ~mask.any(-1)  # a query sees at least one slot
    return [3 * rng.normal(size=shape) for shape in shapes], mask


@pytest.mark.parametrize(("n", "k"), [(4, 4), (4, 2), (6, 1)])
def test_equals_the_loop(n, k):
    inputs, mask = random_inputs(n, k)
    arrays = [jnp.asarray(x, jnp.float32) for x in inputs]
    expected = loop(*inputs, mask)
    of_the_library = functools.partial(attend, implementation="xla")
    for function in (attend, jax.jit(attend), of_the_library):
        np.testing.assert_allclose(function(*arrays, jnp.asarray(mask)), expected, atol=1e-5)


def test_bfloat16_inputs_keep_a_float32_softmax():
    inputs, mask = random_inputs(4, 2, m=300)
    mask[:] = True
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
    rounded = [np.asarray(x, np.float64) for x in arrays]
    out = attend(*arrays, jnp.asarray(mask))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), loop(*rounded, mask), atol=0.03)


def test_huge_scores_stay_finite_and_gradients_too():
    inputs, mask = random_inputs(4, 2)
    q, k, v = (jnp.asarray(x, jnp.float32) for x in inputs)

    def total(q, k, v):
        return attend(1e4 * q, k, v, jnp.asarray(mask)).sum()

    value, gradients = jax.value_and_grad(total, argnums=(0, 1, 2))(q, k, v)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


def test_unseen_slots_have_no_influence_and_no_gradient():
    inputs, mask = random_inputs(4, 2)
    mask[:, :, 3] = False
    mask[:, :, 0] = True
    q, k, v = (jnp.asarray(x, jnp.float32) for x in inputs)
    changed = attend(q, k.at[:, 3].set(9.0), v.at[:, 3].set(-9.0), jnp.asarray(mask))
    np.testing.assert_array_equal(attend(q, k, v, jnp.asarray(mask)), changed)
    gradient = jax.grad(lambda k, v: attend(q, k, v, jnp.asarray(mask)).sum(), argnums=(0, 1))(k, v)
    for g in gradient:
        np.testing.assert_array_equal(g[:, 3], 0)
        assert np.abs(g[:, 1]).max() > 0


def test_causal_mask_by_hand():
    left_padded = causal_mask(jnp.array([[False, True, True]]))
    right_padded = causal_mask(jnp.array([[True, True, False]]))
    np.testing.assert_array_equal(left_padded[0], [[1, 0, 0], [0, 1, 0], [0, 1, 1]])
    np.testing.assert_array_equal(right_padded[0], [[1, 0, 0], [1, 1, 0], [0, 0, 1]])


def test_gradients_of_bfloat16_are_products_of_bfloat16():
    inputs, mask = random_inputs(4, 2, s=20, m=20)

    def gradients(arrays):
        def loss(*arrays):
            return jnp.sum(jnp.sin(attend(*arrays, jnp.asarray(mask)).astype(jnp.float32)))

        return jax.grad(loss, argnums=(0, 1, 2))(*arrays)

    narrow = [jnp.asarray(x, jnp.bfloat16) for x in inputs]
    found = products(jax.make_jaxpr(gradients)(narrow).jaxpr)
    assert len(found) == 6
    assert {x.aval.dtype for product in found for x in product.invars} == {jnp.dtype(jnp.bfloat16)}
    exact = gradients([x.astype(jnp.float32) for x in narrow])
    for one, other in zip(gradients(narrow), exact, strict=True):
        assert one.dtype == jnp.bfloat16
        error = np.abs(np.asarray(one, np.float32) - other)
        # Three factors of 8 bits each.
        assert error.max() < 0.02 * np.abs(other).max()
