"""The trainer reaches the soft optimum of the toy, which `toy_optimum` computes exactly."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from env.tasks import toy
from env.tasks.toy import LETTERS, PLACES, ToyTask
from etpo_jax.acting.transitions import Transition, collate
from etpo_jax.build import Language
from etpo_jax.config import Config
from etpo_jax.devices.mesh import build_mesh
from models.transformer import Decoder, positions
from tests.env.tasks import toy_optimum
from tests.etpo_jax.algorithms import algorithms_test
from tests.etpo_jax.algorithms.algorithms_test import STOP, WORDS, WordTokenizer

NUM_UPDATES, NUM_ENVS, MAX_STEPS = 150, 64, 2
BETA, GAMMA = 0.25, 0.9
MODEL = Decoder(
    dataclasses.replace(
        algorithms_test.MODEL.config,
        hidden_size=32,
        intermediate_size=64,
        num_layers=2,
        head_dim=16,
    )
)
# In the order of `toy.TOKENS`.
TOKEN_IDS = np.array([WORDS.index(letter) for letter in LETTERS] + [STOP])
STATES = list(itertools.product(range(MAX_STEPS), PLACES))


def reference_parameters():
    """Random weights, and a constant in the residual stream that allows letters and stop only."""
    base = algorithms_test.random_parameters(MODEL)
    base["embedder"]["embedding"][:, 0] = 4.0
    base["final_norm"]["scale"][0] = 1.0
    kernel = base["lm_head"]["kernel"]
    others = np.setdiff1d(np.arange(len(WORDS)), TOKEN_IDS)
    kernel[0] = 0.0
    kernel[:, others] = 0.0
    kernel[0, others] = -10.0
    return jax.tree.map(jnp.asarray, base)


def prompt_of(step, place):
    task = ToyTask(max_steps=MAX_STEPS)
    return WordTokenizer().encode_prompt(task.render(task.state(step, place)))


def distribution(params):
    """Function of (step, place, letters): the network's probabilities of `toy.TOKENS`."""
    prefixes = [
        (step, place, letters)
        for step, place in STATES
        for length in range(toy.MAX_TOKENS)
        for letters in itertools.product(LETTERS, repeat=length)
    ]
    rows = [
        [*prompt_of(step, place), *(WORDS.index(letter) for letter in letters)]
        for step, place, letters in prefixes
    ]
    width = max(map(len, rows))
    tokens = np.array([[0] * (width - len(row)) + row for row in rows], np.int32)
    mask = np.array([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    logits = jax.jit(MODEL.apply)({"params": params}, tokens, positions(mask), mask)
    probabilities = jax.nn.softmax(logits[:, -1, TOKEN_IDS])
    table = dict(zip(prefixes, np.asarray(probabilities, np.float64), strict=True))
    return lambda *prefix: table[prefix]


@pytest.fixture(scope="module")
def trained():
    """The reference's probabilities, and ETPO after its last update."""
    config = Config.from_dict(
        {
            "dataset": "toy",
            "max_steps": MAX_STEPS,
            "num_env_steps": NUM_UPDATES * NUM_ENVS,
            "num_envs": NUM_ENVS,
            "minibatch_size": 128,
            "replay_size": 1024,
            "max_prompt_length": 8,
            "max_new_tokens": toy.MAX_TOKENS,
            "support_threshold": 1e-4,
            "beta": BETA,
            "gamma": GAMMA,
            "gradient_steps_per_update": 4,
            "policy_loss": "doubly_robust",
            "trust_region": 0.0,
            "policy_learning_rate": 2e-3,
            "critic_learning_rate": 3e-3,
        }
    )
    base = reference_parameters()
    language, task = Language(MODEL, base, WordTokenizer()), ToyTask(max_steps=MAX_STEPS)
    algorithm, _ = algorithms_test.run_loop(config, language, task)
    return base, algorithm


@pytest.fixture(scope="module")
def optimum(trained):
    choose = toy_optimum.soft_optimal(BETA)
    task = ToyTask(max_steps=MAX_STEPS)
    return toy_optimum.backup_tokens(task, distribution(trained[0]), choose, beta=BETA, gamma=GAMMA)


def test_the_policy_is_the_soft_optimal_one(trained, optimum):
    base, algorithm = trained

    def distances(params):
        policy = distribution(params)
        found = dataclasses.replace(optimum, policy={key: policy(*key) for key in optimum.policy})
        return np.array(
            [
                np.abs(found.action_policy(*state) - optimum.action_policy(*state)).sum() / 2
                for state in STATES
            ]
        )

    assert distances(base).mean() > 0.4
    after = distances(algorithm.policy_trunk()["params"])
    assert after.mean() < 0.05
    assert after.max() < 0.08


def test_the_values_are_the_soft_optimal_ones(trained, optimum):
    _, algorithm = trained
    transitions = [
        Transition(
            np.array(prompt_of(*state), np.int32),
            np.array([STOP], np.int32),
            np.zeros(1, np.float32),
            0.0,
            None,
        )
        for state in STATES
    ]
    batch = collate(transitions, pad_id=0, length_multiple=8, max_prompt_length=8, max_new_tokens=4)
    with jax.set_mesh(build_mesh()):
        values = np.asarray(algorithm.inspect(batch).value_bj)[:, 0]
    expected = np.array([optimum.value[state] for state in STATES])
    assert np.ptp(expected) > 0.2, "all states are worth the same: the test says nothing"
    np.testing.assert_allclose(values, expected, atol=0.05)
