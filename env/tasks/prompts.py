"""The prompts of the code task (the paper's eta, Figures 6 and 7) and the program around an action.

A prompt is a Python file with one `<FILL_ME>`; the action, the "body", is what replaces it: its
first line follows the four spaces that are already there, and later lines bring their own.
"""

import dataclasses
import re
import unicodedata
from typing import Literal, get_args

from env.base import FILL_ME
from env.execution.error_text import MAX_ERROR_CHARS, clean_error, elide
from env.execution.program import (
    BUILD_MODEL,
    FRAME_MODEL,
    FRAME_SIGNATURE,
    RETURN,
    SIGNATURE,
    ProgramTemplate,
)
from env.tables.table import Dataset
from env.tasks.columns import ROLE, TableText

FORMATS = ("infill", "complete", "chat")
"""Formats in which prompts reach a model, see `etpo_jax.acting.formats`."""

PromptStyle = Literal["paper", "official", "scored"]
"""`paper`: as printed in Figures 6 and 7. `official`: as the authors' code builds it, which shows
the shape of the whole table, does not comment the previous function out, and spaces its docstrings
otherwise. `scored`: the paper's, which also says that `predict_proba` is needed."""
STYLES: tuple[PromptStyle, ...] = get_args(PromptStyle)

_HEADER = '"""{problem} with a {description} Prediction Dataset"""\n{header}\n'
_REQUEST = (
    "Import modules, return a scikit {model} trained with {x_train} in shape {shape} and y_train."
)
_SCORED_REQUEST = (
    "Import modules, return a scikit-learn {estimator} that has {method}, fitted to {x_train} in "
    "shape {shape} and y_train."
)
# Small models import a "dataset" that has a name; what the columns are about they only read.
_CHAT_REQUEST = (
    "Write build_model(x_train, y_train). It {imports} a scikit-learn {estimator}, fits it to the "
    "{arguments}, and returns the fitted {fitted}. Its {method} is scored on new rows. Do not "
    "load, split or test any data. The columns of x_train are about: {description}."
)
_ABOUT_COLUMNS = (
    "The columns of x_train, the same when the model predicts (text is str, None where missing):"
)
_REPORT = "An error was reported while executing this function: {error}. Please fix it."
_MARKER = re.compile(rf"\"{{3,}}|`{{3,}}|<+(?=[|\uff5c/a-zA-Z])|{ROLE}")
"""Quotes that end a docstring, ticks that end a fence, and beginnings of a prompt's markers."""
_FIX = "Fix the error in the previous function."


@dataclasses.dataclass(frozen=True)
class Form:
    """The data that programs are given, and the kind of prediction that their models must make.

    Attributes:
      table: the columns of tables whose rows are data frames; None where they are arrays.
      is_regression: whether the target is a number.
    """

    table: TableText | None = None
    is_regression: bool = False

    @classmethod
    def of(cls, dataset: Dataset) -> "Form":
        """Returns the form of a table."""
        table = None if dataset.frame is None else TableText(dataset)
        return cls(table, dataset.is_regression)

    @property
    def template(self) -> ProgramTemplate:
        """The program around a body."""
        return BUILD_MODEL if self.table is None else FRAME_MODEL

    @property
    def signature(self) -> str:
        """The first line of the function."""
        return SIGNATURE if self.table is None else FRAME_SIGNATURE

    @property
    def max_shorten(self) -> int:
        """The largest `shorten` that makes a prompt shorter."""
        return MAX_SHORTEN if self.table is None else len(_TABLE_BYTES) - 1

    @property
    def words(self) -> dict[str, str]:
        """The words that fill the texts of prompts."""
        kind, method = ("classifier", "predict_proba")
        if self.is_regression:
            kind, method = ("regressor", "predict")
        words = {
            "problem": "Regression" if self.is_regression else "Classification",
            "method": method,
        }
        if self.table is None:
            return words | {
                "header": "import numpy as np\n",
                "imports": "imports",
                "model": kind if self.is_regression else "model",
                "estimator": kind,
                "fitted": kind,
                "x_train": "x_train",
                "arguments": "NumPy arrays x_train of shape {shape} and y_train",
            }
        pipeline = f"pipeline of encoders and a {kind}"
        return words | {
            "header": "import numpy as np\nimport pandas as pd\n",
            "imports": "makes",
            "model": pipeline,
            "estimator": pipeline,
            "fitted": "pipeline",
            "x_train": "the data frame x_train",
            "arguments": "pandas DataFrame x_train of shape {shape} and the NumPy array y_train",
        }


ARRAYS = Form()
"""The form of the paper: arrays and classes."""


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

_TABLE_BYTES = (2400, 1700, 1200, 850, 600, 400, 250, 150, 0)
"""Bytes of the lines about the columns of a data frame; 0 also leaves the longest words out."""


def first_prompt(
    description: str,
    num_rows: int,
    num_features: int,
    *,
    style: PromptStyle = "paper",
    form: Form = ARRAYS,
    shorten: int = 0,
) -> str:
    """Returns the prompt of an episode's first state (Figure 6).

    Args:
      description: subject of the table, such as "Balance Scale Weight & Distance".
      num_rows: rows in the displayed shape, see `shown_rows`.
      num_features: columns of `x_train`.
      style: see `PromptStyle`.
      form: what programs are given and return.
      shorten: 0 shows everything, larger values up to `Form.max_shorten` ever less.
    """
    request = _request(num_rows, num_features, style, form, shorten)
    return _header(description, style, form) + _function(request, FILL_ME, style=style, form=form)


def reflective_prompt(
    description: str,
    num_rows: int,
    num_features: int,
    body: str,
    error: str,
    *,
    style: PromptStyle = "paper",
    form: Form = ARRAYS,
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
      form: what programs are given and return.
      shorten: 0 shows everything, larger values up to `Form.max_shorten` ever less.
    """
    limits = _limits(shorten)
    request = _request(num_rows, num_features, style, form, shorten)
    if form.table and _table_bytes(shorten) == 0:
        request = ""
    previous = _function(request, _shown_body(body, limits), style=style, form=form)
    if style != "official":
        previous = "".join(f"# {line}".rstrip() + "\n" for line in previous.splitlines()) + "\n"
    else:
        previous += "\n"
    return "".join(
        (
            _header(description, style, form),
            _docstring(_report(error, limits), style=style) + "\n",
            previous,
            _function(_FIX, FILL_ME, style=style, form=form, space_after=True),
        )
    )


def first_turn(
    description: str, num_rows: int, num_features: int, *, form: Form = ARRAYS, shorten: int = 0
) -> str:
    """Returns what a user asks for in a conversation; arguments as of `first_prompt`."""
    words = form.words
    arguments = words.pop("arguments").format(shape=(num_rows, num_features))
    request = _CHAT_REQUEST.format(**words, arguments=arguments, description=_inline(description))
    return "\n\n".join([request, *_about_columns(form, shorten)])


def reflective_turns(
    body: str, error: str, *, form: Form = ARRAYS, shorten: int = 0
) -> tuple[str, str]:
    """Returns a failed action as turns of a conversation: the answer that held it, and its error.

    Args:
      body: action that failed.
      error: its error.
      form, shorten: as for `reflective_prompt`.
    """
    limits = _limits(shorten)
    # A fence in the body would end the one around it.
    shown = _shown_body(body, limits).replace("```", '"' * 3)
    answer = f"```python\n{form.signature}    {shown}\n{RETURN}```"
    return answer, f"{_report(error, limits)} Reply with the whole function."


def program(body: str, form: Form = ARRAYS) -> str:
    """Returns the program of the code task around a body."""
    return form.template.source(body)


def shown_rows(num_rows: int, style: PromptStyle = "paper") -> int:
    """Returns the number of rows that a prompt displays for a table of `num_rows`.

    The paper shows the rows of the training half, which is the smaller one.
    """
    return num_rows if style == "official" else num_rows // 2


def _limits(shorten: int) -> _Limits:
    return _SHORTER[min(shorten, MAX_SHORTEN)]


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


def _header(description: str, style: PromptStyle, form: Form) -> str:
    header = _HEADER.format(**form.words, description=_inline(description))
    return "\n" + header if style == "official" else header


def _inline(description: str) -> str:
    """Returns a description that neither ends a docstring nor is a marker; usual ones stay."""
    text = " ".join(description.replace("\\", "/").split())
    text = "".join(char for char in text if char.isprintable())
    return _MARKER.sub("", text).rstrip('"')


def _request(num_rows: int, num_features: int, style: PromptStyle, form: Form, shorten: int) -> str:
    request = _SCORED_REQUEST if style == "scored" else _REQUEST
    if _table_bytes(shorten) == 0:
        form = dataclasses.replace(form, table=None)
    text = request.format(**form.words, shape=(num_rows, num_features))
    about = "".join(_about_columns(form, shorten))
    return text if not about else f"{text}\n\n    {about.replace(chr(10), chr(10) + 4 * ' ')}\n    "


def _table_bytes(shorten: int) -> int:
    return _TABLE_BYTES[min(shorten, len(_TABLE_BYTES) - 1)]


def _about_columns(form: Form, shorten: int) -> list[str]:
    """Returns the lines about the columns of a data frame as one text, or nothing."""
    lines = form.table.lines(_table_bytes(shorten)) if form.table else []
    return ["\n".join([_ABOUT_COLUMNS, *lines])] if lines else []


def _docstring(text: str, *, style: PromptStyle, space_after: bool = False) -> str:
    if style != "official":
        return f'"""{text}"""'
    return f'""" {text}{" " if space_after else ""}"""'


def _function(
    docstring: str, body: str, *, style: PromptStyle, form: Form, space_after: bool = False
) -> str:
    text = docstring and f"    {_docstring(docstring, style=style, space_after=space_after)}\n"
    return f"{form.signature}{text}    {body}\n{RETURN}"
