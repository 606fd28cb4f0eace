"""Packed rows: the hidden states and gradients of padded rows, from fewer tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import packing
from models.transformer import Decoder, positions
from tests.models.small import small_decoder
from tests.models.transformer_test import random_params

COLUMNS = 160


def rows_of(lengths_shared, seed=0):
    """Left and right padded rows; each is a number of tokens shared with the first, and a rest."""
    rng = np.random.default_rng(seed)
    first = rng.integers(0, 40, COLUMNS)
    tokens = rng.integers(0, 40, (len(lengths_shared), COLUMNS)).astype(np.int32)
    mask = np.zeros(tokens.shape, bool)
    for row, (length, shared, start) in enumerate(lengths_shared):
        mask[row, start : start + length] = True
        tokens[row, start : start + shared] = first[:shared]
        if shared < length and row:
            tokens[row, start + shared] = (first[shared] + row) % 40
    return tokens, mask


CASES = {
    "one prompt": [(100, 100, 0), (90, 50, 10), (70, 50, 10), (51, 50, 30)],
    "equal rows": [(80, 80, 3), (80, 80, 3), (80, 80, 40)],
    "nested": [(40, 40, 0), (150, 40, 5), (20, 20, 140), (1, 0, 159), (1, 1, 0)],
    "nothing shared": [(70, 70, 20), (20, 0, 0), (33, 0, 7)],
}


def hidden(model, params, tokens, mask, num_blocks, last=None):
    return model.apply(
        {"params": params}, tokens, positions(mask), mask, last, num_blocks, method="hidden"
    )


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
@pytest.mark.parametrize("options", [{}, {"sliding_window": 17}, {"remat": "dots"}], ids=str)
def test_hidden_states_and_gradients_are_those_of_padded_rows(rows, options):
    window = options.get("sliding_window")
    model = Decoder(small_decoder(sliding_window=window), remat=options.get("remat", "none"))
    params = random_params(model.config)
    tokens, mask = rows_of(rows)
    num_blocks = packing.count_blocks(tokens, mask)
    assert packing.is_worth_it(num_blocks + 1, *tokens.shape)
    real = mask[..., None]

    def value(params, num_blocks):
        found = jnp.where(real, hidden(model, params, tokens, jnp.asarray(mask), num_blocks), 0)
        weight = np.random.default_rng(1).normal(size=found.shape)
        return jnp.sum(found * weight), found

    both = jax.jit(jax.value_and_grad(value, has_aux=True), static_argnums=1)
    (_, expected), expected_gradient = both(params, 0)
    # Any number from that of the blocks on will do.
    for count in (num_blocks, num_blocks + 1):
        (_, found), gradient = both(params, count)
        np.testing.assert_allclose(found, expected, atol=2e-4)
        for leaf, other in zip(
            jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True
        ):
            scale = np.abs(other).max()
            np.testing.assert_allclose(leaf / scale, other / scale, atol=2e-4)


def test_the_last_columns_are_returned_where_asked_for():
    model = Decoder(small_decoder())
    params = random_params(model.config)
    tokens, mask = rows_of(CASES["one prompt"])
    whole, part = (hidden(model, params, tokens, jnp.asarray(mask), 8, last) for last in (None, 70))
    np.testing.assert_array_equal(part, whole[:, -70:])


def test_too_few_blocks_give_nan_and_no_wrong_numbers():
    model = Decoder(small_decoder())
    tokens, mask = rows_of(CASES["one prompt"])
    count = packing.count_blocks(tokens, mask)
    params = random_params(model.config)
    assert np.isfinite(hidden(model, params, tokens, jnp.asarray(mask), count)).all()
    assert np.isnan(hidden(model, params, tokens, jnp.asarray(mask), count - 1)).all()


def test_blocks_are_counted_without_padding_and_repetition():
    tokens, mask = rows_of(CASES["one prompt"])
    # 100 tokens, then 40, 20 and 1 of their own, in blocks of 32.
    assert packing.count_blocks(tokens, mask) == 4 + 2 + 1 + 1
    tokens, mask = rows_of(CASES["equal rows"])
    assert packing.count_blocks(tokens, mask) == 3


def test_the_blocks_of_all_rows_are_enough_for_some_of_them():
    rng = np.random.default_rng(0)
    for _ in range(100):
        # Each row begins like some part of another one, so that they form a tree.
        rows = [rng.integers(0, 40, 20)]
        for _ in range(8):
            parent = rows[rng.integers(len(rows))]
            rest = rng.integers(0, 40, rng.integers(0, 17))
            rows.append(np.concatenate([parent[: rng.integers(len(parent)) + 1], rest]))
        mask = np.arange(COLUMNS) < np.array([len(row) for row in rows])[:, None]
        tokens = np.zeros(mask.shape, np.int32)
        tokens[mask] = np.concatenate(rows)
        whole = packing.count_blocks(tokens, mask)
        for _ in range(5):
            order = rng.permutation(9)
            assert packing.count_blocks(tokens[order], mask[order]) == whole
            some = order[: rng.integers(1, 9)]
            assert packing.count_blocks(tokens[some], mask[some]) <= whole


def test_numbers_of_blocks_are_rounded_to_few():
    rounded = [packing.bucket(number) for number in range(1, 257)]
    assert all(number <= found <= 1.25 * number for number, found in enumerate(rounded, start=1))
    assert len(set(rounded)) <= 32


def test_splash_refuses():
    model = Decoder(small_decoder(), attention_implementation="splash")
    tokens, mask = rows_of(CASES["one prompt"])
    with pytest.raises(ValueError, match="splash"):
        hidden(model, random_params(model.config), tokens, jnp.asarray(mask), 8)
