"""Parts that all algorithms share: traced numbers, and the choice of transitions to learn from."""

import dataclasses

import jax
import numpy as np
import pytest

from etpo_jax.acting.replay import Replay
from etpo_jax.acting.transitions import Transition
from etpo_jax.algorithms.base import Experience, Hyperparameters
from etpo_jax.config import Config

GENERAL = {"temperature", "support_threshold"}


def numbers_of(hyper):
    return {str(path[-1]): leaf for path, leaf in jax.tree.leaves_with_path(hyper)}


@pytest.mark.parametrize("algorithm", ["etpo", "ppo_kl", "poad", "reflection"])
def test_the_numbers_are_the_traced_settings(algorithm):
    config = Config.from_dict({"algorithm": algorithm, "temperature": 0.5})
    hyper = Hyperparameters.of(config)
    fields = dataclasses.fields(config.learning)
    traced = config.learning.traced_numbers()
    assert {field.name for field in fields if field.metadata["traced"]} <= set(traced)
    assert len(jax.tree.leaves(hyper)) == len(set(traced) | GENERAL)
    for name, value in traced.items():
        assert getattr(hyper, name) == np.float32(value), name
    assert hyper.temperature == hyper.distribution.temperature == 0.5
    assert hyper.support_threshold == np.float32(config.sampling.support_threshold)
    for field in fields:
        assert hasattr(hyper, field.name) == (field.name in traced), field.name
    assert {leaf.dtype for leaf in jax.tree.leaves(hyper)} == {np.dtype(np.float32)}


def test_the_losses_may_have_a_temperature_of_their_own():
    config = Config.from_dict({"temperature": 0.5, "loss_temperature": 2.0})
    assert Hyperparameters.of(config).temperature == 2.0


def test_hyperparameters_are_a_pytree_that_compiles_once():
    hyper = Hyperparameters.of(Config())
    leaves, structure = jax.tree.flatten(hyper)
    back = jax.tree.unflatten(structure, leaves)
    assert isinstance(back, Hyperparameters)
    assert back.beta is hyper.beta
    assert jax.tree.structure(Hyperparameters.of(Config.from_dict({"beta": 0.5}))) == structure
    double = jax.jit(lambda hyper: jax.tree.map(lambda leaf: 2 * leaf, hyper))
    for beta in (0.25, 0.5):
        assert double(hyper.replace(beta=np.float32(beta))).beta == 2 * beta
    assert double._cache_size() == 1
    assert hyper.beta == np.float32(Config().learning.beta)
    assert jax.eval_shape(lambda: Hyperparameters.of(Config())).gamma.shape == ()


def transition(reward):
    ids = np.array([1], np.int32)
    return Transition(ids, ids, np.zeros(1, np.float32), float(reward), None)


def experience(new, old=(), collection_size=4):
    replay = Replay(16, 4, 4)
    replay.add([transition(reward) for reward in (*old, *new)])
    return Experience(
        [transition(reward) for reward in new],
        replay,
        collection_size=collection_size,
        collate=lambda chosen: [int(row.reward) for row in chosen],
        rng=lambda index: np.random.default_rng([7, index]),
    )


def test_a_small_collection_is_filled_up_with_itself():
    assert experience([1, 2, 3, 4]).collection() == [1, 2, 3, 4]
    assert experience([1, 2, 3]).collection() == [1, 2, 3, 1]
    assert experience([5]).collection() == [5, 5, 5, 5]


def test_a_fresh_minibatch_takes_new_transitions_first():
    found = experience([1, 2, 3, 4])
    assert found.fresh(4, 0) == [1, 2, 3, 4]
    chosen = found.fresh(3, 0)
    assert len(set(chosen)) == 3
    assert set(chosen) < {1, 2, 3, 4}
    filled = experience([1, 2], old=[8, 9]).fresh(5, 0)
    assert filled[:2] == [1, 2]
    assert set(filled[2:]) <= {1, 2, 8, 9}


def test_a_step_chooses_the_same_transitions_again():
    first, again = experience([1, 2, 3], old=[7, 8, 9]), experience([1, 2, 3], old=[7, 8, 9])
    chosen = [first.sample(8, index) for index in range(3)]
    assert chosen == [again.sample(8, index) for index in range(3)]
    assert chosen[0] != chosen[1]
