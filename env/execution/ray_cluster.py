"""The connection to a Ray cluster: its nodes, their tiers, and actors. Ray is an optional extra."""

import dataclasses
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import env
from env.base import UsageError
from env.execution.code_executor import CodeExecutor
from env.execution.results import ExecutionResult
from env.execution.scheduler import ExecutorError
from env.execution.scoring import LabelledTable, ScoredTable
from env.execution.tiers import TIERS, IsolationError, probe

_CONNECT_S = 10.0


@dataclasses.dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
      node_id: identifier of the node in Ray.
      address: network address, for messages.
      num_cores: processors that Ray may use there.
    """

    node_id: str
    address: str
    num_cores: int


class RayCluster:
    """A connection to a cluster; a connection that this process has already is shared.

    Args:
      address: address of a running cluster; empty is `RAY_ADDRESS`, or else the cluster of this
        machine, which is started if there is none.

    Raises:
      UsageError: without Ray, or when no cluster answers.

    Attributes:
      ActorLost: type of the errors of calls to an actor that is gone or out of reach.
    """

    def __init__(self, address: str = ""):
        try:
            import ray
            import ray.util.scheduling_strategies
        except ImportError as error:
            raise UsageError(
                f"--executor=ray needs Ray ({error}): pip install -r requirements-ray.txt"
            ) from None
        self._ray: Any = ray
        self._is_owner = not ray.is_initialized()
        if self._is_owner:
            _connect(ray, address)
        self.ActorLost: type[Exception] = ray.exceptions.RayActorError

    def nodes(self) -> list[Node]:
        """Returns the nodes that are alive; nodes without processors only if none has any."""
        alive = [
            Node(node["NodeID"], node["NodeManagerAddress"], int(node["Resources"].get("CPU", 0)))
            for node in self._ray.nodes()
            if node["Alive"]
        ]
        return [node for node in alive if node.num_cores] or alive

    def common_tier(self) -> str:
        """Returns the strongest tier that stands on all nodes.

        Raises:
          IsolationError: when no tier stands on all of them.
        """
        nodes = self.nodes()
        standing = self._ray.remote(_standing)
        found = self.get([standing.options(**self._on(node)).remote() for node in nodes])
        for tier in TIERS:
            if all(tier in tiers for tiers in found):
                return tier
        each = "; ".join(
            f"{node.address}: {', '.join(tiers) or 'none'}"
            for node, tiers in zip(nodes, found, strict=True)
        )
        raise IsolationError(
            f"no wall around generated programs stands on all nodes ({each}); "
            "etpo isolation says why on each"
        )

    def put(self, dataset: LabelledTable) -> Any:
        """Stores what is scored of a table in the cluster; returns a reference."""
        # In a class that every node knows.
        return self._ray.put(ScoredTable.of(dataset))

    def start_actor(
        self, node: Node, table: Any, settings: Mapping[str, Any], max_bodies: int
    ) -> Any:
        """Starts an executor on `node`, or on another one should `node` be gone.

        The actor's methods are those of `NodeExecutor`. Ray does not repeat the calls of a lost
        actor, because it would count a call that never reached the actor as a try.

        Args:
          node: preferred node.
          table: reference from `put`.
          settings: keyword arguments of its `CodeExecutor`.
          max_bodies: number of bodies that it will be given at the same time.
        """
        actor = self._ray.remote(NodeExecutor)
        # One more thread runs `check`.
        options = self._on(node) | {"max_concurrency": max_bodies + 1, "max_restarts": 0}
        return actor.options(**options).remote(table, dict(settings))

    def _on(self, node: Node) -> dict[str, Any]:
        affinity = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        # The programs take the processors, and how many run at once is bounded already.
        return {"num_cpus": 0, "scheduling_strategy": affinity(node.node_id, soft=True)}

    def get(self, references: Any) -> Any:
        """Returns the results of calls; raises the error of a call with its original type."""
        try:
            return self._ray.get(references)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def kill(self, actors: Sequence[Any]) -> None:
        """Ends actors and all their processes."""
        for actor in actors:
            self._ray.kill(actor)

    def close(self) -> None:
        """Ends the connection if this object made it."""
        if self._is_owner:
            self._ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    # Without this, a cluster that is started here reports its use to the makers of Ray.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS", "")
    try:
        _check_that_a_server_listens(address)
        ray.init(
            address=address or None,
            # Sends this package to the nodes, which need no checkout of their own.
            runtime_env={"py_modules": [str(Path(env.__file__).parent)]},
            log_to_driver=False,
            logging_level="error",
        )
    except (OSError, ValueError, RuntimeError) as error:
        where = f"no Ray cluster answers at {address}" if address else "no Ray cluster starts here"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{where}: {reason}") from None


def _check_that_a_server_listens(address: str) -> None:
    """Raises OSError at once; Ray itself would try for ten minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), _CONNECT_S).close()


def _standing() -> list[str]:
    """Returns the tiers that stand on the node that runs this function."""
    return [tier for tier in TIERS if not probe(tier)]


class NodeExecutor:
    """The executor of one node, in an actor; its methods run in several threads."""

    def __init__(self, table: LabelledTable, settings: dict[str, Any]):
        self._error: Exception | None = None
        try:
            self._executor = CodeExecutor(table, **settings)
        except (ValueError, UsageError, OSError) as error:
            # If it were raised here, the trainer would get the text of a traceback.
            self._error = error

    def check(self) -> None:
        """Raises the error that has kept the executor from starting, if any."""
        if self._error is not None:
            raise self._error

    def pid(self) -> int:
        """Returns the process id of the actor on its node."""
        return os.getpid()

    def run(self, body: str) -> ExecutionResult:
        """Runs and scores one body; raises `ExecutorError` when no program can be run here."""
        if self._error is not None:
            raise ExecutorError(str(self._error))
        (result,) = self._executor.run([body])
        return result
