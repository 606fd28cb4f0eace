"""A zygote together with its cells, which wait, work or end."""

import collections
import dataclasses
import time
from collections.abc import Iterator

from env.execution.cell import Cell
from env.execution.results import Execution
from env.execution.vitals import Vitals, child
from env.execution.zygote import (
    Answered,
    CellBorn,
    CellEnded,
    ForkFailed,
    Ready,
    Zygote,
    ZygoteStoppedError,
)

# Long enough for a loaded host: these times only tell a hung zygote from a working one.
_START_S = 60.0
_ANSWER_S = 15.0
# Time between requests when the operating system has no process or descriptor left.
_PAUSE_S = 0.1
# Time in which both a process and its connection should end once one of them has.
_LINGER_S = 1.0
# An answer that takes longer means that the zygote, and perhaps its cells, did not run meanwhile.
_LATE_S = 1.0
_STOPPED_S = 1.0
"""Seconds after which a process that somebody has stopped is given up."""


@dataclasses.dataclass(eq=False)
class Job:
    """One split of an execution, in a cell.

    Attributes:
      connection_ended: whether everything that the cell sent has been read.
      death: how its process ended, once that is known.
      linger_until: time by which both of these should be known.
      most_kept_s: bound of the time that `look` takes off the clock.
    """

    execution: Execution
    split: int
    cell: Cell
    most_kept_s: float
    connection_ended: bool = False
    death: CellEnded | None = None
    linger_until: float | None = None
    _vitals: Vitals | None = None

    def look(self, zygote: Zygote, now: float) -> None:
        """Takes the time in which the process was kept from running off the clock."""
        if self._vitals is None:
            pid = child(zygote.inner_pid, self.cell.inner_pid)
            self._vitals = Vitals(pid, self.cell.started_at)
        kept_s = min(self._vitals.look(now), self.most_kept_s)
        self.most_kept_s -= kept_s
        self.cell.started_at += kept_s
        self.execution.keep(self.split, kept_s)

    @property
    def is_stopped(self) -> bool:
        """True if somebody has kept the process stopped for a second: another one replaces it."""
        return self._vitals is not None and self._vitals.stopped_s >= _STOPPED_S

    @property
    def is_unseen(self) -> bool:
        """Whether this host does not tell what the process does."""
        return self._vitals is not None and self._vitals.is_blind

    def forgive(self, late_s: float) -> None:
        """Shifts all clocks by a time that does not count."""
        self.cell.started_at += late_s
        if self.linger_until is not None:
            self.linger_until += late_s
        if self._vitals is not None:
            self._vitals.look(time.monotonic())

    def linger(self) -> None:
        """Notes that process or connection has ended, and sets the time to wait for the other."""
        if self.linger_until is None:
            self.linger_until = time.monotonic() + _LINGER_S


class Nursery:
    """The cells of one zygote.

    Args:
      zygote: a zygote that has just been started.
      spare_cells: number of cells that wait for programs.
      max_prediction_bytes: size of the largest predictions that a cell may send.

    Attributes:
      waiting: cells without a program.
      working: jobs by the id of their cell.
    """

    def __init__(self, zygote: Zygote, spare_cells: int, max_prediction_bytes: int):
        self.zygote = zygote
        self.waiting: collections.deque[Cell] = collections.deque()
        self.working: dict[int, Job] = {}
        self._spare_cells = spare_cells
        self._max_prediction_bytes = max_prediction_bytes
        self._started_at = time.monotonic()
        self._requests: collections.deque[float] = collections.deque()
        self._called_at: float | None = None
        self._vitals: Vitals | None = None
        self._pause_until = 0.0

    def request_cells(self, now: float) -> None:
        """Asks the zygote for as many cells as are missing; raises `ZygoteError`."""
        if not self.zygote.is_ready or now < self._pause_until:
            return
        while len(self.waiting) + len(self._requests) < self._spare_cells:
            self.zygote.request_cell()
            self._requests.append(now)

    def receive(self) -> Iterator[Ready | tuple[Job, CellEnded]]:
        """Handles the messages of the zygote; yields those that concern the scheduler.

        Raises:
          ZygoteError: when the zygote is gone.
        """
        for event in self.zygote.receive():
            if isinstance(event, Ready):
                yield event
            elif isinstance(event, Answered):
                self._hear(time.monotonic())
            elif isinstance(event, CellBorn):
                self._requests.popleft()
                if event.sock is None:
                    self._pause_until = time.monotonic() + _PAUSE_S
                    self.end_cell(event.cell_id)
                else:
                    self.waiting.append(
                        Cell(event.cell_id, event.inner_pid, event.sock, self._max_prediction_bytes)
                    )
            elif isinstance(event, ForkFailed):
                self._requests.popleft()
                self._pause_until = time.monotonic() + _PAUSE_S
            elif event.cell_id in self.working:
                yield self.working[event.cell_id], event
            else:
                self._remove_waiting(event.cell_id)

    def _remove_waiting(self, cell_id: int) -> None:
        for cell in self.waiting:
            if cell.cell_id == cell_id:
                self.waiting.remove(cell)
                cell.sock.close()
                return

    def end_cell(self, cell_id: int) -> None:
        """Asks the zygote to kill a cell; raises `ZygoteError`."""
        self.zygote.end_cell(cell_id)

    def _call(self, now: float) -> None:
        if self._called_at is None and self.zygote.is_ready:
            self.zygote.call()
            self._called_at = now

    def _hear(self, now: float) -> None:
        late_s = 0.0 if self._called_at is None else now - self._called_at
        self._called_at = None
        if late_s > _LATE_S:
            for job in self.working.values():
                if job.is_unseen:  # the others have their own evidence
                    job.forgive(late_s)

    @property
    def needs_look(self) -> bool:
        """Whether something is under way that `look` watches over."""
        return bool(self.working or self._unanswered()) or not self.zygote.is_ready

    def look(self, now: float) -> list[Job]:
        """Looks after all processes, and returns the jobs whose process somebody has stopped.

        Raises:
          ZygoteStoppedError: when somebody has stopped the zygote.
          ZygoteError: when it is gone.
        """
        self._call(now)
        if self._vitals is None and self.zygote.inner_pid is not None:
            self._vitals = Vitals(self.zygote.inner_pid, now)
        if self._vitals is not None:
            self._vitals.look(now)
            is_silent = not self.zygote.is_ready or self.is_late(now)
            if self._vitals.stopped_s >= _STOPPED_S and is_silent:
                raise ZygoteStoppedError("the process is stopped")
            if self._vitals.stopped_s:
                return []
        jobs = list(self.working.values())
        for job in jobs:
            job.look(self.zygote, now)
        return [job for job in jobs if job.is_stopped]

    def is_late(self, now: float) -> bool:
        """Returns whether the zygote should have answered by now."""
        return self._called_at is not None and self._called_at + _LATE_S <= now

    def is_hung(self, now: float) -> bool:
        """Returns whether the zygote has left a request unanswered for too long."""
        if not self.zygote.is_ready:
            return self._started_at + _START_S <= now
        return min(self._unanswered(), default=now) + _ANSWER_S <= now

    def _unanswered(self) -> list[float]:
        return [*self._requests, *([] if self._called_at is None else [self._called_at])]

    def next_time(self, now: float) -> float | None:
        """Returns the next time at which `request_cells` or `is_hung` may have an effect."""
        times = [since + _ANSWER_S for since in self._unanswered()]
        if not self.zygote.is_ready:
            times.append(self._started_at + _START_S)
        elif self._pause_until > now:
            times.append(self._pause_until)
        return min(times, default=None)

    def forgive(self, late_s: float) -> None:
        """Shifts all clocks by a time during which this process did not run."""
        self._started_at += late_s
        self._requests = collections.deque(since + late_s for since in self._requests)
        if self._called_at is not None:
            self._called_at += late_s
        for job in self.working.values():
            job.forgive(late_s)

    def close(self) -> str:
        """Ends zygote and cells; returns what the zygote last wrote to standard error."""
        for cell in [*self.waiting, *(job.cell for job in self.working.values())]:
            cell.sock.close()
        self.waiting.clear()
        self.working.clear()
        return self.zygote.close()
