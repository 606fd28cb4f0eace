"""The peer's targets are Eq. 6: token by token what `soft_q.token_targets` gives in one pass."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is only compared with, never required")

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import optax  # noqa: E402

import models  # noqa: E402
from benchmarks.authors_stages import AuthorsStages  # noqa: E402
from benchmarks.random_model import random_parameters  # noqa: E402
from etpo_jax.config import Config  # noqa: E402
from etpo_jax.soft_q import soft_value, token_targets  # noqa: E402
from models.transformer import positions  # noqa: E402


@pytest.fixture
def peer(tmp_path):
    model, _ = models.load("models/tiny")
    params = random_parameters(model.config, jnp.float32, stop_id=2)
    models.save(tmp_path, model.config, params)
    config = Config.from_dict(
        {
            "beta": 0.3,
            "optimizer": "lion",
            "critic_learning_rate": 1e-3,
            "max_new_tokens": 5,
            "gamma": 0.7,
        }
    )
    return model, params, AuthorsStages(str(tmp_path), config, "cpu", 2, 0)


def test_targets_and_a_step(peer):
    model, params, stages = peer
    rng = np.random.default_rng(0)
    prompt = rng.integers(3, 500, (2, 6), np.int32)
    action = stages.generate(prompt)
    assert action.shape == (2, 5)
    reward = np.array([0.5, -1.0], np.float32)
    tokens = jnp.asarray(np.concatenate([prompt, action], axis=1))
    mask = jnp.ones_like(tokens, bool)
    logits = models.apply(model, params, tokens, positions(mask), mask)[:, 5:-1]
    value = soft_value(logits, logits, logits, beta=0.3)
    next_prompt = rng.integers(3, 500, (2, 6), np.int32)
    next_mask = mask[:, :6]
    next_logits = models.apply(model, params, next_prompt, positions(next_mask), next_mask)[:, -1]
    next_value = soft_value(next_logits, next_logits, next_logits, beta=0.3)
    continues = jnp.array([1.0, 0.0])
    expected = token_targets(
        value, next_value, jnp.asarray(reward), continues, mask[:, 6:], gamma=0.7
    )
    before = stages.traffic
    targets = stages.targets(prompt, action, reward, next_prompt, np.array([True, False]))
    np.testing.assert_allclose(targets, expected, rtol=1e-4, atol=1e-5)
    # Three arrays over the vocabulary came to the host.
    assert stages.traffic - before >= 3 * 4 * action.size * model.config.vocab_size
    # Critic and policy are the same weights so far: the logits are both.
    taken = jnp.take_along_axis(logits, action[..., None], axis=-1)[..., 0]
    critic_loss = optax.huber_loss(taken, expected, delta=10.0).mean()
    policy_loss = (0.3 * jax.nn.log_softmax(logits) - logits).mean()
    losses = [stages.update(prompt, action, targets) for _ in range(3)]
    np.testing.assert_allclose(losses[0]["critic_loss"], critic_loss, rtol=1e-4)
    np.testing.assert_allclose(losses[0]["policy_loss"], policy_loss, rtol=1e-4)
    # The targets stand still here; the policy's loss follows the critic, and may go either way.
    assert losses[-1]["critic_loss"] < losses[0]["critic_loss"]
