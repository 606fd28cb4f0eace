"""Executors on the nodes of a Ray cluster, used as if they were one."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self

from env.execution.ray_cluster import Node, RayCluster
from env.execution.results import FAILURE_REWARD, ExecutionResult
from env.execution.scheduler import ExecutorError
from env.execution.scoring import LabelledTable

# What an actor has beyond what its workers run, so that none of them waits for the network.
_BODIES_PER_WORKER = 2
_QUEUE_PER_ACTOR = 128
# Of each actor, without any result from one of them in between.
_MAX_FAILED_STARTS = 3
_LOST = "SystemError: the program ended its worker process"


@dataclasses.dataclass(eq=False)
class _Job:
    """One body on its way to a result.

    Attributes:
      future: gets the result; cancelled when nobody waits for it any more.
      is_lost: whether an actor that had the body was lost.
    """

    body: str
    future: concurrent.futures.Future[ExecutionResult] = dataclasses.field(
        default_factory=concurrent.futures.Future
    )
    is_lost: bool = False

    def finish(self, result: ExecutionResult) -> None:
        """The result is known, for the first and last time."""
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled
            self.future.set_result(result)

    def fail(self, error: ExecutorError) -> None:
        """There will be no result."""
        with contextlib.suppress(concurrent.futures.InvalidStateError):  # cancelled, or finished
            self.future.set_exception(error)


@dataclasses.dataclass(eq=False)
class _Actor:
    """An executor on a node.

    Attributes:
      node: where it was started.
      handle: Ray's.
      max_bodies: how many bodies it is given at the same time.
      is_ready: whether it has said that its walls stand.
      jobs: what it has been given and not answered.
    """

    node: Node
    handle: Any
    max_bodies: int
    is_ready: bool = False
    jobs: set[_Job] = dataclasses.field(default_factory=set)

    @property
    def room(self) -> int:
        """How many more bodies it may be given."""
        return self.max_bodies - len(self.jobs) if self.is_ready else 0


class RayExecutor:
    """Runs and scores bodies on the nodes of a Ray cluster; otherwise as `CodeExecutor`.

    One actor per node owns a `CodeExecutor`. An actor or node that is lost is replaced, and what it
    had is executed once more; a body that is lost twice counts as the cause, as on one machine. The
    nodes are given the table with its labels and this package: they are trusted as the trainer is.

    Args:
      dataset: the table that programs are scored on.
      address: of a running cluster; empty is `RAY_ADDRESS`, or else this machine's, started if
        there is none. A connection that this process has made already is used instead.
      num_actors: executors, spread over the nodes; 0 is one per node.
      num_workers: programs that one of them runs at the same time; 0 is one per core of its node.
      isolation: as for `CodeExecutor`, but `auto` is the strongest tier that stands on all nodes.
      options: the other arguments of `CodeExecutor`.

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
        # What has happened, as the calls that deal with it in the thread.
        self._events: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        # The rest belongs to the thread.
        self._waiting: collections.deque[_Job] = collections.deque()
        self._failed_starts = 0
        self._thread = threading.Thread(target=self._main, name="ray executor", daemon=True)
        self._thread.start()

    @property
    def isolation(self) -> str:
        """The tier that is in force, the same on all nodes."""
        return self._isolation

    def run(self, bodies: Sequence[str]) -> list[ExecutionResult]:
        """Runs and scores every body; as `CodeExecutor.run`."""
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
                job.future.cancel()  # changes nothing for those that are done

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
                self._events.get()()
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
            if job.future.cancelled():
                self._unfinished.discard(job)
                continue
            actor.jobs.add(job)
            self._when_done(actor.handle.run.remote(job.body), self._on_result, actor, job)

    def _when_done(self, reference: Any, deal_with: Callable[..., None], *arguments: Any) -> None:
        """Has the thread call `deal_with(*arguments, future)` once a call of an actor is done."""
        reference.future().add_done_callback(
            lambda future: self._events.put(functools.partial(deal_with, *arguments, future))
        )

    def _on_result(
        self, actor: _Actor, job: _Job, future: concurrent.futures.Future[ExecutionResult]
    ) -> None:
        if (
            job not in actor.jobs
        ):  # the actor was given up, and the body has been executed elsewhere
            return
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
        """Starts one more, on the node that has the fewest."""
        nodes = self._cluster.nodes()
        taken = collections.Counter(actor.node.node_id for actor in self._actors)
        node = min(nodes, key=lambda node: taken[node.node_id])
        num_workers = self._num_workers or max(1, node.num_cores)
        settings = {**self._settings, "num_workers": num_workers}
        max_bodies = num_workers * _BODIES_PER_WORKER
        handle = self._cluster.start_actor(node, self._table, settings, max_bodies)
        actor = _Actor(node, handle, max_bodies)
        self._actors.append(actor)
        return actor

    def _replace(self, actor: _Actor, error: BaseException) -> None:
        """Gives an actor up, starts another one and has its bodies executed again, once."""
        self._actors.remove(actor)
        self._cluster.kill([actor.handle])
        had_begun = actor.is_ready and isinstance(error, self._cluster.ActorLost)
        lost, actor.jobs = actor.jobs, set()
        for job in lost:
            if had_begun and job.is_lost:
                self._unfinished.discard(job)
                job.finish(ExecutionResult(FAILURE_REWARD, (), _LOST, 0.0))
            else:
                job.is_lost |= had_begun
                self._waiting.appendleft(job)
        if not had_begun:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS * (len(self._actors) + 1):
                raise ExecutorError(f"no executor works on the cluster: {_reason(error)}")
        new = self._start_actor()
        self._when_done(new.handle.check.remote(), self._on_start, new)

    def _on_start(self, actor: _Actor, future: concurrent.futures.Future[None]) -> None:
        if actor not in self._actors:
            return
        error = future.exception()
        if error is None:
            actor.is_ready = True
        else:
            self._replace(actor, error)


def _reason(error: BaseException) -> str:
    """The last line of an error of Ray's, which carries tracebacks in its text."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
