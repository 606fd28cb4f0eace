"""Labels and steps of the baselines on a tiny decoder, token by token beside them in NumPy."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from etpo_jax.acting.transitions import Batch
from etpo_jax.algorithms.actor_critic import ClippedConfig, ClippedUpdate
from etpo_jax.algorithms.base import Hyperparameters
from etpo_jax.algorithms.networks import Networks
from etpo_jax.config import Config
from etpo_jax.devices.mesh import build_mesh
from models.config import DecoderConfig
from models.transformer import Decoder

VOCAB, P, J = 11, 5, 4
BETA, GAMMA, LAMBDA, CLIP = 0.3, 0.9, 0.7, 0.2
MODEL = Decoder(
    DecoderConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        intermediate_size=12,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=4,
        rope_theta=1e4,
        rope_scaling=None,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        attention_bias=False,
        max_position_embeddings=64,
    )
)
NETWORKS = Networks(MODEL, "dueling")
MODES = {
    "ppo_kl": {"algorithm": "ppo_kl"},
    "leave_one_out": {"algorithm": "ppo_kl", "baseline": "leave_one_out"},
    "poad": {"algorithm": "poad", "lambda_within": LAMBDA},
}


def make_config(mode, **values):
    settings = {"beta": BETA, "gamma": GAMMA, "clip_ratio": str(CLIP), "support_threshold": 0.0}
    return Config.from_dict({**settings, **MODES[mode], **values})


@functools.cache
def programs(mode, microbatch_size=0, remat="full"):
    config = make_config(
        mode,
        microbatch_size=microbatch_size,
        remat=remat,
        minibatch_size=4,
    )
    mesh = build_mesh()
    return (
        config.algorithm.make_label(NETWORKS, config),
        config.algorithm.make_step(NETWORKS, config, mesh),
        Hyperparameters.of(config),
    )


def random_tree(tree, seed, scale):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype), tree
    )


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compiling takes the time here, and not what is compiled."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def base():
    token = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(MODEL.init, jax.random.key(0), token, token, token == 0)["params"]
    return random_tree(shapes, 0, 1.0)


def make_state(base, mode):
    """Three different networks, so that no mistake of roles goes unnoticed."""
    config = make_config(mode)
    state = jax.eval_shape(
        lambda base: config.algorithm.initial_state(NETWORKS, base, config), base
    )
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), state)
    critic = state.critic
    if critic is not None:
        critic = dataclasses.replace(
            critic,
            trunk=random_tree(critic.trunk, 2, 1.0),
            offset=jnp.float32(0.4),
            value=random_tree(critic.value, 3, 0.5),
        )
    return dataclasses.replace(state, policy=random_tree(state.policy, 1, 1.0), critic=critic)


def make_batch():
    rng = np.random.default_rng(5)
    prompts, actions, following = [3, 5, 3, 2], [4, 2, 1, 3], [5, 1, 4, 1]
    mask = np.arange(J) < np.array(actions)[:, None]
    tokens = rng.integers(0, VOCAB, (4, P)).astype(np.int32)
    tokens[2] = tokens[0]  # the same state twice
    return Batch(
        prompt_tokens_bp=tokens,
        prompt_mask_bp=np.arange(P) >= (P - np.array(prompts))[:, None],
        action_tokens_bj=rng.integers(0, VOCAB, (4, J)).astype(np.int32),
        action_mask_bj=mask,
        log_probs_bj=np.where(mask, rng.uniform(-4, -1, (4, J)), 0).astype(np.float32),
        reward_b=rng.normal(size=4).astype(np.float32),
        continues_b=np.array([1, 0, 1, 0], np.float32),
        next_prompt_tokens_bp=rng.integers(0, VOCAB, (4, P)).astype(np.int32),
        next_prompt_mask_bp=np.arange(P) >= (P - np.array(following))[:, None],
    )


def row_outputs(params, head, prompt, action):
    """log probabilities and values just before each token, of one sequence without padding."""
    ids = np.concatenate([prompt, action])
    tokens = np.zeros((1, P + J), np.int32)
    tokens[0, : len(ids)] = ids
    positions, mask = np.arange(P + J)[None], np.arange(P + J)[None] < len(ids)
    logits = models.apply(MODEL, params, tokens, positions, mask)[0]
    where = slice(len(prompt) - 1, len(ids) - 1)
    log_probs = np.asarray(jax.nn.log_softmax(logits[where]), np.float64)
    if head is None:
        return log_probs, None
    hidden = hidden_states(params, tokens, positions, mask)[0, where]
    return log_probs, np.asarray(hidden @ head.value + head.offset, np.float64)


@jax.jit
def hidden_states(params, tokens, positions, mask):
    return MODEL.apply({"params": params}, tokens, positions, mask, method="hidden")


def rows_of(base, state, batch):
    """Ratios, values and parts of the return of each transition, for the formulas."""
    found = []
    for row in range(4):
        prompt = batch.prompt_tokens_bp[row][batch.prompt_mask_bp[row]]
        action = batch.action_tokens_bj[row][batch.action_mask_bj[row]]
        steps = np.arange(len(action))
        new, _ = row_outputs(state.policy["params"], None, prompt, action)
        reference, _ = row_outputs(base, None, prompt, action)
        value, following = np.zeros(len(action)), 0.0
        if state.critic is not None:
            params = state.critic.trunk["params"]
            _, value = row_outputs(params, state.critic, prompt, action)
            if batch.continues_b[row]:
                next_prompt = batch.next_prompt_tokens_bp[row][batch.next_prompt_mask_bp[row]]
                _, values = row_outputs(params, state.critic, next_prompt, np.zeros(1, np.int32))
                following = GAMMA * values[0]
        old = batch.log_probs_bj[row, : len(action)].astype(np.float64)
        found.append(
            {
                "ratio": new[steps, action] - old,
                "penalty": BETA * (old - reference[steps, action]),
                "kl": (np.exp(new) * (new - reference)).sum(),
                "value": value,
                "last": float(batch.reward_b[row]) + following,
            }
        )
    return found


def expected_entries(rows, mode):
    """Advantage before it is standardised, target, log ratio and value of every entry."""
    advantages, targets, ratios, values = [], [], [], []
    if mode == "poad":
        for row in rows:
            advantage = 0.0
            entries = []
            for j in reversed(range(len(row["ratio"]))):
                after = row["value"][j + 1] if j + 1 < len(row["ratio"]) else row["last"]
                advantage = after - row["penalty"][j] - row["value"][j] + LAMBDA * advantage
                entries.insert(0, advantage)
            advantages += entries
            targets += list(np.array(entries) + row["value"])
            ratios += list(row["ratio"])
            values += list(row["value"])
        return tuple(map(np.array, (advantages, targets, ratios, values)))
    returns = np.array([row["last"] - row["penalty"].sum() for row in rows])
    values = np.array([row["value"][0] for row in rows])
    baselines = values
    if mode == "leave_one_out":
        # Rows 0 and 2 share a state; the others are alone and held against all.
        baselines = [returns[2], returns[[0, 2, 3]].mean(), returns[0], returns[:3].mean()]
    return returns - baselines, returns, np.array([row["ratio"].sum() for row in rows]), values


@pytest.mark.parametrize("mode", MODES)
def test_losses_equal_the_formulas_row_by_row(base, mode):
    batch, state = make_batch(), make_state(base, mode)
    rows = rows_of(base, state, batch)
    advantage, target, log_ratio, value = expected_entries(rows, mode)
    label, step, hyper = programs(mode)
    found = label(state, base, batch, jnp.int32(4), hyper)
    mask = batch.action_mask_bj if mode == "poad" else np.ones(4, bool)
    np.testing.assert_allclose(np.asarray(found.target)[mask], target, rtol=2e-4, atol=1e-4)
    standardised = (advantage - advantage.mean()) / advantage.std()
    np.testing.assert_allclose(
        np.asarray(found.advantage)[mask], standardised, rtol=2e-3, atol=1e-3
    )
    state, metrics = step(state, base, batch, found, np.arange(4), hyper)
    ratio = np.exp(log_ratio)
    clipped = np.clip(ratio, 1 - CLIP, 1 + CLIP)
    surrogate = -np.minimum(ratio * standardised, clipped * standardised).mean()
    np.testing.assert_allclose(metrics["policy_loss"], surrogate, rtol=2e-3, atol=1e-4)
    squares = 0.5 * np.square(value - target)
    expected = 0.0 if mode == "leave_one_out" else squares.mean()
    np.testing.assert_allclose(metrics["critic_loss"], expected, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        metrics["kl_to_reference"], np.mean([row["kl"] for row in rows]), rtol=1e-3
    )
    share = np.mean(np.abs(ratio - 1) > CLIP)
    np.testing.assert_allclose(metrics["clipped_share"], share, atol=1e-5)
    assert metrics["is_finite"] == 1.0
    assert int(state.step) == 1
    assert (state.critic is None) == (mode == "leave_one_out")


def test_a_collection_filled_up_with_itself_has_the_advantages_of_the_distinct_actions(base):
    """Two rows share a state, so that a copy of one would be in the baseline of the other."""
    # Rewards beside which the ratios of these random networks are small.
    rewards = np.array([100, 100, 0, 0], np.float32)
    batch = dataclasses.replace(make_batch(), reward_b=rewards)
    state = make_state(base, "leave_one_out")
    label, _, hyper = programs("leave_one_out")

    def advantages(rows, num_new):
        chosen = jax.tree.map(lambda leaf: leaf[np.array(rows)], batch)
        return np.asarray(label(state, base, chosen, jnp.int32(num_new), hyper).advantage)

    def standardised(values):
        return (values - values.mean()) / values.std()

    alone, filled = advantages([0, 1, 2], 3), advantages([0, 1, 2, 0], 3)
    np.testing.assert_allclose(filled[3], filled[0], rtol=1e-6)
    # Standardised over four rows in place of three, which shifts and scales all of them alike.
    np.testing.assert_allclose(standardised(filled[:3]), standardised(alone), rtol=1e-3, atol=1e-3)
    mistaken = advantages([0, 1, 2, 0], 4)
    assert np.abs(standardised(mistaken[:3]) - standardised(alone)).max() > 0.05


def test_microbatches_and_chunks_are_the_minibatch(base):
    """POAD averages over tokens, which is not the average over microbatches."""
    batch = make_batch()
    label, _, hyper = programs("poad")
    found = label(make_state(base, "poad"), base, batch, jnp.int32(4), hyper)
    moved = []
    for settings in ((), (2, "full:logits=3")):
        _, step, _ = programs("poad", *settings)
        state = make_state(base, "poad")
        state, metrics = step(state, base, batch, found, np.arange(4), hyper)
        moved.append((state.policy, state.critic, metrics))
    for whole, parts in zip(*map(jax.tree.leaves, moved), strict=True):
        np.testing.assert_allclose(whole, parts, rtol=2e-3, atol=2e-5)


def test_a_step_that_is_not_finite_is_not_taken(base):
    batch, state = make_batch(), make_state(base, "poad")
    label, step, hyper = programs("poad")
    found = label(state, base, batch, jnp.int32(4), hyper)
    before = jax.tree.map(np.asarray, state)
    broken = found._replace(advantage=found.advantage * np.nan)
    after, metrics = step(state, base, batch, broken, np.arange(4), hyper)
    assert metrics["is_finite"] == 0.0
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, after))


def test_the_state_starts_as_the_reference_in_buffers_of_its_own(base):
    config = make_config("poad")
    state = config.algorithm.initial_state(NETWORKS, base, config)
    jax.tree.map(np.testing.assert_array_equal, state.policy["params"], base)
    jax.tree.map(np.testing.assert_array_equal, state.critic.trunk["params"], base)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state, base))]
    assert len(set(pointers)) == len(pointers)


AUTHORS = "0.2:max_kl={},entropy=0.3,value_clip=0.1,standardize=minibatch"


@pytest.mark.parametrize("mode", ["ppo_kl", "poad"])
def test_the_authors_update_equals_the_formulas_row_by_row(base, mode):
    """Guard, entropy bonus, clipped values and advantages standardised over half a collection."""
    batch, state = make_batch(), make_state(base, mode)
    chosen = np.array([0, 3])
    rows = rows_of(base, state, batch)
    advantage, target, log_ratio, value = expected_entries([rows[row] for row in chosen], mode)
    # Far from the sampled values, so that the clip of values acts.
    moved = value + np.random.default_rng(0).normal(size=value.shape)
    config = make_config(mode, clip_ratio=AUTHORS.format(1e6), minibatch_size=2)
    hyper = Hyperparameters.of(config)
    label = config.algorithm.make_label(NETWORKS, config)
    found = label(state, base, batch, jnp.int32(4), hyper)
    mask = batch.action_mask_bj[chosen] if mode == "poad" else np.ones(2, bool)
    np.testing.assert_allclose(
        np.asarray(found.advantage)[chosen][mask], advantage, rtol=2e-3, atol=1e-3
    )
    old_value = np.array(found.old_value)
    np.testing.assert_allclose(old_value[chosen][mask], value, rtol=2e-3, atol=1e-3)
    filled = old_value[chosen]
    filled[mask] = moved
    old_value[chosen] = filled
    found = found._replace(old_value=jnp.asarray(old_value))
    entropies = []
    for row in chosen:
        prompt = batch.prompt_tokens_bp[row][batch.prompt_mask_bp[row]]
        action = batch.action_tokens_bj[row][batch.action_mask_bj[row]]
        new, _ = row_outputs(state.policy["params"], None, prompt, action)
        entropies += list(-(np.exp(new) * new).sum(axis=1))
    standardised = (advantage - advantage.mean()) / advantage.std()
    ratio = np.exp(log_ratio)
    clipped = np.clip(ratio, 1 - CLIP, 1 + CLIP)
    surrogate = -np.minimum(ratio * standardised, clipped * standardised).mean()
    near = moved + np.clip(value - moved, -0.1, 0.1)
    squares = np.maximum(np.square(value - target), np.square(near - target))
    approximate_kl = np.mean(ratio - 1 - log_ratio)

    def take(max_kl):
        config = make_config(mode, clip_ratio=AUTHORS.format(max_kl), minibatch_size=2)
        step = config.algorithm.make_step(NETWORKS, config, build_mesh())
        state = make_state(base, mode)
        return step(state, base, batch, found, chosen, Hyperparameters.of(config))

    after, metrics = take(1.01 * approximate_kl)
    expected = {
        "policy_loss": surrogate - 0.3 * np.mean(entropies),
        "critic_loss": 0.5 * squares.mean(),
        "approximate_kl": approximate_kl,
        "skipped_policy_steps": 0.0,
        "is_finite": 1.0,
    }
    for name, number in expected.items():
        np.testing.assert_allclose(metrics[name], number, rtol=3e-3, atol=1e-4, err_msg=name)
    stopped, metrics = take(0.99 * approximate_kl)
    assert (metrics["skipped_policy_steps"], metrics["is_finite"]) == (1.0, 1.0)
    jax.tree.map(np.testing.assert_array_equal, stopped.policy, state.policy)
    jax.tree.map(np.testing.assert_array_equal, stopped.critic, after.critic)
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves(stopped.policy_optimizer))
    difference = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.policy, state.policy)
    assert max(jax.tree.leaves(difference)) > 0


def test_the_entropy_bonus_has_the_gradient_of_the_entropy(base):
    """The step of a bonus alone (advantages 0) lowers the loss, which is minus the entropy."""
    batch, state = make_batch(), make_state(base, "poad")
    config = make_config("poad", clip_ratio="0.2:entropy=1", minibatch_size=4)
    hyper = Hyperparameters.of(config)
    found = config.algorithm.make_label(NETWORKS, config)(state, base, batch, jnp.int32(4), hyper)
    found = found._replace(advantage=jnp.zeros_like(found.advantage))
    step = config.algorithm.make_step(NETWORKS, config, build_mesh())
    losses = []
    for _ in range(3):
        state, metrics = step(state, base, batch, found, np.arange(4), hyper)
        losses.append(float(metrics["policy_loss"]))
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "--clip_ratio=: must begin with a number"),
        ("0", "--clip_ratio=0: ratio must be above 0"),
        ("0.2:max_kl=-1", "max_kl must be above 0"),
        ("0.2:entropy=-1", "entropy must be 0 or more"),
        ("0.2:trace=token", "trace must be one of action, episode"),
        ("0.2:clip=1", "'clip=1' must be one of max_kl=..., entropy=..., value_clip=..., trace="),
    ],
)
def test_wrong_additions_to_the_update_are_refused(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_config("poad", clip_ratio=text)


def test_additions_that_an_algorithm_lacks_are_refused():
    with pytest.raises(ValueError, match="only poad has trace=episode"):
        make_config("ppo_kl", clip_ratio="0.2:trace=episode")
    with pytest.raises(ValueError, match="value_clip needs --baseline=value"):
        make_config("leave_one_out", clip_ratio="0.2:value_clip=0.2")


def test_a_number_alone_is_the_clip():
    assert ClippedConfig(clip_ratio=0.25).update == ClippedUpdate(0.25)
