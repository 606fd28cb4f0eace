"""Data frames as plain bytes, the form in which tables with columns of several types travel.

A payload holds the columns one after the other, each a buffer of its own: numbers, truth values and
dates as they lie in memory, text as the lengths of all values and then their characters in UTF-8.
It is a function of the values alone: index, attributes, strides, categories and whatever else a
frame may carry stay behind.

The zygote imports this module before its libraries, so numpy and pandas are imported when needed.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

TEXT = "text"
KINDS = ("float64", "int64", "bool", "datetime64[ns]", TEXT)
"""Kinds of columns; text is a column of `str`, with None where a value is missing."""

_MISSING = -1
# Text is cut from one long string: half a surrogate pair must not stop a table.
_ERRORS = "surrogatepass"


def columns(frame: Any) -> list[list[str]]:
    """Returns name and kind of every column of a pandas DataFrame, as JSON values.

    Raises:
      TypeError: for a column of another type, naming it.
    """
    return [[str(name), _kind(name, frame.iloc[:, i])] for i, name in enumerate(frame.columns)]


def _kind(name: object, column: Any) -> str:
    import numpy as np

    kinds = {"f": "float64", "i": "int64", "b": "bool", "M": "datetime64[ns]", "O": TEXT}
    kind = kinds.get(column.dtype.kind) if isinstance(column.dtype, np.dtype) else None
    if kind is None:
        raise TypeError(f"column {name!r} has the type {column.dtype}, which no frame may hold")
    if kind == TEXT and not all(value is None or type(value) is str for value in column):
        raise TypeError(f"column {name!r} holds values that are neither text nor None")
    return kind


def encode(frame: Any, rows: "np.ndarray", kinds: Sequence[str]) -> bytes:
    """Returns the payload of some rows of a frame.

    Args:
      frame: pandas DataFrame.
      rows: int64 [n] positions, in the order in which the rows are to arrive.
      kinds: kinds of its columns, as `columns` gives them.
    """
    import numpy as np

    parts = []
    for i, kind in enumerate(kinds):
        values = frame.iloc[:, i].to_numpy()[rows]
        if kind == TEXT:
            lengths = [_MISSING if value is None else len(value) for value in values]
            text = "".join(value for value in values if value is not None)
            parts += [np.array(lengths, np.int64).tobytes(), text.encode(errors=_ERRORS)]
        else:
            parts.append(np.ascontiguousarray(values, kind).tobytes())
    return b"".join(_with_size(part) for part in parts)


def _with_size(part: bytes) -> bytes:
    return len(part).to_bytes(8, "little") + part


def decode(payload: bytes | bytearray, names_and_kinds: Sequence[Sequence[str]]) -> Any:
    """Returns the frame of a payload: new columns, numbered rows, no attributes."""
    import numpy as np
    import pandas as pd

    parts = _parts(memoryview(payload))
    data: list[Any] = []
    for _, kind in names_and_kinds:
        if kind == TEXT:
            lengths = np.frombuffer(next(parts), np.int64)
            values = _cut(str(next(parts), "utf-8", _ERRORS), lengths)
        else:
            # A copy: the frame can be written to, and does not keep the payload alive.
            values = np.frombuffer(next(parts), kind).copy()
        # Without its type named, text would become pandas' own, in which None is NaN.
        data.append(pd.Series(values, dtype=values.dtype, copy=False))
    frame = pd.DataFrame(dict(enumerate(data)), copy=False)
    frame.columns = pd.Index([name for name, _ in names_and_kinds])
    return frame


def _parts(payload: memoryview) -> Iterator[memoryview]:
    while payload:
        size = int.from_bytes(payload[:8], "little")
        yield payload[8 : 8 + size]
        payload = payload[8 + size :]


def _cut(text: str, lengths: "np.ndarray") -> "np.ndarray":
    """Returns an array of objects: the pieces of a text that have these lengths, None for -1."""
    import numpy as np

    values = np.empty(len(lengths), object)
    ends = np.cumsum(np.maximum(lengths, 0)).tolist()
    start = 0
    for i, (length, end) in enumerate(zip(lengths.tolist(), ends, strict=True)):
        if length != _MISSING:
            values[i] = text[start:end]
        start = end
    return values
