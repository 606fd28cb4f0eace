"""Measurements as JSON lines, each in the file as soon as it is made.

A benchmark that is killed keeps what it has measured so far.
"""

import json
import os
import pathlib
from typing import Any


class Records:
    """Appends objects to a file of JSON lines; without a file they are dropped.

    Args:
      path: the file, or None. A file that is there already is continued.
    """

    def __init__(self, path: str | os.PathLike[str] | None):
        self._path = None if path is None else pathlib.Path(path)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, **record: Any) -> None:
        """Writes one line; it is on the disk when this returns."""
        if self._path is not None:
            with open(self._path, "a") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())


def read(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The objects of a file; a last line that was cut off is left out."""
    rows = []
    with open(path) as file:
        for line in file:
            if line.endswith("\n"):
                rows.append(json.loads(line))
    return rows


def beside(output: str | None) -> Records:
    """Records in the file named like the table `output`, with the ending .jsonl, begun anew."""
    if output is None:
        return Records(None)
    path = pathlib.Path(output).with_suffix(".jsonl")
    path.unlink(missing_ok=True)
    return Records(path)
