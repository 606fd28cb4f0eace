"""An executor that spreads programs over the nodes of a Ray cluster."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Self

from env.execution import verdicts
from env.execution.ray_cluster import Node, RayCluster
from env.execution.results import FAILURE_REWARD, MOST_STOPS, ExecutionResult
from env.execution.scheduler import ExecutorError
from env.execution.scoring import LabelledTable

# Bodies that an actor is given per worker, so that no worker waits for the network.
_BODIES_PER_WORKER = 2
_QUEUE_PER_ACTOR = 128
# Failed starts per actor in a row, without a result in between, after which the executor gives up.
_MAX_FAILED_STARTS = 3
# Time between two calls that only ask for a sign of life.
_CALL_S = 1.0
# An actor that leaves such a call unanswered for so long has been stopped, or is out of reach.
_SILENT_S = 5.0
# A call of its own that comes later by this than it should means that this process was stopped.
_LATE_S = 1.0


@dataclasses.dataclass(eq=False)
class _Job:
    """One body on its way to a result.

    Attributes:
      future: receives the result; cancelled when the caller has stopped waiting.
      is_lost: whether an actor that had the body was lost.
      num_stops: number of actors that had the body and fell silent.
    """

    body: str
    future: concurrent.futures.Future[ExecutionResult] = dataclasses.field(
        default_factory=concurrent.futures.Future
    )
    is_lost: bool = False
    num_stops: int = 0

    def finish(self, result: ExecutionResult) -> None:
        """Sets the result, unless there is one already."""
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled, or finished
            self.future.set_result(result)

    def fail(self, error: ExecutorError) -> None:
        """Reports that there will be no result."""
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled, or finished
            self.future.set_exception(error)


@dataclasses.dataclass(eq=False)
class _Actor:
    """An executor on a node.

    Attributes:
      node: node on which it was started.
      handle: the actor in Ray.
      max_bodies: number of bodies that it is given at the same time.
      is_ready: whether it has reported that its walls stand.
      jobs: bodies that it has been given and has not answered.
      called_at: time of the call for a sign of life that it has not answered; None without one.
      is_silent: whether it has left that call unanswered for too long.
      stands_in_for: silent actor that this one takes the place of once it is ready.
    """

    node: Node
    handle: Any
    max_bodies: int
    is_ready: bool = False
    jobs: set[_Job] = dataclasses.field(default_factory=set)
    called_at: float | None = None
    is_silent: bool = False
    stands_in_for: "_Actor | None" = None

    @property
    def room(self) -> int:
        """Number of further bodies that it may be given."""
        return self.max_bodies - len(self.jobs) if self.is_ready and not self.is_silent else 0


class RayExecutor:
    """Runs and scores bodies on the nodes of a Ray cluster; used like `CodeExecutor`.

    One actor per node owns a `CodeExecutor`. A lost actor or node is replaced, and its bodies are
    executed once more; a body that is lost twice counts as the cause, as on one machine. The bodies
    of an actor that is silent are given to others as well, and the first answer counts. The nodes
    receive this package and the table with its labels: they are trusted as the trainer is.

    Args:
      dataset: the table that programs are scored on.
      address: address of a running cluster; empty is `RAY_ADDRESS`, or else the cluster of this
        machine, which is started if there is none. A connection of this process comes first.
      num_actors: number of executors, spread over the nodes; 0 is one per node.
      num_workers: programs that each of them runs at the same time; 0 is one per core of its node.
      isolation: tier by name; `auto` is the strongest tier that stands on all nodes.
      options: further arguments of `CodeExecutor`, such as `limits`.

    Raises:
      UsageError: without Ray, or when no cluster answers at `address`.
      ValueError, IsolationError, UsageError: as `CodeExecutor`, from the first node that does.
      ExecutorError: when an actor does not start for another reason.
    """

    def __init__(
        self,
        dataset: LabelledTable,
        *,
        address: str = "",
        num_actors: int = 0,
        num_workers: int = 0,
        isolation: str = "auto",
        **options: Any,
    ):
        for name, value in (("num_actors", num_actors), ("num_workers", num_workers)):
            if value < 0:
                raise ValueError(f"{name} is {value} and must be at least 0")
        self._num_workers = num_workers
        self._cluster = RayCluster(address)
        self._actors: list[_Actor] = []
        try:
            self._isolation = self._cluster.common_tier() if isolation == "auto" else isolation
            self._settings = {**options, "isolation": self._isolation}
            self._table = self._cluster.put(dataset)
            for _ in range(num_actors or len(self._cluster.nodes())):
                self._start_actor()
            for actor in self._actors:
                self._cluster.get(actor.handle.check.remote())
                actor.is_ready = True
        except BaseException as error:
            self._close_cluster()
            if isinstance(error, self._cluster.ActorLost):
                raise ExecutorError(f"an executor does not start: {_reason(error)}") from None
            raise
        self._capacity = threading.Semaphore(_QUEUE_PER_ACTOR * len(self._actors))
        self._lock = threading.Lock()
        self._failure: ExecutorError | None = None
        self._unfinished: set[_Job] = set()
        # Events, each as a call that handles it in the thread.
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # The attributes below belong to the thread.
        self._waiting: collections.deque[_Job] = collections.deque()
        self._failed_starts = 0
        self._call_at = time.monotonic() + _CALL_S
        self._thread = threading.Thread(target=self._main, name="ray executor", daemon=True)
        self._thread.start()

    @property
    def isolation(self) -> str:
        """Name of the isolation tier that is in force on all nodes."""
        return self._isolation

    def run(self, bodies: Sequence[str]) -> list[ExecutionResult]:
        """Runs and scores every body, like `CodeExecutor.run`."""
        jobs: list[_Job] = []
        try:
            for body in bodies:
                self._capacity.acquire()
                jobs.append(_Job(body))
                jobs[-1].future.add_done_callback(lambda _: self._capacity.release())
                self._submit(jobs[-1])
            return [job.future.result() for job in jobs]
        finally:
            for job in jobs:
                job.future.cancel()  # has no effect on those that are done

    def _submit(self, job: _Job) -> None:
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._unfinished.add(job)
            self._events.put(functools.partial(self._waiting.append, job))

    def close(self) -> None:
        """Ends all actors and their processes; a `run` that is still waiting raises."""
        self._events.put(self._stop)
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Everything below runs in the thread, or before there is one.

    def _main(self) -> None:
        failure = ExecutorError("the executor is closed")
        try:
            while True:
                with contextlib.suppress(queue.Empty):
                    self._events.get(timeout=max(0.0, self._call_at - time.monotonic()))()
                self._call(time.monotonic())
                self._hand_out()
        except ExecutorError as error:
            failure = error
        except BaseException as error:
            failure = ExecutorError(f"the executor stopped: {error!r}")
            raise
        finally:
            with self._lock:
                self._failure = failure
            for job in self._unfinished:
                job.fail(failure)
            self._close_cluster()

    def _stop(self) -> None:
        raise ExecutorError("the executor is closed")

    def _close_cluster(self) -> None:
        self._cluster.kill([actor.handle for actor in self._actors])
        self._cluster.close()

    def _hand_out(self) -> None:
        while self._waiting:
            actor = max(self._actors, key=lambda actor: actor.room)
            if actor.room == 0:
                return
            job = self._waiting.popleft()
            if job.future.done():  # cancelled, or answered by an actor that had been silent
                self._unfinished.discard(job)
                continue
            actor.jobs.add(job)
            self._when_done(actor.handle.run.remote(job.body), self._on_result, actor, job)

    def _when_done(self, reference: Any, deal_with: Callable[..., None], *arguments: Any) -> None:
        """Lets the thread call `deal_with(*arguments, future)` once a call of an actor is done."""
        reference.future().add_done_callback(
            lambda future: self._events.put(functools.partial(deal_with, *arguments, future))
        )

    def _on_result(
        self, actor: _Actor, job: _Job, future: concurrent.futures.Future[ExecutionResult]
    ) -> None:
        if job not in actor.jobs or actor not in self._actors:
            return  # the actor was given up, and another one has the body
        error = future.exception()
        if error is not None:
            self._replace(actor, error)
            return
        self._failed_starts = 0
        actor.jobs.discard(job)
        self._unfinished.discard(job)
        job.finish(future.result())

    # Actors.

    def _start_actor(self) -> _Actor:
        """Starts an actor on the node that has the fewest, and better on one that is not silent."""
        nodes = self._cluster.nodes()
        silent = {actor.node.node_id for actor in self._actors if actor.is_silent}
        taken = collections.Counter(actor.node.node_id for actor in self._actors)
        node = min(nodes, key=lambda node: (node.node_id in silent, taken[node.node_id]))
        num_workers = self._num_workers or max(1, node.num_cores)
        settings = {**self._settings, "num_workers": num_workers}
        max_bodies = num_workers * _BODIES_PER_WORKER
        handle = self._cluster.start_actor(node, self._table, settings, max_bodies)
        actor = _Actor(node, handle, max_bodies)
        self._actors.append(actor)
        return actor

    def _replace(self, actor: _Actor, error: BaseException) -> None:
        """Replaces an actor by a new one; its bodies are executed again, once."""
        self._remove(actor)
        had_begun = actor.is_ready and isinstance(error, self._cluster.ActorLost)
        lost, actor.jobs = actor.jobs, set()
        for job in lost:
            if self._is_elsewhere(job):
                continue
            if had_begun and job.is_lost:
                self._unfinished.discard(job)
                job.finish(ExecutionResult(FAILURE_REWARD, (), verdicts.ENDED_WORKER, 0.0))
            else:
                job.is_lost |= had_begun
                self._waiting.appendleft(job)
        if not had_begun:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS * (len(self._actors) + 1):
                raise ExecutorError(f"no executor works on the cluster: {_reason(error)}")
        if not any(other.stands_in_for is actor for other in self._actors):
            self._start_another(actor.stands_in_for)

    def _start_another(self, silent: _Actor | None) -> None:
        new = self._start_actor()
        new.stands_in_for = silent
        self._when_done(new.handle.check.remote(), self._on_start, new)

    def _remove(self, actor: _Actor) -> None:
        self._actors.remove(actor)
        self._cluster.kill([actor.handle])

    def _is_elsewhere(self, job: _Job) -> bool:
        others = (actor for actor in self._actors if not actor.is_silent)
        return job in self._waiting or any(job in actor.jobs for actor in others)

    def _on_start(self, actor: _Actor, future: concurrent.futures.Future[None]) -> None:
        if actor not in self._actors:
            return
        error = future.exception()
        if error is not None:
            self._replace(actor, error)
            return
        actor.is_ready = True
        if actor.stands_in_for in self._actors:
            self._remove(actor.stands_in_for)

    # Signs of life.

    def _call(self, now: float) -> None:
        """Asks all actors for a sign of life, from time to time."""
        if now < self._call_at:
            return
        late_s, self._call_at = now - self._call_at, now + _CALL_S
        for actor in [actor for actor in self._actors if actor.is_ready and not actor.is_silent]:
            if actor.called_at is None:
                actor.called_at = now
                self._when_done(actor.handle.check.remote(), self._on_sign, actor)
            elif late_s > _LATE_S:
                actor.called_at += late_s
            elif actor.called_at + _SILENT_S <= now:
                self._give_to_others(actor)

    def _give_to_others(self, actor: _Actor) -> None:
        """Notes that an actor is silent, and lets others run its bodies as well."""
        actor.is_silent = True
        for job in [job for job in actor.jobs if not job.future.done()]:
            job.num_stops += 1
            if job.num_stops > MOST_STOPS:
                self._unfinished.discard(job)
                job.finish(ExecutionResult(FAILURE_REWARD, (), verdicts.STOPPED, 0.0))
            elif not self._is_elsewhere(job):
                self._waiting.appendleft(job)
        self._start_another(actor)

    def _on_sign(self, actor: _Actor, future: concurrent.futures.Future[None]) -> None:
        if actor not in self._actors:
            return
        error = future.exception()
        if error is not None:
            self._replace(actor, error)
            return
        actor.called_at, actor.is_silent = None, False
        # It goes on with what nobody else has begun.
        self._waiting = collections.deque(job for job in self._waiting if job not in actor.jobs)
        for other in [other for other in self._actors if other.stands_in_for is actor]:
            if not other.is_ready:  # it is not needed any more
                self._remove(other)
            other.stands_in_for = None


def _reason(error: BaseException) -> str:
    """Returns the last line of an error, since Ray puts tracebacks into its texts."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
