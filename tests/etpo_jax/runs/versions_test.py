"""The command line that a run records."""

import pytest

from etpo_jax.runs import versions


@pytest.mark.parametrize(
    ("arguments", "command"),
    [
        (["/bin/python3", "/bin/etpo", "train", "--seed=1"], "etpo train --seed=1"),
        (["/bin/python3", "-m", "etpo_jax.train"], "python -m etpo_jax.train"),
        (["/bin/python3"], "python"),
    ],
)
def test_the_command_is_the_one_that_was_typed(monkeypatch, arguments, command):
    monkeypatch.setattr("sys.orig_argv", arguments)
    assert versions.command() == command
