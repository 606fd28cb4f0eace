"""The event loop of the executor: gives splits to cells, keeps time, replaces lost processes."""

import collections
import functools
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable

from env.execution import verdicts
from env.execution.cell import CellClosedError
from env.execution.error_text import clean_error
from env.execution.nursery import Job, Nursery
from env.execution.results import Execution
from env.execution.scoring import PredictionError, Scorer
from env.execution.zygote import (
    CELLS_PER_ZYGOTE,
    Ready,
    Zygote,
    ZygoteError,
    ZygoteStoppedError,
)
from env.sandbox import wire
from env.sandbox.limits import Limits

_MAX_FAILED_STARTS = 3
_PAUSE_S = 1.0
# The system never keeps a runnable thread waiting so long: a longer gap means that this process was
# stopped.
_STOPPED_S = 1.0
# Time between two looks at the processes that work.
_LOOK_S = 0.5
# Multiple of the wall limit by which a split may take longer because its process was kept from
# running: far beyond what happens, and a bound for programs that find a way to bring it about.
_MOST_KEPT = 20.0


class ExecutorError(Exception):
    """The executor cannot go on, for a reason that no body has caused."""


class Scheduler:
    """Runs executions on the cells of one or more zygotes, in a thread of its own.

    Args:
      start_zygote: starts a zygote; called in the thread, again whenever one was lost.
      scorer: splits and scores.
      limits: resource limits of each process.
      num_workers: number of cells that work at the same time.
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
        self._inbox: list[Execution] = []
        self._failure: ExecutorError | None = None
        self._is_closing = False
        # The attributes below belong to the thread.
        self._unfinished: set[Execution] = set()
        self._queue: collections.deque[tuple[Execution, int]] = collections.deque()
        self._nurseries: list[Nursery] = []
        self._failed_starts = 0
        self._start_at = 0.0
        self._look_at = 0.0
        self._selector = selectors.DefaultSelector()
        self._woken, self._waker = socket.socketpair()
        for sock in (self._woken, self._waker):
            sock.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ, self._on_wake)
        # A daemon, so that a process that forgets to close the executor can end, with its zygotes.
        self._thread = threading.Thread(target=self._main, name="executor", daemon=True)
        self._thread.start()

    # Called from any thread.

    def submit(self, execution: Execution) -> None:
        """Queues an execution; its future receives the result, or an `ExecutorError`.

        Raises:
          ExecutorError: when the scheduler is closed or has failed.
        """
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._inbox.append(execution)
        self._wake()

    def cancel(self, executions: Iterable[Execution]) -> None:
        """Ends executions whose results are not needed any more."""
        for execution in executions:
            execution.future.cancel()
        self._wake()

    def close(self) -> None:
        """Ends all processes; unfinished executions fail with an `ExecutorError`."""
        self._is_closing = True
        self._wake()
        self._thread.join()

    def _wake(self) -> None:
        try:
            self._waker.send(b"\0")
        except OSError:
            return  # a full socket wakes the thread anyhow; a closed one means that it has ended

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
                nursery.close()
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
            elapsed_s = time.monotonic() - now
            if wait_s is not None and elapsed_s > wait_s + _STOPPED_S:
                for nursery in self._nurseries:
                    nursery.forgive(elapsed_s)
            for key, events in ready:
                key.data(events)
            self._enforce(time.monotonic())

    def _wait_s(self, now: float) -> float | None:
        times = [nursery.next_time(now) for nursery in self._nurseries]
        for job in self._jobs():
            times += [job.cell.started_at + self._limits.timeout_s, job.linger_until]
        if len(self._nurseries) < self._num_zygotes:
            times.append(self._start_at)
        if any(nursery.needs_look for nursery in self._nurseries):
            times.append(max(now, self._look_at))
        known = [at for at in times if at is not None]
        return max(0.0, min(known) - now) if known else None

    def _jobs(self) -> list[Job]:
        return [job for nursery in self._nurseries for job in nursery.working.values()]

    # Zygotes.

    def _start_zygotes(self, now: float) -> None:
        while len(self._nurseries) < self._num_zygotes and now >= self._start_at:
            try:
                zygote = self._start_zygote()
            except OSError as error:
                self._count_failed_start(f"cannot start a worker process: {error}")
                return
            nursery = Nursery(zygote, self._spare_cells, self._scorer.max_prediction_bytes)
            self._nurseries.append(nursery)
            self._selector.register(
                zygote.control, selectors.EVENT_READ, functools.partial(self._on_control, nursery)
            )

    def _count_failed_start(self, reason: str) -> None:
        self._failed_starts += 1
        others_work = any(nursery.zygote.is_ready for nursery in self._nurseries)
        if self._failed_starts >= _MAX_FAILED_STARTS and not others_work:
            raise ExecutorError(reason)
        self._start_at = time.monotonic() + _PAUSE_S

    def _on_control(self, nursery: Nursery, _events: int) -> None:
        if nursery not in self._nurseries:
            return  # lost by an earlier event of the same round
        try:
            for event in nursery.receive():
                if isinstance(event, Ready):
                    self._failed_starts = 0
                else:
                    job, death = event
                    job.death = death
                    self._see_end(nursery, job)
                if nursery not in self._nurseries:
                    return
        except ZygoteError as error:
            self._lose_nursery(nursery, error)

    def _lose_nursery(self, nursery: Nursery, reason: ZygoteError) -> None:
        if nursery not in self._nurseries:
            return
        self._nurseries.remove(nursery)
        self._selector.unregister(nursery.zygote.control)
        lost = list(nursery.working.values())
        for job in lost:
            self._forget(nursery, job)
        was_ready = nursery.zygote.is_ready
        last_words = nursery.close().strip()
        is_stopped = isinstance(reason, ZygoteStoppedError)
        for job in lost:
            if is_stopped:
                self._try_stopped_again(job)
            else:
                self._try_again(job, verdicts.ENDED_WORKER)
        if not (was_ready or is_stopped):
            text = ": ".join([str(reason), *last_words.splitlines()[-1:]])
            self._count_failed_start(f"the worker process does not start: {text}")

    # Cells.

    def _request_cells(self, now: float) -> None:
        for nursery in list(self._nurseries):
            try:
                nursery.request_cells(now)
            except ZygoteError as error:
                self._lose_nursery(nursery, error)

    def _dispatch(self, now: float) -> None:
        num_working = len(self._jobs())
        while self._queue and num_working < self._num_workers:
            free = [nursery for nursery in self._nurseries if nursery.waiting]
            if not free:
                return
            execution, split = self._queue.popleft()
            if not execution.is_wanted(split):
                continue
            nursery = min(free, key=lambda nursery: len(nursery.working))
            most_kept_s = _MOST_KEPT * self._limits.timeout_s
            job = Job(execution, split, nursery.waiting.popleft(), most_kept_s)
            nursery.working[job.cell.cell_id] = job
            job.cell.started_at = now
            execution.start(now)
            self._selector.register(
                job.cell.sock,
                selectors.EVENT_READ,
                functools.partial(self._on_cell, nursery, job),
            )
            num_working += 1
            self._send(job, self._scorer.job(split, execution.source))

    def _on_cell(self, nursery: Nursery, job: Job, events: int) -> None:
        if events & selectors.EVENT_READ and self._is_working(nursery, job):
            self._read(nursery, job)
        if events & selectors.EVENT_WRITE and self._is_working(nursery, job):
            self._send(job)

    def _is_working(self, nursery: Nursery, job: Job) -> bool:
        return nursery.working.get(job.cell.cell_id) is job

    def _send(self, job: Job, buffers: Iterable[memoryview] = ()) -> None:
        if job.connection_ended:
            return
        try:
            is_waiting = job.cell.send(buffers)
        except CellClosedError:
            is_waiting = False  # its last frames and the end of its stream can still be read
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if is_waiting else 0)
        key = self._selector.get_key(job.cell.sock)
        if key.events != wanted:
            self._selector.modify(job.cell.sock, wanted, key.data)

    def _read(self, nursery: Nursery, job: Job) -> None:
        try:
            for kind, payload in job.cell.receive():
                self._on_frame(nursery, job, kind, payload)
                if not self._is_working(nursery, job):
                    return
        except CellClosedError:
            self._selector.unregister(job.cell.sock)
            job.connection_ended = True
            self._see_end(nursery, job)
        except wire.WireError:
            self._end(nursery, job)
            self._fail(job, verdicts.FORGED)

    def _on_frame(self, nursery: Nursery, job: Job, kind: bytes, payload: bytes) -> None:
        if kind == wire.FITTED and not job.cell.has_fitted:
            job.cell.has_fitted = True
            self._send(job, self._scorer.validation_features(job.split))
            return
        self._end(nursery, job)
        if kind == wire.PREDICTIONS:
            try:
                score = self._scorer.score(job.split, payload)
            except PredictionError as error:
                self._fail(job, clean_error(f"ValueError: {error}"))
            else:
                self._succeed(job, score, payload)
        elif kind == wire.ERROR:
            self._fail(job, verdicts.of_error(payload))
        else:
            self._fail(job, verdicts.FORGED)

    def _see_end(self, nursery: Nursery, job: Job) -> None:
        """Judges a cell without a result, once both its process and its connection have ended."""
        job.linger()
        if job.death is None or not job.connection_ended:
            return
        self._forget(nursery, job)
        death, cpu_s = job.death, self._limits.processor_s
        if death.exit_code == -signal.SIGKILL and death.cpu_s < cpu_s:
            # The scheduler did not kill it: most likely the operating system did, out of memory.
            self._try_again(job, verdicts.KILLED)
        else:
            self._fail(job, verdicts.of_death(death, cpu_s))

    def _end(self, nursery: Nursery, job: Job) -> None:
        """Gives a job up and kills its cell."""
        self._forget(nursery, job)
        if job.death is None:
            try:
                nursery.end_cell(job.cell.cell_id)
            except ZygoteError as error:
                self._lose_nursery(nursery, error)

    def _forget(self, nursery: Nursery, job: Job) -> None:
        del nursery.working[job.cell.cell_id]
        if not job.connection_ended:
            self._selector.unregister(job.cell.sock)
        job.cell.sock.close()

    # Executions.

    def _on_wake(self, _events: int) -> None:
        self._woken.recv(4096)
        with self._lock:
            new, self._inbox = self._inbox, []
        for execution in new:
            self._unfinished.add(execution)
            self._queue.append((execution, 0))
        for execution in [e for e in self._unfinished if e.future.cancelled()]:
            self._unfinished.discard(execution)
            self._end_unwanted(execution)

    def _succeed(self, job: Job, score: float, predictions: bytes) -> None:
        execution = job.execution
        execution.score(job.split, score, predictions)
        if job.split == 0:
            # The other splits run at the same time, once the first one, on which most failing
            # programs fail, is done.
            splits = range(execution.num_splits - 1, 0, -1)
            self._queue.extendleft((execution, split) for split in splits)
        self._settle(execution)

    def _fail(self, job: Job, error: str) -> None:
        job.execution.fail(job.split, error)
        self._end_unwanted(job.execution)
        self._settle(job.execution)

    def _try_again(self, job: Job, error: str) -> None:
        """Runs a split again whose process vanished; the second time the program is to blame."""
        if job.execution.lose(job.split):
            self._queue.appendleft((job.execution, job.split))
        else:
            self._fail(job, error)

    def _try_stopped_again(self, job: Job) -> None:
        """Runs a split again whose process was stopped from outside, a bounded number of times."""
        if job.execution.stop(job.split):
            self._queue.appendleft((job.execution, job.split))
        else:
            self._fail(job, verdicts.STOPPED)

    def _settle(self, execution: Execution) -> None:
        if execution in self._unfinished and execution.is_complete():
            self._unfinished.discard(execution)
            if execution.future.set_running_or_notify_cancel():
                execution.future.set_result(execution.result(time.monotonic()))

    def _end_unwanted(self, execution: Execution) -> None:
        for nursery in list(self._nurseries):
            for job in list(nursery.working.values()):
                if job.execution is execution and not execution.is_wanted(job.split):
                    self._end(nursery, job)

    # Time.

    def _look(self, now: float) -> None:
        """Looks for processes that somebody has stopped, and runs their splits in others."""
        self._look_at = now + _LOOK_S
        for nursery in list(self._nurseries):
            try:
                stopped = nursery.look(now)
            except ZygoteError as error:
                self._lose_nursery(nursery, error)
                continue
            for job in stopped:
                if self._is_working(nursery, job):
                    self._end(nursery, job)
                    self._try_stopped_again(job)

    def _is_too_slow(self, nursery: Nursery, job: Job, now: float) -> bool:
        if job.cell.started_at + self._limits.timeout_s > now:
            return False
        job.look(nursery.zygote, now)
        if job.is_unseen and nursery.is_late(now):
            job.cell.started_at += _LOOK_S  # the whole worker may have been stopped
        return job.cell.started_at + self._limits.timeout_s <= now

    def _enforce(self, now: float) -> None:
        if self._look_at <= now:
            self._look(now)
        for nursery in list(self._nurseries):
            for job in list(nursery.working.values()):
                if not self._is_working(nursery, job):
                    continue
                if self._is_too_slow(nursery, job, now):
                    self._end(nursery, job)
                    self._fail(job, verdicts.too_slow(self._limits))
                elif job.linger_until is not None and job.linger_until <= now:
                    self._end(nursery, job)
                    self._fail(job, verdicts.FORGED)
            if nursery.is_hung(now):
                self._lose_nursery(nursery, ZygoteError("no answer in time"))
