"""Settings as flags of a command line, and the order in which help lists them."""

import re
import subprocess
import sys

import pytest
from absl import flags

from env import flag_help
from env.base import UsageError
from etpo_jax import flags as settings_flags
from etpo_jax import registry
from etpo_jax.config import SECTIONS, Config

OWN_ALGORITHM = """
import dataclasses

from etpo_jax.algorithms.reflection import Reflection, ReflectionConfig
from etpo_jax.config import option


@dataclasses.dataclass(frozen=True)
class OwnConfig(ReflectionConfig):
    \"\"\"Settings of an algorithm of one's own.\"\"\"

    temper: float = option(0.5, "A number of one's own.", lower=0.0, upper=1.0)


class Own(Reflection):
    \"\"\"An algorithm of one's own.\"\"\"

    Settings = OwnConfig
"""


def define(*arguments):
    values = flags.FlagValues()
    settings_flags.define_flags(values)
    settings_flags.define_chosen(arguments, values)
    return values


def parse(*arguments, defaults=None):
    values = define(*arguments)
    values(["test", *arguments])
    return settings_flags.from_flags(values, defaults=defaults)


@pytest.fixture
def own_algorithm(tmp_path, monkeypatch):
    """Name of an algorithm in a module that is in no package."""
    (tmp_path / "own_algorithm.py").write_text(OWN_ALGORITHM)
    monkeypatch.syspath_prepend(tmp_path)
    yield "own_algorithm:Own"
    sys.modules.pop("own_algorithm", None)


def test_flags_without_arguments_are_the_defaults():
    assert parse() == Config()
    for name in registry.algorithms():
        assert parse(f"--algorithm={name}") == Config.from_dict({"algorithm": name})


def test_every_field_is_one_flag_with_help():
    values = define()
    names = [name for section in SECTIONS.values() for name in section.names()]
    for algorithm in registry.algorithms().values():
        names += algorithm.Settings.names()
    assert set(names) == set(flag_help.own_flags(values))
    assert all(values[name].help for name in names)


def test_flags_reach_their_fields():
    parsed = parse("--beta=0.25", "--policy_loss=exact", "--top_k=7", "--run_dir=x", "--num_envs=3")
    assert parsed.learning.beta == 0.25
    assert parsed.learning.policy_loss == "exact"
    assert parsed.sampling.top_k == 7
    assert parsed.run.run_dir == "x"
    assert parsed.run.num_envs == 3
    assert parse("--critic_loss=retrace:huber=2").learning.huber_delta == 2.0
    assert parse("--nostrict_data").task.strict_data is False


def test_defaults_of_a_run_hold_unless_a_flag_is_given():
    stored = Config.from_dict({"beta": 0.3, "temperature": 0.5}).to_dict()
    parsed = parse("--temperature=1", defaults=stored)
    assert parsed.learning.beta == 0.3
    assert parsed.sampling.temperature == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "--algorithm=ppo_kl --critic_loss=path --trust_region=0.3",
            "--critic_loss: --algorithm=ppo_kl does not read it, etpo does",
        ),
        ("--algorithm=etpo --clip_ratio=0.1", "--clip_ratio: --algorithm=etpo does not read it, "),
        ("--algorithm=reflection --beta=0.1", "--beta: --algorithm=reflection does not read it, "),
        # Also where the value is that of the default.
        ("--algorithm=poad --replay_size=16", "--replay_size: --algorithm=poad does not read it, "),
        ("--beta=inf", "--beta=inf: must be > 0 and finite"),
        ("--beta=0", "--beta=0: must be > 0"),
        ("--algorithm=dqn", "--algorithm=dqn: must be one of etpo, poad, ppo_kl, reflection"),
        ("--gamma_within=0.99 --critic_loss=path --policy_loss=exact", "--critic_loss=path needs"),
    ],
)
def test_what_a_run_cannot_read_is_one_line(arguments, message):
    with pytest.raises(UsageError, match=re.escape(message)) as raised:
        parse(*arguments.split())
    assert "\n" not in str(raised.value)


def test_an_algorithm_of_ones_own_brings_its_flags(own_algorithm):
    parsed = parse(f"--algorithm={own_algorithm}", "--temper=0.25")
    assert parsed.learning.temper == 0.25
    assert parsed.run.algorithm == own_algorithm
    assert Config.from_dict(parsed.to_dict()) == parsed
    with pytest.raises(UsageError, match="--temper=2: must be >= 0 and <= 1"):
        parse(f"--algorithm={own_algorithm}", "--temper=2")
    with pytest.raises(UsageError, match=f"--beta: --algorithm={own_algorithm} does not read it"):
        parse(f"--algorithm={own_algorithm}", "--beta=0.1")
    with pytest.raises(flags.UnrecognizedFlagError):
        parse("--temper=0.25")
    assert parse("--algorithm", own_algorithm, "--temper=0.25") == parsed


@pytest.mark.parametrize(
    "name", ["no_such_module:Own", "own_algorithm:Other", "own_algorithm:OwnConfig"]
)
def test_an_algorithm_that_is_none_is_one_line(own_algorithm, name):
    with pytest.raises(UsageError, match=f"--algorithm={name}: "):
        define(f"--algorithm={name}")


def test_help_lists_every_flag_once_and_what_matters_first(own_algorithm):
    for arguments in ((), (f"--algorithm={own_algorithm}",)):
        values = define(*arguments)
        values(["test", *arguments])
        sections = settings_flags.help_sections(values)
        listed = [name for _, names in sections for name in names]
        assert len(set(listed)) == len(listed)
        assert set(listed) == set(flag_help.own_flags(values))
        title, names = sections[0]
        assert title == "What matters most"
        assert names == [name for name in settings_flags.IMPORTANT if name in values]
        assert 10 <= len(names) <= 14
    assert any("temper" in names for _, names in sections)


def test_train_has_few_flags():
    """`--help` of the program: every flag once, the important ones first, 65 at most."""
    done = subprocess.run(
        [sys.executable, "-m", "etpo_jax.train", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  --")]
    names = [line.removeprefix("--").partition("=")[0] for line in lines]
    general = {"version", "flagfile"}
    own = [name for name in names if name not in general]
    assert len(set(own)) == len(own) <= 65
    assert tuple(own[: len(settings_flags.IMPORTANT)]) == settings_flags.IMPORTANT
    assert done.stdout.index("What matters most:") < done.stdout.index("Other flags:")
