"""What a timed training run writes down, and where its time went by that.

`benchmarks.timed_train` writes it, `benchmarks.train_step` reads it.

One JSON object per line. `kind` BEGIN is the start of an update: `wall`, `cpu` and `programs_cpu`.
COMPILE is a `step` ("trace", "lower" or "compile", which may be loading) of a function `name` that
took `seconds`. Every other kind is a call with start and stop of `wall` and `cpu`. `wall` is
`time.monotonic`, `cpu` the processor seconds of the training process, `programs_cpu` those of the
processes below it.
"""

import collections
import dataclasses
import functools
import itertools
import json
import os
import resource
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

BEGIN = "begin"
COMPILE = "compile"
GENERATE = "generate"
EXECUTE = "execute"
UPDATE = "update"
CHECKPOINT = "checkpoint"
WRITE_CHECKPOINT = "write checkpoint"
LOGS = "logs"
WAIT = "wait"
REST = "rest"
PARTS = {
    GENERATE: "generate",
    UPDATE: "update: gradient steps",
    WAIT: "execute: wait for programs",
    CHECKPOINT: "checkpoint: copy",
    WRITE_CHECKPOINT: "checkpoint: write",
    LOGS: "logs",
    REST: "rest",
}
"""Parts of an update, as the table names them. They follow one another on the main thread."""

Row = dict[str, Any]

_COMPILE_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "compile",
}


class Timeline:
    """Appends to the file, from any thread."""

    def __init__(self, file: TextIO):
        self._file = file
        self._lock = threading.Lock()

    def write(self, **row: Any) -> None:
        """Appends one row."""
        with self._lock:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def timed(self, phase: str, method: Callable[..., Any]) -> Callable[..., Any]:
        """`method` with a row per call: wall and this process's CPU seconds, start and stop."""

        @functools.wraps(method)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            wall, cpu = time.monotonic(), time.process_time()
            result = method(*args, **kwargs)
            self.write(
                kind=phase,
                wall=[wall, time.monotonic()],
                cpu=[cpu, time.process_time()],
            )
            return result

        return wrapper

    def begin(self) -> None:
        """The start of an update."""
        self.write(
            kind=BEGIN,
            wall=time.monotonic(),
            cpu=time.process_time(),
            programs_cpu=descendants_cpu_s(),
        )

    def on_duration(self, event: str, seconds: float, **details: Any) -> None:
        """For `jax.monitoring`."""
        if event in _COMPILE_EVENTS:
            name = str(details.get("fun_name", ""))
            self.write(kind=COMPILE, step=_COMPILE_EVENTS[event], name=name, seconds=seconds)


def descendants_cpu_s() -> float:
    """CPU seconds of all processes below this one, with those that ended and were waited for."""
    ticks: dict[int, float] = {}
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            text = (folder / "stat").read_text()
        except OSError:  # it ended meanwhile
            continue
        # The name in parentheses may hold anything; parent, then CPU times, are after it.
        fields = text.rpartition(")")[2].split()
        pid = int(folder.name)
        children.setdefault(int(fields[1]), []).append(pid)
        ticks[pid] = sum(int(field) for field in fields[11:15])
    below, total = list(children.get(os.getpid(), ())), 0.0
    while below:
        pid = below.pop()
        total += ticks[pid]
        below += children.get(pid, ())
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return total / os.sysconf("SC_CLK_TCK") + ended.ru_utime + ended.ru_stime


@dataclasses.dataclass(frozen=True)
class Cost:
    """Seconds.

    Attributes:
      wall: of the clock on the wall.
      cpu: of the processor, in the training process.
    """

    wall: float = 0.0
    cpu: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.wall - other.wall, self.cpu - other.cpu)


def compile_seconds(timeline: Sequence[Row]) -> dict[str, float]:
    """Seconds of tracing, lowering and compiling (or loading) by name of the program."""
    rows = [row for row in timeline if row["kind"] == COMPILE]
    compiled = {_program(row["name"]) for row in rows if row["step"] == "compile"}
    seconds: dict[str, float] = collections.defaultdict(float)
    for row in rows:
        # A function that is traced inside another one is part of that one's time.
        if _program(row["name"]) in compiled:
            seconds[_program(row["name"])] += row["seconds"]
    return dict(seconds)


def _program(name: str) -> str:
    """The function's name, which some events give as jit(name) or jit_name."""
    return name.removeprefix("jit_").removeprefix("jit(").removesuffix(")")


def breakdowns(timeline: Sequence[Row]) -> list[tuple[dict[str, Cost], float]]:
    """Each complete update's costs by part, and CPU seconds of the programs' processes.

    Programs execute beside the main thread. What they are waited for is the part of their time
    that no phase of the main thread covers.
    """
    begins = [row for row in timeline if row["kind"] == BEGIN]
    result = []
    for begin, end in itertools.pairwise(begins):
        parts = dict.fromkeys(PARTS, Cost())
        spans = [
            row
            for row in timeline
            if row["kind"] in (*PARTS, EXECUTE) and begin["wall"] <= row["wall"][0] < end["wall"]
        ]
        executions = [row for row in spans if row["kind"] == EXECUTE]
        for execution in executions:
            parts[WAIT] += _cost(execution)
        for span in spans:
            if span["kind"] != EXECUTE:
                parts[span["kind"]] += _cost(span)
                for execution in executions:
                    parts[WAIT] -= _shared(span, execution)
        whole = Cost(end["wall"] - begin["wall"], end["cpu"] - begin["cpu"])
        parts[REST] = whole - sum(parts.values(), Cost())
        result.append((parts, end["programs_cpu"] - begin["programs_cpu"]))
    return result


def _cost(span: Row) -> Cost:
    return Cost(span["wall"][1] - span["wall"][0], span["cpu"][1] - span["cpu"][0])


def _shared(span: Row, execution: Row) -> Cost:
    """The part of a span that lies within an execution; its CPU time in proportion."""
    start = max(span["wall"][0], execution["wall"][0])
    wall = min(span["wall"][1], execution["wall"][1]) - start
    cost = _cost(span)
    if wall <= 0:
        return Cost()
    return Cost(wall, cost.cpu * wall / cost.wall)
