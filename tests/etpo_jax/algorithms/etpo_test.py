import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpo_jax import soft_q
from etpo_jax.acting.transitions import Batch
from etpo_jax.algorithms import etpo
from etpo_jax.algorithms.etpo import Etpo
from etpo_jax.algorithms.etpo_losses import make_inspect
from etpo_jax.algorithms.gradients import NonFiniteError, check_finite, constrain
from etpo_jax.algorithms.networks import read_soft_q
from etpo_jax.config import Config
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.losses import path_loss
from models.transformer import Decoder
from tests.models.small import perturbed, small_decoder

VOCAB, WIDTH = 23, 16
DECODER = small_decoder(vocab_size=VOCAB, hidden_size=WIDTH, num_heads=2, num_kv_heads=1)
ALL_MODES = [
    {"critic_loss": "path", "support_threshold": 0.02},
    {"critic_loss": "path_root", "policy_loss": "tied"},
    {"critic_loss": "path", "q_parameterization": "beta_logits", "optimizer": "lion"},
    {"critic_loss": "one_step", "q_parameterization": "residual"},
    {"critic_loss": "one_step", "q_parameterization": "logits", "policy_loss": "uniform"},
    {"critic_loss": "retrace:huber=1", "policy_loss": "eq7"},
    {"critic_loss": "retrace", "q_parameterization": "residual", "policy_loss": "doubly_robust"},
    {"critic_loss": "retrace", "q_parameterization": "policy", "policy_loss": "tied"},
    {"critic_loss": "path", "q_parameterization": "policy", "policy_loss": "tied"},
]
SETTINGS = {
    "beta": 0.3,
    "critic_loss": "path",
    "q_parameterization": "dueling",
    "policy_loss": "exact",
    "trust_region": 0.0,
    "support_threshold": 0.0,
    "policy_learning_rate": 5e-4,
    "critic_learning_rate": 1e-3,
}
# Settings that do not change the program.
TRACED = ("gamma", "polyak_lambda", "critic_learning_rate", "support_threshold", "trust_region")


@pytest.fixture(scope="module")
def model():
    return Decoder(DECODER)


@pytest.fixture(scope="module")
def base(model):
    token = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(model.init)(jax.random.key(0), token, token, token == 0)["params"]
    # Larger than at initialisation, so that distributions are far from uniform.
    return jax.tree.map(lambda leaf: leaf * 8.0 if leaf.ndim > 1 else leaf, params)


def make_batch(seed=0, b=4, p=6, j=5):
    rng = np.random.default_rng(seed)
    prompt_lengths, action_lengths = rng.integers(2, p + 1, b), rng.integers(1, j + 1, b)
    next_lengths = rng.integers(1, p + 1, b)
    action_mask = np.arange(j) < action_lengths[:, None]
    return Batch(
        prompt_tokens_bp=rng.integers(0, VOCAB, (b, p)).astype(np.int32),
        prompt_mask_bp=np.arange(p) >= (p - prompt_lengths)[:, None],
        action_tokens_bj=rng.integers(0, VOCAB, (b, j)).astype(np.int32),
        action_mask_bj=action_mask,
        log_probs_bj=np.where(action_mask, rng.uniform(-4, -1, (b, j)), 0).astype(np.float32),
        reward_b=rng.normal(size=b).astype(np.float32),
        continues_b=np.arange(b).astype(np.float32) % 2,
        next_prompt_tokens_bp=rng.integers(0, VOCAB, (b, p)).astype(np.int32),
        next_prompt_mask_bp=np.arange(p) >= (p - next_lengths)[:, None],
    )


@functools.cache
def compiled_step(model, *modes):
    """One jitted step and initial state per set of modes: compiling takes the time here."""
    config = Config.from_dict({**SETTINGS, **dict(modes)})
    networks = Etpo.make_networks(model, config)
    # As the learner makes it: what a step returns then lies where its argument lay.
    initial = jax.jit(
        lambda tree: constrain(Etpo.initial_state(networks, tree, config), build_mesh())
    )
    return etpo.make_gradient_step(networks, config, build_mesh()), initial, networks


def make(model, base, **values):
    config = Config.from_dict({**SETTINGS, **values})
    modes = {name: value for name, value in values.items() if name not in TRACED}
    step, initial, networks = compiled_step(model, *sorted(modes.items()))
    return step, initial(base), etpo.hyperparameters(config), networks


def run(model, base, batches, **values):
    """The state after the batches, and the metrics of each step."""
    step, state, hyper, _ = make(model, base, **values)
    history = []
    for batch in batches:
        state, metrics = step(state, base, batch, hyper)
        history.append({name: float(value) for name, value in metrics.items()})
    return state, history


@pytest.mark.parametrize("values", ALL_MODES, ids=lambda mode: "-".join(map(str, mode.values())))
def test_every_mode_steps_and_learns(model, base, values):
    state, history = run(model, base, [make_batch()] * 8, critic_learning_rate=1e-2, **values)
    first, metrics = history[0], history[-1]
    assert metrics["is_finite"] == 1.0
    assert int(state.step) == 8
    assert metrics["critic_loss"] < first["critic_loss"]
    # Equal up to rounding at the start, where policy and reference are the same network.
    assert abs(first["kl_to_reference"]) < 1e-4
    assert metrics["kl_to_reference"] > 1e-4


def networks_apart(model, base, **values):
    step, state, hyper, networks = make(model, base, **values)
    state = dataclasses.replace(
        state,
        policy=perturbed(state.policy, seed=1, scale=0.1),
        critic=perturbed(state.critic, seed=2, scale=0.1),
        target_critic=perturbed(state.target_critic, seed=3, scale=0.1),
    )
    return step, state, hyper, networks


@functools.partial(jax.jit, static_argnums=0)
def forward(model, params, tokens):
    positions = jnp.arange(tokens.shape[1])[None]
    mask = jnp.ones_like(tokens, bool)
    hidden = model.apply({"params": params}, tokens, positions, mask, method="hidden")
    return hidden[0], model.apply({"params": params}, hidden, method="logits")[0]


def score_sequence(model, params, prompt, action):
    """Hidden states and logits that score each action token, without any of our code.

    What follows the sequence is read by none of them: one length for all.
    """
    sequence = np.concatenate([prompt, action])
    tokens = np.pad(sequence, (0, 16 - len(sequence)), constant_values=3)[None]
    rows = slice(len(prompt) - 1, len(sequence) - 1)
    return [np.asarray(array[rows], np.float64) for array in forward(model, params, tokens)]


def logits_at(model, params, prompt, action):
    return score_sequence(model, params, prompt, action)[1]


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def rows(batch):
    for row in range(len(batch.reward_b)):
        yield (
            row,
            batch.prompt_tokens_bp[row][batch.prompt_mask_bp[row]],
            batch.action_tokens_bj[row][batch.action_mask_bj[row]],
            batch.next_prompt_tokens_bp[row][batch.next_prompt_mask_bp[row]],
        )


def test_one_step_losses_equal_algorithm_1_token_by_token(model, base):
    """Residual Q, one-step targets, exact policy loss, row by row and token by token in float64."""
    batch = make_batch(5)
    step, state, hyper, _ = networks_apart(
        model, base, critic_loss="one_step", q_parameterization="residual", gamma=0.9
    )
    beta, gamma = 0.3, 0.9
    trees = {
        "policy": state.policy["params"],
        "critic": state.critic.trunk["params"],
        "target": state.target_critic.trunk["params"],
        "reference": base,
    }
    offsets = {"critic": float(state.critic.offset), "target": float(state.target_critic.offset)}
    squares, policy_terms, kls, entropies = [], [], [], []

    def soft_values(scores):
        log_pi, log_rho = log_softmax(scores["policy"]), log_softmax(scores["reference"])
        q_bar = beta * (scores["target"] - scores["reference"]) + offsets["target"]
        kl = (np.exp(log_pi) * (log_pi - log_rho)).sum(-1)
        return (np.exp(log_pi) * q_bar).sum(-1) - beta * kl, kl, log_pi, log_rho

    for row, prompt, action, next_prompt in rows(batch):
        scores = {name: logits_at(model, tree, prompt, action) for name, tree in trees.items()}
        values, kl, log_pi, log_rho = soft_values(scores)
        target = float(batch.reward_b[row])
        if batch.continues_b[row]:
            # Whatever token follows, the first position of the next state is scored without it.
            following = {
                name: logits_at(model, tree, next_prompt, np.array([0], np.int32))
                for name, tree in trees.items()
            }
            target += gamma * soft_values(following)[0][0]
        q = beta * (scores["critic"] - scores["reference"]) + offsets["critic"]
        for index, token in enumerate(action):
            goal = values[index + 1] if index + 1 < len(action) else target
            squares.append(0.5 * (q[index, token] - goal) ** 2)
            score = beta * (log_pi[index] - log_rho[index]) - q[index]
            policy_terms.append((np.exp(log_pi[index]) * score).sum())
        kls.append(kl.sum())
        entropies.append(-(np.exp(log_pi) * log_pi).sum())
    _, metrics = step(state, base, batch, hyper)
    np.testing.assert_allclose(metrics["critic_loss"], np.mean(squares), rtol=1e-4)
    np.testing.assert_allclose(metrics["policy_loss"], np.mean(policy_terms), rtol=1e-4)
    np.testing.assert_allclose(metrics["kl_to_reference"], np.mean(kls), rtol=1e-4)
    np.testing.assert_allclose(metrics["entropy"], np.mean(entropies), rtol=1e-4)


def test_path_loss_of_the_dueling_critic_row_by_row(model, base):
    batch = make_batch(6)
    step, state, hyper, _ = networks_apart(model, base, critic_loss="path", gamma=0.9)
    violations = []
    for row, prompt, action, next_prompt in rows(batch):

        def values(critic, prompt, action):
            hidden, _ = score_sequence(model, critic.trunk["params"], prompt, action)
            return hidden @ np.asarray(critic.value, np.float64) + float(critic.offset)

        target = float(batch.reward_b[row])
        if batch.continues_b[row]:
            target += 0.9 * values(state.target_critic, next_prompt, np.zeros(1, np.int32))[0]
        log_q = log_softmax(logits_at(model, state.critic.trunk["params"], prompt, action))
        log_rho = log_softmax(logits_at(model, base, prompt, action))
        ratio = (log_q - log_rho)[np.arange(len(action)), action]
        for start in range(len(action)):
            value = values(state.critic, prompt, action)[start]
            violations.append((value + 0.3 * ratio[start:].sum() - target) ** 2)
    _, metrics = step(state, base, batch, hyper)
    np.testing.assert_allclose(metrics["critic_loss"], np.mean(violations), rtol=1e-4)


@pytest.mark.parametrize(
    "values",
    [{"critic_loss": "path"}, {"critic_loss": "one_step", "q_parameterization": "residual"}],
    ids=["path", "one_step"],
)
def test_padding_moves_no_loss_and_no_gradient(model, base, values):
    batch = make_batch(7)

    def pad(array, width, left):
        columns = [(0, 0), (width, 0) if left else (0, width)]
        return np.pad(array, columns, constant_values=0)

    wide = dataclasses.replace(
        batch,
        **{
            name: pad(getattr(batch, name), 3, "prompt" in name)
            for name in (
                "prompt_tokens_bp",
                "prompt_mask_bp",
                "action_tokens_bj",
                "action_mask_bj",
                "log_probs_bj",
                "next_prompt_tokens_bp",
                "next_prompt_mask_bp",
            )
        },
    )
    narrow_state, (narrow,) = run(model, base, [batch], **values)
    wide_state, (padded,) = run(model, base, [wide], **values)
    for name in narrow:
        np.testing.assert_allclose(padded[name], narrow[name], rtol=2e-4, atol=1e-5)
    for one, other in zip(
        jax.tree.leaves(narrow_state.critic_optimizer),
        jax.tree.leaves(wide_state.critic_optimizer),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


def test_absent_next_states_are_never_read(model, base):
    batch = make_batch(8)
    batch = dataclasses.replace(batch, continues_b=np.zeros_like(batch.continues_b))
    other = dataclasses.replace(
        batch, next_prompt_tokens_bp=(batch.next_prompt_tokens_bp + 5) % VOCAB
    )
    for parameterization, critic_loss in (("dueling", "path"), ("residual", "one_step")):
        values = {"critic_loss": critic_loss, "q_parameterization": parameterization}
        assert run(model, base, [batch], **values)[1] == run(model, base, [other], **values)[1]


def test_start_of_training_is_the_reference(model, base):
    """b0 and zero residual: Q is constant, V is b0, and Eq. 9 gives rho back."""
    step, state, hyper, _ = make(model, base, critic_loss="one_step", q_parameterization="residual")
    offset = jnp.float32(0.25)
    state = dataclasses.replace(
        state,
        critic=dataclasses.replace(state.critic, offset=offset),
        target_critic=dataclasses.replace(state.target_critic, offset=offset + 0.0),
    )
    batch = dataclasses.replace(
        make_batch(), reward_b=np.full(4, 0.25, np.float32), continues_b=np.zeros(4, np.float32)
    )
    _, metrics = step(state, base, batch, hyper)
    assert metrics["critic_loss"] < 1e-9
    assert metrics["policy_grad_norm"] < 1e-5


def test_state_shares_no_buffer_and_is_donated(model, base):
    step, state, hyper, _ = make(model, base)
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((state, base))]
    assert len(set(pointers)) == len(pointers)
    new, _ = step(state, base, make_batch(), hyper)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.policy))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((new, base)))


def test_polyak_weighs_the_old_target(model, base):
    step, state, hyper, _ = networks_apart(model, base, polyak_lambda=0.8)
    old = jax.tree.map(np.asarray, state.target_critic)
    new, _ = step(state, base, make_batch(), hyper)
    expected = jax.tree.map(lambda a, b: 0.8 * a + 0.2 * b, old, new.critic)
    for one, other in zip(
        jax.tree.leaves(new.target_critic), jax.tree.leaves(expected), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_non_finite_step_is_not_taken_and_is_named(model, base):
    step, state, hyper, _ = make(model, base)
    before = jax.tree.map(np.asarray, state)
    batch = dataclasses.replace(make_batch(), reward_b=np.full(4, np.nan, np.float32))
    after, metrics = step(state, base, batch, hyper)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, after))
    with pytest.raises(NonFiniteError, match=r"step 7 gave a non-finite .*critic_loss"):
        check_finite(jax.device_get(metrics), 7)


def test_other_hyperparameters_do_not_compile_again(model, base):
    step, state, hyper, _ = make(model, base)
    state, _ = step(state, base, make_batch(), hyper)
    before = step._cache_size()
    for seed in (1, 2):
        hyper = hyper.replace(beta=hyper.beta / 2)
        state, _ = step(state, base, make_batch(seed), hyper)
    assert step._cache_size() == before


def test_the_dueling_head_is_the_optimal_soft_value(model, base):
    rng = np.random.default_rng(0)
    critic, reference = jnp.asarray(rng.normal(size=(2, 3, 5, VOCAB)) * 2, jnp.float32)
    head = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
    for name in ("dueling", "residual", "logits", "beta_logits"):
        read = read_soft_q(name, critic, reference, head, beta=0.3)
        np.testing.assert_allclose(
            read.value_bj,
            soft_q.optimal_soft_value(reference, read.q_bjv, beta=0.3),
            rtol=1e-4,
            atol=1e-4,
        )
        np.testing.assert_allclose(
            read.log_ratio_bjv, (read.q_bjv - read.value_bj[..., None]) / 0.3, rtol=1e-3, atol=1e-4
        )
    dueling = read_soft_q("dueling", critic, reference, head, beta=0.3)
    np.testing.assert_array_equal(dueling.value_bj, head)
    zero = path_loss(
        head, jnp.zeros_like(head), head[:, 0] * 0 + 1, jnp.ones_like(head, bool), beta=0.3
    )
    np.testing.assert_allclose(zero, np.mean((np.asarray(head) - 1) ** 2), rtol=1e-5)


def test_q_of_the_policy_is_dueling_with_its_logits_and_a_gradient_without_beta():
    rng = np.random.default_rng(0)
    policy, reference, target = jnp.asarray(rng.normal(size=(3, 2, VOCAB)), jnp.float32)
    head, beta = jnp.asarray(rng.normal(size=2), jnp.float32), 0.3

    def loss(name, policy, head):
        read = read_soft_q(name, policy, reference, head, beta=beta)
        return jnp.sum(jnp.square(read.q_bjv - target)) / 2, read

    values, reads, gradients = [], [], []
    for name in ("dueling", "policy"):
        (value, read), gradient = jax.value_and_grad(loss, argnums=(1, 2), has_aux=True)(
            name, policy, head
        )
        values.append(value)
        reads.append(read)
        gradients.append(gradient)
    np.testing.assert_allclose(*values, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *reads)
    (of_dueling, value_of_dueling), (of_policy, value_of_policy) = gradients
    np.testing.assert_allclose(of_policy, of_dueling / beta, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value_of_policy, value_of_dueling, rtol=1e-6)


def test_path_loss_with_q_of_the_policy_row_by_row(model, base):
    """v is the critic's, the ratio the policy's, and v of the next state the target critic's."""
    batch = make_batch(6)
    values = {
        "critic_loss": "path",
        "q_parameterization": "policy",
        "policy_loss": "tied",
        "gamma": 0.9,
    }
    step, state, hyper, _ = networks_apart(model, base, **values)
    violations = []

    def value_of(critic, prompt, action):
        hidden, _ = score_sequence(model, critic.trunk["params"], prompt, action)
        return hidden @ np.asarray(critic.value, np.float64) + float(critic.offset)

    for row, prompt, action, next_prompt in rows(batch):
        target = float(batch.reward_b[row])
        if batch.continues_b[row]:
            target += 0.9 * value_of(state.target_critic, next_prompt, np.array([0]))[0]
        log_pi = log_softmax(logits_at(model, state.policy["params"], prompt, action))
        log_rho = log_softmax(logits_at(model, base, prompt, action))
        ratios = (log_pi - log_rho)[np.arange(len(action)), action]
        rest = np.cumsum(ratios[::-1])[::-1]
        violations += list((value_of(state.critic, prompt, action) + 0.3 * rest - target) ** 2)
    _, metrics = step(state, base, batch, hyper)
    np.testing.assert_allclose(metrics["critic_loss"], np.mean(violations), rtol=1e-4)
    assert metrics["policy_loss"] == 0.0
    assert metrics["policy_grad_norm"] > 0.01


def test_where_the_critic_is_right_the_correction_is_nothing(model, base):
    """Both policy losses are the same on one-token actions whose rewards are their Q."""
    batch, is_first_j = make_batch(9), np.arange(5) == 0
    batch = dataclasses.replace(
        batch,
        action_mask_bj=batch.action_mask_bj & is_first_j,
        log_probs_bj=np.where(is_first_j, batch.log_probs_bj, 0),
        continues_b=np.zeros_like(batch.continues_b),
    )
    values = {**RETRACE, "policy_loss": "exact"}
    _, state, hyper, networks = networks_apart(model, base, **values)
    inspect = make_inspect(networks, Config.from_dict({**SETTINGS, **values}))
    q_b = np.asarray(inspect(state, base, batch, hyper).q_bj)[:, 0]
    found = []
    for loss in ("exact", "doubly_robust"):
        for shift in (0.0, 1.0):
            step, state, hyper, _ = networks_apart(model, base, **{**values, "policy_loss": loss})
            rewarded = dataclasses.replace(batch, reward_b=q_b + np.float32(shift))
            found.append(float(step(state, base, rewarded, hyper)[1]["policy_loss"]))
    exact, exact_shifted, corrected, corrected_shifted = found
    assert exact == exact_shifted
    assert corrected == pytest.approx(exact, abs=1e-4)
    assert abs(corrected_shifted - corrected) > 0.1


@pytest.mark.parametrize(
    "values",
    [
        {"critic_loss": "retrace", "policy_loss": "doubly_robust"},
        {"critic_loss": "path"},
    ],
    ids=["doubly_robust", "path"],
)
def test_an_action_outside_the_trust_region_teaches_the_policy_nothing(model, base, values):
    """The policy's gradient is that of the others; the critic learns from all of them."""
    batch = make_batch(9)
    _, state, hyper, networks = networks_apart(model, base, **values)
    inspect = make_inspect(networks, Config.from_dict({**SETTINGS, **values}))
    log_probs_bj = np.array(inspect(state, base, batch, hyper).log_prob_bj)
    # The first two were sampled with a quarter and four times today's probability.
    log_probs_bj[:2, 0] += np.log([0.25, 4.0])
    batch = dataclasses.replace(batch, log_probs_bj=jnp.asarray(log_probs_bj))
    # The others twice, which is the same mean, so that nothing is compiled for another size.
    others = jax.tree.map(lambda leaf: leaf[np.array([2, 3, 2, 3])], batch)

    def one_step(batch, num_copies=1, **more):
        step, state, hyper, _ = networks_apart(
            model, base, optimizer="adamw:clip_norm=1e9", **values, **more
        )
        state, metrics = step(state, base, batch, hyper)
        weight = np.sum(batch.action_mask_bj) / num_copies  # gradients are means over tokens
        sums = jax.tree.map(
            lambda leaf: leaf * weight, (state.policy_optimizer[1].mu, state.critic_optimizer[1].mu)
        )
        return metrics, *sums

    metrics, policy, critic = one_step(batch, trust_region=1.0)
    free_metrics, free_policy, free_critic = one_step(batch)
    _, others_policy, _ = one_step(others, num_copies=2)
    assert metrics["clipped_share"] == 0.5
    assert free_metrics["clipped_share"] == 0.0
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(others_policy))
    chex.assert_trees_all_close(policy, others_policy, rtol=1e-4, atol=1e-5 * largest)
    chex.assert_trees_all_close(critic, free_critic, rtol=1e-5)
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(policy, free_policy, rtol=1e-2, atol=1e-2 * largest)


@pytest.mark.parametrize(
    "values",
    [
        {"critic_loss": "path_root"},
        {
            "critic_loss": "retrace",
            "q_parameterization": "residual",
            "policy_loss": "doubly_robust",
        },
        {"critic_loss": "retrace", "q_parameterization": "policy", "policy_loss": "tied"},
    ],
    ids=["root", "retrace", "policy"],
)
def test_microbatches_and_chunks_change_no_loss_and_no_gradient(model, base, values):
    batch = make_batch(9)

    def one_step(**cut):
        step, state, hyper, _ = networks_apart(model, base, **values, **cut)
        state, metrics = step(state, base, batch, hyper)
        return metrics, (state.critic_optimizer[1].mu, state.policy_optimizer[1].mu)

    whole, gradients = one_step()
    # Two transitions and two positions at a time; the last chunk of five positions is short.
    cut, cut_gradients = one_step(microbatch_size=2, remat="full:logits=2")
    for name in whole:
        np.testing.assert_allclose(cut[name], whole[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(cut_gradients), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-5 * np.abs(one).max())


LORA = {"finetune": "lora:rank=2,targets=q+v+down"}
RETRACE = {"critic_loss": "retrace", "q_parameterization": "residual"}


def test_adapters_learn_over_one_base_that_stays(model, base):
    before = jax.tree.map(np.asarray, base)
    lora_model = model.clone(lora=Config.from_dict(LORA).finetune.adapters)
    state, history = run(
        lora_model, base, [make_batch()] * 8, critic_learning_rate=1e-2, **LORA, **RETRACE
    )
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, base))
    assert abs(history[0]["kl_to_reference"]) < 1e-4
    assert history[-1]["kl_to_reference"] > 1e-4
    assert history[-1]["critic_loss"] < history[0]["critic_loss"]
    assert state.policy.keys() == state.critic.trunk.keys() == {"lora"}
    sizes = [leaf.size for leaf in jax.tree.leaves((state.policy, state.critic.trunk))]
    assert sum(sizes) < 0.5 * sum(leaf.size for leaf in jax.tree.leaves(base))
    names = {str(path[-1].key) for path, _ in jax.tree.leaves_with_path(state.policy)}
    assert names == {"a", "b"}


@pytest.mark.parametrize("trained_dtype", ["float32", "bfloat16"])
def test_a_small_step_of_lion_moves_weights_by_its_length_on_average(model, base, trained_dtype):
    """Rounded to the nearest bfloat16, nearly no weight would move by 1e-5."""
    rate = 1e-5
    values = RETRACE | {"optimizer": "lion", "finetune": f"full:dtype={trained_dtype}"}
    step, state, hyper, _ = make(model, base, **values)
    hyper = hyper.replace(policy_learning_rate=jnp.float32(rate))
    kernels = []
    for _ in range(5):
        kernels.append(np.asarray(state.policy["params"]["lm_head"]["kernel"], np.float32))
        state, _ = step(state, base, make_batch(), hyper)
    assert state.policy["params"]["lm_head"]["kernel"].dtype == trained_dtype
    assert state.target_critic.trunk["params"]["lm_head"]["kernel"].dtype == jnp.float32
    moved = np.abs(np.diff(kernels, axis=0))
    # Lion moves every weight by the rate; a rounded weight by 0 or the spacing, so on average.
    standard_error = np.std(moved) / np.sqrt(moved.size)
    assert abs(np.mean(moved) - rate) < 5 * standard_error + 0.01 * rate
    if trained_dtype == "bfloat16":
        assert np.mean(moved > 0) < 0.2, "the spacing is not above the step"
