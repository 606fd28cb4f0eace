"""Describes the columns of a table for a prompt: names, types, missing shares, a few values.

Everything comes from the features of the rows that rewards may see; the target is named, and the
names of its classes are listed. Names and values are the user's: they are shown as literals of
Python that can neither end a docstring, nor add a line, nor pass for a marker of a prompt.
"""

import dataclasses
import re
from typing import Any

import numpy as np

from env.execution.error_text import elide
from env.tables.table import Dataset

_NAME_CHARS = 60
_VALUE_CHARS = 32
_NUM_EXAMPLES = 3
_MAX_CLASSES = 20
_CLASSES_SHARE = 3
"""The classes take at most the budget divided by this."""

ROLE = r"\[(?=/?[A-Z_]+\])"
"""Pattern of the beginning of a marker such as [INST]; others begin with < or are a fence."""
_ESCAPED = {"\\": "\\\\", "'": "\\'", '"': '\\"', "<": "\\x3c", "`": "\\x60"}


def literal(text: str, max_chars: int = _NAME_CHARS) -> str:
    """Returns a string literal of one line; the middle of a longer text is cut out."""
    shown = "".join(map(_escape, elide(text, max_chars)))
    return f"'{re.sub(ROLE, lambda _: chr(92) + 'x5b', shown)}'"


def _escape(char: str) -> str:
    if char in _ESCAPED:
        return _ESCAPED[char]
    return char if char.isprintable() else char.encode("unicode_escape").decode()


@dataclasses.dataclass(frozen=True)
class Column:
    """A column as it is shown.

    Attributes:
      name: a literal.
      kind: type of the values, and how many of them are missing.
      values: facts about the values, which stand before the examples.
      examples: a few values.
    """

    name: str
    kind: str
    values: str
    examples: tuple[str, ...]

    def line(self, num_examples: int) -> str:
        """Returns a line with so many examples at most."""
        shown = ", ".join(self.examples[:num_examples])
        more = f", {self.values}{shown}" if shown else ""
        return f"{self.name}: {self.kind}{more}"


class TableText:
    """Lines about the columns and the target of a table that has a frame.

    Args:
      dataset: the table.
    """

    def __init__(self, dataset: Dataset):
        frame: Any = dataset.frame
        self._columns = [_column(str(name), column) for name, column in frame.items()]
        target = dataset.preparation.get("target")
        self._target = f" of {literal(str(target))}" if target else ""
        self._classes = [f"{k} {literal(name)}" for k, name in enumerate(dataset.class_names)]

    def lines(self, max_bytes: int) -> list[str]:
        """Returns as much as fits into a number of bytes of UTF-8, line breaks included.

        Examples are dropped first, then columns, which are counted then. A token of a tokenizer is
        a byte at least, so that this bounds tokens as well.
        """
        target = self._target_line(max_bytes // _CLASSES_SHARE)
        columns = self._column_lines(max_bytes - _size(target))
        return columns + target if columns else []

    def _target_line(self, max_bytes: int) -> list[str]:
        if not self._classes:
            line = f"y_train: numbers{self._target}"
            return [line] if _size([line]) <= max_bytes else []
        for num_shown in range(min(len(self._classes), _MAX_CLASSES), 0, -1):
            shown = ", ".join(self._classes[:num_shown])
            left = len(self._classes) - num_shown
            line = f"y_train: codes{self._target}: {shown}{_more(left, 'classes')}"
            if _size([line]) <= max_bytes:
                return [line]
        return []

    def _column_lines(self, max_bytes: int) -> list[str]:
        for num_examples in (_NUM_EXAMPLES, 1, 0):
            lines = [column.line(num_examples) for column in self._columns]
            if _size(lines) <= max_bytes:
                return lines
        # From here on, names and types alone, as many as fit; each takes this many bytes at least.
        most = max_bytes // len("'': bool; ")
        for num_shown in range(min(len(self._columns), most), 0, -1):
            shown = "; ".join(column.line(0) for column in self._columns[:num_shown])
            line = shown + _more(len(self._columns) - num_shown, "columns")
            if _size([line]) <= max_bytes:
                return [line]
        return []


def _size(lines: list[str]) -> int:
    return sum(len(line.encode()) + 1 for line in lines)


def _more(count: int, what: str) -> str:
    return f", ... and {count} more {what}" if count else ""


def _column(name: str, column: Any) -> Column:
    present = column.dropna()
    kind = "text" if column.dtype.kind == "O" else str(column.dtype)
    missing = 1 - len(present) / max(1, len(column))
    if missing:
        kind += f", {missing:.0%} missing" if missing >= 0.01 else ", <1% missing"
    values, examples = _EXAMPLES[column.dtype.kind](present) if len(present) else ("", [])
    return Column(literal(name), kind, values, tuple(examples))


def _of_text(present: Any) -> tuple[str, list[str]]:
    counts = present.value_counts()
    # Equal counts come in the order of the alphabet, not of the rows.
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_NUM_EXAMPLES]
    shown = [literal(value, _VALUE_CHARS) for value, _ in ranked]
    if len(counts) <= _NUM_EXAMPLES:
        return f"{len(counts)} values: ", shown
    return f"{len(counts)} values such as ", shown


def _of_numbers(present: Any) -> tuple[str, list[str]]:
    quartiles = np.quantile(present.to_numpy(), (0.25, 0.5, 0.75), method="nearest")
    return "such as ", list(dict.fromkeys(f"{value:.6g}" for value in quartiles))


def _of_dates(present: Any) -> tuple[str, list[str]]:
    is_day = (present == present.dt.normalize()).all()
    form = "%Y-%m-%d" if is_day else "%Y-%m-%d %H:%M:%S"
    ends = dict.fromkeys(date.strftime(form) for date in (present.min(), present.max()))
    return "", [" to ".join(ends)]


def _of_truth_values(present: Any) -> tuple[str, list[str]]:
    return "", [f"{present.mean():.0%} true"]


_EXAMPLES = {
    "O": _of_text,
    "f": _of_numbers,
    "i": _of_numbers,
    "M": _of_dates,
    "b": _of_truth_values,
}
