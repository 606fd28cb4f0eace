"""The prompts of the code task (the paper's eta, Figures 6 and 7) and the program around an action.

A prompt is a Python file with one `<FILL_ME>`; the action, the "body", is what replaces it: its
first line follows the four spaces that are already there, and later lines bring their own.
"""

import dataclasses
import unicodedata
from typing import Literal, get_args

from env.base import FILL_ME
from env.execution.error_text import MAX_ERROR_CHARS, clean_error, elide
from env.execution.program import BUILD_MODEL, RETURN, SIGNATURE

PromptStyle = Literal["paper", "official"]
"""`paper`: as printed in Figures 6 and 7. `official`: as the authors' code builds it, which shows
the shape of the whole table, does not comment the previous function out, and spaces its docstrings
otherwise."""
STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)

_HEADER = '"""Classification with a {description} Prediction Dataset"""\nimport numpy as np\n\n'
_REQUEST = (
    "Import modules, return a scikit model trained with x_train in shape {shape} and y_train."
)
_REPORT = "An error was reported while executing this function: {error}. Please fix it."
_FIX = "Fix the error in the previous function."


@dataclasses.dataclass(frozen=True)
class _Limits:
    """Limits on the part of the last failure that a reflective prompt shows; None is no limit."""

    error_chars: int
    body_lines: int | None = None
    line_chars: int | None = None


# Shortening drops the middle of the error first, then the middle lines of the previous body. The
# name of the mistake and the lines next to signature and return stay longest.
_SHORTER = (
    _Limits(MAX_ERROR_CHARS),
    _Limits(160),
    _Limits(80),
    _Limits(80, body_lines=16, line_chars=120),
    _Limits(80, body_lines=8, line_chars=80),
    _Limits(80, body_lines=4, line_chars=60),
    _Limits(40, body_lines=0),
)
MAX_SHORTEN = len(_SHORTER) - 1


def first_prompt(
    description: str, num_rows: int, num_features: int, *, style: PromptStyle = "paper"
) -> str:
    """Returns the prompt of an episode's first state (Figure 6).

    Args:
      description: subject of the table, such as "Balance Scale Weight & Distance".
      num_rows: rows in the displayed shape, see `shown_rows`.
      num_features: columns of `x_train`.
      style: see `PromptStyle`.
    """
    return _header(description, style) + _function(
        _request(num_rows, num_features), FILL_ME, style=style
    )


def reflective_prompt(
    description: str,
    num_rows: int,
    num_features: int,
    body: str,
    error: str,
    *,
    style: PromptStyle = "paper",
    shorten: int = 0,
) -> str:
    """Returns the prompt of the state after a failed action (Figure 7).

    Args:
      description: subject of the table.
      num_rows: rows in the displayed shape, see `shown_rows`.
      num_features: columns of `x_train`.
      body: action that failed.
      error: its error, which `clean_error` cleans and bounds.
      style: see `PromptStyle`.
      shorten: 0 shows everything, larger values up to `MAX_SHORTEN` ever less.
    """
    limits = _SHORTER[min(shorten, MAX_SHORTEN)]
    reported = clean_error(error, max_chars=limits.error_chars).rstrip(" .")
    previous = _function(_request(num_rows, num_features), _shown_body(body, limits), style=style)
    if style == "paper":
        previous = "".join(f"# {line}".rstrip() + "\n" for line in previous.splitlines()) + "\n"
    else:
        previous += "\n"
    return "".join(
        (
            _header(description, style),
            _docstring(_REPORT.format(error=reported), style=style) + "\n",
            previous,
            _function(_FIX, FILL_ME, style=style, space_after=True),
        )
    )


def program(body: str) -> str:
    """Returns the program of the code task around a body."""
    return BUILD_MODEL.source(body)


def shown_rows(num_rows: int, style: PromptStyle = "paper") -> int:
    """Returns the number of rows that a prompt displays for a table of `num_rows`.

    The paper shows the rows of the training half, which is the smaller one.
    """
    return num_rows // 2 if style == "paper" else num_rows


def _shown_body(body: str, limits: _Limits) -> str:
    # A marker in the body would be a second one in the prompt, and control characters do not belong
    # in a source file. `splitlines` also cuts at separators that would end a comment.
    body = body.replace(FILL_ME, "FILL_ME").rstrip()
    lines = [
        "".join(c for c in line if c == "\t" or unicodedata.category(c) not in ("Cc", "Cs"))
        for line in body.splitlines()
    ]
    if limits.body_lines is not None and len(lines) > limits.body_lines:
        tail = limits.body_lines // 2
        head = limits.body_lines - tail
        lines = [*lines[:head], "    ..." if head else "...", *lines[len(lines) - tail :]]
    if limits.line_chars is not None:
        lines = [elide(line, limits.line_chars) for line in lines]
    return "\n".join(lines)


def _header(description: str, style: PromptStyle) -> str:
    header = _HEADER.format(description=description)
    return header if style == "paper" else "\n" + header


def _request(num_rows: int, num_features: int) -> str:
    return _REQUEST.format(shape=(num_rows, num_features))


def _docstring(text: str, *, style: PromptStyle, space_after: bool = False) -> str:
    if style == "paper":
        return f'"""{text}"""'
    return f'""" {text}{" " if space_after else ""}"""'


def _function(docstring: str, body: str, *, style: PromptStyle, space_after: bool = False) -> str:
    text = _docstring(docstring, style=style, space_after=space_after)
    return f"{SIGNATURE}    {text}\n    {body}\n{RETURN}"
