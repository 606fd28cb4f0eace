import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpo_jax import losses
from etpo_jax.divergence import masked_mean

BETA = 0.2


def random_case(seed=0, b=4, j=5, v=7):
    rng = np.random.default_rng(seed)
    policy, reference, q = jnp.asarray(rng.normal(size=(3, b, j, v)), jnp.float32)
    mask = jnp.arange(j) < jnp.array([5, 2, 1, 4])[:, None]
    return policy, reference, q, mask


def test_squared_critic_loss_by_hand():
    q = jnp.array([[1.0, 2.0], [3.0, 100.0]])
    target = jnp.array([[0.0, 2.0], [1.0, 0.0]])
    mask = jnp.array([[True, True], [True, False]])
    # Half squares 0.5, 0, 2 over three real tokens.
    np.testing.assert_allclose(
        losses.critic_loss(q, target, mask, huber_delta=None), 2.5 / 3, rtol=1e-6
    )


def test_huber_critic_loss_by_hand():
    q = jnp.array([[0.5, 3.0]])
    loss = losses.critic_loss(q, jnp.zeros_like(q), jnp.ones_like(q, dtype=bool), huber_delta=1.0)
    np.testing.assert_allclose(loss, (0.125 + 2.5) / 2, rtol=1e-6)


def test_critic_loss_stops_the_target_and_moves_the_taken_value():
    q, target = jnp.array([[0.5, 3.0]]), jnp.array([[0.1, 0.2]])
    mask = jnp.ones_like(q, dtype=bool)

    def loss(q, target):
        return losses.critic_loss(q, target, mask, huber_delta=None)

    np.testing.assert_allclose(jax.grad(loss)(q, target), (q - target) / 2, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(loss, argnums=1)(q, target), 0.0)


def test_the_correction_makes_any_critic_give_the_gradient_of_the_right_one():
    """The gradients agree in expectation over the policy's samples, however wrong Q is."""
    rng = np.random.default_rng(4)
    policy, reference, q, right = jnp.asarray(rng.normal(size=(4, 7)), jnp.float32)

    def objective(policy, q):
        return losses.policy_objective(policy, reference, q, beta=BETA)

    def correction(policy, token):
        log_prob = jax.nn.log_softmax(policy)[token]
        ratio = jnp.ones((1, 1))
        return losses.doubly_robust_correction(
            log_prob[None, None], q[token][None, None], right[token][None, None], ratio, ratio > 0
        )[0, 0]

    corrections = jnp.stack([jax.grad(correction)(policy, token) for token in range(7)])
    corrected = jax.grad(objective)(policy, q) + jax.nn.softmax(policy) @ corrections
    np.testing.assert_allclose(corrected, jax.grad(objective)(policy, right), atol=1e-6)
    assert np.abs(corrected - jax.grad(objective)(policy, q)).max() > 0.05


def test_the_correction_by_hand():
    log_probs = jnp.log(jnp.array([[0.5, 0.25, 0.5]]))
    q, target = jnp.array([[1.0, 2.0, 0.0]]), jnp.array([[3.0, 1.0, jnp.nan]])
    ratio, mask = jnp.array([[0.5, 4.0, 1.0]]), jnp.array([[True, True, False]])
    found = losses.doubly_robust_correction(log_probs, q, target, ratio, mask)
    # c (G - Q): half of 2, and -1 with the ratio cut off at 1.
    np.testing.assert_allclose(found, [[np.log(2), -np.log(4), 0.0]], rtol=1e-6)

    def total(*arguments):
        return losses.doubly_robust_correction(*arguments, mask).sum()

    gradients = jax.grad(total, argnums=(0, 1, 2, 3))(log_probs, q, target, ratio)
    np.testing.assert_allclose(gradients[0], [[-1.0, 1.0, 0.0]], rtol=1e-6)
    for other in gradients[1:]:
        np.testing.assert_array_equal(other, 0.0)


def test_an_action_is_trusted_until_it_has_moved_too_far():
    behaviour = jnp.log(jnp.array([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]))
    # Up and down, which cancel; up alone, by log 1.6; padding that may be anything.
    policy = jnp.log(jnp.array([[0.8, 0.3125], [0.8, 0.5], [0.55, jnp.nan]]))
    mask = jnp.array([[True, True], [True, True], [True, False]])

    def found(trust_region):
        return losses.is_trusted(policy, behaviour, mask, trust_region=trust_region).tolist()

    assert found(0.05) == [True, False, False]
    assert found(0.2) == [True, False, True]
    assert found(np.log(1.6) + 1e-6) == [True, True, True]
    assert losses.is_trusted(behaviour, policy, mask, trust_region=0.2).tolist()[1] is False
    assert found(jnp.inf) == [True, True, True]


def test_path_loss_equals_the_loop():
    rng = np.random.default_rng(3)
    value, log_ratio = rng.normal(size=(2, 4, 5)).astype(np.float32)
    target = rng.normal(size=4).astype(np.float32)
    lengths = [5, 2, 1, 4]
    mask = np.arange(5) < np.array(lengths)[:, None]
    squares, roots = [], []
    for row, length in enumerate(lengths):
        for start in range(length):
            path = value[row, start] + BETA * log_ratio[row, start:length].sum() - target[row]
            squares.append(path**2)
            if start == 0:
                roots.append(path**2)
    log_ratio[~mask] = np.nan  # whatever stands in the padding is not read
    for starts, expected in (("all", squares), ("root", roots)):
        loss = losses.path_loss(
            *map(jnp.asarray, (value, log_ratio, target, mask)), beta=BETA, starts=starts
        )
        np.testing.assert_allclose(loss, np.mean(expected), rtol=1e-5)


def test_path_loss_is_zero_at_the_soft_optimum():
    # Two tokens from a vocabulary of three, reward by pair; v and pi* by backward induction.
    rng = np.random.default_rng(0)
    reward = rng.normal(size=(3, 3))
    rho_first, rho_second = rng.dirichlet(np.ones(3)), rng.dirichlet(np.ones(3), size=3)
    v_second = BETA * np.log((rho_second * np.exp(reward / BETA)).sum(1))
    v_first = BETA * np.log((rho_first * np.exp(v_second / BETA)).sum())
    for first in range(3):
        for second in range(3):
            log_ratio = np.array(
                [[(v_second[first] - v_first), reward[first, second] - v_second[first]]]
            )
            loss = losses.path_loss(
                jnp.array([[v_first, v_second[first]]], jnp.float32),
                jnp.array(log_ratio / BETA, jnp.float32),
                jnp.array([reward[first, second]], jnp.float32),
                jnp.ones((1, 2), bool),
                beta=BETA,
            )
            np.testing.assert_allclose(loss, 0.0, atol=1e-10)


def test_policy_loss_equals_the_loop():
    policy, reference, q, mask = random_case()
    for target in ("reference_exp_q", "exp_q"):
        expected, count = 0.0, 0
        for row, position in zip(*np.nonzero(mask), strict=True):
            log_pi = np.asarray(jax.nn.log_softmax(policy[row, position]))
            log_rho = np.asarray(jax.nn.log_softmax(reference[row, position]))
            score = BETA * log_pi - q[row, position]
            if target == "reference_exp_q":
                score = score - BETA * log_rho
            expected += (np.exp(log_pi) * score).sum()
            count += 1
        loss = losses.policy_loss(policy, reference, q, mask, beta=BETA, target=target)
        np.testing.assert_allclose(loss, expected / count, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("target", ["reference_exp_q", "exp_q"])
def test_the_policy_target_is_stationary(target):
    _, reference, q, mask = random_case()
    optimum = q / BETA
    if target == "reference_exp_q":
        optimum = optimum + jax.nn.log_softmax(reference)
    gradient = jax.grad(
        lambda logits: losses.policy_loss(logits, reference, q, mask, beta=BETA, target=target)
    )(optimum)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)


def test_policy_loss_gradient_reaches_the_policy_alone():
    policy, reference, q, mask = random_case()

    def loss(policy, reference, q):
        return losses.policy_loss(policy, reference, q, mask, beta=BETA)

    gradients = jax.grad(loss, argnums=(0, 1, 2))(policy, reference, q)
    assert np.abs(gradients[0][mask]).max() > 0
    np.testing.assert_array_equal(gradients[0][~mask], 0.0)
    np.testing.assert_array_equal(gradients[1], 0.0)
    np.testing.assert_array_equal(gradients[2], 0.0)


def test_the_authors_uniform_loss_has_a_gradient_without_q():
    policy, _, q, mask = random_case()

    def gradient(q):
        def loss(logits):
            return masked_mean(losses.uniform_policy_objective(logits, q, beta=BETA), mask)

        return jax.grad(loss)(policy)

    np.testing.assert_array_equal(gradient(q), gradient(5.0 * q - 2.0))
    expected = BETA * (1 / q.shape[-1] - jax.nn.softmax(policy)) / mask.sum()
    np.testing.assert_allclose(gradient(q)[mask], expected[mask], rtol=1e-4, atol=1e-7)


def test_padding_moves_no_loss():
    policy, reference, q, mask = random_case()

    def widen(array, fill):
        return jnp.concatenate([array, jnp.full_like(array, fill)], axis=1)

    wide = [widen(array, 1e4) for array in (policy, reference, q)]
    for target in ("reference_exp_q", "exp_q"):
        short = losses.policy_loss(policy, reference, q, mask, beta=BETA, target=target)
        padded = losses.policy_loss(*wide, widen(mask, False), beta=BETA, target=target)
        np.testing.assert_allclose(padded, short, rtol=1e-6)
