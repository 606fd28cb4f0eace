"""Several hosts as one program: each runs the same loop and executes its share of the actions.

Prompts, actions, rewards and the replay are small and the same on every host; the mesh splits the
device work, and the hosts share the execution of programs. Only the first host writes the run
directory, which all hosts see. A single host does not communicate.

With several hosts, `fetch`, `exchange`, `any_of` and `first_then_all` are collectives: all hosts
call them in the same order, from the main thread.
"""

import contextlib
import json
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from env.base import UsageError
from etpo_jax.devices.host_link import HostLink, give_up, leave

AUTOMATIC = "auto"
"""Value of `--hosts` with which jax finds the hosts itself."""

_Value = TypeVar("_Value")
_JOIN_S = 300.0  # in which all hosts have to join, after the first of them
_NOTICE_S = 3.0  # in which the link ends this process if an error comes from a lost host
_link: HostLink | None = None


def initialize(text: str) -> None:
    """Joins the other hosts; must be called before jax is used in any other way.

    Args:
      text: "auto" where jax finds the hosts (TPU pods, Slurm, Open MPI), or HOST:PORT of the first
        host, the number of hosts and the index of this one, separated by commas; empty for a
        single host, which joins nothing.

    A host that waits in vain for others, which may have ended before they joined, ends its process
    after five minutes with one line and the exit code that asks for a restart.

    Raises:
      UsageError: the text has another form, or the other hosts were not found.
    """
    if not text:
        return
    arguments: dict[str, Any] = {}
    if text != AUTOMATIC:
        address, *numbers = (part.strip() for part in text.split(","))
        if len(numbers) != 2 or not all(number.isdecimal() for number in numbers):
            raise UsageError(
                f"--hosts={text}: must be auto, which finds the hosts on TPU pods, Slurm and Open "
                "MPI, or HOST:PORT,COUNT,INDEX"
            )
        num_processes, process_id = map(int, numbers)
        if not process_id < num_processes:
            raise UsageError(f"--hosts={text}: INDEX must be below COUNT, it counts from 0")
        arguments = {
            "coordinator_address": address,
            "num_processes": num_processes,
            "process_id": process_id,
        }
    # JAX itself would abort the process in native code, with a stack trace.
    reason = f"--hosts={text}: not all hosts have joined within {_JOIN_S:.0f} s: start them all"
    watchdog = threading.Timer(_JOIN_S, give_up, [reason])
    watchdog.daemon = True
    watchdog.start()
    try:
        jax.distributed.initialize(**arguments, initialization_timeout=int(2 * _JOIN_S))
    except (ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise UsageError(f"--hosts={text}: {line}") from error
    finally:
        watchdog.cancel()
    if count() > 1:
        global _link
        first, _, _ = str(distributed.global_state.coordinator_address).rpartition(":")
        _link = HostLink.connect(index(), count(), first.strip("[]"), exchange)


@contextlib.contextmanager
def leaving() -> Iterator[None]:
    """Context around a whole program, which ends on every host once it has failed on one.

    JAX would wait for the other hosts at the end of a process, which they may never reach.
    """
    try:
        yield
    except SystemExit as ending:
        code = ending.code if isinstance(ending.code, int) else 0
        has_failed = 0 < code < 128  # signals stop all hosts together
        if are_several():
            _announce(has_failed=has_failed)
            if has_failed:
                leave(code)
        raise
    except BaseException:
        if are_several():
            time.sleep(_NOTICE_S)
            traceback.print_exc()
            _announce(has_failed=True)
            leave(1)
        raise


def _announce(*, has_failed: bool) -> None:
    if _link is not None:
        _link.announce_end(has_failed=has_failed)


def are_several() -> bool:
    """True after `initialize` has joined other hosts; starts no device."""
    return jax.distributed.is_initialized()


def count() -> int:
    """Number of hosts, which are processes of jax."""
    return jax.process_count()


def index() -> int:
    """Index of this host, from 0 on."""
    return jax.process_index()


def is_first() -> bool:
    """True on the host that writes the run directory and speaks to the user."""
    return index() == 0


def fetch(tree: Any) -> Any:
    """Gathers arrays from all devices into NumPy arrays, whole on every host."""
    if count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def exchange(value: Any) -> list[Any]:
    """Gathers one JSON value from each host, in the order of the hosts."""
    if count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.array([text.size], np.int32)))
    padded = np.pad(text, (0, int(lengths.max()) - text.size))
    rows = np.reshape(multihost_utils.process_allgather(padded), (count(), -1))
    return [json.loads(bytes(row[:length])) for row, length in zip(rows, lengths, strict=True)]


def any_of(flag: bool) -> bool:
    """True on every host if `flag` is true on any of them."""
    return any(exchange(flag))


def first_then_all(first: Callable[[], _Value], others: Callable[[], _Value]) -> _Value:
    """Calls `first` on the first host and then `others` on the rest.

    Raises:
      UsageError: on every host, with the same message, if `first` raised one.
    """
    if not is_first():
        (problem, *_) = exchange(None)
        if problem is not None:
            raise UsageError(problem)
        return others()
    try:
        value = first()
    except UsageError as error:
        exchange(str(error))
        raise
    exchange(None)
    return value
