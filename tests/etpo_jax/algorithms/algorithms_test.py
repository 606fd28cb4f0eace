"""Every algorithm learns the toy task in process, through the host loop that real runs use."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from env.tasks.toy import LETTERS, PLACES, ToyTask
from etpo_jax import build
from etpo_jax.acting.rollout import TokenPrompts
from etpo_jax.algorithms.clipped_steps import minibatches
from etpo_jax.build import Language
from etpo_jax.config import Config
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.loop import Loop
from models.config import DecoderConfig
from models.transformer import Decoder

PAD, STOP = 0, 1
WORDS = ("", "", *LETTERS, *PLACES, "1", "2", "3")
MODEL = Decoder(
    DecoderConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_layers=1,
        num_heads=2,
        num_kv_heads=2,
        head_dim=8,
        rope_theta=1e4,
        rope_scaling=None,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        attention_bias=False,
        max_position_embeddings=64,
    )
)
SETTINGS = {
    "dataset": "toy",
    "max_steps": 2,
    "num_env_steps": 640,
    "max_prompt_length": 8,
    "max_new_tokens": 4,
    "support_threshold": 0.0,
}
LEARNING = {
    "gradient_steps_per_update": 4,
    "beta": 0.02,
    "policy_learning_rate": 5e-3,
    "critic_learning_rate": 5e-3,
}
ETPO = LEARNING | {"replay_size": 64, "policy_loss": "exact", "trust_region": 0.0}
ALGORITHMS = {
    "etpo": ETPO,
    "ppo_kl": LEARNING,
    "etpo, doubly robust": ETPO | {"policy_loss": "doubly_robust"},
    "etpo, trust region": ETPO | {"policy_loss": "doubly_robust", "trust_region": 0.3},
    "etpo, path of the policy": ETPO
    | {"critic_loss": "path", "q_parameterization": "policy", "policy_loss": "tied"},
    # The newest transitions alone, again and again: longer steps would go too far.
    "etpo, after executing": ETPO | {"replay_size": 16, "policy_learning_rate": 2e-3},
    "poad": LEARNING,
    "reflection": {},
}


class WordTokenizer:
    """Letters, places and numbers are a token each; the rest of a prompt says nothing."""

    eos_ids = frozenset({STOP})
    pad_id = PAD
    vocab_size = len(WORDS)

    infills_lines = False

    def encode_prompt(self, text):
        words = text.replace(",", " ").split()
        return [WORDS.index(word) for word in words if word in WORDS]

    def decode(self, ids):
        return "".join(WORDS[i] for i in ids if WORDS[i] in LETTERS)


class Memory:
    """A run directory and checkpoints that keep in memory what a run would write."""

    latest = write_s = None

    def __init__(self):
        self.metrics, self.episodes = [], []

    def append_metrics(self, row):
        self.metrics.append(row)

    def append_episodes(self, rows):
        self.episodes += rows

    def write_best(self, best):
        self.best = best

    def write_top_programs(self, ranked):
        self.top_programs = ranked

    def save(self, update, state, replay, host):
        jax.block_until_ready(state)

    def wait(self):
        pass


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compiling takes the time here, and not what is compiled."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def compilations():
    """A list that grows by one whenever XLA compiles."""
    events = []

    def note(event, duration, **facts):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(duration)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield events
    jax.monitoring.unregister_event_duration_listener(note)


def random_parameters(model):
    """NumPy arrays, large enough for distributions far from uniform."""
    token = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), token, token, token == 0)["params"]
    rng = np.random.default_rng(0)

    def draw(leaf):
        spread = 1.0 if leaf.ndim < 2 else leaf.shape[-2] ** -0.5
        return (rng.normal(size=leaf.shape) * spread).astype(leaf.dtype)

    return jax.tree.map(draw, shapes)


@pytest.fixture(scope="module")
def language():
    base = jax.tree.map(jnp.asarray, random_parameters(MODEL))
    return Language(MODEL, base, WordTokenizer())


def run_loop(config, language, task, on_update=lambda row, episode_rows: None):
    """A whole run that is kept in memory: the algorithm after it, and its logs."""
    mesh, memory = build_mesh(), Memory()
    with jax.set_mesh(mesh):
        algorithm = config.algorithm(language.model, language.base, config, mesh)
        loop = Loop(
            config,
            memory,
            memory,
            task,
            language.tokenizer,
            TokenPrompts(task, language.tokenizer, config.model.max_prompt_length),
            build.make_actor(config, language, mesh),
            algorithm,
        )
        loop.run(lambda: False, on_update)
        loop.close()
    return algorithm, memory


def gain_of(memory):
    """Mean reward of the last fifth of the episodes less that of the first."""
    rewards = np.array([row["reward"] for row in memory.episodes])
    fifth = len(rewards) // 5
    return rewards[-fifth:].mean() - rewards[:fifth].mean()


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_tiny_run_improves_on_its_own_start_and_compiles_only_at_its_start(
    language, compilations, name
):
    values = {**SETTINGS, **ALGORITHMS[name], "algorithm": name.split(",")[0]}
    compiled = []
    _, memory = run_loop(
        Config.from_dict(values),
        language,
        ToyTask(max_steps=2),
        lambda row, episode_rows: compiled.append(len(compilations)),
    )
    last = memory.metrics[-1]
    assert last["env_step"] == 640
    # The first update has no replay yet and one prompt for all, the second has both.
    assert compiled[0] > 0
    assert compiled[-1] == compiled[2]
    if name == "reflection":
        assert last["gradient_steps"] == 0
        assert abs(last["kl_to_reference"]) < 1e-5
    else:
        # While the first programs execute, ETPO has no replay to learn from.
        has_all = values.get("replay_size") != 64
        assert last["gradient_steps"] == (160 if has_all else 157)
        assert last["kl_to_reference"] > 0.05
        assert gain_of(memory) > 0.15


@pytest.mark.parametrize(("size", "minibatch_size"), [(6, 2), (5, 2), (2, 4)])
def test_minibatches_pass_over_the_collection_in_random_order(size, minibatch_size):
    rng = np.random.default_rng(0)
    per_pass = -(-size // minibatch_size)
    found = list(minibatches(size, minibatch_size, 3 * per_pass, rng))
    assert {len(rows) for rows in found} == {minibatch_size}
    passes = np.reshape(found, (3, -1))
    for rows in passes:
        assert set(rows) == set(range(size))
        assert len(set(rows[: min(size, len(rows))])) == min(size, len(rows))
    assert size < 3 or not (passes[0] == passes[1]).all()
