import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpo_jax import soft_q

BETA, GAMMA = 0.3, 0.9


def on_device(*arrays):
    """Turns arrays into jax arrays of float32 or bool, as the signatures demand."""
    return [jnp.asarray(array, bool if array.dtype == bool else jnp.float32) for array in arrays]


def random_case(seed=0, b=5, j=6, v=9):
    rng = np.random.default_rng(seed)
    lengths = np.array([6, 1, 3, 2, 5])[:b]
    return {
        "policy": rng.normal(size=(b, j, v)).astype(np.float32),
        "reference": rng.normal(size=(b, j, v)).astype(np.float32),
        "q": rng.normal(size=(b, j, v)).astype(np.float32),
        "q_taken": rng.normal(size=(b, j)).astype(np.float32),
        "ratio": rng.uniform(0.2, 2.0, size=(b, j)).astype(np.float32),
        "next_value": rng.normal(size=b).astype(np.float32),
        "reward": rng.normal(size=b).astype(np.float32),
        "continues": np.array([1, 0, 1, 0, 1], np.float32)[:b],
        "mask": np.arange(j) < lengths[:, None],
        "lengths": lengths,
    }


def softmax(logits):
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum()


def loop_values(case):
    """E_pi[Q] - beta KL, one token of the vocabulary at a time."""
    b, j, v = case["q"].shape
    values = np.zeros((b, j))
    for row in range(b):
        for position in range(j):
            pi = softmax(case["policy"][row, position].astype(np.float64))
            rho = softmax(case["reference"][row, position].astype(np.float64))
            for token in range(v):
                kl = np.log(pi[token]) - np.log(rho[token])
                values[row, position] += pi[token] * (case["q"][row, position, token] - BETA * kl)
    return values


def loop_targets(case, values, *, gamma_within=1.0, lambda_within=0.0):
    """Eq. 6 and its Retrace form, one token at a time from the last."""
    targets = np.zeros(values.shape)
    for row, length in enumerate(case["lengths"]):
        target = case["reward"][row] + GAMMA * case["continues"][row] * case["next_value"][row]
        targets[row, length - 1] = target
        for position in range(length - 2, -1, -1):
            following = position + 1
            trace = lambda_within * min(1.0, case["ratio"][row, following])
            target = gamma_within * (
                values[row, following]
                + trace * (targets[row, following] - case["q_taken"][row, following])
            )
            targets[row, position] = target
    return targets


def test_soft_value_equals_the_loop():
    case = random_case()
    values = soft_q.soft_value(*on_device(case["policy"], case["reference"], case["q"]), beta=BETA)
    np.testing.assert_allclose(values, loop_values(case), rtol=1e-5, atol=1e-5)


def test_soft_value_by_hand():
    policy = jnp.log(jnp.array([[0.5, 0.5]]))
    reference = jnp.log(jnp.array([[0.25, 0.75]]))
    q = jnp.array([[1.0, 3.0]])
    # 2 - beta (0.5 ln 2 + 0.5 ln (2 / 3))
    expected = 2.0 - BETA * (0.5 * np.log(2.0) + 0.5 * np.log(2.0 / 3.0))
    np.testing.assert_allclose(
        soft_q.soft_value(policy, reference, q, beta=BETA), [expected], rtol=1e-6
    )


def test_policy_equal_to_reference_pays_no_kl():
    case = random_case()
    values = soft_q.soft_value(*on_device(case["policy"], case["policy"], case["q"]), beta=100.0)
    expected = np.sum(jax.nn.softmax(case["policy"]) * case["q"], axis=-1)
    np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-4)


def test_beta_to_zero_is_expected_sarsa():
    case = random_case()
    values = soft_q.soft_value(*on_device(case["policy"], case["reference"], case["q"]), beta=0.0)
    expected = np.sum(jax.nn.softmax(case["policy"]) * case["q"], axis=-1)
    np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


def test_optimal_soft_value_is_the_value_of_the_optimal_policy():
    case = random_case()
    reference, q = on_device(case["reference"], case["q"])
    optimal_policy = jax.nn.log_softmax(reference) + q / BETA
    np.testing.assert_allclose(
        soft_q.optimal_soft_value(reference, q, beta=BETA),
        soft_q.soft_value(optimal_policy, reference, q, beta=BETA),
        rtol=1e-4,
        atol=1e-5,
    )


def test_token_targets_by_hand():
    value = jnp.array([[9.0, 0.5, 0.7], [9.0, 9.0, 9.0]])
    mask = jnp.array([[True, True, True], [True, False, False]])
    targets = soft_q.token_targets(
        value,
        jnp.array([2.0, 3.0]),
        jnp.array([-1.0, 0.8]),
        jnp.array([1.0, 0.0]),
        mask,
        gamma=0.9,
    )
    # Undiscounted inside; -1 + 0.9 * 2 at the last token; a one-token action that ends is Eq. 3.
    np.testing.assert_allclose(targets, [[0.5, 0.7, 0.8], [0.8, 0.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("gamma_within", [1.0, 0.99])
def test_token_targets_equal_the_loop(gamma_within):
    case = random_case()
    values = loop_values(case)
    targets = one_step(case, values, gamma_within=gamma_within)
    np.testing.assert_allclose(
        targets, loop_targets(case, values, gamma_within=gamma_within), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("lambda_within", [0.0, 0.7, 1.0])
def test_retrace_targets_equal_the_loop(lambda_within):
    case = random_case(seed=1)
    values = loop_values(case)
    targets = retrace(case, values, lambda_within=lambda_within)
    expected = loop_targets(case, values, lambda_within=lambda_within)
    np.testing.assert_allclose(targets, expected, rtol=1e-4, atol=1e-5)


def one_step(case, values, **arguments):
    rest = [case[name] for name in ("next_value", "reward", "continues", "mask")]
    return soft_q.token_targets(*on_device(values, *rest), gamma=GAMMA, **arguments)


def retrace(case, values, **arguments):
    names = ("q_taken", "ratio", "next_value", "reward", "continues", "mask")
    inputs = on_device(values, *(case[name] for name in names))
    return soft_q.retrace_targets(*inputs, **({"gamma": GAMMA} | arguments))


def test_retrace_without_trace_is_the_one_step_target():
    case = random_case()
    values = loop_values(case)
    np.testing.assert_allclose(
        retrace(case, values, lambda_within=0.0), one_step(case, values), rtol=1e-6
    )


def test_retrace_keeps_the_fixed_point():
    # Where Q already satisfies Eq. 6 along the action, no trace may change its target.
    case = random_case(seed=2)
    values = loop_values(case)
    case["q_taken"] = loop_targets(case, values).astype(np.float32)
    for lambda_within in (0.3, 1.0):
        targets = retrace(case, values, lambda_within=lambda_within)
        np.testing.assert_allclose(
            targets, np.where(case["mask"], case["q_taken"], 0), rtol=1e-4, atol=1e-5
        )


def test_terminal_step_ignores_its_bootstrap():
    case = random_case()
    values = loop_values(case)
    clean = retrace(case, values, lambda_within=1.0)
    case["next_value"] = np.where(case["continues"] > 0, case["next_value"], np.nan)
    np.testing.assert_array_equal(retrace(case, values, lambda_within=1.0), clean)


def test_padding_changes_nothing():
    case = random_case()
    values = loop_values(case)
    short = retrace(case, values, lambda_within=0.9)
    wide = {
        name: np.concatenate([case[name], np.full_like(case[name], np.nan)], axis=1)
        for name in ("q_taken", "ratio")
    }
    wide["mask"] = np.concatenate([case["mask"], np.zeros_like(case["mask"])], axis=1)
    wide_values = np.concatenate([values, np.full_like(values, np.nan)], axis=1)
    targets = retrace(case | wide, wide_values, lambda_within=0.9)
    np.testing.assert_array_equal(targets[:, : values.shape[1]], short)
    np.testing.assert_array_equal(targets[:, values.shape[1] :], 0.0)


def test_no_gradient_passes_through_targets():
    case = random_case()

    def total(scale):
        policy, reference, q = on_device(case["policy"], case["reference"], case["q"])
        values = soft_q.soft_value(scale * policy, reference, scale * q, beta=BETA)
        return jnp.sum(retrace(case, scale * values, lambda_within=1.0)) + jnp.sum(values)

    assert jax.grad(total)(1.0) == 0.0


def test_jit_equals_eager():
    case = random_case()
    values = jnp.asarray(loop_values(case), jnp.float32)
    function = functools.partial(retrace, case, lambda_within=0.8)
    np.testing.assert_allclose(jax.jit(function)(values), function(values), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", ["gamma", "gamma_within", "lambda_within"])
def test_weights_outside_their_range_are_named(name):
    case = random_case()
    arguments = {"gamma": 0.9, "gamma_within": 1.0, "lambda_within": 1.0} | {name: 1.5}
    with pytest.raises(ValueError, match=f"{name} must lie in .* got 1.5"):
        retrace(case, loop_values(case), **arguments)
