"""JSON on disk: single objects, and rows that only ever grow (one object per line)."""

import json
import math
import numbers
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from env.base import UsageError
from etpo_jax.runs import durable

Row = dict[str, Any]


def to_json(value: Any) -> Any:
    """`value` as standard JSON holds it: NumPy scalars as numbers, tuples as lists.

    JSON has no NaN and no infinities; they become the texts "NaN", "Infinity" and "-Infinity" (as
    in protobuf's JSON mapping), which `float` reads.

    Raises:
      TypeError: something in it has no JSON form.
    """
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        number = float(value)
        if math.isnan(number):
            return "NaN"
        if math.isinf(number):
            return "Infinity" if number > 0 else "-Infinity"
        return number
    if getattr(value, "ndim", None) == 0:
        return to_json(value.item())
    raise TypeError(f"{type(value).__name__} is no JSON value: {value!r:.80}")


def write(path: Path, value: Any) -> None:
    """Makes `path` hold `value`, indented for people."""
    durable.replace(path, json.dumps(to_json(value), indent=2, allow_nan=False) + "\n")


def read(path: Path) -> Row:
    """The object in a JSON file.

    Raises:
      UsageError: the file holds no JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise UsageError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} does not hold a JSON object")
    return value


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds rows, all or none of them; the order of their keys is kept."""
    lines = [json.dumps(to_json(row), allow_nan=False) + "\n" for row in rows]
    if lines:
        durable.append(path, "".join(lines).encode("ascii"))


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file, up to the first torn one; none where there is no file."""
    return (row for row, _ in _rows_with_ends(path))


def cut_rows(path: Path, is_kept: Callable[[Row], bool]) -> Row | None:
    """Cuts a file before its first row that is torn or not kept.

    Returns: the last row left, None if there is none.
    """
    last, size = None, 0
    for row, end in _rows_with_ends(path):
        if not is_kept(row):
            break
        last, size = row, end
    if path.exists() and path.stat().st_size > size:
        durable.truncate(path, size)
    return last


def _rows_with_ends(path: Path) -> Iterator[tuple[Row, int]]:
    """Each row with the offset behind it, up to the first line that is no whole row."""
    if not path.exists():
        return
    end = 0
    with open(path, "rb") as file:
        for line in file:
            end += len(line)
            try:
                row = json.loads(line)
            except ValueError:
                return
            if not line.endswith(b"\n") or not isinstance(row, dict):
                return
            yield row, end
