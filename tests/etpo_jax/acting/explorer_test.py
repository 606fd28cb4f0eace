"""Exploring environments: what they draw, what is drawn again, and what algorithms learn from."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpo_jax.acting import sampling
from etpo_jax.acting.explorer import Explorer
from etpo_jax.acting.rollout import Actions
from etpo_jax.acting.sampling import Truncation
from etpo_jax.config import Config, SamplingConfig
from etpo_jax.exploration import Exploration
from etpo_jax.trainer import Trainer

PROMPT = "def build_model(x_train, y_train):\n    <FILL_ME>\n    return model\n"


class Listed:
    """An actor whose draws are given: one list of texts per call."""

    def __init__(self, draws):
        self.draws = list(draws)
        self.calls = []

    def act(self, weights, prompts, key, *, reference_weights, flattening):
        texts = self.draws.pop(0)
        self.calls.append((weights, flattening, jax.random.key_data(key).tolist()))
        number = np.full(1, len(self.calls), np.int32)
        return Actions(
            list(prompts), [number] * 2, texts, [number] * 2, [number.astype(np.float32)] * 2, 2
        )


def explore(draws, executed=(), **settings):
    actor = Listed(draws)
    explorer = Explorer(actor, Exploration(share=0.5, **settings))
    found = explorer.act("policy", ["p", "q"], jax.random.key(0), executed, reference_weights="rho")
    return found, actor.calls


def test_what_was_executed_is_drawn_again():
    found, calls = explore([["old", "new"], ["new", "x"], ["other", "y"]], {"old"}, redraws=4)
    assert found.texts == ["other", "new"]
    assert found.prompts == ["p", "q"]
    # Tokens and probabilities are those of the draw that each action is from.
    assert [int(tokens[0]) for tokens in found.tokens] == [3, 1]
    assert [float(log_probs[0]) for log_probs in found.log_probs] == [3.0, 1.0]
    assert found.num_tokens == 2
    assert len({str(key) for _, _, key in calls}) == 3


def test_two_rows_do_not_choose_the_same_new_action():
    found, _ = explore([["new", "new"], ["x", "y"]], redraws=1)
    assert found.texts == ["new", "y"]


def test_the_last_draw_is_kept_where_nothing_is_new():
    found, calls = explore([["old", "old"], ["old", "new"]], {"old"}, redraws=1)
    assert found.texts == ["old", "new"]
    assert len(calls) == 2


@pytest.mark.parametrize("source", ["policy", "reference"])
def test_source_and_temperature_reach_the_actor(source):
    _, calls = explore([["a", "b"]], source=source, temperature=1.5)
    assert calls[0][:2] == ({"policy": "policy", "reference": "rho"}[source], 1.5)


def test_a_flatter_policy_keeps_its_support():
    rng = np.random.default_rng(0)
    logits, reference = jnp.asarray(rng.normal(size=(2, 3, 8)), jnp.float32)
    config = SamplingConfig(temperature=0.7, support_threshold=0.1)
    plain = np.asarray(sampling.weights(logits, Truncation.of(config), reference))
    flat = np.asarray(sampling.weights(logits, Truncation.of(config, flattening=2.0), reference))
    assert 0 < (plain == 0).mean() < 1
    np.testing.assert_allclose(flat, np.sqrt(plain), rtol=1e-5)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"explore": "redraws=2"}, "--explore=redraws=2: needs share="),
        ({"explore": "share=1"}, "--explore=share=1: share must be >= 0 and < 1"),
        ({"explore": "share=0.5,source=rho"}, "source must be policy or reference"),
        ({"explore": "share=0.5,temperature=0"}, "temperature must be > 0"),
        ({"explore": "share=0.5,redraws=-1"}, "redraws must be >= 0"),
        ({"explore": "share=0.5", "num_envs": 1}, "--num_envs=1: one environment at least"),
        (
            {"explore": "share=0.5", "algorithm": "poad", "clip_ratio": "0.2:trace=episode"},
            "--explore=share=0.5: trace=episode of --clip_ratio",
        ),
        (
            {
                "explore": "share=0.5",
                "algorithm": "ppo_kl",
                "baseline": "leave_one_out",
                "num_envs": 2,
            },
            "--num_envs=2: --baseline=leave_one_out needs at least two",
        ),
    ],
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Config.from_dict(values)


@pytest.fixture(scope="module")
def compiled_programs():
    """Compiled programs outlive the session, so that running the tests again is quick."""
    with pytest.MonkeyPatch.context() as patch:
        cache = pathlib.Path(__file__).parents[3] / ".pytest_cache" / "compiled"
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(cache))
        yield


def reward(prompt, completion):
    return float("import" in completion) - len(completion) / 100


def train(path, algorithm, stops=(), **settings):
    small = {
        "num_env_steps": 24,
        "num_envs": 4,
        "max_prompt_length": 64,
        "max_new_tokens": 16,
        "explore": "share=0.5,temperature=1.5,redraws=2,start=8",
    }
    small |= {"minibatch_size": 4, "gradient_steps_per_update": 1}
    trainer = Trainer(
        prompts=[PROMPT],
        reward=reward,
        quiet=True,
        run_dir=path,
        algorithm=algorithm,
        callbacks=[lambda row: row["env_step"] not in stops],
        **small | settings,
    )
    trainer.train()
    return lines(path / "episodes.jsonl")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("algorithm", ["etpo", "ppo_kl"])
def test_a_run_explores_with_its_last_environments_and_resumes(
    tmp_path, algorithm, compiled_programs
):
    rows = train(tmp_path / "whole", algorithm)
    explores = [row["explores"] for row in rows]
    assert explores == [False] * 8 + [False, False, True, True] * 4
    seen, repeats = set(), 0
    for row in rows:
        repeats += row["explores"] and row["action"] in seen
        seen.add(row["action"])
    assert repeats == 0  # of a reference that hardly ever repeats itself
    metrics = lines(tmp_path / "whole" / "metrics.jsonl")
    last = [row["reward"] for row in rows[-4:] if not row["explores"]]
    assert metrics[-1]["exploiting_reward_mean"] == pytest.approx(np.mean(last))
    train(tmp_path / "parts", algorithm, stops={12})
    again = train(tmp_path / "parts", algorithm)
    assert [row["action"] for row in again] == [row["action"] for row in rows]
