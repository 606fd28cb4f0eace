"""A Ray cluster as the executor needs it: nodes, tiers, actors. Ray is an optional extra."""

import dataclasses
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import env
from env.base import UsageError
from env.execution.code_executor import CodeExecutor
from env.execution.results import ExecutionResult
from env.execution.scheduler import ExecutorError
from env.execution.scoring import LabelledTable
from env.execution.tiers import TIERS, IsolationError, probe

_CONNECT_S = 10.0


@dataclasses.dataclass(frozen=True)
class Node:
    """A machine of the cluster.

    Attributes:
      node_id: Ray's name for it.
      address: for messages.
      num_cores: processors that Ray has there.
    """

    node_id: str
    address: str
    num_cores: int


class RayCluster:
    """A connection to a cluster, which uses the one that this process has already, if any.

    Args:
      address: of a running cluster; empty is `RAY_ADDRESS`, or else this machine's, started if
        there is none.

    Raises:
      UsageError: without Ray, or when no cluster answers.

    Attributes:
      ActorLost: what is raised for the calls of an actor that is gone or out of reach.
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
        """The nodes that are alive; those without processors for work only if none has any."""
        alive = [
            Node(node["NodeID"], node["NodeManagerAddress"], int(node["Resources"].get("CPU", 0)))
            for node in self._ray.nodes()
            if node["Alive"]
        ]
        return [node for node in alive if node.num_cores] or alive

    def common_tier(self) -> str:
        """The strongest tier that stands on all nodes.

        Raises:
          IsolationError: when there is none.
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
            "python -m env.isolation says why on each"
        )

    def put(self, dataset: LabelledTable) -> Any:
        """A reference to what scoring needs of a table."""
        return self._ray.put(_Table(np.asarray(dataset.features), np.asarray(dataset.labels)))

    def start_actor(
        self, node: Node, table: Any, settings: Mapping[str, Any], max_bodies: int
    ) -> Any:
        """Starts an executor on `node`, or on another one should `node` be gone.

        Its methods are those of `NodeExecutor`. Ray does not repeat calls of an actor that is lost:
        it would count a call that has never reached the actor as one of its tries.

        Args:
          node: where it should run.
          table: from `put`.
          settings: keyword arguments of its `CodeExecutor`.
          max_bodies: how many bodies it will be given at the same time.
        """
        actor = self._ray.remote(NodeExecutor)
        # One more for `check`.
        options = self._on(node) | {"max_concurrency": max_bodies + 1, "max_restarts": 0}
        return actor.options(**options).remote(table, dict(settings))

    def _on(self, node: Node) -> dict[str, Any]:
        affinity = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        # The programs take the processors, and how many run at once is bounded already.
        return {"num_cpus": 0, "scheduling_strategy": affinity(node.node_id, soft=True)}

    def get(self, references: Any) -> Any:
        """What calls have returned; raises what one of them has raised, as it was raised there."""
        try:
            return self._ray.get(references)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def kill(self, actors: Sequence[Any]) -> None:
        """Ends actors and all their processes."""
        for actor in actors:
            self._ray.kill(actor)

    def close(self) -> None:
        """Ends the connection if it was made here."""
        if self._is_owner:
            self._ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    # Otherwise a cluster that is started here reports its use to the makers of Ray.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    address = address or os.environ.get("RAY_ADDRESS", "")
    try:
        _check_that_somebody_listens(address)
        ray.init(
            address=address or None,
            # So that nodes need no checkout of their own.
            runtime_env={"py_modules": [str(Path(env.__file__).parent)]},
            log_to_driver=False,
            logging_level="error",
        )
    except (OSError, ValueError, RuntimeError) as error:
        where = f"no Ray cluster answers at {address}" if address else "no Ray cluster starts here"
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(f"{where}: {reason}") from None


def _check_that_somebody_listens(address: str) -> None:
    """Raises OSError at once where Ray would try again for ten minutes."""
    host, _, port = address.rpartition(":")
    if port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), _CONNECT_S).close()


def _standing() -> list[str]:
    """The tiers that stand on the node where this is called."""
    return [tier for tier in TIERS if not probe(tier)]


@dataclasses.dataclass(frozen=True)
class _Table:
    """A `LabelledTable` of a class that every node knows."""

    features: np.ndarray
    labels: np.ndarray


class NodeExecutor:
    """The executor of one node, in an actor; its methods run in several threads."""

    def __init__(self, table: LabelledTable, settings: dict[str, Any]):
        self._error: Exception | None = None
        try:
            self._executor = CodeExecutor(table, **settings)
        except (ValueError, UsageError, OSError) as error:
            # Raised from here it would reach the trainer as the text of a traceback.
            self._error = error

    def check(self) -> None:
        """Raises what has kept the executor from starting."""
        if self._error is not None:
            raise self._error

    def run(self, body: str) -> ExecutionResult:
        """Runs and scores one body; raises `ExecutorError` when no program can be run here."""
        if self._error is not None:
            raise ExecutorError(str(self._error))
        (result,) = self._executor.run([body])
        return result
