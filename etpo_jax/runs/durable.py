"""Writes that a kill or a full disk cannot leave half done.

A file is replaced as a whole, or grows by a whole piece, or is unchanged. Every `OSError` names the
file, which the operating system's own errors of `write` do not.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

_UNFINISHED_SUFFIX = ".unfinished"


def replace(path: Path, data: str | bytes) -> None:
    """Makes `path` hold `data`: the old content or the new is there at any moment.

    Nothing is written where `path` holds `data` already. Characters that UTF-8 cannot hold (lone
    surrogates) are written as their Python escapes.

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
    """Adds `data` to the end of `path`, which is made if need be: all of it or nothing.

    Only a kill inside the write itself can leave a part.

    Raises:
      OSError: naming `path`; its old content stays.
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


def truncate(path: Path, size: int) -> None:
    """Cuts `path` to its first `size` bytes."""
    with naming(path), open(path, "rb+") as file:
        file.truncate(size)
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Makes the names in a folder survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_unfinished(name: str) -> bool:
    """Whether a file of this name is what a kill left of a `replace`."""
    return name.startswith(".") and name.endswith(_UNFINISHED_SUFFIX)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Gives an `OSError` of the block the name of what could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
