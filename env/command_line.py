"""The shell's side of every program: flags in, one clear line and exit code 2 on bad input."""

import errno
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from absl import flags, logging

from env.base import UsageError

# What the user, not the program, must mend: a full or read-only disk, missing rights, a file where
# a folder belongs.
_USER_ERRNOS = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.EROFS,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENAMETOOLONG,
    }
)


def run(
    main: Callable[[], int | None],
    *,
    errors: tuple[type[Exception], ...] = (),
    flag_values: flags.FlagValues = flags.FLAGS,
) -> NoReturn:
    """Parses the command line, calls `main` and exits.

    The exit code is `main`'s (None counts as 0), and 2 after one line on standard error for bad
    flags, positional arguments, `UsageError`, any of `errors`, and file system errors that only the
    user can mend. Anything else is a bug and keeps its traceback.

    Args:
      main: takes no arguments; flags are parsed when it is called.
      errors: further exception types whose text is meant for the user.
      flag_values: the registry to parse into.
    """
    # absl's own help flag exits with 1 and stands in the way of programs that are not `app.run`.
    flags.DEFINE_bool("help", False, "Print this help and exit.", flag_values=flag_values)
    try:
        leftover = flag_values(sys.argv)[1:]
        if leftover:
            raise UsageError(f"unexpected argument {leftover[0]!r}: every option is a --flag")
    except (flags.Error, UsageError) as error:
        _fail(error)
    if flag_values["help"].value:
        print(_usage(main, flag_values))
        sys.exit(0)
    logging.use_absl_handler()
    for_the_user: tuple[type[Exception], ...] = (UsageError, *errors)
    try:
        sys.exit(main())
    except for_the_user as error:
        _fail(error)
    except Exception as error:
        if _is_disk_full(error):
            _fail(f"no space left on the disk: free some and run the same command again ({error})")
        if isinstance(error, OSError) and error.errno in _USER_ERRNOS:
            _fail(error)
        raise


def _fail(error: BaseException | str) -> NoReturn:
    text = " ".join(str(error).split()).removeprefix("ERROR:: ")
    print(f"error: {text}", file=sys.stderr, flush=True)
    sys.exit(2)


def _usage(main: Callable[[], int | None], flag_values: flags.FlagValues) -> str:
    module = sys.modules[main.__module__]
    description = (module.__doc__ or "").strip()
    # Without the heading of the listing, which is the path of the program.
    listing = flag_values.main_module_help().strip().split("\n", 1)[-1]
    return f"{description}\n\nflags:\n{listing}\n  --flagfile: Insert flags from a file."


def _is_disk_full(error: BaseException) -> bool:
    """Whether `error`, or what led to it, says that the disk is full.

    Libraries that write in the background report it as text in exceptions of their own.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if os.strerror(errno.ENOSPC) in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
