import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpo_jax import divergence
from etpo_jax.algorithms import clipped_losses, ppo_kl

MASK = jnp.array([[True, True, True], [True, True, False]])


def test_kl_reward_by_hand():
    log_probs = jnp.log(jnp.array([[0.5, 0.5, 0.8], [0.9, 0.1, 0.3]]))
    reference = jnp.log(jnp.array([[0.25, 0.5, 0.4], [0.9, 0.2, 0.6]]))
    rewards = ppo_kl.kl_reward(jnp.array([1.0, -1.0]), log_probs, reference, MASK, beta=0.1)
    # Ratios of whole actions: 2 * 1 * 2 = 4 and 1 * 0.5; the padded column does not count.
    expected = [1.0 - 0.1 * np.log(4.0), -1.0 + 0.1 * np.log(2.0)]
    np.testing.assert_allclose(rewards, expected, rtol=1e-5)


def test_action_return_never_bootstraps_across_an_end():
    found = ppo_kl.action_return(
        jnp.array([0.5, -1.0]), jnp.array([jnp.nan, 0.4]), jnp.array([0.0, 1.0]), gamma=0.5
    )
    np.testing.assert_allclose(found, [0.5, -0.8], rtol=1e-6)


def test_leave_one_out_by_hand():
    alike = jnp.array([[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]], bool)
    baseline = ppo_kl.leave_one_out(jnp.array([1.0, 2.0, 6.0, 9.0]), alike)
    # The last one is alone in its state and is held against the three others.
    np.testing.assert_allclose(baseline, [4.0, 3.5, 1.5, 3.0], rtol=1e-6)


def test_leave_one_out_does_not_depend_on_the_own_return():
    alike = jnp.ones((3, 3), bool)
    jacobian = jax.jacobian(
        lambda own: ppo_kl.leave_one_out(jnp.array([0.0, 1.0, 2.0]).at[1].set(own), alike)[1]
    )(5.0)
    assert jacobian == 0.0
    assert ppo_kl.leave_one_out(jnp.array([0.0, 50.0, 2.0]), alike)[1] == 1.0
    with pytest.raises(ValueError, match="at least two"):
        ppo_kl.leave_one_out(jnp.ones(1), jnp.ones((1, 1), bool))


@pytest.mark.parametrize("distinct", [1, 2, 3, 5, 6])
def test_copies_of_an_action_never_count_in_leave_one_out(distinct):
    """Six rows of which the first `distinct` are new, against a loop over the distinct ones."""
    rng = np.random.default_rng(distinct)
    returns, states = rng.normal(size=distinct), rng.integers(0, 2, distinct)
    rows = np.arange(6) % distinct
    alike = jnp.asarray(states[rows][:, None] == states[rows][None])
    expected = []
    for own in rows:
        others = [row for row in range(distinct) if row != own]
        same = [row for row in others if states[row] == states[own]]
        expected.append(np.mean(returns[same or others]) if others else 0.0)

    def baseline(returns):
        return ppo_kl.leave_one_out(returns[rows], alike, jnp.int32(distinct))

    found = baseline(jnp.asarray(returns, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    # Whatever return the action itself has, its baseline and that of its copies are the same.
    for own in range(distinct):
        changed = baseline(jnp.asarray(returns, jnp.float32).at[own].set(50.0))
        np.testing.assert_array_equal(changed[rows == own], found[rows == own])


def test_standardize_ignores_what_is_masked():
    values = jnp.array([[1.0, 3.0, jnp.nan], [5.0, 7.0, 100.0]])
    mask = jnp.array([[True, True, False], [True, True, False]])
    found = clipped_losses.standardize(values, mask)
    np.testing.assert_allclose(
        found, [[-1.3416407, -0.4472136, 0], [0.4472136, 1.3416407, 0]], atol=1e-5
    )
    # A batch of equal returns has nothing to teach, and does not divide by zero.
    np.testing.assert_array_equal(
        clipped_losses.standardize(jnp.ones(4), jnp.ones(4, bool)), np.zeros(4)
    )


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "has_gradient"),
    [
        (1.1, 2.0, -2.2, True),
        (1.5, 2.0, -2.4, False),  # up and already far: clipped
        (1.5, -2.0, 3.0, True),  # up although bad: pulled back
        (0.5, -2.0, 1.6, False),
        (0.5, 2.0, -1.0, True),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, expected, has_gradient):
    def loss(log_ratio):
        entries = jnp.stack([log_ratio, jnp.float32(jnp.nan)])
        mask = jnp.array([True, False])
        return clipped_losses.clipped_surrogate(
            entries, jnp.array([advantage, jnp.nan]), mask, clip_ratio=0.2
        )

    value, gradient = jax.value_and_grad(loss)(jnp.log(jnp.float32(ratio)))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, -ratio * advantage * has_gradient, rtol=1e-5)


def test_at_the_sampling_policy_the_gradient_is_reinforce():
    rng = np.random.default_rng(0)
    log_probs = jnp.asarray(-rng.uniform(0.1, 3.0, (2, 3)), jnp.float32)
    advantage = jnp.array([0.5, -2.0])

    def loss(new):
        ratio = divergence.action_log_ratio(new, log_probs, MASK)
        return clipped_losses.clipped_surrogate(ratio, advantage, jnp.ones(2, bool), clip_ratio=0.2)

    # One credit for all tokens of an action, none for padding.
    expected = np.where(MASK, -np.asarray(advantage)[:, None] / 2, 0.0)
    np.testing.assert_allclose(jax.grad(loss)(log_probs), expected, rtol=1e-5)


def test_clipped_share_and_value_loss_by_hand():
    log_ratio = jnp.log(jnp.array([1.0, 1.3, 0.75, 9.0]))
    mask = jnp.array([True, True, True, False])
    share = clipped_losses.clipped_share(log_ratio, mask, clip_ratio=0.2)
    np.testing.assert_allclose(share, 2 / 3, rtol=1e-6)
    loss = clipped_losses.value_loss(jnp.array([1.0, 2.0, 0.0, 9.0]), jnp.zeros(4), mask)
    np.testing.assert_allclose(loss, 0.5 * (1 + 4) / 3, rtol=1e-6)


def test_approximate_kl_by_hand_and_in_expectation():
    log_ratio = jnp.log(jnp.array([1.0, 2.0, 0.5, 9.0]))
    mask = jnp.array([True, True, True, False])
    expected = np.mean([0.0, 1 - np.log(2), -0.5 + np.log(2)])
    np.testing.assert_allclose(clipped_losses.approximate_kl(log_ratio, mask), expected, rtol=1e-5)
    old, new = np.array([0.2, 0.5, 0.3]), np.array([0.4, 0.35, 0.25])
    per_token = [
        clipped_losses.approximate_kl(jnp.log(jnp.array([b / a])), jnp.ones(1, bool))
        for a, b in zip(old, new, strict=True)
    ]
    np.testing.assert_allclose(old @ np.array(per_token), old @ np.log(old / new), rtol=1e-4)


@pytest.mark.parametrize(
    ("value", "expected", "gradient"),
    [
        (1.1, 0.5 * 0.9**2, -0.9),  # within the clip
        (1.5, 0.5 * 0.8**2, 0.0),  # beyond it towards the target: the clipped error is larger
        (0.5, 0.5 * 1.5**2, -1.5),  # beyond it away from the target: its own error is larger
    ],
)
def test_clipped_value_loss_by_hand(value, expected, gradient):
    def loss(value):
        return clipped_losses.value_loss(
            value[None],
            jnp.array([2.0]),
            jnp.ones(1, bool),
            old_value=jnp.array([1.0]),
            value_clip=0.2,
        )

    found, slope = jax.value_and_grad(loss)(jnp.float32(value))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(slope, gradient, rtol=1e-5, atol=1e-6)
