"""The shell's side of every program: flags and flagfiles, help, and bad input in one clear line."""

import contextlib
import errno
import io
import math
import os
import re
import select
import signal
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from types import MappingProxyType
from typing import NoReturn

from absl import flags, logging

from env import flag_help, shell_limits
from env.base import UsageError
from env.flagfiles import expand_flagfiles
from env.version import __version__

# Errors of the operating system for which a limit of the shell may be the reason.
_LIMIT_ERRNOS = frozenset(
    {errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOLCK}
)
_LONGEST_NAME = 200
_OWN_PACKAGES = ("env", "etpo_jax", "models", "benchmarks")


def run(
    main: Callable[[], int | None],
    *,
    errors: tuple[type[Exception], ...] = (),
    flag_values: flags.FlagValues = flags.FLAGS,
    sections: Sequence[tuple[str, Sequence[str]]] | None = None,
    flagfile_folders: Sequence[Path] = (),
    before_parsing: Callable[[Sequence[str]], None] | None = None,
    renamed: Mapping[str, str] = MappingProxyType({}),
) -> NoReturn:
    """Parses the command line, calls `main` and exits.

    The exit code is `main`'s (None counts as 0), and 2 after one line on standard error for bad
    flags, positional arguments, `UsageError`, any of `errors`, errors of the operating system, lack
    of memory and missing modules. Anything else is a bug and keeps its traceback. A reader of the
    output that goes away, such as `head`, ends the program quietly, and so does Ctrl-C.

    Args:
      main: takes no arguments; flags are parsed when it is called.
      errors: further exception types whose text is meant for the user.
      flag_values: the registry to parse into.
      sections: titles and names of the flags under them, in the order of `--help`; flags that no
        section names come last. None lists all flags together.
      flagfile_folders: folders in which a flagfile is looked up that does not exist where the
        command line or another flagfile says.
      before_parsing: called with the arguments, flagfiles expanded, before they are parsed; it may
        define flags and raise `UsageError`.
      renamed: flags of earlier versions, each with what to say about it.
    """
    _print_any_text()
    shell_limits.raise_soft_limits()
    flags.DEFINE_bool("help", False, "", short_name="h", flag_values=flag_values)
    flags.DEFINE_bool("version", False, "", flag_values=flag_values)
    try:
        arguments = expand_flagfiles(sys.argv[1:], flagfile_folders)
        if before_parsing is not None:
            before_parsing(arguments)
        _parse(arguments, flag_values, renamed)
    except (UsageError, OSError) as error:
        _fail(error)
    logging.use_absl_handler()
    for_the_user: tuple[type[Exception], ...] = (UsageError, *errors)
    try:
        status = 0 if _has_answered(main, flag_values, sections) else main()
        sys.stdout.flush()
        sys.exit(status)
    except for_the_user as error:
        _fail(error)
    except BrokenPipeError:
        if not _reader_has_gone():
            raise
        # Nothing more can be said to a reader such as `head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if explained := _explain_system(error):
            _fail(explained)
        raise


def _print_any_text() -> None:
    """Lets the standard streams write what their encoding lacks as escapes, in any locale."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _explain_system(error: Exception) -> str:
    """Says what is wrong outside of the program, for the user to mend; "" for other errors."""
    limits = shell_limits.describe()
    note = f"; the limits here are {limits}" if limits else ""
    if _is_disk_full(error):
        return f"no space left on the disk: free some and run the same command again ({error})"
    if isinstance(error, MemoryError):
        return f"there is not enough memory ({str(error) or 'MemoryError'}{note})"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ConnectionError):
        return f"{error}{note if error.errno in _LIMIT_ERRNOS else ''}"
    if isinstance(error, RuntimeError) and "home directory" in str(error):
        return "a path begins with ~ and a name that no user of this machine has"
    if isinstance(error, ImportError):
        name = (error.name or "").partition(".")[0]
        if name and name not in _OWN_PACKAGES:
            return f"the module {name} is not installed, or cannot be loaded: {error}"
    return ""


def _reader_has_gone() -> bool:
    """True if standard output is a pipe or socket that nothing reads any more."""
    try:
        sys.stdout.flush()
        watched = select.poll()
        watched.register(sys.stdout, 0)  # errors alone
        return bool(watched.poll(0))
    except BrokenPipeError:
        return True
    except (OSError, ValueError):  # no file of the system, such as a notebook's
        return False


def _has_answered(
    main: Callable[[], int | None],
    flag_values: flags.FlagValues,
    sections: Sequence[tuple[str, Sequence[str]]] | None,
) -> bool:
    """Prints help or version if it was asked for."""
    if flag_values["help"].value:
        description = sys.modules[main.__module__].__doc__ or ""
        print(f"{description.strip()}\n\n{flag_help.listing(flag_values, sections)}")
    elif flag_values["version"].value:
        print(f"etpo_jax {__version__}")
    else:
        return False
    return True


def near_names(name: str, candidates: Iterable[str]) -> list[str]:
    """The candidates most similar to a name, three at most.

    As many words of a candidate as the name has may be compared alone: `lerning_rate` is near
    `policy_learning_rate`.
    """
    length = name.count("_") + 1
    scores = {}
    for candidate in candidates:
        words = candidate.split("_")
        parts = ["_".join(words[i : i + length]) for i in range(len(words) - length + 1)]
        scores[candidate] = max(SequenceMatcher(None, name, c).ratio() for c in (candidate, *parts))
    least = max(0.75, max(scores.values(), default=0.0) - 0.1)
    return [candidate for candidate, score in scores.items() if score >= least][:3]


def _parse(
    arguments: Sequence[str], flag_values: flags.FlagValues, renamed: Mapping[str, str]
) -> None:
    for argument in arguments:
        _check_text(argument)
    try:
        leftover = flag_values([sys.argv[0], *arguments])[1:]
    except flags.UnrecognizedFlagError as error:
        name = error.flagname.replace("-", "_")
        hint = renamed.get(name.removeprefix("no")) or renamed.get(name)
        hint = hint or _hint(name, flag_values)
        raise UsageError(f"unknown flag --{error.flagname}; {hint}") from None
    except (flags.Error, ValueError) as error:
        raise UsageError(_explain(error, flag_values)) from None
    if leftover:
        is_run = "run_dir" in flag_values and Path(leftover[0]).is_dir()
        hint = f"did you mean --run_dir={leftover[0]}?" if is_run else "every option is a --flag"
        raise UsageError(f"unexpected argument {leftover[0]!r}: {hint}")
    for name, flag in flag_help.own_flags(flag_values).items():
        if flag.present and isinstance(flag.value, float) and not math.isfinite(flag.value):
            raise UsageError(f"--{name}={flag.value}: must be a finite number")


def _check_text(argument: str) -> None:
    """Refuses what no file name or setting of a run can hold, before anything is written."""
    name, has_value, value = argument.partition("=")
    shown = f"{name}={value!a:.80}" if has_value else f"{argument!a:.80}"
    if name.startswith("-") and len(name) > _LONGEST_NAME:  # absl's suggestions would not end
        raise UsageError(f"unknown flag {name[:40]}...; --help lists the flags")
    if "\0" in argument:
        raise UsageError(f"{shown}: must not hold a zero byte")
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"{shown}: is no text in the encoding {sys.getfilesystemencoding()} of this locale; "
            "use names in UTF-8 and a locale such as C.UTF-8"
        ) from None


def _hint(unknown: str, flag_values: flags.FlagValues) -> str:
    """Says what to do about an unknown flag: near names, or flags whose help has it as a word."""
    if near := near_names(unknown, _accepted_names(flag_values)):
        return f"did you mean {' or '.join(f'--{name}' for name in near)}?"
    settings = re.compile(rf"\b{re.escape(unknown)}\b[:=]")
    own = flag_help.own_flags(flag_values).items()
    if owners := [f"--{name}" for name, flag in own if settings.search(flag.help or "")]:
        return f"{unknown} is a setting of {' or '.join(owners[:3])}"
    return "--help lists the flags"


def _accepted_names(flag_values: flags.FlagValues) -> list[str]:
    own = flag_help.own_flags(flag_values)
    return [*own, *(f"no{name}" for name, flag in own.items() if flag.boolean)]


def _explain(error: Exception, flag_values: flags.FlagValues) -> str:
    """absl's error about a flag's value in the words of this project."""
    text = str(error)
    flag, _, name = text.partition("Missing value for flag ")
    if not flag:
        return f"{name}: needs a value"
    cause = error.__context__
    if cause is None or not text.startswith("flag --"):
        return text
    said = text.removeprefix("flag ").removesuffix(f": {cause}")
    name, _, value = said[2:].partition("=")
    return f"{said}: {_expected(flag_values[name].parser, value) or cause}"


def _expected(parser: flags.ArgumentParser, value: str) -> str:
    if isinstance(parser, flags.EnumParser):
        near = [known for known in parser.enum_values if value and known.startswith(value)]
        near = near or near_names(value, parser.enum_values)
        hint = f"; did you mean {' or '.join(near[:3])}?" if near else ""
        return f"must be one of {', '.join(parser.enum_values)}{hint}"
    if isinstance(parser, flags.BooleanParser):
        return "must be true or false"
    if not isinstance(parser, flags.IntegerParser | flags.FloatParser):
        return ""
    kind = "a whole number" if isinstance(parser, flags.IntegerParser) else "a number"
    bounds = ((">=", parser.lower_bound), ("<=", parser.upper_bound))
    limits = " and ".join(f"{sign} {bound}" for sign, bound in bounds if bound is not None)
    return f"must be {kind} {limits}".rstrip()


def _fail(error: BaseException | str) -> NoReturn:
    line = "".join(
        character if character.isprintable() else ascii(character)[1:-1]
        for character in " ".join(str(error).split())
    )
    with contextlib.suppress(OSError):  # nobody reads standard error
        print(f"error: {line}", file=sys.stderr, flush=True)
    sys.exit(2)


def _is_disk_full(error: BaseException) -> bool:
    """True if `error` or an exception behind it reports a full disk.

    Libraries that write in the background report it as text in exceptions of their own.
    """
    seen: BaseException | None = error
    while seen is not None:
        number = seen.errno if isinstance(seen, OSError) else None
        if number in (errno.ENOSPC, errno.EDQUOT) or os.strerror(errno.ENOSPC) in str(seen):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
