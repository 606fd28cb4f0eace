import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from env.base import UsageError
from etpo_jax.acting.transitions import Transition, collate
from etpo_jax.algorithms.base import Hyperparameters
from etpo_jax.algorithms.networks import Networks
from etpo_jax.algorithms.token_scores import make_divergences, make_measure
from etpo_jax.reproduction import final_policy
from etpo_jax.reproduction.final_policy import Sample
from etpo_jax.trainer import Trainer
from models.transformer import Decoder
from tests.models.small import perturbed, small_decoder

VOCAB, END, LONGEST = 5, 4, 3
PROMPT = np.array([1, 0, 3], np.int32)
TEMPERATURE, THRESHOLD = 0.8, 0.2


def sequences():
    """All actions: they end with END or at the greatest length."""
    found = []
    for length in range(1, LONGEST + 1):
        for tokens in itertools.product(range(VOCAB), repeat=length):
            is_ended = tokens[-1] == END or length == LONGEST
            if is_ended and END not in tokens[:-1]:
                found.append(np.array(tokens, np.int32))
    return found


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_divergences_average_to_those_of_whole_actions():
    """Against sums over all actions of a vocabulary of five, with a support mask that cuts."""
    networks = Networks(Decoder(small_decoder(vocab_size=VOCAB, max_position_embeddings=16)))
    token = jnp.zeros((1, 1), jnp.int32)
    base = networks.model.init(jax.random.key(0), token, token, token == 0)["params"]
    base = perturbed(base, seed=1, scale=0.4)
    policy = {"params": perturbed(base, seed=2, scale=0.1)}
    actions = sequences()
    blank = np.zeros(1, np.float32)
    transitions = [
        Transition(PROMPT, tokens, np.resize(blank, len(tokens)), 0.0, None) for tokens in actions
    ]
    batch = collate(
        transitions, pad_id=0, length_multiple=4, max_prompt_length=4, max_new_tokens=LONGEST
    )
    hyper = Hyperparameters(
        temperature=jnp.float32(TEMPERATURE), support_threshold=jnp.float32(THRESHOLD)
    )
    found = make_divergences(networks)(base, policy, batch, hyper)

    def raw(role):
        return np.asarray(
            networks.logits(base, role, networks.action_hidden(base, role, batch)), np.float64
        )

    reference = softmax(raw({}) / TEMPERATURE)
    support = reference >= np.minimum(THRESHOLD, reference.max(axis=-1, keepdims=True))
    assert 0 < support.mean() < 0.9, "the mask must cut something for this test"
    policy_probs = softmax(raw(policy) / TEMPERATURE) * support
    policy_probs /= policy_probs.sum(axis=-1, keepdims=True)
    masked = reference * support
    masked /= masked.sum(axis=-1, keepdims=True)

    def whole(probs):
        rows = [
            np.prod([probs[row, j, token] for j, token in enumerate(tokens)])
            for row, tokens in enumerate(actions)
        ]
        return np.array(rows)

    of_policy, of_masked, of_full = whole(policy_probs), whole(masked), whole(reference)
    np.testing.assert_allclose(of_policy.sum(), 1.0, rtol=1e-6)
    possible = of_policy > 0
    p = of_policy[possible]
    kl = np.sum(p * np.log(p / of_masked[possible]))
    full_kl = np.sum(p * np.log(p / of_full[possible]))
    assert full_kl > kl + 0.1
    np.testing.assert_allclose(of_policy @ found.kl_b, kl, rtol=1e-4)
    np.testing.assert_allclose(of_policy @ found.full_kl_b, full_kl, rtol=1e-4)
    np.testing.assert_allclose(of_policy @ found.entropy_b, -np.sum(p * np.log(p)), rtol=1e-4)
    metrics = make_measure(networks)(base, policy, batch, hyper)
    np.testing.assert_allclose(metrics["kl_to_reference"], np.mean(found.kl_b), rtol=1e-6)


def test_the_standard_error_of_single_values_is_the_usual_one():
    values = np.random.default_rng(0).normal(size=20)
    mean, error = final_policy.ratio_mean(values, np.arange(20))
    np.testing.assert_allclose(mean, values.mean())
    np.testing.assert_allclose(error, values.std(ddof=1) / np.sqrt(20))
    # Each value twice in its cluster says nothing new.
    assert final_policy.ratio_mean(np.repeat(values, 2), np.repeat(np.arange(20), 2)) == (
        pytest.approx((mean, error))
    )
    assert np.isnan(final_policy.ratio_mean(values, np.zeros(20))[1])


def test_the_standard_error_holds_for_clusters_of_several_sizes():
    """Against the deviation of the mean over many repetitions."""
    rng = np.random.default_rng(1)
    means, errors = [], []
    for _ in range(2000):
        sizes = rng.integers(1, 5, 60)
        common = rng.normal(size=60) + 0.3 * sizes
        clusters = np.repeat(np.arange(60), sizes)
        values = common[clusters] + 0.2 * rng.normal(size=len(clusters))
        mean, error = final_policy.ratio_mean(values, clusters)
        means.append(mean)
        errors.append(error)
    np.testing.assert_allclose(np.mean(errors), np.std(means), rtol=0.07)


def test_summary_by_hand():
    def sample(episode, t, action, reward):
        tokens = np.zeros(1, np.int32)
        transition = Transition(tokens, tokens, np.zeros(1, np.float32), reward, None)
        return Sample(episode, t, action, reward > 0, transition)

    samples = [sample(0, 0, "a", -1.0), sample(1, 0, "b", 0.5), sample(0, 1, "b", 1.0)]
    found = final_policy.summarize(
        samples, np.array([1.0, 2.0, 6.0]), np.array([2.0, 3.0, 7.0]), {"b", "other"}
    )
    assert (found["kl"], found["kl_full"], found["num_samples"]) == (3.0, 4.0, 3)
    assert found["reward"] == pytest.approx(0.5 / 3)
    assert found["repeated"] == found["runnable"] == pytest.approx(2 / 3)
    assert found["distinct"] == 2
    assert (found["first_kl"], found["first_reward"], found["first_num_samples"]) == (1.5, -0.25, 2)
    assert (found["first_repeated"], found["first_distinct"]) == (0.5, 2)
    # Sums of each episode less its number of actions times the mean.
    residuals = np.array([0.0 - 2 * 0.5 / 3, 0.5 - 0.5 / 3])
    assert found["reward_se"] == pytest.approx(np.sqrt(2 * np.sum(residuals**2)) / 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "toy"
    settings = {"dataset": "toy", "num_envs": 4, "num_env_steps": 8, "max_new_tokens": 8}
    Trainer(run_dir=path, algorithm="reflection", quiet=True, **settings).train()
    return path


def test_a_run_is_measured_on_whole_episodes(run):
    found = final_policy.measure(run, num_samples=6, seed=3)
    assert found["first_num_samples"] == 6 <= found["num_samples"]
    assert found["kl"] == pytest.approx(0.0, abs=1e-6)  # nothing was trained
    assert found["kl_full"] > 0.01  # the support mask
    assert found == final_policy.measure(run, num_samples=6, seed=3)
    assert found != final_policy.measure(run, num_samples=6, seed=4)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no run directory"):
        final_policy.measure(tmp_path)
