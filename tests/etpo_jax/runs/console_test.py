"""Lines come at once, and colours only where they are wanted."""

import io
import sys

import pytest

from etpo_jax.runs import progress
from etpo_jax.runs.console import Console, has_colours


class _Stream(io.StringIO):
    """Standard output that counts how often it was flushed."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal
        self.flushed = ""

    def isatty(self) -> bool:
        return self.is_terminal

    def flush(self) -> None:
        self.flushed = self.getvalue()


@pytest.fixture
def colours(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return monkeypatch


@pytest.mark.parametrize("is_terminal", [False, True])
def test_lines_are_flushed(is_terminal: bool, colours: pytest.MonkeyPatch) -> None:
    stream = _Stream(is_terminal)
    colours.setattr(sys, "stdout", stream)
    console = Console()
    console.greet("etpo 1", "toy")
    console.tell(("prompt", "two\nlines"))
    bold, end = ("\x1b[1m", "\x1b[0m") if is_terminal else ("", "")
    assert stream.flushed == (
        f"{bold}etpo 1      {end}toy\n{bold}prompt      {end}two\n            lines\n"
    )


def test_a_quiet_run_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Stream(False)
    monkeypatch.setattr(sys, "stdout", stream)
    console = Console(is_quiet=True)
    console.greet("a", "b")
    console.tell(("a", "b"))
    console.say("c")
    assert stream.getvalue() == ""


def test_colours_are_for_terminals_alone(colours: pytest.MonkeyPatch) -> None:
    assert has_colours(_Stream(True))
    assert not has_colours(_Stream(False))
    colours.setenv("TERM", "dumb")
    assert not has_colours(_Stream(True))
    colours.setenv("TERM", "xterm")
    colours.setenv("NO_COLOR", "1")
    assert not has_colours(_Stream(True))


def test_a_line_stands_above_the_bar(colours: pytest.MonkeyPatch) -> None:
    stream = _Stream(True)
    colours.setattr(sys, "stdout", stream)
    with progress.Progress(8) as bar:
        bar.note("compiling step")
        Console().say("a line")
    assert "\ra line\n" in stream.getvalue()
    assert stream.getvalue().count("compiling step") >= 2
