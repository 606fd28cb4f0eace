"""Landlock by ctypes: an unprivileged process gives up all access to files.

See Documentation/userspace-api/landlock.rst of the kernel. No exception is granted, since all
libraries are loaded before.
"""

import errno
import os
import struct

from env.sandbox import libc

_CREATE_RULESET, _RESTRICT_SELF = 444, 446  # the same on all architectures
_VERSION = 1

# Rights that each version of the interface added: files, TCP, and scopes (abstract Unix sockets and
# signals).
_FILE_RIGHTS = {1: 0x1FFF, 2: 0x2000, 3: 0x4000, 5: 0x8000}
_NETWORK_RIGHTS = {4: 0x3}
_SCOPES = {6: 0x3}


class LandlockError(OSError):
    """The kernel has no Landlock, or does not let this process use it."""


def version() -> int:
    """Returns the version of the kernel's interface.

    Raises:
      LandlockError: when the kernel has no Landlock.
    """
    return _call(_CREATE_RULESET, None, 0, _VERSION)


def deny_all() -> None:
    """Denies opening, making, moving and removing files for good, also in processes started later.

    Newer kernels deny TCP, abstract Unix sockets, and signals to other processes than those that
    this one starts as well.

    Raises:
      LandlockError: when the kernel refuses.
    """
    known = version()
    rights = [
        sum(right for since, right in table.items() if since <= known)
        for table in (_FILE_RIGHTS, _NETWORK_RIGHTS, _SCOPES)
    ]
    # The structure has grown with the versions. The kernel accepts a longer one than its own if the
    # rest is zero, as it is here.
    attributes = struct.pack("=QQQ", *rights)
    try:
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    except OSError as error:
        raise LandlockError(error.errno, "prctl(PR_SET_NO_NEW_PRIVS) refused") from None
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _call(number: int, *arguments: int | bytes | None) -> int:
    try:
        return libc.call("syscall", number, *arguments)
    except OSError as error:
        reason = {
            errno.ENOSYS: "this kernel has no Landlock (5.13 is the first that has)",
            errno.EOPNOTSUPP: "Landlock is turned off at boot (kernel parameter lsm=)",
            errno.EPERM: "a filter around this process, such as a container's, forbids Landlock",
        }.get(error.errno or 0, error.strerror)
        raise LandlockError(error.errno, reason) from None
