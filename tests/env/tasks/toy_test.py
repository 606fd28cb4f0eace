"""The toy MDP, and Appendix A of the paper checked on it in float64."""

import json

import numpy as np
import pytest

from env.base import State, UsageError
from env.tasks import toy
from tests.env.tasks import toy_optimum

BETAS = (0.05, 0.5)
GAMMA = 0.9


def random_distribution(seed):
    """A distribution over tokens that is drawn once per prefix."""
    rng = np.random.default_rng(seed)
    drawn = {}

    def distribution(*prefix):
        if prefix not in drawn:
            drawn[prefix] = rng.dirichlet(np.ones(len(toy.TOKENS)))
        return drawn[prefix]

    return distribution


def uniform(*prefix):
    return np.full(len(toy.TOKENS), 1 / len(toy.TOKENS))


def both_optima(reference, beta):
    choose = toy_optimum.soft_optimal(beta)
    task = toy.ToyTask()
    return (
        toy_optimum.backup_tokens(task, reference, choose, beta=beta, gamma=GAMMA),
        toy_optimum.backup_actions(task, reference, choose, beta=beta, gamma=GAMMA),
    )


def prefix_probabilities(tokens, step, place):
    """Prefix of letters -> probability that the policy writes it; the empty prefix has 1."""
    result = {(): 1.0}
    for length in range(1, toy.MAX_TOKENS):
        for prefix in [p for p in result if len(p) == length - 1]:
            for token, p in zip(toy.TOKENS, tokens.policy[step, place, prefix], strict=True):
                if token != toy.STOP:
                    result[(*prefix, token)] = result[prefix] * p
    return result


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("seed", [0, 1])
class TestAppendixA:
    def test_token_and_action_optimum_agree(self, seed, beta):
        tokens, actions = both_optima(random_distribution(seed), beta)
        for key, value in actions.value.items():
            assert tokens.value[key] == pytest.approx(value, abs=1e-10)
            np.testing.assert_allclose(
                tokens.action_policy(*key), actions.policy[key], rtol=0, atol=1e-10
            )

    def test_optimal_value_is_the_log_partition(self, seed, beta):
        _, actions = both_optima(random_distribution(seed), beta)
        for key, value in actions.value.items():
            partition = np.sum(actions.reference[key] * np.exp(actions.q[key] / beta))
            assert value == pytest.approx(beta * np.log(partition), abs=1e-10)

    def test_eq_12_first_token_against_whole_action(self, seed, beta):
        tokens, actions = both_optima(random_distribution(seed), beta)
        for step, place in actions.value:
            later_kl = sum(
                p
                * toy_optimum.kl(
                    tokens.policy[step, place, prefix], tokens.reference[step, place, prefix]
                )
                for prefix, p in prefix_probabilities(tokens, step, place).items()
                if prefix
            )
            first = tokens.policy[step, place, ()] @ tokens.q[step, place, ()]
            whole = tokens.action_policy(step, place) @ actions.q[step, place]
            assert first == pytest.approx(whole - beta * later_kl, abs=1e-10)

    def test_eq_13_kl_of_an_action_is_the_sum_over_its_tokens(self, seed, beta):
        tokens, actions = both_optima(random_distribution(seed), beta)
        for step, place in actions.value:
            summed = sum(
                p
                * toy_optimum.kl(
                    tokens.policy[step, place, prefix], tokens.reference[step, place, prefix]
                )
                for prefix, p in prefix_probabilities(tokens, step, place).items()
            )
            whole = toy_optimum.kl(actions.policy[step, place], actions.reference[step, place])
            assert summed == pytest.approx(whole, abs=1e-10)
            first = tokens.policy[step, place, ()] @ tokens.q[step, place, ()]
            first_kl = toy_optimum.kl(
                tokens.policy[step, place, ()], tokens.reference[step, place, ()]
            )
            assert first - beta * first_kl == pytest.approx(
                actions.policy[step, place] @ actions.q[step, place] - beta * whole, abs=1e-10
            )

    def test_eq_11_and_14_have_the_same_backup_across_actions(self, seed, beta):
        tokens, actions = both_optima(random_distribution(seed), beta)
        for step, place in actions.value:
            by_action = actions.policy[step, place] @ actions.q[step, place]
            by_token = 0.0
            for action, p in zip(toy.actions(), tokens.action_policy(step, place), strict=True):
                letters = "".join(action)
                target = toy.reward(place, letters)
                if step + 1 < toy.ToyTask().max_steps:
                    for chance, following in zip(
                        toy.transition(place, letters), toy.PLACES, strict=True
                    ):
                        first = (step + 1, following, ())
                        target += (GAMMA * chance) * (
                            tokens.policy[first] @ tokens.q[first]
                            - beta * toy_optimum.kl(tokens.policy[first], tokens.reference[first])
                        )
                by_token += p * target
            assert by_token == pytest.approx(by_action, abs=1e-10)

    def test_any_other_policy_has_the_same_value_at_both_levels(self, seed, beta):
        reference, other = random_distribution(seed), random_distribution(seed + 100)
        task = toy.ToyTask()
        policies = iter(())

        def next_policy(rho, q):
            return next(policies)

        visits = toy_optimum.backup_tokens(task, other, lambda r, q: r, beta=beta, gamma=GAMMA)
        policies = iter(visits.policy.values())
        # Dictionaries keep the order of the recursion, in which a prefix comes after its
        # continuations: the order in which policies are asked for.
        tokens = toy_optimum.backup_tokens(task, reference, next_policy, beta=beta, gamma=GAMMA)
        policies = iter([visits.action_policy(*key) for key in visits.value])
        actions = toy_optimum.backup_actions(task, reference, next_policy, beta=beta, gamma=GAMMA)
        for key, value in actions.value.items():
            assert tokens.value[key] == pytest.approx(value, abs=1e-10)
        best, _ = both_optima(reference, beta)
        assert all(tokens.value[key] < best.value[key] for key in tokens.value)


def exp_q(beta):
    """Eq. 7 as printed: exp(Q / beta) without the reference."""

    def choose(reference, q):
        return toy_optimum.soft_optimal(beta)(np.ones_like(reference), q)

    return choose


def root_distance(choose, reference, beta, gamma_within=1.0):
    """Largest total variation between a token-level policy and the soft optimum at the start."""
    tokens = toy_optimum.backup_tokens(
        toy.ToyTask(), reference, choose, beta=beta, gamma=GAMMA, gamma_within=gamma_within
    )
    _, actions = both_optima(reference, beta)
    return max(
        0.5 * np.abs(tokens.action_policy(0, place) - actions.policy[0, place]).sum()
        for place in toy.PLACES
    )


def test_eq_7_as_printed_is_right_for_a_uniform_reference_only():
    assert root_distance(exp_q(0.5), uniform, 0.5) < 1e-10
    assert root_distance(exp_q(0.5), random_distribution(0), 0.5) > 0.1


def test_discounting_inside_an_action_is_biased():
    reference = random_distribution(0)
    choose = toy_optimum.soft_optimal(0.05)
    assert root_distance(choose, reference, 0.05, gamma_within=1.0) < 1e-10
    assert root_distance(choose, reference, 0.05, gamma_within=0.99) > 1e-3


def test_small_beta_approaches_the_best_reward_and_large_beta_the_reference():
    cold, _ = both_optima(uniform, 1e-4)
    words = toy.actions()
    assert words[int(cold.action_policy(2, "green").argmax())] == ("c", "a", "b", toy.STOP)
    assert cold.value[2, "green"] == pytest.approx(1.0, abs=1e-2)
    hot, _ = both_optima(uniform, 1e4)
    np.testing.assert_allclose(hot.policy[0, "red", ()], 0.25, atol=1e-4)


def test_reference_without_support_for_the_stop_token():
    def never_stops(*prefix):
        return np.array([0.5, 0.25, 0.25, 0.0])

    tokens, actions = both_optima(never_stops, 0.1)
    assert tokens.value[0, "red"] == pytest.approx(actions.value[0, "red"], abs=1e-10)
    assert tokens.policy[0, "red", ()][-1] == 0


def test_actions_are_all_and_have_one_to_four_tokens():
    actions = toy.actions()
    assert len(actions) == len(set(actions)) == 1 + 3 + 9 + 27 + 81
    assert {len(action) for action in actions} == {1, 2, 3, 4}
    assert all(toy.is_complete(action) for action in actions)
    assert not any(toy.is_complete(action[:-1]) for action in actions)


@pytest.mark.parametrize(
    ("place", "letters", "expected"),
    [("red", "ab", 1.0), ("red", "a", 0.5), ("red", "aba", 2 / 3), ("blue", "", 0.0)],
)
def test_reward_is_the_share_of_hits(place, letters, expected):
    assert toy.reward(place, letters) == pytest.approx(expected)


def test_text_of_a_language_model_is_read_by_its_letters():
    assert toy.letters_of(" a\nXb!") == "ab"
    assert toy.letters_of("abcabc") == "abca"
    assert toy.ToyTask().program("x b") == "b\n"


def test_steps_follow_the_transition_probabilities_and_end_at_the_limit():
    task = toy.ToyTask(max_steps=2)
    rngs = [np.random.default_rng(seed) for seed in range(2000)]
    steps = task.step([task.state(0, "red")] * 2000, ["cc"] * 2000, rngs)
    places = [step.next_state.data["place"] for step in steps]
    share = [places.count(place) / 2000 for place in toy.PLACES]
    np.testing.assert_allclose(share, toy.transition("red", "cc"), atol=0.04)
    last = task.step([task.state(1, "red")], ["ab"], rngs[:1])[0]
    assert last.next_state is None
    assert last.reward == 1.0


def test_states_survive_json_and_render_one_marker():
    task = toy.ToyTask()
    state = task.reset(np.random.default_rng(0))
    copy = State(state.t, json.loads(json.dumps(state.data)))
    assert task.render(copy) == task.render(state)
    assert task.render(state).count("<FILL_ME>") == 1
    assert {task.reset(np.random.default_rng(s)).data["place"] for s in range(20)} == set(
        toy.PLACES
    )


def test_no_steps_is_refused():
    with pytest.raises(UsageError, match="max_steps"):
        toy.ToyTask(max_steps=0)
