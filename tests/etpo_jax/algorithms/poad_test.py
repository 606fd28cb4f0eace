import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpo_jax.algorithms import poad, ppo_kl

GAMMA = 0.9
LENGTHS = (5, 1, 3, 2)


def random_case(seed=0, j=5):
    rng = np.random.default_rng(seed)
    b = len(LENGTHS)
    mask = np.arange(j) < np.array(LENGTHS)[:, None]
    return {
        "log_probs": -rng.uniform(0.1, 3.0, (b, j)),
        "reference": -rng.uniform(0.1, 3.0, (b, j)),
        "value": rng.normal(size=(b, j)),
        "next_value": np.array([0.3, np.nan, -0.4, np.nan]),
        "reward": rng.normal(size=b),
        "continues": np.array([1.0, 0.0, 1.0, 0.0]),
        "mask": mask,
    }


def arrays(case, *names):
    return [
        jnp.asarray(case[name], None if case[name].dtype == bool else jnp.float32) for name in names
    ]


def rewards_of(case, beta):
    return poad.token_rewards(*arrays(case, "reward", "log_probs", "reference", "mask"), beta=beta)


def advantages_of(case, lambda_within, gamma_within=1.0, beta=0.1):
    return poad.lambda_advantages(
        rewards_of(case, beta),
        *arrays(case, "value", "next_value", "continues", "mask"),
        gamma=GAMMA,
        gamma_within=gamma_within,
        lambda_within=lambda_within,
    )


def loop_advantages(case, lambda_within, gamma_within=1.0, beta=0.1):
    """Token by token from the last, in float64."""
    found = np.zeros(case["mask"].shape)
    for row, length in enumerate(LENGTHS):
        advantage = 0.0
        for position in reversed(range(length)):
            log_ratio = case["log_probs"][row, position] - case["reference"][row, position]
            error = -beta * log_ratio - case["value"][row, position]
            if position == length - 1:
                error += case["reward"][row]
                if case["continues"][row]:
                    error += GAMMA * case["next_value"][row]
            else:
                error += gamma_within * case["value"][row, position + 1]
            advantage = error + gamma_within * lambda_within * advantage
            found[row, position] = advantage
    return found


def test_lambda_advantages_by_hand():
    advantages = poad.lambda_advantages(
        jnp.array([[0.0, -0.1, 1.0, 7.0]]),
        jnp.array([[0.2, 0.4, 0.5, 7.0]]),
        jnp.array([2.0]),
        jnp.array([1.0]),
        jnp.array([[True, True, True, False]]),
        gamma=0.5,
        lambda_within=0.5,
    )
    # Errors 0.4 - 0.2, -0.1 + 0.5 - 0.4, 1 + 0.5 * 2 - 0.5; then each half of the next.
    np.testing.assert_allclose(advantages, [[0.575, 0.75, 1.5, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("gamma_within", [1.0, 0.9])
@pytest.mark.parametrize("lambda_within", [0.0, 0.7, 1.0])
def test_lambda_advantages_equal_the_loop(lambda_within, gamma_within):
    case = random_case()
    np.testing.assert_allclose(
        advantages_of(case, lambda_within, gamma_within),
        loop_advantages(case, lambda_within, gamma_within),
        rtol=1e-5,
        atol=1e-6,
    )


def test_token_rewards_add_up_to_the_reward_of_ppo_kl():
    case = random_case(1)
    whole = ppo_kl.kl_reward(*arrays(case, "reward", "log_probs", "reference", "mask"), beta=0.1)
    np.testing.assert_allclose(rewards_of(case, 0.1).sum(axis=1), whole, rtol=1e-5)


def test_lambda_1_is_the_return_of_the_action_less_the_value():
    case = random_case(2)
    whole = ppo_kl.action_return(
        ppo_kl.kl_reward(*arrays(case, "reward", "log_probs", "reference", "mask"), beta=0.1),
        *arrays(case, "next_value", "continues"),
        gamma=GAMMA,
    )
    first = advantages_of(case, 1.0)[:, 0]
    np.testing.assert_allclose(first + case["value"][:, 0], whole, rtol=1e-5)


def test_a_one_token_action_is_the_same_for_both_baselines():
    case = random_case(3)
    whole = ppo_kl.action_return(
        ppo_kl.kl_reward(*arrays(case, "reward", "log_probs", "reference", "mask"), beta=0.1),
        *arrays(case, "next_value", "continues"),
        gamma=GAMMA,
    )
    for lambda_within in (0.0, 0.7):
        found = advantages_of(case, lambda_within)[1, 0] + case["value"][1, 0]
        np.testing.assert_allclose(found, whole[1], rtol=1e-5)


def test_padding_and_gradients_change_nothing():
    case = random_case(4)
    wide = {
        name: np.pad(array, [(0, 0), (0, 3)], constant_values=0 if array.dtype == bool else np.nan)
        if array.ndim == 2
        else array
        for name, array in case.items()
    }
    np.testing.assert_array_equal(advantages_of(wide, 0.7)[:, :5], advantages_of(case, 0.7))
    np.testing.assert_array_equal(advantages_of(wide, 0.7)[:, 5:], np.zeros((4, 3)))

    def total(value):
        return poad.lambda_advantages(
            rewards_of(case, 0.1),
            value,
            *arrays(case, "next_value", "continues", "mask"),
            gamma=GAMMA,
            lambda_within=0.7,
        ).sum()

    np.testing.assert_array_equal(jax.grad(total)(*arrays(case, "value")), np.zeros((4, 5)))


@pytest.mark.parametrize("gamma_within", [1.0, 0.9])
@pytest.mark.parametrize("num_new", [6, 5])
def test_continued_traces_equal_the_loop_through_episodes(gamma_within, num_new):
    """Two episodes side by side for three steps, against the whole episode token by token."""
    rng, num_envs, j, lambda_ = np.random.default_rng(7), 2, 4, 0.7
    lengths = np.array([4, 1, 2, 3, 1, 2])
    mask = np.arange(j) < lengths[:, None]
    reward, value = rng.normal(size=(6, j)) * mask, rng.normal(size=(6, j))
    continues = np.array([1.0, 1.0, 0.0, 1.0, 1.0, 1.0])  # the first episode ends after two steps
    last_value = rng.normal(size=6)
    rows = np.arange(6) % num_new
    for row in range(num_new):  # the value of the next state is that of the next action's start
        if continues[row] and row + num_envs < num_new:
            last_value[row] = value[row + num_envs, 0]

    expected = np.zeros((6, j))
    for env in range(num_envs):
        advantage = 0.0
        for row in reversed(range(env, num_new, num_envs)):
            for position in reversed(range(lengths[row])):
                if position == lengths[row] - 1:
                    after, trace = GAMMA * continues[row] * last_value[row], GAMMA * continues[row]
                else:
                    after, trace = gamma_within * value[row, position + 1], gamma_within
                error = reward[row, position] + after - value[row, position]
                advantage = error + trace * lambda_ * advantage
                expected[row, position] = advantage
    expected = expected[rows]

    def array(values):
        return jnp.asarray(values[rows], None if values.dtype == bool else jnp.float32)

    alone = poad.lambda_advantages(
        array(reward),
        array(value),
        array(last_value),
        array(continues),
        array(mask),
        gamma=GAMMA,
        gamma_within=gamma_within,
        lambda_within=lambda_,
    )
    found = poad.continue_traces(
        alone,
        array(continues),
        array(mask),
        jnp.int32(num_new),
        num_envs=num_envs,
        gamma=GAMMA,
        gamma_within=gamma_within,
        lambda_within=lambda_,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(found - alone).max() > 0.05
