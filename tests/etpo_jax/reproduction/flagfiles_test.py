"""launch/paper/: what each flagfile says its run is, read back as a configuration."""

import pathlib

import pytest
from absl import flags

from env.flagfiles import expand_flagfiles
from etpo_jax import config
from etpo_jax.reproduction import page

ROOT = pathlib.Path(__file__).parents[3]
PAPER = ROOT / "launch" / "paper"


def parse(name):
    values = flags.FlagValues()
    config.define_flags(values)
    values(["test", *expand_flagfiles([f"--flagfile={PAPER / name}.flags"])])
    return config.from_flags(values).to_dict()


def difference(name, other):
    """Settings of a flagfile that differ from those of another."""
    ours, theirs = parse(name), parse(other)
    return {key: value for key, value in ours.items() if value != theirs[key]}


def test_every_algorithm_that_a_table_or_figure_compares_has_a_flagfile():
    needed = {name for names in (*page.TABLES.values(), *page.FIGURES.values()) for name in names}
    assert needed <= {path.stem for path in PAPER.glob("*.flags")}


@pytest.mark.parametrize("name", sorted(path.stem for path in PAPER.glob("*.flags")))
def test_every_flagfile_is_a_configuration(name):
    values = parse(name)
    assert values["num_env_steps"] == 480
    assert bool(values["endpoint"]) == (name == "reflection_gpt4")


def test_ablations_differ_from_etpo_in_one_setting():
    assert difference("etpo_disc", "etpo") == {"gamma_within": 0.99}
    assert difference("etpo_1step", "etpo") == {"max_steps": 1}


def test_baselines_see_and_sample_what_etpo_does():
    """Same model, prompts, environments and sampling; each learns at the rates that suit it."""
    learning = {"beta", "updates_per_batch", "policy_learning_rate", "critic_learning_rate"}
    allowed = {"reflection": set(), "ppo_kl": learning, "poad": learning}
    for name, keys in allowed.items():
        changed = difference(name, "etpo")
        assert changed.pop("algorithm") == name
        assert set(changed) <= keys


def test_the_exact_etpo_differs_in_how_it_learns_only():
    changed = difference("etpo_exact", "etpo")
    assert changed["policy_loss"] == "exact"
    kinds = {"beta", "updates_per_batch", "policy_learning_rate", "critic_learning_rate"}
    assert set(changed) == kinds | {
        "policy_loss",
        "replay_size",
        "learn_while_executing",
        "trust_region",
    }


def test_the_authors_run_is_what_they_published():
    paper = parse("etpo_paper")
    expected = {
        "beta": 0.01,
        "gamma": 0.99,
        "gamma_within": 1.0,
        "optimizer": "lion",
        "policy_learning_rate": 1e-6,
        "critic_learning_rate": 1e-6,
        "clip_norm": 10.0,
        "huber_delta": 10.0,
        "polyak_lambda": 0.995,
        "num_envs": 8,
        "steps_per_update": 2,
        "temperature": 0.5,
        "top_k": 50,
        "loss_temperature": 1.0,
        "critic_loss": "one_step",
        "targets": "collection",
        "policy_loss": "uniform",
        "q_parameterization": "logits",
        "prompt_style": "official",
        "max_steps": 5,
    }
    assert {key: paper[key] for key in expected} == expected
    # On-policy: the replay holds one collection, all of which one step takes.
    assert paper["replay_size"] == paper["minibatch_size"] == 16
    assert paper["updates_per_batch"] == 1


def test_eq_7_is_the_authors_run_with_the_printed_policy():
    changed = difference("etpo_eq7", "etpo_paper")
    assert changed == {"policy_loss": "exact", "policy_target": "exp_q"}
