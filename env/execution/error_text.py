"""Error messages of generated programs as one short line that is safe to show in a prompt."""

import re
import unicodedata

from env.base import FILL_ME

MAX_ERROR_CHARS = 400
_MAX_RAW_CHARS = 4000

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_URL = re.compile(r"\b[a-z][a-z0-9+.-]*://\S+", re.IGNORECASE)
_ADDRESS = re.compile(r"(?:\s+at)?\s*\b0x[0-9a-fA-F]{6,}\b")
# Single and double quotes mixed as well: the rest of a longer run must not be three again.
_QUOTES = re.compile(r"[\"']{3,}")
# "(<string>, line 7)": a place in a file that the prompt does not show.
_LOCATION = re.compile(r"\s*\((?:<[^<>()]*>|[^()\s]+\.py),\s*line\s+\d+\)")
_FOLDERS = re.compile(r"(?<![\w.)\]])(?:~|\.{1,2}|[A-Za-z]:)?[/\\](?:[\w.+@%-]+[/\\])*(?=[\w.<])")


def clean_error(text: str, *, max_chars: int = MAX_ERROR_CHARS) -> str:
    """Returns one bounded line that says what went wrong and cannot break out of a prompt.

    Folders, URLs, memory addresses, source locations, escape sequences and control characters are
    dropped, white space is folded, triple quotes and the infilling marker are defused. What exceeds
    `max_chars` is cut out of the middle: the type stands at the start, often the point at the end.
    """
    # The patterns below take quadratic time on texts made for that.
    text = elide(text, _MAX_RAW_CHARS)
    text = _ANSI.sub("", text)
    text = "".join(" " if unicodedata.category(c)[0] in "CZ" else c for c in text)
    for noise in (_URL, _LOCATION, _ADDRESS, _FOLDERS):
        text = noise.sub("", text)
    text = _QUOTES.sub("'", text).replace(FILL_ME, "FILL_ME")
    return elide(" ".join(text.split()), max_chars)


def elide(text: str, max_chars: int) -> str:
    """Cuts the middle out of a text that is longer than `max_chars`."""
    if len(text) <= max_chars:
        return text
    gap = " ... "
    tail = (max_chars - len(gap)) // 3
    return text[: max_chars - len(gap) - tail].rstrip() + gap + text[-tail:].lstrip()
