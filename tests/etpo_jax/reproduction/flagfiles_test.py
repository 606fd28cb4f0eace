"""launch/paper/: what each flagfile says its run is, read back as a configuration."""

import pathlib

import pytest
from absl import flags

from env.flagfiles import expand_flagfiles
from etpo_jax import flags as settings_flags
from etpo_jax.reproduction import page

ROOT = pathlib.Path(__file__).parents[3]
PAPER = ROOT / "launch" / "paper"


def parse(name):
    values = flags.FlagValues()
    settings_flags.define_flags(values)
    values(["test", *expand_flagfiles([f"--flagfile={PAPER / name}.flags"])])
    return settings_flags.from_flags(values).to_dict()


def difference(name, other):
    """Settings of a flagfile that differ from those of another, of those that both runs read."""
    ours, theirs = parse(name), parse(other)
    return {key: value for key, value in ours.items() if value != theirs.get(key, value)}


def test_every_algorithm_that_a_table_or_figure_compares_has_a_flagfile():
    needed = {name for names in (*page.TABLES.values(), *page.FIGURES.values()) for name in names}
    assert needed <= {path.stem for path in PAPER.glob("*.flags")}


@pytest.mark.parametrize("name", sorted(path.stem for path in PAPER.glob("*.flags")))
def test_every_flagfile_is_a_configuration(name):
    values = parse(name)
    assert values["num_env_steps"] == 480
    assert bool(values.get("endpoint")) == (name == "reflection_gpt4")


def test_ablations_differ_from_etpo_in_one_setting():
    assert difference("etpo_disc", "etpo") == {"gamma_within": 0.99}
    assert difference("etpo_1step", "etpo") == {"max_steps": 1}


def test_baselines_see_and_sample_what_etpo_does():
    """Model, prompts, environments and sampling are the same; each has the rates that suit it."""
    learning = {"beta", "gradient_steps_per_update", "policy_learning_rate", "critic_learning_rate"}
    allowed = {"reflection": set(), "ppo_kl": learning, "poad": learning | {"lambda_within"}}
    for name, keys in allowed.items():
        changed = difference(name, "etpo")
        assert changed.pop("algorithm") == name
        assert set(changed) <= keys


def test_the_authors_poad_is_their_update():
    """Their code's defaults and its script for data science; rates and sampling are ours."""
    changed = difference("poad_authors", "poad")
    assert changed == {
        "num_envs": 4,
        "steps_per_update": 8,
        "minibatch_size": 8,
        "beta": 0.0,
        "gamma": 0.95,
        "clip_ratio": "0.2:max_kl=0.02,entropy=0.01,value_clip=0.2,trace=episode,"
        "standardize=minibatch",
        "optimizer": "adamw:b1=0.9,b2=0.999,eps=1e-5,weight_decay=0,clip_norm=0.5",
    }


def test_the_exact_etpo_differs_in_how_it_learns_only():
    changed = difference("etpo_exact", "etpo")
    assert changed["policy_loss"] == "exact"
    kinds = {"beta", "gradient_steps_per_update", "policy_learning_rate", "critic_learning_rate"}
    assert set(changed) == kinds | {
        "policy_loss",
        "replay_size",
        "trust_region",
    }


def test_etpo_by_path_consistency_differs_in_its_losses_and_its_replay():
    assert difference("etpo_path", "etpo") == {
        "critic_loss": "path",
        "policy_loss": "tied",
        "trust_region": 0.0,
        "replay_size": 512,
    }


def test_the_authors_run_is_what_they_published():
    paper = parse("etpo_paper")
    expected = {
        "beta": 0.01,
        "gamma": 0.99,
        "gamma_within": 1.0,
        "optimizer": "lion:b1=0.9,b2=0.99,weight_decay=0,clip_norm=10",
        "policy_learning_rate": 1e-6,
        "critic_learning_rate": 1e-6,
        "polyak_lambda": 0.995,
        "num_envs": 8,
        "steps_per_update": 2,
        "temperature": 0.5,
        "top_k": 50,
        "loss_temperature": 1.0,
        "critic_loss": "one_step:huber=10",
        "policy_loss": "uniform",
        "q_parameterization": "logits",
        "prompt_format": "infill:official",
        "max_steps": 5,
    }
    assert {key: paper[key] for key in expected} == expected
    # On-policy: the replay holds one collection, all of which one step takes; targets that are
    # computed in that step are those at collection.
    assert paper["replay_size"] == paper["minibatch_size"] == 16
    assert paper["num_envs"] * paper["steps_per_update"] == 16
    assert paper["gradient_steps_per_update"] == 1


def test_eq_7_is_the_authors_run_with_the_printed_policy():
    changed = difference("etpo_eq7", "etpo_paper")
    assert changed == {"policy_loss": "eq7"}
