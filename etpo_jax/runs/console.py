"""What a run says while it goes on: each line at once, in colour on a terminal only."""

import os
import sys
import textwrap
from typing import TextIO

from tqdm import tqdm

_WIDTH = 12
_BOLD, _END = "\x1b[1m", "\x1b[0m"


def has_colours(stream: TextIO) -> bool:
    """True for a terminal, unless NO_COLOR is set or the terminal is a dumb one."""
    is_wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return is_wanted and stream.isatty()


class Console:
    """Standard output of a run; of several hosts the first one speaks, a quiet run does not."""

    def __init__(self, *, is_quiet: bool = False) -> None:
        self.is_quiet = is_quiet

    def say(self, text: str) -> None:
        """Prints lines, above the bar if one is drawn; nothing for an empty text."""
        from etpo_jax.devices import hosts  # jax stays out of what only reads runs

        if text and not self.is_quiet and hosts.is_first():
            _print(text)

    def tell(self, *facts: tuple[str, str]) -> None:
        """Prints facts: a name, and a text whose further lines stand below its first."""
        for name, text in facts:
            self.say(_fact(name, text))

    def greet(self, name: str, text: str) -> None:
        """Prints a fact before the devices are there; with several hosts nobody does."""
        from etpo_jax.devices import hosts

        if not self.is_quiet and not hosts.are_several():
            _print(_fact(name, text))


def _print(text: str) -> None:
    if sys.stdout.isatty():
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()
    else:
        print(text, flush=True)


def _fact(name: str, text: str) -> str:
    head = f"{name:{_WIDTH - 1}} "
    if has_colours(sys.stdout):
        head = f"{_BOLD}{head}{_END}"
    return head + textwrap.indent(text, " " * _WIDTH).lstrip(" ")
