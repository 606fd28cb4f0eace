"""A tilt in every algorithm that trains: its gradient, its sampling, its place in checkpoints."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from env.tasks.toy import ToyTask
from etpo_jax import build
from etpo_jax.acting.rollout import TokenPrompts
from etpo_jax.acting.transitions import Transition, collate
from etpo_jax.algorithms import etpo
from etpo_jax.algorithms.actor_critic import score_policy
from etpo_jax.algorithms.base import Hyperparameters
from etpo_jax.build import Language
from etpo_jax.config import Config
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.distribution import NUM_TILTS
from etpo_jax.runs.checkpoint import Checkpoints, read_role
from tests.etpo_jax.algorithms import algorithms_test
from tests.models.small import perturbed

TILT = {"finetune": "full:tilt=0.1"}
LORA = {"finetune": "lora:rank=2,targets=q+v,tilt=0.1"}
PLAIN = {**algorithms_test.LEARNING, "beta": 0.3, "optimizer": "adamw:clip_norm=1e-3"}
ETPO = {
    **PLAIN,
    "critic_loss": "one_step",
    "policy_loss": "exact",
    "trust_region": 0.0,
    "replay_size": 16,
}
MODES = {
    "residual": ETPO,
    "dueling, path": {**ETPO, "critic_loss": "path", "q_parameterization": "dueling"},
    "policy": {**ETPO, "q_parameterization": "policy", "policy_loss": "tied"},
    "ppo_kl": {**PLAIN, "algorithm": "ppo_kl"},
    "poad": {**PLAIN, "algorithm": "poad"},
}


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compiling takes the time here, and not what is compiled."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def language():
    base = jax.tree.map(jnp.asarray, algorithms_test.random_parameters(algorithms_test.MODEL))
    return Language(algorithms_test.MODEL, base, algorithms_test.WordTokenizer())


def of_settings(language, **values):
    """Settings, and the model with the adapters that they name."""
    config = Config.from_dict({**algorithms_test.SETTINGS, **TILT, **values})
    model = language.model.clone(lora=config.finetune.adapters)
    return config, dataclasses.replace(language, model=model)


def sample(algorithm, config, language, seed=0, size=16):
    """A batch of actions that the policy samples for first states, with random rewards."""
    task, rng = ToyTask(max_steps=2), np.random.default_rng(seed)
    prompts = TokenPrompts(task, language.tokenizer, config.model.max_prompt_length)
    actor = build.make_actor(config, language, build_mesh())
    actions = actor.act(
        actor.weights(algorithm.policy_trunk()),
        [prompts.encode(task.reset(rng)) for _ in range(size)],
        jax.random.key(seed),
        reference_weights=actor.weights({}),
    )
    transitions = [
        Transition(prompt, tokens, log_probs, rng.normal(), None)
        for prompt, tokens, log_probs in zip(
            actions.prompt_tokens, actions.tokens, actions.log_probs, strict=True
        )
    ]
    return collate(
        transitions,
        pad_id=algorithms_test.PAD,
        length_multiple=8,
        max_prompt_length=config.model.max_prompt_length,
        max_new_tokens=config.sampling.max_new_tokens,
    )


def apart(algorithm):
    """Networks away from rho and from each other, theirs tilts included."""
    state = algorithm.state
    changed = {"policy": perturbed(state.policy, seed=1, scale=0.1)}
    for seed, name in enumerate(("critic", "target_critic"), 2):
        if hasattr(state, name):
            changed[name] = perturbed(getattr(state, name), seed=seed, scale=0.1)
    algorithm.state = dataclasses.replace(state, **changed)


def gradient_of(optimizer_state, *path):
    """The gradient of a tilt at the first step, from the first moment of its Adam."""
    moment = optimizer_state.inner_states["tilt"].inner_state[0].mu
    for key in path:
        moment = getattr(moment, key) if hasattr(moment, key) else moment[key]
    return np.asarray(moment) / 0.1


def take_step(algorithm, config, batch, policy_shift=0.0, critic_shift=0.0):
    """State and metrics after one step from tilts that are shifted by so much before."""
    state = jax.tree.map(jnp.array, algorithm.state)
    if len(state.policy):
        policy = {**state.policy, "tilt": state.policy["tilt"] + policy_shift}
        state = dataclasses.replace(state, policy=policy)
    trunk = {**state.critic.trunk, "tilt": state.critic.trunk["tilt"] + critic_shift}
    state = dataclasses.replace(state, critic=dataclasses.replace(state.critic, trunk=trunk))
    if isinstance(algorithm, etpo.Etpo):
        return algorithm._gradient_step(state, algorithm.base, batch, algorithm.hyper)
    rows, hyper = jnp.arange(len(batch.reward_b)), algorithm.hyper
    labels = algorithm._label(algorithm.state, algorithm.base, batch, jnp.int32(16), hyper)
    return algorithm._step(state, algorithm.base, batch, labels, rows, hyper)


@pytest.mark.parametrize("name", MODES)
def test_its_gradients_are_those_of_finite_differences(language, name):
    """Neither clipped with the weights nor divided: the clip norm here is a thousandth."""
    config, language = of_settings(language, **MODES[name])
    algorithm = config.algorithm(language.model, language.base, config, build_mesh())
    batch = sample(algorithm, config, language)
    apart(algorithm)
    state, _ = take_step(algorithm, config, batch)
    found = {"policy_loss": gradient_of(state.policy_optimizer, "tilt")}
    if name in ("residual", "dueling, path"):
        found["critic_loss"] = gradient_of(state.critic_optimizer, "trunk", "tilt")
    if name == "policy":  # its policy learns from the critic's regression, divided by beta
        found = {"critic_loss": config.learning.beta * found["policy_loss"]}
    for loss, gradient in found.items():
        shift = "critic_shift" if loss == "critic_loss" and name != "policy" else "policy_shift"
        expected = []
        for direction in 0.05 * np.eye(NUM_TILTS, dtype=np.float32):
            ends = [
                float(take_step(algorithm, config, batch, **{shift: way * direction})[1][loss])
                for way in (-1, 1)
            ]
            expected.append((ends[1] - ends[0]) / 0.1)
        assert np.abs(expected).max() > 1e-3
        np.testing.assert_allclose(
            gradient, expected, rtol=0.03, atol=0.01 * np.abs(expected).max()
        )


@pytest.mark.parametrize(
    "values",
    [{}, {"support_threshold": 0.05}, {"temperature": 0.7, **LORA}],
    ids=["whole vocabulary", "support mask", "adapters"],
)
def test_the_sampled_probability_is_that_of_the_losses(language, values):
    """The ratio pi / mu is 1 before the first step on new actions, whatever was learnt before."""
    config, language = of_settings(language, **{**ETPO, **values})
    algorithm = config.algorithm(language.model, language.base, config, build_mesh())
    apart(algorithm)
    batch = sample(algorithm, config, language)
    policy, mask_bj = algorithm.state.policy, batch.action_mask_bj
    assert np.abs(policy["tilt"]).max() > 0.05
    log_probs_bj = np.asarray(algorithm.inspect(batch).log_prob_bj)
    np.testing.assert_allclose(log_probs_bj[mask_bj], batch.log_probs_bj[mask_bj], atol=2e-5)
    networks, hyper = algorithm.networks, Hyperparameters.of(config)
    reference_bjd = networks.action_hidden(algorithm.base, {}, batch)
    arguments = (networks, config, algorithm.base, policy, reference_bjd, batch, hyper)
    found_bj = np.asarray(score_policy(*arguments).log_prob_bj)
    np.testing.assert_allclose(found_bj[mask_bj], batch.log_probs_bj[mask_bj], atol=2e-5)
    without = {key: tree for key, tree in policy.items() if key != "tilt"}
    plain_bj = np.asarray(score_policy(*arguments[:3], without, *arguments[4:]).log_prob_bj)
    assert np.abs(plain_bj - found_bj)[mask_bj].max() > 1e-2


@pytest.mark.parametrize("values", [TILT, LORA], ids=["full", "adapters"])
def test_a_checkpoint_holds_it(language, tmp_path, values):
    config, language = of_settings(language, **{**ETPO, **values})
    algorithm = config.algorithm(language.model, language.base, config, build_mesh())
    algorithm.learn(sample(algorithm, config, language))
    saved, replay = algorithm.state, {"reward": np.zeros(2)}
    assert np.any(saved.policy["tilt"])
    assert np.any(saved.target_critic.trunk["tilt"])
    with Checkpoints(tmp_path, 1) as checkpoints:
        checkpoints.save(1, saved, replay, {})
        checkpoints.wait()
        restored, _, _ = checkpoints.restore(1, saved, replay)
    jax.tree.map(np.testing.assert_array_equal, saved, restored)
    role = read_role(tmp_path / "1", ("policy",), build_mesh())
    np.testing.assert_array_equal(role["tilt"], saved.policy["tilt"])


def test_its_step_is_its_own_learning_rate(language):
    """Adam's first step has the length of the rate, whatever the network's rate and clip are."""
    config, language = of_settings(language, **{**ETPO, "policy_learning_rate": 0.0})
    algorithm = config.algorithm(language.model, language.base, config, build_mesh())
    before = jax.tree.map(np.asarray, algorithm.state.policy)
    algorithm.start(0.5)
    algorithm.learn(sample(algorithm, config, language))
    algorithm.learn(sample(algorithm, config, language))
    after = algorithm.state.policy
    jax.tree.map(np.testing.assert_array_equal, before["params"], after["params"])
    np.testing.assert_allclose(np.abs(algorithm.state.critic.trunk["tilt"]).max(), 0.2, rtol=0.2)


@pytest.mark.parametrize("text", ["full:tilt=-1", "lora:tilt=x", "full:tilts=1"])
def test_bad_values_are_named(text):
    with pytest.raises(ValueError, match=f"--finetune={text}"):
        Config.from_dict({"finetune": text})


def test_sampling_without_the_reference_is_refused(language):
    config, language = of_settings(language, **ETPO)
    algorithm = config.algorithm(language.model, language.base, config, build_mesh())
    assert config.samples_with_reference
    task = ToyTask(max_steps=2)
    prompts = TokenPrompts(task, language.tokenizer, config.model.max_prompt_length)
    actor = build.make_actor(config, language, build_mesh())
    state = task.reset(np.random.default_rng(0))
    with pytest.raises(ValueError, match="tilt: needs reference_weights"):
        actor.act(
            actor.weights(algorithm.policy_trunk()), [prompts.encode(state)], jax.random.key(0)
        )
