"""Files of a run: JSON objects and rows that a kill or a full disk never leaves half written.

A file is replaced as a whole, or grows by whole rows, or is unchanged. Every `OSError` of a write
names the file, which the operating system's own errors of `write` do not.
"""

import contextlib
import json
import math
import numbers
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from env.base import UsageError

_UNFINISHED_SUFFIX = ".unfinished"

Row = dict[str, Any]


def replace(path: Path, data: str | bytes) -> None:
    """Gives a file new content; at any moment it holds either the old content or the new.

    Nothing is written where the file holds `data` already. Characters that UTF-8 cannot encode
    (lone surrogates) are written as their Python escapes.

    Raises:
      OSError: naming `path`; the old content stays.
    """
    encoded = data.encode("utf-8", "backslashreplace") if isinstance(data, str) else data
    unfinished = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED_SUFFIX}")
    with naming(path):
        if path.is_file() and path.read_bytes() == encoded:
            return
        try:
            with open(unfinished, "wb") as file:
                file.write(encoded)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def append(path: Path, data: bytes) -> None:
    """Adds all of `data` to the end of a file, or nothing; a missing file is created.

    Only a kill inside the write itself can leave a part.

    Raises:
      OSError: naming `path`; the old content stays.
    """
    with naming(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            old_size = os.fstat(descriptor).st_size
            try:
                rest = memoryview(data)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.fsync(descriptor)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.ftruncate(descriptor, old_size)
                raise
        finally:
            os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Makes the names in a folder survive a power failure."""
    _sync(path, os.O_DIRECTORY)


def sync_tree(folder: Path) -> None:
    """Makes everything in a folder survive a power failure, the name of the folder included."""
    for path in folder.rglob("*"):
        _sync(path)
    sync_folder(folder)
    sync_folder(folder.parent)


def _sync(path: Path, flags: int = 0) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_unfinished(name: str) -> bool:
    """True for the name of a temporary file that a kill during `replace` left behind."""
    return name.startswith(".") and name.endswith(_UNFINISHED_SUFFIX)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the file's name into every `OSError` that the block raises."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


# JSON ---------------------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """Converts a value to standard JSON types: NumPy scalars to numbers, tuples to lists.

    JSON has no NaN and no infinities; they become the texts "NaN", "Infinity" and "-Infinity" (as
    in protobuf's JSON mapping), which `float` reads.

    Raises:
      TypeError: a part of the value has no JSON form.
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
    raise TypeError(f"{type(value).__name__} has no JSON form: {value!r:.80}")


def to_number(value: Any) -> float | None:
    """Reads a number, also one that `to_json` wrote as text; None for any other value."""
    value = to_json(value)
    is_number = isinstance(value, (int, float)) or value in ("NaN", "Infinity", "-Infinity")
    return float(value) if is_number else None


def write_json(path: Path, value: Any) -> None:
    """Replaces the content of a file by one JSON value, indented for people."""
    replace(path, json.dumps(to_json(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Row:
    """Reads the JSON object in a file.

    Raises:
      UsageError: the file holds no JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not readable as JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} does not hold a JSON object")
    return value


@contextlib.contextmanager
def understood(path: Path) -> Iterator[None]:
    """Says of values in a file that cannot be used that the file is damaged.

    Raises:
      UsageError: naming the file and what was found.
    """
    try:
        yield
    except UsageError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({type(error).__name__}: {error})") from error


def json_lines(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats rows as JSON, one object per line; the order of their keys is kept."""
    return "".join(json.dumps(to_json(row), allow_nan=False) + "\n" for row in rows)


def append_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Adds all rows to a file of JSON lines, or none of them."""
    if rows:
        append(path, json_lines(rows).encode("ascii"))


def read_rows(path: Path) -> Iterator[Row]:
    """Yields the rows of a file up to the first torn one; a missing file has none."""
    return (row for row, _ in _rows_with_ends(path))


def cut_rows(path: Path, is_kept: Callable[[Row], bool]) -> Row | None:
    """Cuts a file before its first row that is torn or not kept.

    Returns: the last row that is left, or None.
    """
    last, size = None, 0
    for row, end in _rows_with_ends(path):
        if not is_kept(row):
            break
        last, size = row, end
    if path.exists() and path.stat().st_size > size:
        with naming(path), open(path, "rb+") as file:
            file.truncate(size)
            os.fsync(file.fileno())
    return last


def _rows_with_ends(path: Path) -> Iterator[tuple[Row, int]]:
    """Yields each row with the offset behind it, up to the first line that is no whole row."""
    if not path.exists():
        return
    end = 0
    with open(path, "rb") as file:
        for line in file:
            end += len(line)
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                return
            if not line.endswith(b"\n") or not isinstance(row, dict):
                return
            yield row, end


def bytes_text(num_bytes: int) -> str:
    """Formats a size, such as "512 B" or "1.5 MiB"."""
    value, units = float(num_bytes), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{num_bytes} B" if units[0] == "B" else f"{value:.1f} {units[0]}"
