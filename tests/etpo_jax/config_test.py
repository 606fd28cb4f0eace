import dataclasses

import pytest
from absl import flags

from env.base import UsageError
from etpo_jax import config
from etpo_jax.config import Config


def parse(*arguments, defaults=None):
    values = flags.FlagValues()
    config.define_flags(values)
    values(["test", *arguments])
    return config.from_flags(values, defaults=defaults)


def test_flags_without_arguments_are_the_defaults():
    assert parse() == Config()


def test_every_field_is_one_flag_with_help():
    values = flags.FlagValues()
    config.define_flags(values)
    names = [field.name for section in config.SECTIONS for field in dataclasses.fields(section)]
    assert len(set(names)) == len(names)
    assert set(names) == set(Config().to_dict())
    assert all(values[name].help for name in names)


def test_flags_reach_their_fields():
    parsed = parse("--beta=0.25", "--tie_policy", "--top_k=7", "--run_dir=x", "--huber_delta=2")
    assert parsed.learning.beta == 0.25
    assert parsed.learning.tie_policy
    assert parsed.sampling.top_k == 7
    assert parsed.run.run_dir == "x"
    assert parsed.learning.huber_delta == 2.0


def test_a_configuration_survives_its_dict():
    parsed = parse("--beta=0.25", "--critic_loss=retrace", "--loss_temperature=0.5")
    assert Config.from_dict(parsed.to_dict()) == parsed
    assert parsed.loss_temperature == 0.5
    assert parse("--temperature=0.7").loss_temperature == 0.7


def test_defaults_of_a_run_hold_unless_a_flag_is_given():
    stored = Config.from_dict({"beta": 0.3, "temperature": 0.5}).to_dict()
    parsed = parse("--temperature=1", defaults=stored)
    assert parsed.learning.beta == 0.3
    assert parsed.sampling.temperature == 1.0


@pytest.mark.parametrize(
    ("argument", "text"),
    [
        ("--beta=0", "--beta=0: must be > 0"),
        ("--num_envs=0", "--num_envs=0: must be >= 1"),
        ("--gamma=1.5", "--gamma=1.5: must be >= 0 and <= 1"),
        ("--gamma=nan", "--gamma=nan: must be >= 0 and <= 1"),
        ("--support_threshold=0.9", "must be >= 0 and <= 0.5"),
        ("--gamma_within=0.99 --critic_loss=path", "--critic_loss=path needs 1"),
        ("--q_parameterization=logits --tie_policy", "--tie_policy needs residual or dueling"),
        ("--q_parameterization=policy --tie_policy", "--tie_policy needs residual or dueling"),
        ("--policy_loss=doubly_robust --critic_loss=path", "it needs one_step or retrace"),
        ("--policy_loss=doubly_robust --tie_policy", "the policy has no loss of its own"),
        ("--trust_region=0.2 --tie_policy", "--trust_region=0.2: with --tie_policy"),
        (
            "--policy_loss=doubly_robust --q_parameterization=policy",
            "the policy has no loss of its own",
        ),
        ("--policy_loss=uniform --support_threshold=0.1", "--support_threshold=0.1: must be 0"),
        ("--max_prompt_length=100 --length_multiple=64", "multiple of --length_multiple=64"),
    ],
)
def test_what_is_out_of_range_is_named_with_value_and_range(argument, text):
    with pytest.raises(UsageError) as raised:
        parse(*argument.split())
    assert text in str(raised.value)


def test_choices_are_checked_where_no_flag_does():
    with pytest.raises(ValueError, match="--critic_loss=td: must be one of one_step"):
        Config.from_dict({"critic_loss": "td"})
