"""The numbered checkpoints in a folder: which of them are whole, and what to do about the others.

A machine that lost its power, or a disk that filled up, can leave a folder that looks like a
checkpoint and is none. Such a folder is passed over with a warning, never read and never deleted.
"""

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from absl import logging

from env.base import UsageError
from etpo_jax.runs import files

METADATA = "_CHECKPOINT_METADATA"
"""The file that marks a folder as a committed orbax checkpoint."""

_ASIDE = "damaged_"
# Beginnings of what orbax writes for each part: JSON for plain values, else arrays.
_JSON, _ARRAYS = "data.json", ("_METADATA", "manifest.ocdbt")
# Characters that libraries below take for patterns, escapes or the scheme of a URL.
_NOT_LITERAL = re.compile(r"[*?\[\]\\:]")

_Value = TypeVar("_Value")


class DamagedError(UsageError):
    """A checkpoint that cannot be read, for a reason in its files."""


@contextlib.contextmanager
def literal(folder: Path) -> Iterator[Path]:
    """A path to an existing folder that libraries read as it stands.

    Orbax searches folders by patterns and so finds nothing below a name such as `[a]`; names that
    are no text cannot be passed to TensorStore at all. These folders are reached through the number
    of an open descriptor.
    """
    if is_literal(folder):
        yield folder.absolute()
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def is_literal(folder: Path) -> bool:
    """True for a folder whose name libraries read as it stands."""
    name = os.fspath(folder.absolute())
    return not _NOT_LITERAL.search(name) and is_text(name)


def is_text(name: str) -> bool:
    """False for the name of a file that is no UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def damage(folder: Path) -> str:
    """Says what a checkpoint's folder lacks, from names and headers alone; "" if nothing."""
    try:
        handlers = files.read_json(folder / METADATA).get("item_handlers")
        if not isinstance(handlers, dict):
            return f"{METADATA} names no parts"
        for part in handlers:
            if part == "metrics":  # an entry that orbax keeps beside the parts
                continue
            if not (folder / part).is_dir():
                return f"{part!r} is missing"
            if (folder / part / _JSON).exists():
                files.read_json(folder / part / _JSON)
                continue
            for name in _ARRAYS:
                if not (folder / part / name).stat().st_size:
                    return f"{part}/{name} is empty"
            files.read_json(folder / part / _ARRAYS[0])
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except UsageError as error:
        return str(error).removeprefix(f"{folder}/")
    return ""


def committed_steps(path: Path) -> list[int]:
    """Numbers of the whole checkpoints in a folder, the newest last."""
    return [step for step in _numbered(path) if not damage(path / str(step))]


def _numbered(path: Path) -> list[int]:
    """Numbers of all folders that orbax takes for checkpoints, whole or not."""
    if not path.is_dir():
        return []
    return sorted(
        int(child.name)
        for child in path.iterdir()
        if re.fullmatch(r"0|[1-9][0-9]{0,17}", child.name) and child.is_dir()
    )


def choose(path: Path, wanted: int | None) -> int:
    """Finds the number of the wanted checkpoint in a folder, or of the newest whole one for None.

    Raises:
      UsageError: the folder has no whole checkpoint, or not that one.
    """
    numbered = _numbered(path)
    reasons = {step: damage(path / str(step)) for step in numbered}
    steps = [step for step in numbered if not reasons[step]]
    if wanted is not None:
        if reasons.get(wanted):
            raise DamagedError(f"--checkpoint={wanted}: {path / str(wanted)}: {reasons[wanted]}")
        if wanted not in steps:
            present = ", ".join(map(str, steps)) or "none"
            raise UsageError(f"--checkpoint={wanted}: {path} holds {present}")
        return wanted
    if not steps:
        newest = f"; {numbered[-1]} is damaged: {reasons[numbered[-1]]}" if numbered else ""
        raise UsageError(f"{path.parent} has no checkpoint yet{newest}")
    for step in numbered:
        if step > steps[-1]:
            _warn(path / str(step), reasons[step], f"{steps[-1]} is used")
    return steps[-1]


def read_newest(
    path: Path, wanted: int | None, read: Callable[[Path], _Value]
) -> tuple[int, _Value]:
    """Reads the wanted checkpoint, or the newest one that can be read.

    Args:
      path: the folder of the checkpoints.
      wanted: number of the checkpoint; None for the newest.
      read: reads the folder of one checkpoint; raises `DamagedError` where its files are to blame.

    Returns: the number of the checkpoint that was read, and what `read` returned.
    Raises:
      UsageError: there is none, or the wanted one is damaged.
    """
    step = choose(path, wanted)
    older = [other for other in committed_steps(path) if other < step] if wanted is None else []
    while True:
        try:
            return step, read(path / str(step))
        except DamagedError as error:
            if not older:
                raise
            step = older.pop()
            logging.warning("%s; %d is used", error, step)


def set_aside(folder: Path, reason: str) -> None:
    """Renames a damaged checkpoint, so that a run can write another one of its number."""
    aside = folder.with_name(_ASIDE + folder.name)
    while os.path.lexists(aside):
        aside = aside.with_name(f"{aside.name}_")
    os.replace(folder, aside)
    _warn(folder, reason, f"it is kept as {aside.name}")


def set_damaged_aside(path: Path) -> None:
    """Renames every damaged checkpoint in a folder, and files of such names."""
    if not path.is_dir():
        return
    for child in sorted(path.iterdir()):
        if not child.name.isdecimal():
            continue
        if reason := damage(child) if child.is_dir() else "it is no folder":
            set_aside(child, reason)


def _warn(folder: Path, reason: str, outcome: str) -> None:
    logging.warning("checkpoint %s is damaged (%s); %s", folder, reason, outcome)
