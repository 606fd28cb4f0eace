"""Takes all access to files from a process, without privileges (Landlock, by ctypes).

See Documentation/userspace-api/landlock.rst of the kernel. No exception is ever granted: the
libraries are loaded before.
"""

import ctypes
import errno
import os
import struct

_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # the same on all architectures
_VERSION = 1
_PR_SET_NO_NEW_PRIVS = 38

# Rights that each version of the interface added: of files, of TCP, and scopes (abstract Unix
# sockets and signals).
_FILE_RIGHTS = {1: 0x1FFF, 2: 0x2000, 3: 0x4000, 5: 0x8000}
_NETWORK_RIGHTS = {4: 0x3}
_SCOPES = {6: 0x3}


class LandlockError(OSError):
    """The kernel has no Landlock, or does not let this process use it."""


def version() -> int:
    """The version of the kernel's interface.

    Raises:
      LandlockError: when there is none.
    """
    return _call(_CREATE_RULESET, None, 0, _VERSION)


def deny_all() -> None:
    """Denies opening, making, moving and removing files for good, also in processes started later.

    Where the kernel knows them: TCP, abstract Unix sockets and signals beyond the processes that
    this one starts.

    Raises:
      LandlockError: when the kernel refuses.
    """
    known = version()
    rights = [
        sum(right for since, right in table.items() if since <= known)
        for table in (_FILE_RIGHTS, _NETWORK_RIGHTS, _SCOPES)
    ]
    # The structure has grown with the versions; a longer one than the kernel's is refused unless
    # what is beyond is zero, and so it is.
    attributes = struct.pack("=QQQ", *rights)
    libc = ctypes.CDLL(None, use_errno=True)
    unused = [ctypes.c_ulong(0)] * 3
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), *unused):
        raise LandlockError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS) refused")
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _call(number: int, *arguments: int | bytes | None) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    converted = [
        ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments
    ]
    result = libc.syscall(ctypes.c_long(number), *converted)
    if result < 0:
        code = ctypes.get_errno()
        reason = {
            errno.ENOSYS: "this kernel has no Landlock (5.13 is the first that has)",
            errno.EOPNOTSUPP: "Landlock is turned off at boot (kernel parameter lsm=)",
            errno.EPERM: "a filter around this process, such as a container's, forbids Landlock",
        }.get(code, os.strerror(code))
        raise LandlockError(code, reason)
    return result
