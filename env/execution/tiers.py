"""Isolation tiers: kinds of walls around generated programs, their proof, and their start.

A tier is used only if a canary program behind the same walls could do nothing that is forbidden.
`python -m env.isolation` shows the tiers of a host.
"""

import dataclasses
import json
import os
import platform
import selectors
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from env import shell_limits
from env.base import UsageError
from env.execution.zygote import CELLS_PER_ZYGOTE, Ready, Zygote, ZygoteError
from env.sandbox.confinement import Confinement
from env.sandbox.limits import Limits

TIERS = ("bwrap", "landlock", "seccomp")
"""Tiers from the strongest to the weakest."""

UNSAFE = "unsafe"
CHOICES = ("auto", *TIERS, UNSAFE)

_ROOT = Path(__file__).resolve().parents[2]
_PROBE_S = 20.0
_SERVE = (
    "import json, sys; sys.path += json.loads(sys.argv[1]); "
    "from env.sandbox import worker; worker.main()"
)
_PROBE_LIMITS = Limits(timeout_s=_PROBE_S, memory_bytes=2**28)

# Numeric libraries use one thread: the processes run in parallel.
_ENVIRONMENT = {
    # Huge pages, since a fork copies a page table entry for each page; and no arenas of 64 MB of
    # address space for each thread.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1",
    "JOBLIB_MULTIPROCESSING": "0",
    "LC_ALL": "C.UTF-8",
    "MKL_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
}
# Variables without which Python does not start where libraries lie in unusual places.
_INHERITED_VARIABLES = ("LD_LIBRARY_PATH",)


class IsolationError(UsageError):
    """No requested wall stands on this host; the text says why and what to do."""


def choose(isolation: str) -> str:
    """Returns the tier to use: for `auto` the strongest that stands, else the one that is named.

    Raises:
      IsolationError: when the named tier does not stand, or none does.
    """
    if isolation not in CHOICES:
        raise IsolationError(f"isolation is {isolation!r} and must be one of {', '.join(CHOICES)}")
    if isolation == UNSAFE:
        return UNSAFE
    reasons = {}
    for tier in TIERS if isolation == "auto" else (isolation,):
        reasons[tier] = probe(tier)
        if not reasons[tier]:
            return tier
    found = "; ".join(f"{tier}: {reason}" for tier, reason in reasons.items())
    raise IsolationError(
        f"generated programs cannot be isolated on this host ({found}). {remedy(reasons)}"
        f" --isolation={UNSAFE} runs them with your rights and is for throw-away machines only."
    )


def remedy(reasons: Mapping[str, str]) -> str:
    """What to do so that one of the tiers stands.

    Args:
      reasons: why each tier does not stand.
    """
    if any("ulimit" in reason for reason in reasons.values()):
        return "Raise that limit of the shell or the scheduler."
    remedies = {
        "bwrap": "install bubblewrap and allow user namespaces",
        "landlock": "use Linux 5.13 or later with Landlock enabled",
        "seccomp": "run on Linux (x86_64 or aarch64) where seccomp filters are allowed",
    }
    text = ", or ".join(remedies[tier] for tier in reasons)
    return f"{text[0].upper()}{text[1:]}."


def probe(tier: str) -> str:
    """Returns why `tier` cannot be used on this host; empty when its walls stand.

    Starts a process behind these walls, without any library, in which the canary tries everything:
    20 to 100 ms.
    """
    if sys.platform != "linux":
        return "this is not Linux"
    if tier == "bwrap" and shutil.which("bwrap") is None:
        return "bubblewrap is not installed"
    try:
        zygote = launch(tier, _PROBE_LIMITS, libraries=None)
    except OSError as error:
        return f"cannot start a process: {error}{_limits_note()}"
    reason = ""
    try:
        _wait_until_ready(zygote)
    except ZygoteError as error:
        reason = str(error)
    last_words = zygote.close().strip()
    if reason and last_words:
        reason += f" {last_words.splitlines()[-1]}"
    return reason and reason + ("" if "ulimit" in reason else _limits_note())


def _limits_note() -> str:
    limits = shell_limits.describe()
    return f" under {limits}" if limits else ""


def _wait_until_ready(zygote: Zygote) -> None:
    deadline = time.monotonic() + _PROBE_S
    with selectors.DefaultSelector() as selector:
        selector.register(zygote.control, selectors.EVENT_READ)
        while time.monotonic() < deadline:
            selector.select(deadline - time.monotonic())
            if any(isinstance(event, Ready) for event in zygote.receive()):
                return
    raise ZygoteError("no answer in time")


def launch(tier: str, limits: Limits, libraries: Sequence[str] | None = ()) -> Zygote:
    """Starts a zygote behind the walls of `tier`.

    Args:
      tier: one of `TIERS`, or `UNSAFE`.
      limits: resource limits of its cells.
      libraries: modules that programs may import beyond the usual; None loads no library at all.

    Raises:
      OSError: when no process can be started.
    """
    confinement = Confinement(
        has_landlock=tier == "landlock",
        has_seccomp=tier != UNSAFE,
        max_tasks=_max_tasks(tier, limits),
        limits=limits,
    )
    settings = {
        "confinement": dataclasses.asdict(confinement),
        "libraries": None if libraries is None else list(libraries),
    }
    folders = [str(_ROOT), *_package_folders()]
    command = [sys.executable, "-sP", "-c", _SERVE, json.dumps(folders), json.dumps(settings)]
    if tier == "bwrap":
        command = [*_bubblewrap(), *command]
    inherited = {name: os.environ[name] for name in _INHERITED_VARIABLES if name in os.environ}
    return Zygote(command, _ENVIRONMENT | inherited, must_hold=tier != UNSAFE)


def _max_tasks(tier: str, limits: Limits) -> int:
    """Returns the number of tasks of the cells' user at which the kernel refuses another thread.

    Under root the cells of each zygote have a user of their own, and every user namespace has its
    own count. For an ordinary user without namespaces the kernel counts all tasks of that user, so
    that the bound only stops floods.
    """
    # Working cells with their threads, as many that wait or end, the zygote, and a margin.
    own = CELLS_PER_ZYGOTE * (limits.max_threads + 3) + 8
    release = tuple(int(part) for part in platform.release().split(".")[:2] if part.isdecimal())
    if os.geteuid() == 0 or (tier == "bwrap" and release >= (5, 14)):
        return own
    return own + 2048 + shell_limits.tasks_of_this_user()


def _bubblewrap() -> list[str]:
    """Returns the command line of bubblewrap: a world of Python and its libraries, read-only."""
    # Set before bubblewrap starts, since `/proc` does not exist inside; all processes inherit it.
    command = ["/bin/sh", "-c", 'echo 1000 >/proc/self/oom_score_adj; exec "$@"', "sh", "bwrap"]
    command += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--new-session", "--die-with-parent"]
    if os.geteuid() == 0:
        # The zygote needs these capabilities to become a user without files, which drops them.
        command += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-user"]
    for path in _system_folders():
        if path.is_symlink():
            command += ["--symlink", os.readlink(path), str(path)]
        else:
            command += ["--ro-bind-try", str(path), str(path)]
    for folder in sorted({sys.prefix, sys.base_prefix, *_package_folders(), str(_ROOT / "env")}):
        command += ["--ro-bind", folder, folder]
    command += ["--dev-bind", "/dev/null", "/dev/null", "--hostname", "cell"]
    return [*command, "--chdir", "/", "--remount-ro", "/", "--"]


def _system_folders() -> list[Path]:
    """Returns the paths of shared libraries and of the loader's cache on usual distributions."""
    libraries = ["/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64"]
    others = ["/etc/ld.so.cache", "/etc/alternatives", "/nix/store", "/gnu/store"]
    return [Path(path) for path in libraries + others if os.path.lexists(path)]


def _package_folders() -> list[str]:
    """Returns the folders in which this process finds installed packages."""
    return [
        path
        for path in sys.path
        if path.endswith(("site-packages", "dist-packages")) and os.path.isdir(path)
    ]
