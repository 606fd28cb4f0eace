"""An algorithm that one class defines, with a setting and a metric of its own, runs like ours."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from env.tasks.toy import ToyTask
from etpo_jax import registry
from etpo_jax.algorithms.base import Algorithm
from etpo_jax.algorithms.token_scores import (
    make_measure,
    of_token,
    read_logits,
    read_reference,
)
from etpo_jax.build import Language
from etpo_jax.config import Config
from etpo_jax.learning import LearningConfig
from etpo_jax.settings import option
from tests.etpo_jax.algorithms import algorithms_test

quick_compilation = algorithms_test.quick_compilation
NAME = "weighted_likelihood"
STEPS = 320


@dataclasses.dataclass(frozen=True)
class WeightedSettings(LearningConfig):
    """Settings of the weighted likelihood."""

    sharpness: float = option(
        3.0, "Exponent of a reward's weight, per unit of reward.", lower=0.0, traced=True
    )


class WeightedLikelihood(Algorithm):
    """Maximises the log likelihood of the actions of a collection, weighted by exp(reward)."""

    Settings = WeightedSettings

    def __init__(self, model, base, config, mesh):
        super().__init__(model, base, config, mesh)
        self.state = self.initial_state(self.networks, base, config)
        self._step, self._measure = jax.jit(self._learn), make_measure(self.networks)

    def policy_trunk(self):
        return self.state["policy"]

    def after_collection(self, experience):
        batch = experience.collection()
        self.state, metrics = self._step(self.state, self.base, batch, self.hyper)
        return [metrics, self._measure(self.base, self.policy_trunk(), batch, self.hyper)]

    @classmethod
    def initial_state(cls, networks, base, config):
        policy = networks.initial_policy(base, jax.random.key(0))
        return {"policy": policy, "optimizer": optax.scale_by_adam().init(policy)}

    @classmethod
    def policy_keys(cls, config):
        return ("policy",)

    def _learn(self, state, base, batch, hyper):
        weight_b = jax.nn.softmax(hyper.sharpness * batch.reward_b)
        tokens_bj, mask_bj = batch.action_tokens_bj, batch.action_mask_bj
        hidden_bjd = self.networks.action_hidden(base, {}, batch)
        reference = read_reference(self.networks, base, hidden_bjd, tokens_bj, hyper)

        def loss(policy):
            hidden_bjd = self.networks.action_hidden(base, policy, batch)
            policy_bjv = read_logits(self.networks, base, policy, hidden_bjd, reference, hyper)
            log_prob_bj = of_token(jax.nn.log_softmax(policy_bjv), tokens_bj)
            return -weight_b @ jnp.sum(jnp.where(mask_bj, log_prob_bj, 0), axis=1)

        value, gradients = jax.value_and_grad(loss)(state["policy"])
        direction, optimizer_state = optax.scale_by_adam().update(gradients, state["optimizer"])
        policy = jax.tree.map(
            lambda old, way: old - hyper.policy_learning_rate * way, state["policy"], direction
        )
        return {"policy": policy, "optimizer": optimizer_state}, {
            "policy_loss": value,
            "largest_weight": weight_b.max(),
            "is_finite": jnp.isfinite(value).astype(jnp.float32),
        }


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setattr(registry, "_ALGORITHMS", registry.algorithms())
    return registry.register_algorithm(NAME)(WeightedLikelihood)


def run(**values):
    settings = {"policy_learning_rate": 1e-2, "num_env_steps": STEPS, "algorithm": NAME}
    config = Config.from_dict({**algorithms_test.SETTINGS, **settings, **values})
    base = jax.tree.map(jnp.asarray, algorithms_test.random_parameters(algorithms_test.MODEL))
    language = Language(algorithms_test.MODEL, base, algorithms_test.WordTokenizer())
    return algorithms_test.run_loop(config, language, ToyTask(max_steps=2))


def test_it_learns_and_its_metric_is_logged(registered):
    algorithm, memory = run()
    assert type(algorithm) is registered
    num_updates = STEPS // 16
    assert [row["gradient_steps"] for row in memory.metrics] == list(range(1, num_updates + 1))
    rewards = np.array([row["reward"] for row in memory.episodes])
    for row, of_update in zip(memory.metrics, np.split(rewards, num_updates), strict=True):
        weights = np.exp(3.0 * (of_update - of_update.max()))
        assert row["largest_weight"] == pytest.approx(1 / weights.sum(), rel=1e-4)
        assert row["critic_loss"] is None  # it has no critic
    assert memory.metrics[-1]["kl_to_reference"] > 0.05
    assert algorithms_test.gain_of(memory) > 0.1


def test_its_own_setting_reaches_the_program(registered):
    _, memory = run(sharpness=0.0, num_env_steps=32)
    assert [row["largest_weight"] for row in memory.metrics] == pytest.approx([1 / 16, 1 / 16])
    with pytest.raises(ValueError, match="--sharpness=-1: must be >= 0"):
        run(sharpness=-1.0)
    with pytest.raises(ValueError, match=f"etpo does not read it, {NAME} does"):
        run(algorithm="etpo", sharpness=1.0)
