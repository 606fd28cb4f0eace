"""Several hosts as one program: each runs the same loop and executes its share of the actions.

Prompts, actions, rewards and the replay are small and the same on every host; what is split is the
device work, by the mesh, and the execution of programs. The first host alone writes the run
directory, which all of them see. On a single host nothing here communicates.

Every function below is a collective where there are several hosts: all of them call it, in the same
order, from the main thread.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from env.base import UsageError

AUTOMATIC = "auto"

_Value = TypeVar("_Value")


def initialize(text: str) -> None:
    """Joins the other hosts, before anything else is asked of jax; nothing for a single host.

    Args:
      text: "auto" where jax finds the hosts (TPU pods, Slurm, Open MPI), or HOST:PORT of the first
        host, their number and the number of this one, separated by commas; "" for a single host.

    Raises:
      UsageError: the text has another form, or the others were not found.
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
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        line = " ".join(str(error).split())
        raise UsageError(f"--hosts={text}: {line}") from error


def count() -> int:
    """Number of hosts (processes of jax)."""
    return jax.process_count()


def index() -> int:
    """Which of them this is."""
    return jax.process_index()


def is_first() -> bool:
    """Whether this host writes the run directory and speaks to the user."""
    return index() == 0


def fetch(tree: Any) -> Any:
    """Arrays of all devices as NumPy arrays, whole on every host."""
    if count() == 1:
        return jax.device_get(tree)
    return multihost_utils.process_allgather(tree, tiled=True)


def exchange(value: Any) -> list[Any]:
    """What every host gave, in their order: JSON values."""
    if count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = np.ravel(multihost_utils.process_allgather(np.array([text.size], np.int32)))
    padded = np.pad(text, (0, int(lengths.max()) - text.size))
    rows = np.reshape(multihost_utils.process_allgather(padded), (count(), -1))
    return [json.loads(bytes(row[:length])) for row, length in zip(rows, lengths, strict=True)]


def any_of(flag: bool) -> bool:
    """Whether it is true on any host."""
    return any(exchange(flag))


def first_then_all(first: Callable[[], _Value], others: Callable[[], _Value]) -> _Value:
    """`first` on the first host, then `others` on the rest.

    Raises:
      UsageError: everywhere, with the same line, if `first` raised one.
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
