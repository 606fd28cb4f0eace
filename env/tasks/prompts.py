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

FORMATS = ("infill", "complete", "chat")
"""Formats in which prompts reach a model, see `etpo_jax.acting.formats`."""

PromptStyle = Literal["paper", "official", "scored"]
"""`paper`: as printed in Figures 6 and 7. `official`: as the authors' code builds it, which shows
the shape of the whole table, does not comment the previous function out, and spaces its docstrings
otherwise. `scored`: the paper's, which also says that `predict_proba` is needed."""
STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)

_HEADER = '"""Classification with a {description} Prediction Dataset"""\nimport numpy as np\n\n'
_REQUEST = (
    "Import modules, return a scikit model trained with x_train in shape {shape} and y_train."
)
_SCORED_REQUEST = (
    "Import modules, return a scikit-learn classifier that has predict_proba, fitted to x_train in "
    "shape {shape} and y_train."
)
# Small models import a "dataset" that has a name; what the columns are about they only read.
_CHAT_REQUEST = (
    "Write build_model(x_train, y_train). It imports a scikit-learn classifier, fits it to the "
    "NumPy arrays x_train of shape {shape} and y_train, and returns the fitted classifier. Its "
    "predict_proba is scored on new rows. Do not load, split or test any data. The columns of "
    "x_train are about: {description}."
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
        _request(num_rows, num_features, style), FILL_ME, style=style
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
    previous = _function(
        _request(num_rows, num_features, style), _shown_body(body, limits), style=style
    )
    if style != "official":
        previous = "".join(f"# {line}".rstrip() + "\n" for line in previous.splitlines()) + "\n"
    else:
        previous += "\n"
    return "".join(
        (
            _header(description, style),
            _docstring(_report(error, limits), style=style) + "\n",
            previous,
            _function(_FIX, FILL_ME, style=style, space_after=True),
        )
    )


def first_turn(description: str, num_rows: int, num_features: int) -> str:
    """Returns what a user asks for in a conversation; arguments as of `first_prompt`."""
    return _CHAT_REQUEST.format(description=description, shape=(num_rows, num_features))


def reflective_turns(body: str, error: str, *, shorten: int = 0) -> tuple[str, str]:
    """Returns a failed action as turns of a conversation: the answer that held it, and its error.

    Args:
      body: action that failed.
      error: its error.
      shorten: as for `reflective_prompt`.
    """
    limits = _SHORTER[min(shorten, MAX_SHORTEN)]
    # A fence in the body would end the one around it.
    shown = _shown_body(body, limits).replace("```", '"' * 3)
    answer = f"```python\n{SIGNATURE}    {shown}\n{RETURN}```"
    return answer, f"{_report(error, limits)} Reply with the whole function."


def program(body: str) -> str:
    """Returns the program of the code task around a body."""
    return BUILD_MODEL.source(body)


def shown_rows(num_rows: int, style: PromptStyle = "paper") -> int:
    """Returns the number of rows that a prompt displays for a table of `num_rows`.

    The paper shows the rows of the training half, which is the smaller one.
    """
    return num_rows if style == "official" else num_rows // 2


def _report(error: str, limits: _Limits) -> str:
    reported = clean_error(error, max_chars=limits.error_chars).rstrip(" .")
    return _REPORT.format(error=reported)


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
    return "\n" + header if style == "official" else header


def _request(num_rows: int, num_features: int, style: PromptStyle) -> str:
    request = _SCORED_REQUEST if style == "scored" else _REQUEST
    return request.format(shape=(num_rows, num_features))


def _docstring(text: str, *, style: PromptStyle, space_after: bool = False) -> str:
    if style != "official":
        return f'"""{text}"""'
    return f'""" {text}{" " if space_after else ""}"""'


def _function(docstring: str, body: str, *, style: PromptStyle, space_after: bool = False) -> str:
    text = _docstring(docstring, style=style, space_after=space_after)
    return f"{SIGNATURE}    {text}\n    {body}\n{RETURN}"
