"""Appendix A and Eq. 7 to 9 of the paper on random token MDPs, in float64 and without a trainer.

Where `toy_test.py` goes back from the last step of the toy, here episodes have no end and
the backups are iterated to their fixed points. docs/theory.md has the derivations and the figures.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import pytest

from etpo_jax import soft_q

GAMMA = 0.9
SEEDS = (0, 1, 2, 3)
BETAS = (0.05, 0.2, 1.0)
TOLERANCE = 1e-10

Choice = Callable[[np.ndarray, np.ndarray, float], np.ndarray]
"""log policy from log reference and Q of the same alternatives (the last axis) and beta."""


@dataclasses.dataclass(frozen=True, eq=False)
class TokenMdp:
    """States with actions of one to `length` tokens; the last token of the vocabulary stops.

    Level j holds the prefixes of j letters, (vocabulary - 1)^j of them. An action ends with the
    stop token, or with any token after length - 1 letters; `_ends` of a level are its actions.

    Attributes:
      log_reference: per level [s, prefix, vocabulary], log rho.
      reward: per level [s, prefix, ends], of the whole action.
      transition: per level [s, prefix, ends, s'], probabilities of the next state; they sum to less
        than 1 where the episode may end.
    """

    log_reference: list[np.ndarray]
    reward: list[np.ndarray]
    transition: list[np.ndarray]

    @classmethod
    @functools.cache
    def random(cls, seed: int, *, states: int = 3, vocabulary: int = 4, length: int = 4):
        """Rewards in [-1, 1], a Dirichlet reference, and an end in one of ten transitions."""
        rng = np.random.default_rng(seed)
        log_reference, reward, transition = [], [], []
        for level in range(length):
            prefixes = (vocabulary - 1) ** level
            ends = vocabulary if level == length - 1 else 1
            rho = rng.dirichlet(np.full(vocabulary, 0.7), size=(states, prefixes)) + 1e-3
            log_reference.append(np.log(rho / rho.sum(-1, keepdims=True)))
            reward.append(rng.uniform(-1, 1, size=(states, prefixes, ends)))
            following = rng.dirichlet(np.ones(states), size=(states, prefixes, ends))
            transition.append(0.9 * following)
        return cls(log_reference, reward, transition)

    def action_values(self, value_s: np.ndarray) -> list[np.ndarray]:
        """r + gamma E[v(s')] of every action, level by level."""
        pairs = zip(self.reward, self.transition, strict=True)
        return [reward + GAMMA * transition @ value_s for reward, transition in pairs]

    def chain(self, log_rows: list[np.ndarray]) -> np.ndarray:
        """log probabilities [s, actions] of whole actions from those of tokens (Eq. 4)."""
        reached = np.zeros((len(log_rows[0]), 1))
        found = []
        for rows, reward in zip(log_rows, self.reward, strict=True):
            ends = reward.shape[-1]
            found.append((reached[..., None] + rows[..., -ends:]).reshape(len(rows), -1))
            reached = (reached[..., None] + rows[..., :-1]).reshape(len(rows), -1)
        return np.concatenate(found, axis=1)


def flat(levels: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([level.reshape(len(level), -1) for level in levels], axis=1)


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def soft_value(log_policy: np.ndarray, log_reference: np.ndarray, q: np.ndarray, beta: float):
    """E_pi[Q] - beta KL(pi || rho)."""
    return (np.exp(log_policy) * (q - beta * (log_policy - log_reference))).sum(-1)


def eq_9(log_reference: np.ndarray, q: np.ndarray, beta: float) -> np.ndarray:
    return log_softmax(log_reference + q / beta)


def eq_7(log_reference: np.ndarray, q: np.ndarray, beta: float) -> np.ndarray:
    del log_reference
    return log_softmax(q / beta)


@dataclasses.dataclass(frozen=True)
class FixedPoint:
    """End of a backup: values [s], policy over actions [s, actions], and rows per level."""

    value_s: np.ndarray
    log_action_policy: np.ndarray
    log_policy: list[np.ndarray]
    q: list[np.ndarray]
    value: list[np.ndarray]


def token_sweep(mdp, value_s, choose, beta, gamma_within=1.0) -> FixedPoint:
    """Eq. 6 once, from the last token of every action to its first."""
    log_policy, qs, values = [], [], []
    following = np.empty((len(value_s), 0))
    levels = zip(mdp.action_values(value_s), mdp.log_reference, strict=True)
    for action_value, log_reference in reversed(list(levels)):
        states, prefixes, _ = action_value.shape
        letters = gamma_within * following.reshape(states, prefixes, -1)
        q = np.concatenate([letters, action_value], axis=-1)
        rows = choose(log_reference, q, beta)
        following = soft_value(rows, log_reference, q, beta)
        for found, new in ((log_policy, rows), (qs, q), (values, following)):
            found.insert(0, new)
    return FixedPoint(following[:, 0], mdp.chain(log_policy), log_policy, qs, values)


def iterate(step: Callable[[np.ndarray], np.ndarray], states: int) -> np.ndarray:
    """The fixed point of a map of values; fails where there is none."""
    value_s = np.zeros(states)
    for _ in range(2000):
        new = step(value_s)
        if np.abs(new - value_s).max() < 1e-14:
            return new
        value_s = new
    pytest.fail("the backup did not converge")


@functools.cache
def token_fixed_point(mdp, choose, beta, gamma_within=1.0) -> FixedPoint:
    def sweep(value_s):
        return token_sweep(mdp, value_s, choose, beta, gamma_within)

    return sweep(iterate(lambda value_s: sweep(value_s).value_s, len(mdp.reward[0])))


@functools.cache
def action_optimum(mdp, beta) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 3 with Eq. 8 over whole actions: values [s] and log policy [s, actions]."""
    log_reference = mdp.chain(mdp.log_reference)

    def backup(value_s):
        q = flat(mdp.action_values(value_s))
        log_policy = eq_9(log_reference, q, beta)
        return soft_value(log_policy, log_reference, q, beta), log_policy

    value_s = iterate(lambda value_s: backup(value_s)[0], len(mdp.reward[0]))
    return backup(value_s)


def total_variation(log_p: np.ndarray, log_q: np.ndarray) -> float:
    """The largest over states."""
    return float(0.5 * np.abs(np.exp(log_p) - np.exp(log_q)).sum(-1).max())


def distance(mdp, choose, beta, gamma_within=1.0) -> tuple[float, float]:
    """Total variation and largest value difference to the action-level soft optimum."""
    found = token_fixed_point(mdp, choose, beta, gamma_within)
    value_s, log_policy = action_optimum(mdp, beta)
    return (
        total_variation(found.log_action_policy, log_policy),
        float(np.abs(found.value_s - value_s).max()),
    )


def ranges(choose, beta, gamma_within=1.0) -> list[str]:
    """Smallest and largest of both distances over the seeds, as docs/theory.md prints them."""
    found = [distance(TokenMdp.random(s), choose, beta, gamma_within) for s in SEEDS]
    return [f"{min(column):.2g} to {max(column):.2g}" for column in zip(*found, strict=True)]


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("seed", SEEDS)
def test_token_level_iteration_is_action_level_iteration(seed, beta):
    mdp = TokenMdp.random(seed)
    tokens = token_fixed_point(mdp, eq_9, beta)
    value_s, log_policy = action_optimum(mdp, beta)
    np.testing.assert_allclose(tokens.value_s, value_s, rtol=0, atol=TOLERANCE)
    assert total_variation(tokens.log_action_policy, log_policy) < TOLERANCE


def test_every_sweep_agrees_not_only_the_fixed_point():
    """Eq. 11 to 14 hold for any values of the next states, so the two iterations move together."""
    mdp, beta = TokenMdp.random(0), 0.2
    value_s = np.random.default_rng(1).normal(size=3)
    log_reference = mdp.chain(mdp.log_reference)
    q = flat(mdp.action_values(value_s))
    log_policy = eq_9(log_reference, q, beta)
    swept = token_sweep(mdp, value_s, eq_9, beta)
    expected = soft_value(log_policy, log_reference, q, beta)
    np.testing.assert_allclose(swept.value_s, expected, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(swept.log_action_policy, log_policy, rtol=0, atol=TOLERANCE)


def test_the_reference_row_itself_is_a_distribution_over_actions():
    mdp = TokenMdp.random(2)
    np.testing.assert_allclose(np.exp(mdp.chain(mdp.log_reference)).sum(-1), 1.0, atol=1e-12)


@pytest.mark.parametrize("gamma_within", [0.99, 0.9])
@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("seed", SEEDS)
def test_discounting_within_the_action_is_biased_by_no_more_than_the_bound(
    seed, beta, gamma_within
):
    mdp = TokenMdp.random(seed)
    variation, gap = distance(mdp, eq_9, beta, gamma_within)
    optimum = token_fixed_point(mdp, eq_9, beta)
    largest = max(np.abs(value).max() for value in optimum.value[1:])
    bound = (len(mdp.reward) - 1) * (1 - gamma_within) * largest / (1 - GAMMA)
    assert 1e3 * TOLERANCE < gap <= bound
    assert variation > 1e3 * TOLERANCE


def test_discounting_prefers_a_shorter_and_worse_action():
    """One token for 0.9 against 27 for 1: 0.99 within the action turns the order around."""
    short, long, tokens, beta = 0.9, 1.0, 27, 0.01

    def probability_of_long(gamma_within):
        later = gamma_within ** (tokens - 1) * long
        return np.exp(log_softmax(np.array([short, later]) / beta))[1]

    assert probability_of_long(1.0) > 0.9999
    assert probability_of_long(0.99) < 1e-4


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("seed", SEEDS)
def test_eq_7_converges_elsewhere(seed, beta):
    mdp = TokenMdp.random(seed)
    found = token_fixed_point(mdp, eq_7, beta)
    value_s, log_policy = action_optimum(mdp, beta)
    assert total_variation(found.log_action_policy, log_policy) > 0.01
    # It is a policy like any other under Eq. 2, so its value is lower wherever one starts.
    assert (found.value_s < value_s - 1e-3 * beta).all()
    # Where: log pi = Q / beta up to a constant, with beta LSE(Q / beta) + beta E_pi[log rho] as
    # the value of a prefix. The reference is billed and never followed.
    for q, rows, log_reference, value in zip(
        found.q, found.log_policy, mdp.log_reference, found.value, strict=True
    ):
        log_sum = beta * np.log(np.exp(q / beta).sum(-1))
        billed = beta * (np.exp(rows) * log_reference).sum(-1)
        np.testing.assert_allclose(value, log_sum + billed, rtol=0, atol=1e-9)


def test_eq_7_of_one_token_actions_ignores_the_reference():
    mdp = TokenMdp.random(0, length=1)
    bandit = dataclasses.replace(mdp, transition=[np.zeros_like(p) for p in mdp.transition])
    found = token_fixed_point(bandit, eq_7, 0.2)
    np.testing.assert_allclose(
        found.log_action_policy, log_softmax(flat(bandit.reward) / 0.2), rtol=0, atol=1e-12
    )


def test_eq_7_is_right_for_a_uniform_reference():
    mdp = TokenMdp.random(0)
    uniform = [np.full_like(rows, -np.log(rows.shape[-1])) for rows in mdp.log_reference]
    variation, gap = distance(dataclasses.replace(mdp, log_reference=uniform), eq_7, 0.2)
    assert max(variation, gap) < TOLERANCE


@pytest.mark.parametrize("seed", SEEDS)
def test_eq_7_is_right_for_q_plus_beta_log_rho_with_an_entropy_bonus(seed):
    """The reading under which the printed formula is correct: the reference is inside Q."""
    mdp, beta = TokenMdp.random(seed), 0.2

    def sweep(value_s):
        following, rows = np.empty((3, 0)), []
        levels = zip(mdp.action_values(value_s), mdp.log_reference, strict=True)
        for action_value, log_reference in reversed(list(levels)):
            letters = following.reshape(*action_value.shape[:2], -1)
            shifted = np.concatenate([letters, action_value], -1) + beta * log_reference
            log_policy = log_softmax(shifted / beta)
            following = (np.exp(log_policy) * (shifted - beta * log_policy)).sum(-1)
            rows.insert(0, log_policy)
        return following[:, 0], rows

    value_s = iterate(lambda value_s: sweep(value_s)[0], 3)
    expected_s, log_policy = action_optimum(mdp, beta)
    np.testing.assert_allclose(value_s, expected_s, rtol=0, atol=TOLERANCE)
    assert total_variation(mdp.chain(sweep(value_s)[1]), log_policy) < TOLERANCE


@pytest.mark.parametrize("lambda_within", [0.0, 0.7, 1.0])
def test_the_targets_of_the_trainer_leave_the_optimum_where_it_is(lambda_within):
    """`soft_q` in float32: every action of a state as a row of a batch, sampled by anybody."""
    mdp, beta, state = TokenMdp.random(3), 0.2, 1
    optimum = token_fixed_point(mdp, eq_9, beta)
    length, vocabulary = len(mdp.reward), mdp.log_reference[0].shape[-1]
    rows = []
    for level, reward in enumerate(mdp.reward):
        for prefix, end in np.ndindex(reward.shape[1:]):
            letters = np.unravel_index(prefix, (vocabulary - 1,) * level) if level else ()
            rows.append((*map(int, letters), vocabulary - reward.shape[-1] + end))
    shape = (len(rows), length)
    tables = {name: np.zeros((*shape, vocabulary)) for name in ("policy", "reference", "q")}
    taken, expected, mask = np.zeros(shape), np.zeros(shape), np.zeros(shape, bool)
    rewards, following = np.zeros(len(rows)), np.zeros(len(rows))
    for row, tokens in enumerate(rows):
        prefix = 0
        for level, token in enumerate(tokens):
            tables["policy"][row, level] = optimum.log_policy[level][state, prefix]
            tables["reference"][row, level] = mdp.log_reference[level][state, prefix]
            tables["q"][row, level] = optimum.q[level][state, prefix]
            taken[row, level] = expected[row, level] = optimum.q[level][state, prefix, token]
            mask[row, level] = True
            if level + 1 == len(tokens):
                end = token - vocabulary
                rewards[row] = mdp.reward[level][state, prefix, end]
                following[row] = mdp.transition[level][state, prefix, end] @ optimum.value_s
            else:
                prefix = prefix * (vocabulary - 1) + token
    ratio = np.random.default_rng(0).uniform(0.1, 2.0, shape)
    tables = {name: jnp.asarray(table, jnp.float32) for name, table in tables.items()}
    value = soft_q.soft_value(tables["policy"], tables["reference"], tables["q"], beta=beta)
    targets = soft_q.retrace_targets(
        value,
        *(jnp.asarray(array, jnp.float32) for array in (taken, ratio, following, rewards)),
        jnp.ones(len(rows)),
        jnp.asarray(mask),
        gamma=GAMMA,
        lambda_within=lambda_within,
    )
    np.testing.assert_allclose(targets, expected, rtol=0, atol=2e-5)


def test_the_figures_of_the_page():
    """docs/theory.md prints these: total variation and value gap over four random MDPs."""
    figures = {
        (name, beta): ranges(choose, beta, gamma_within)
        for name, choose, gamma_within in (
            ("0.99", eq_9, 0.99),
            ("0.9", eq_9, 0.9),
            ("Eq. 7", eq_7, 1.0),
        )
        for beta in BETAS
    }
    assert figures == {
        ("0.99", 0.05): ["0.16 to 0.34", "0.43 to 0.53"],
        ("0.99", 0.2): ["0.034 to 0.099", "0.24 to 0.27"],
        ("0.99", 1.0): ["0.0024 to 0.0066", "0.039 to 0.084"],
        ("0.9", 0.05): ["0.79 to 0.97", "2 to 2.3"],
        ("0.9", 0.2): ["0.21 to 0.47", "1.2 to 1.4"],
        ("0.9", 1.0): ["0.018 to 0.045", "0.26 to 0.51"],
        ("Eq. 7", 0.05): ["0.57 to 0.77", "0.14 to 0.58"],
        ("Eq. 7", 0.2): ["0.5 to 0.75", "0.83 to 2.5"],
        ("Eq. 7", 1.0): ["0.53 to 0.68", "4.8 to 7"],
    }
