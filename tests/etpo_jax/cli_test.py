"""The command `etpo`: its help, its programs, and names that are near to them."""

import json
import sys

import pytest

from env.version import __version__
from etpo_jax import cli


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["etpo", *arguments])
    # As in a process of its own, which has not imported the program before.
    for module, _ in cli.PROGRAMS.values():
        monkeypatch.delitem(sys.modules, module, raising=False)
    return cli.main()


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"], ["help"]])
def test_help_lists_every_program(monkeypatch, capsys, arguments):
    assert call(monkeypatch, *arguments) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in cli.PROGRAMS)
    assert max(map(len, text.splitlines())) <= 80


def test_version(monkeypatch, capsys):
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"etpo_jax {__version__}\n"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("trian", "did you mean train?"),
        ("inspect-run", "did you mean inspect_run?"),
        ("zebra", "`etpo --help` lists the programs"),
    ],
)
def test_an_unknown_program_is_one_line(monkeypatch, capsys, name, hint):
    assert call(monkeypatch, name) == 2
    assert capsys.readouterr() == ("", f"error: there is no program {name!r}; {hint}\n")


def test_a_program_gets_the_arguments_behind_its_name(monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, "plan", "--nosuchflag")
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error == "error: unknown flag --nosuchflag; --help lists the flags\n"


def test_a_program_runs_as_it_does_by_itself(monkeypatch, capsys, tmp_path):
    action = tmp_path / "action.py"
    action.write_text(
        "from sklearn.naive_bayes import GaussianNB\n    return GaussianNB().fit(x_train, y_train)"
    )
    with pytest.raises(SystemExit) as caught:
        call(monkeypatch, "run_action", "--dataset=balance_scale", f"--action_file={action}")
    assert not caught.value.code
    assert json.loads(capsys.readouterr().out)["reward"] > 0.5
