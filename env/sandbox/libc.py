"""Calls of the C library that Python does not offer, by ctypes."""

import ctypes
import os

PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: int | bytes | None) -> int:
    """Calls a function of the C library with integers, buffers and null pointers.

    Raises:
      OSError: when the function returns -1.
    """
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = _libc[name](*converted)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def prctl(option: int, value: int, pointer: bytes | None = None) -> None:
    """Sets an attribute of the calling process, see prctl(2); raises as `call`."""
    call("prctl", option, value, pointer or 0, 0, 0)
