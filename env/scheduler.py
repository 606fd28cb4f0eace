"""The event loop of the executor: gives splits to cells, keeps time, survives their deaths."""

import collections
import dataclasses
import functools
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable

from env import prompts, wire
from env.cell import Cell, CellClosedError
from env.execution import Execution
from env.isolation import CELLS_PER_ZYGOTE
from env.limits import Limits
from env.scoring import PredictionError, Scorer
from env.zygote import CellBorn, CellEnded, ForkFailed, Ready, Zygote, ZygoteError

_MAX_FAILED_STARTS = 3
_START_S = 60.0
# Between attempts when the operating system has no process or descriptor left.
_RETRY_S = 0.1
# How long a cell that has closed its connection may take to end by itself.
_CLOSED_S = 0.3
# How long a zygote may take to end a cell before it counts as hung.
_HUNG_S = 5.0


class ExecutorError(Exception):
    """The executor cannot go on; this says nothing about any body."""


@dataclasses.dataclass(frozen=True)
class _Job:
    execution: Execution
    split: int


@dataclasses.dataclass(eq=False)
class _Nursery:
    """A zygote and its cells.

    Attributes:
      started_at: when the zygote was started.
      requested: cells asked for and not yet born.
      waiting: cells without a program.
      working: cells with one, by id.
      ending: when cells were told to end that have not been reaped yet, by id.
      retry_at: no cell is asked for before this time.
    """

    zygote: Zygote
    started_at: float
    requested: int = 0
    waiting: collections.deque[Cell] = dataclasses.field(default_factory=collections.deque)
    working: dict[int, tuple[Cell, _Job]] = dataclasses.field(default_factory=dict)
    ending: dict[int, float] = dataclasses.field(default_factory=dict)
    retry_at: float = 0.0


class Scheduler:
    """Runs executions on the cells of one or more zygotes, in a thread of its own.

    Args:
      start_zygote: starts a zygote; called in the thread, again whenever one was lost.
      scorer: splits and scores.
      limits: of each execution.
      num_workers: how many cells work at the same time.
    """

    def __init__(
        self,
        start_zygote: Callable[[], Zygote],
        scorer: Scorer,
        limits: Limits,
        num_workers: int,
    ):
        self._start_zygote = start_zygote
        self._scorer = scorer
        self._limits = limits
        self._num_workers = num_workers
        self._num_zygotes = -(-num_workers // CELLS_PER_ZYGOTE)
        self._spare_cells = -(-num_workers // self._num_zygotes)
        self._lock = threading.Lock()
        self._inbox: collections.deque[Execution] = collections.deque()
        self._failure: ExecutorError | None = None
        self._is_closing = False
        # The rest belongs to the thread.
        self._unfinished: set[Execution] = set()
        self._queue: collections.deque[_Job] = collections.deque()
        self._nurseries: list[_Nursery] = []
        self._failed_starts = 0
        self._start_at = 0.0
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        for sock in (self._woken, self._waker):
            sock.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._on_wake)
        # A daemon: who forgets to close it can end nevertheless, and the zygotes with him.
        self._thread = threading.Thread(target=self._main, name="executor", daemon=True)
        self._thread.start()

    # Called from any thread.

    def submit(self, execution: Execution) -> None:
        """Queues an execution; its future gets the result, or an `ExecutorError`.

        Raises:
          ExecutorError: when the scheduler is closed or has failed.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._inbox.append(execution)
        self._wake()

    def cancel(self, executions: Iterable[Execution]) -> None:
        """Ends executions whose results nobody waits for any more."""
        for execution in executions:
            execution.future.cancel()
        self._wake()

    def close(self) -> None:
        """Ends all processes; what has no result yet fails with an `ExecutorError`."""
        self._is_closing = True
        self._wake()
        self._thread.join()

    def _wake(self) -> None:
        # A full or closed socket: the thread will look, or is gone.
        try:
            self._waker.send(b"\0")
        except OSError:
            return

    # Everything below runs in the thread.

    def _main(self) -> None:
        failure = ExecutorError("the executor is closed")
        try:
            self._serve()
        except ExecutorError as error:
            failure = error
        except BaseException as error:
            failure = ExecutorError(f"the executor stopped: {error!r}")
            raise
        finally:
            with self._lock:
                self._failure = failure
                self._unfinished.update(self._inbox)
            for nursery in self._nurseries:
                nursery.zygote.close()
                for cell in [*nursery.waiting, *(cell for cell, _ in nursery.working.values())]:
                    cell.sock.close()
            self._selector.close()
            self._woken.close()
            self._waker.close()
            for execution in self._unfinished:
                if execution.future.set_running_or_notify_cancel():
                    execution.future.set_exception(failure)

    def _serve(self) -> None:
        while not self._is_closing:
            now = time.monotonic()
            self._start_zygotes(now)
            self._dispatch(now)
            self._request_cells(now)
            wait_s = self._wait_s(now)
            ready = self._selector.select(wait_s)
            if wait_s is not None:
                self._forgive(time.monotonic() - now - wait_s)
            for key, events in ready:
                key.data(events)
            self._enforce(time.monotonic())

    def _forgive(self, late_s: float) -> None:
        """Does not charge programs for time in which this process was stopped or starved."""
        if late_s > 0:
            for cell, _ in self._working():
                cell.started_at += late_s

    def _wait_s(self, now: float) -> float | None:
        times = [execution.deadline(now) for execution in self._running_executions()]
        times += [cell.ending_at for cell, _ in self._working() if cell.ending_at is not None]
        for nursery in self._nurseries:
            times += [since + _HUNG_S for since in nursery.ending.values()]
            if not nursery.zygote.is_ready:
                times.append(nursery.started_at + _START_S)
            if nursery.retry_at > now:
                times.append(nursery.retry_at)
        if len(self._nurseries) < self._num_zygotes:
            times.append(self._start_at)
        return max(0.0, min(times) - now) if times else None

    def _working(self) -> list[tuple[Cell, _Job]]:
        return [pair for nursery in self._nurseries for pair in nursery.working.values()]

    def _running_executions(self) -> set[Execution]:
        return {job.execution for _, job in self._working()}

    # Zygotes.

    def _start_zygotes(self, now: float) -> None:
        while len(self._nurseries) < self._num_zygotes and now >= self._start_at:
            try:
                zygote = self._start_zygote()
            except OSError as error:
                self._count_failed_start(now, f"cannot start a worker process: {error}")
                return
            nursery = _Nursery(zygote, now)
            self._nurseries.append(nursery)
            self._selector.register(
                zygote.control, selectors.EVENT_READ, functools.partial(self._on_control, nursery)
            )

    def _count_failed_start(self, now: float, reason: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= _MAX_FAILED_STARTS:
            raise ExecutorError(reason)
        self._start_at = now + _RETRY_S * 10**self._failed_starts

    def _on_control(self, nursery: _Nursery, _events: int) -> None:
        if nursery not in self._nurseries:
            return
        try:
            for event in nursery.zygote.receive():
                if isinstance(event, Ready):
                    self._failed_starts = 0
                elif isinstance(event, CellBorn):
                    self._on_born(nursery, event)
                elif isinstance(event, CellEnded):
                    self._on_ended(nursery, event)
                elif isinstance(event, ForkFailed):
                    nursery.requested -= 1
                    nursery.retry_at = time.monotonic() + _RETRY_S
        except ZygoteError as error:
            self._lose_nursery(nursery, str(error))

    def _lose_nursery(self, nursery: _Nursery, reason: str = "no answer in time") -> None:
        if nursery not in self._nurseries:
            return
        self._nurseries.remove(nursery)
        self._selector.unregister(nursery.zygote.control)
        for cell in nursery.waiting:
            cell.sock.close()
        for cell, job in list(nursery.working.values()):
            self._forget(nursery, cell, job, is_charged=False)
            self._lose(job, "SystemError: the program ended its worker process")
        was_ready = nursery.zygote.is_ready
        last_words = nursery.zygote.close().strip()
        if not was_ready:
            if last_words:
                reason += f": {last_words.splitlines()[-1]}"
            self._count_failed_start(
                time.monotonic(), f"the worker process does not start: {reason}"
            )

    # Cells.

    def _request_cells(self, now: float) -> None:
        for nursery in list(self._nurseries):
            if not nursery.zygote.is_ready or now < nursery.retry_at:
                continue
            try:
                while len(nursery.waiting) + nursery.requested < self._spare_cells:
                    nursery.zygote.request_cell()
                    nursery.requested += 1
            except ZygoteError:
                self._lose_nursery(nursery)

    def _on_born(self, nursery: _Nursery, event: CellBorn) -> None:
        nursery.requested -= 1
        if event.sock is None:
            nursery.zygote.end_cell(event.cell_id)
            nursery.retry_at = time.monotonic() + _RETRY_S
            return
        nursery.waiting.append(
            Cell(nursery.zygote, event.cell_id, event.sock, self._scorer.max_prediction_bytes)
        )

    def _on_ended(self, nursery: _Nursery, event: CellEnded) -> None:
        nursery.ending.pop(event.cell_id, None)
        for cell in nursery.waiting:
            if cell.cell_id == event.cell_id:
                nursery.waiting.remove(cell)
                cell.sock.close()
                return
        if event.cell_id not in nursery.working:
            return
        cell, job = nursery.working[event.cell_id]
        if cell.ending_at is None:
            self._drain(nursery, cell, job)
        if event.cell_id not in nursery.working:
            return
        if event.exit_code == -signal.SIGKILL and event.cpu_s < self._limits.cpu_s:
            # Nobody here has killed it: most likely the operating system, out of memory.
            self._forget(nursery, cell, job, is_charged=False)
            self._lose(job, "MemoryError: the program was killed for using too much memory")
        else:
            self._forget(nursery, cell, job)
            self._fail(job, _death(event, self._limits))

    def _dispatch(self, now: float) -> None:
        num_working = len(self._working())
        while self._queue and num_working < self._num_workers:
            nursery = min(
                (nursery for nursery in self._nurseries if nursery.waiting),
                key=lambda nursery: len(nursery.working),
                default=None,
            )
            if nursery is None:
                return
            job = self._queue.popleft()
            if not job.execution.is_wanted(job.split):
                continue
            cell = nursery.waiting.popleft()
            job.execution.start(cell, now)
            nursery.working[cell.cell_id] = (cell, job)
            self._selector.register(
                cell.sock,
                selectors.EVENT_READ,
                functools.partial(self._on_cell, nursery, cell, job),
            )
            num_working += 1
            self._send(nursery, cell, job, self._scorer.job(job.split, job.execution.source))

    def _on_cell(self, nursery: _Nursery, cell: Cell, job: _Job, events: int) -> None:
        if cell.cell_id not in nursery.working:
            return  # let go by an earlier event of the same round
        if events & selectors.EVENT_READ:
            self._read(nursery, cell, job)
        if events & selectors.EVENT_WRITE and cell.cell_id in nursery.working:
            self._send(nursery, cell, job, [])

    def _send(
        self, nursery: _Nursery, cell: Cell, job: _Job, buffers: Iterable[memoryview]
    ) -> None:
        try:
            cell.send(buffers)
        except CellClosedError:
            return  # whatever it said before that can still be read, then the end of its stream
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if cell.has_unsent else 0)
        key = self._selector.get_key(cell.sock)
        if key.events != wanted:
            self._selector.modify(cell.sock, wanted, key.data)

    def _read(self, nursery: _Nursery, cell: Cell, job: _Job) -> None:
        try:
            for kind, payload in cell.receive():
                self._on_frame(nursery, cell, job, kind, payload)
                if cell.cell_id not in nursery.working:
                    return
        except CellClosedError:
            self._selector.unregister(cell.sock)
            cell.ending_at = time.monotonic() + _CLOSED_S
        except wire.WireError:
            self._end(nursery, cell, job)
            self._fail(job, _FORGED)

    def _drain(self, nursery: _Nursery, cell: Cell, job: _Job) -> None:
        """Reads what a cell that has ended sent before that."""
        while cell.cell_id in nursery.working and cell.ending_at is None:
            self._read(nursery, cell, job)

    def _on_frame(
        self, nursery: _Nursery, cell: Cell, job: _Job, kind: bytes, payload: bytes
    ) -> None:
        if kind == wire.FITTED and not cell.has_fitted:
            cell.has_fitted = True
            self._send(nursery, cell, job, self._scorer.validation_features(job.split))
            return
        self._end(nursery, cell, job)
        if kind == wire.PREDICTIONS:
            try:
                score = self._scorer.score(job.split, payload)
            except PredictionError as error:
                self._fail(job, prompts.clean_error(f"ValueError: {error}"))
            else:
                self._succeed(job, score)
        elif kind == wire.ERROR:
            name, _, message = payload.decode(errors="replace").partition("\n")
            self._fail(job, prompts.clean_error(f"{name}: {message}" if message else name))
        else:
            self._fail(job, _FORGED)

    def _end(self, nursery: _Nursery, cell: Cell, job: _Job) -> None:
        """Takes the job from a cell and has the cell killed."""
        self._forget(nursery, cell, job)
        nursery.ending[cell.cell_id] = time.monotonic()
        try:
            nursery.zygote.end_cell(cell.cell_id)
        except ZygoteError:
            self._lose_nursery(nursery)

    def _forget(self, nursery: _Nursery, cell: Cell, job: _Job, *, is_charged: bool = True) -> None:
        del nursery.working[cell.cell_id]
        job.execution.stop(cell, time.monotonic(), is_charged=is_charged)
        if cell.ending_at is None:
            self._selector.unregister(cell.sock)
        cell.sock.close()

    # Executions.

    def _on_wake(self, _events: int) -> None:
        while True:
            try:
                if len(self._woken.recv(4096)) < 4096:
                    break
            except BlockingIOError:
                break
        with self._lock:
            new = list(self._inbox)
            self._inbox.clear()
        for execution in new:
            self._unfinished.add(execution)
            self._queue.append(_Job(execution, 0))
        for execution in [e for e in self._unfinished if e.future.cancelled()]:
            self._unfinished.discard(execution)
            self._end_unwanted(execution)

    def _succeed(self, job: _Job, score: float) -> None:
        execution = job.execution
        execution.score(job.split, score)
        if job.split == 0:
            # Most programs that fail do so on the first split; the others may run at once.
            rest = [_Job(execution, split) for split in range(1, execution.num_splits)]
            self._queue.extendleft(reversed(rest))
        self._settle(execution)

    def _fail(self, job: _Job, error: str) -> None:
        job.execution.fail(job.split, error)
        self._end_unwanted(job.execution)
        self._settle(job.execution)

    def _lose(self, job: _Job, error: str) -> None:
        """The process of `job` vanished: once may be bad luck, twice is its own doing."""
        if job.execution.lose(job.split):
            self._queue.appendleft(job)
        else:
            self._fail(job, error)

    def _settle(self, execution: Execution) -> None:
        if execution in self._unfinished and execution.is_complete():
            self._unfinished.discard(execution)
            if execution.future.set_running_or_notify_cancel():
                execution.future.set_result(execution.result(time.monotonic()))

    def _end_unwanted(self, execution: Execution) -> None:
        for nursery in list(self._nurseries):
            for cell, job in list(nursery.working.values()):
                if job.execution is execution and not execution.is_wanted(job.split):
                    self._end(nursery, cell, job)

    # Time.

    def _enforce(self, now: float) -> None:
        for nursery in list(self._nurseries):
            for cell, job in list(nursery.working.values()):
                if cell.cell_id not in nursery.working:
                    continue
                if job.execution.deadline(now) <= now:
                    self._end(nursery, cell, job)
                    self._fail(job, _too_slow(self._limits))
                elif cell.ending_at is not None and cell.ending_at <= now:
                    self._end(nursery, cell, job)
                    self._fail(job, _FORGED)
            is_hung = any(since + _HUNG_S <= now for since in nursery.ending.values())
            is_late = not nursery.zygote.is_ready and nursery.started_at + _START_S <= now
            if is_hung or is_late:
                self._lose_nursery(nursery)


_FORGED = "RuntimeError: the program touched the connection that carries its results"


def _too_slow(limits: Limits) -> str:
    return f"TimeoutError: the program took longer than {limits.timeout_s:g} seconds"


def _death(event: CellEnded, limits: Limits) -> str:
    """What to say about a program that ended its process without a result."""
    if event.exit_code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"TimeoutError: the program used more than {limits.cpu_s} seconds of processor time"
    if event.exit_code < 0:
        name = signal.Signals(-event.exit_code).name
        return f"SystemError: the program crashed with {name}"
    return f"SystemExit: the program ended its process with exit code {event.exit_code}"
