"""The executor for Ray: its bookkeeping without Ray, and a cluster of two nodes with it."""

import collections
import concurrent.futures
import contextlib
import sys
import threading
import time
import types

import psutil
import pytest

from env.base import UsageError
from env.execution import ray_executor
from env.execution.ray_cluster import Node, RayCluster
from env.execution.ray_executor import RayExecutor
from env.execution.results import ExecutionResult
from env.executor import CodeExecutor, ExecutorError, Limits
from tests.env.executor_test import LOGISTIC, OPTIONS, TABLE

LIMITS = {name: OPTIONS[name] for name in ("timeout_s", "memory_bytes")}


class ActorLostError(Exception):
    """Error of the substitute cluster for the calls of a dead actor."""


class Reference:
    """A future result of a call."""

    def __init__(self):
        self._future: concurrent.futures.Future = concurrent.futures.Future()

    def future(self) -> concurrent.futures.Future:
        return self._future


class Call:
    def __init__(self, function):
        self.remote = function


class FakeActor:
    """An actor that answers when it is told to."""

    def __init__(self, node: Node):
        self.node = node
        self.is_killed = False
        self.is_stopped = False
        self.unanswered: list[Reference] = []
        self.calls: list[tuple[str, concurrent.futures.Future]] = []
        self.checked = Reference()
        self.run = Call(self._run)
        self.check = Call(self._check)

    def _check(self) -> Reference:
        if not self.is_stopped:
            return self.checked
        self.unanswered.append(Reference())
        return self.unanswered[-1]

    def go_on(self) -> None:
        """Answers what it was asked while it was stopped."""
        self.is_stopped = False
        for reference in self.unanswered:
            reference.future().set_result(None)
        self.answer()

    def _run(self, body: str) -> Reference:
        reference = Reference()
        self.calls.append((body, reference.future()))
        return reference

    def answer(self, *, without: tuple[str, ...] = ()) -> None:
        """Scores what it has, but for some bodies."""
        for body, future in self.calls:
            if body not in without and not future.done():
                future.set_result(ExecutionResult(float(body), (), "", 0.0))

    def die(self) -> None:
        for _, future in self.calls:
            if not future.done():
                future.set_exception(ActorLostError("traceback\nthe node died"))


class FakeCluster:
    """Nodes of which each says at once that its executor has started."""

    ActorLost = ActorLostError

    def __init__(self):
        self.machines = [Node("a", "10.0.0.1", 1), Node("b", "10.0.0.2", 2)]
        self.actors: list[FakeActor] = []
        self.settings: list[dict] = []
        self.starts = True
        self.takes_its_time = False
        self.is_closed = False

    def common_tier(self) -> str:
        return "seccomp"

    def nodes(self) -> list[Node]:
        return list(self.machines)

    def put(self, dataset):
        return dataset

    def start_actor(self, node, table, settings, max_bodies):
        actor = FakeActor(node)
        if self.takes_its_time:
            actor.is_stopped = True
        elif self.starts:
            actor.checked.future().set_result(None)
        else:
            actor.checked.future().set_exception(UsageError("traceback\nno wall stands"))
        self.actors.append(actor)
        self.settings.append({**settings, "max_bodies": max_bodies})
        return actor

    def get(self, reference):
        return reference.future().result()

    def kill(self, actors) -> None:
        for actor in actors:
            actor.is_killed = True

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def cluster(monkeypatch) -> FakeCluster:
    cluster = FakeCluster()
    monkeypatch.setattr(ray_executor, "RayCluster", lambda address: cluster)
    return cluster


def _start(executor, bodies) -> concurrent.futures.Future:
    future: concurrent.futures.Future = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result([result.reward for result in executor.run(bodies)])
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _wait(condition, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.001)


def _bodies(actor: FakeActor) -> list[str]:
    return [body for body, _ in actor.calls]


def test_one_actor_per_node_has_a_worker_per_core(cluster):
    options = {**LIMITS, "limits": Limits(cpu_s=3)}
    with RayExecutor(TABLE, **options) as executor:
        assert executor.isolation == "seccomp"
        assert [actor.node.node_id for actor in cluster.actors] == ["a", "b"]
        assert cluster.settings == [
            {
                **LIMITS,
                "limits": Limits(cpu_s=3),
                "isolation": "seccomp",
                "num_workers": n,
                "max_bodies": 2 * n,
            }
            for n in (1, 2)
        ]
    assert all(actor.is_killed for actor in cluster.actors)
    assert cluster.is_closed


def test_more_actors_than_nodes_are_spread(cluster):
    with RayExecutor(TABLE, **LIMITS, num_actors=5, num_workers=1, isolation="landlock"):
        assert collections.Counter(actor.node.node_id for actor in cluster.actors) == {
            "a": 3,
            "b": 2,
        }
    assert {settings["isolation"] for settings in cluster.settings} == {"landlock"}


def test_bodies_are_held_back_and_results_in_order(cluster):
    with RayExecutor(TABLE, **LIMITS) as executor:
        future = _start(executor, [str(i) for i in range(9)])
        one, other = cluster.actors
        _wait(lambda: len(one.calls) + len(other.calls) == 6)
        time.sleep(0.05)
        assert (len(one.calls), len(other.calls)) == (2, 4)
        other.answer()
        _wait(lambda: len(other.calls) == 7)
        other.answer()
        one.answer()
        assert future.result(20) == [float(i) for i in range(9)]


def test_what_a_lost_actor_had_is_executed_once_more(cluster):
    with RayExecutor(TABLE, **LIMITS) as executor:
        future = _start(executor, [str(i) for i in range(6)])
        one, other = cluster.actors
        _wait(lambda: len(one.calls) + len(other.calls) == 6)
        other.answer()
        one.answer(without=(one.calls[0][0],))
        one.die()
        _wait(lambda: len(cluster.actors) == 3)
        assert one.is_killed
        new = cluster.actors[2]
        assert new.node.node_id == "a"
        _wait(lambda: len(other.calls) + len(new.calls) == 5)
        new.answer()
        other.answer()
        assert future.result(20) == [float(i) for i in range(6)]
    executed = collections.Counter(body for actor in cluster.actors for body in _bodies(actor))
    assert sorted(executed.values()) == [1, 1, 1, 1, 1, 2]


def test_a_result_that_comes_after_its_actor_was_given_up_does_not_count(cluster):
    with RayExecutor(TABLE, **LIMITS, num_actors=1) as executor:
        future = _start(executor, ["1", "2"])
        (old,) = cluster.actors
        _wait(lambda: len(old.calls) == 2)
        old.calls[0][1].set_exception(ActorLostError("out of reach"))
        _wait(lambda: len(cluster.actors) == 2 and len(cluster.actors[1].calls) == 2)
        old.calls[1][1].set_result(ExecutionResult(99.0, (), "", 0.0))
        time.sleep(0.05)
        cluster.actors[1].answer()
        assert future.result(20) == [1.0, 2.0]


def test_a_body_that_is_lost_twice_is_its_own_doing(cluster):
    with RayExecutor(TABLE, **LIMITS, num_actors=1) as executor:
        future = _start(executor, ["1", "2"])
        for lives in range(2):
            _wait(lambda lives=lives: len(cluster.actors) == lives + 1)
            actor = cluster.actors[lives]
            _wait(lambda actor=actor: len(actor.calls) == 2)
            actor.answer(without=("2",) if lives else ("1", "2"))
            time.sleep(0.05)
            actor.die()
        assert future.result(20) == [1.0, -1.0]


@pytest.fixture
def impatient(monkeypatch) -> None:
    """Signs of life are asked for often, and missed soon."""
    monkeypatch.setattr(ray_executor, "_CALL_S", 0.02)
    monkeypatch.setattr(ray_executor, "_SILENT_S", 0.2)


def test_the_bodies_of_a_silent_actor_are_given_to_others(cluster, impatient):
    with RayExecutor(TABLE, **LIMITS) as executor:
        future = _start(executor, [str(i) for i in range(6)])
        one, other = cluster.actors
        _wait(lambda: len(one.calls) + len(other.calls) == 6)
        one.is_stopped = True
        _wait(lambda: len(cluster.actors) == 3)
        new = cluster.actors[2]
        assert new.node.node_id == "b"  # not on the silent node
        _wait(lambda: one.is_killed)
        _wait(lambda: other.answer() or new.answer() or future.done())
        assert future.result(20) == [float(i) for i in range(6)]
        one.answer()  # much too late
        assert executor.run([])[:0] == []


def test_an_actor_that_comes_back_goes_on(cluster, impatient):
    with RayExecutor(TABLE, **LIMITS, num_actors=1) as executor:
        future = _start(executor, ["1", "2"])
        (one,) = cluster.actors
        _wait(lambda: len(one.calls) == 2)
        cluster.takes_its_time = True
        one.is_stopped = True
        _wait(lambda: len(cluster.actors) == 2)
        time.sleep(0.1)
        assert not one.is_killed
        one.go_on()
        assert future.result(1) == [1.0, 2.0]
        _wait(lambda: cluster.actors[1].is_killed)
        assert not one.is_killed
        again = _start(executor, ["3"])
        _wait(lambda: len(one.calls) == 3)
        one.answer()
        assert again.result(20) == [3.0]
        assert len(cluster.actors) == 2


def test_a_body_whose_actors_all_fall_silent_is_given_up_in_the_end(
    cluster, impatient, monkeypatch
):
    monkeypatch.setattr(ray_executor, "MOST_STOPS", 2)
    with RayExecutor(TABLE, **LIMITS, num_actors=1) as executor:
        future = _start(executor, ["1"])
        for i in range(3):
            _wait(lambda i=i: len(cluster.actors) > i and cluster.actors[i].calls)
            cluster.actors[i].is_stopped = True
        assert future.result(20) == [-1.0]


def test_a_stopped_trainer_does_not_take_its_actors_for_silent(cluster, monkeypatch):
    monkeypatch.setattr(ray_executor, "_CALL_S", 0.02)
    monkeypatch.setattr(ray_executor, "_SILENT_S", 1.5)
    with RayExecutor(TABLE, **LIMITS) as executor:
        for actor in cluster.actors:
            actor.is_stopped = True
        time.sleep(0.1)
        executor._events.put(lambda: time.sleep(2.0))
        time.sleep(2.2)
        assert len(cluster.actors) == 2
        for actor in cluster.actors:
            actor.go_on()


def test_a_cluster_on_which_nothing_starts_any_more_ends_the_run(cluster):
    with RayExecutor(TABLE, **LIMITS) as executor:
        cluster.starts = False
        future = _start(executor, ["1"] * 6)
        _wait(lambda: sum(len(actor.calls) for actor in cluster.actors) == 6)
        for actor in cluster.actors[:2]:
            actor.die()
        with pytest.raises(ExecutorError, match=r"^no executor works on the cluster: no wall stan"):
            future.result(20)
        with pytest.raises(ExecutorError, match="no executor works"):
            executor.run(["1"])


def test_an_executor_that_does_not_start_at_first_says_why(cluster):
    cluster.starts = False
    with pytest.raises(UsageError, match="no wall stands"):
        RayExecutor(TABLE, **LIMITS)
    assert all(actor.is_killed for actor in cluster.actors)
    assert cluster.is_closed


def test_closing_ends_waiting_calls(cluster):
    executor = RayExecutor(TABLE, **LIMITS)
    future = _start(executor, ["1"])
    _wait(lambda: any(actor.calls for actor in cluster.actors))
    executor.close()
    with pytest.raises(ExecutorError, match="is closed"):
        future.result(20)
    with pytest.raises(ExecutorError, match="is closed"):
        executor.run(["1"])
    executor.close()


@pytest.mark.parametrize("name", ["num_actors", "num_workers"])
def test_bad_settings_are_named(name):
    with pytest.raises(ValueError, match=f"{name} is -1 and must be at least 0"):
        RayExecutor(TABLE, **LIMITS, **{name: -1})


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"needs Ray .*: pip install -r requirements-ray.txt$"):
        RayCluster()


def _ray_with(monkeypatch, nodes) -> None:
    """Has Ray's place taken by a module that knows these nodes and nothing else."""
    ray = types.SimpleNamespace(
        is_initialized=lambda: True,
        nodes=lambda: nodes,
        exceptions=types.SimpleNamespace(RayActorError=ActorLostError),
    )
    for name in ("ray", "ray.util", "ray.util.scheduling_strategies"):
        monkeypatch.setitem(sys.modules, name, ray)


@pytest.mark.parametrize(
    ("cores", "used"), [((0, 4), ["1"]), ((0, 0), ["0", "1"]), ((1, 2), ["0", "1"])], ids=str
)
def test_nodes_without_processors_are_left_alone(monkeypatch, cores, used):
    nodes = [
        {"NodeID": str(i), "NodeManagerAddress": "", "Alive": True, "Resources": {"CPU": float(n)}}
        for i, n in enumerate(cores)
    ]
    _ray_with(monkeypatch, [*nodes, {"Alive": False}])
    assert [node.node_id for node in RayCluster().nodes()] == used


@pytest.fixture(scope="module")
def two_nodes():
    """A cluster of two nodes on this machine, the second of which is killed by the tests."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield cluster, cluster.add_node(num_cpus=1)
    cluster.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_node_that_is_killed_in_the_middle_costs_nothing(two_nodes):
    cluster, second = two_nodes
    with CodeExecutor(TABLE, **OPTIONS) as local:
        (expected,) = local.run([LOGISTIC])
    bodies = [f"raise ValueError({i})" if i % 2 else LOGISTIC for i in range(120)]
    with RayExecutor(TABLE, **LIMITS, address=cluster.address) as executor:
        assert executor.isolation == local.isolation
        assert executor.run([LOGISTIC, "model = = 1"])[0].split_scores == expected.split_scores
        kill = threading.Timer(0.8, cluster.remove_node, (second,), {"allow_graceful": False})
        kill.start()
        results = executor.run(bodies)
        assert kill.finished.is_set()
        kill.join()
        for i, result in enumerate(results):
            if i % 2:
                assert (result.reward, result.error) == (-1.0, f"ValueError: {i}")
            else:
                assert (result.split_scores, result.error) == (expected.split_scores, "")
        # And it goes on.
        assert {result.error for result in executor.run([LOGISTIC] * 4)} == {""}


def _stop_with_children(worker: psutil.Process) -> set[psutil.Process]:
    """Stops a process and all below it, also those that start or end meanwhile; returns them."""
    stopped: set[psutil.Process] = set()
    while found := {worker, *worker.children(recursive=True)} - stopped:
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        stopped |= found
    return stopped


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_node_that_is_stopped_costs_nothing(two_nodes, monkeypatch):
    cluster, _ = two_nodes
    cluster.add_node(num_cpus=1)
    slow = f"import time; time.sleep(0.5)\n    {LOGISTIC}"
    with RayExecutor(TABLE, **LIMITS, address=cluster.address, num_splits=1) as executor:
        (expected,) = executor.run([LOGISTIC])
        actor = executor._actors[1]
        worker = psutil.Process(executor._cluster.get(actor.handle.pid.remote()))
        for comes_back, patience_s in ((True, 60.0), (False, 5.0)):
            monkeypatch.setattr(ray_executor, "_SILENT_S", patience_s)
            future: concurrent.futures.Future = concurrent.futures.Future()
            threading.Thread(
                target=lambda future=future: future.set_result(executor.run([slow] * 8)),
                daemon=True,
            ).start()
            _wait(lambda: actor.jobs)
            time.sleep(0.3)
            stopped = _stop_with_children(worker)
            if comes_back:
                time.sleep(2.0)
            else:  # until another one has its place, which takes long on a busy machine
                _wait(lambda: actor not in executor._actors, seconds=90)
            for process in stopped:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()
            results = future.result(90)
            assert {result.error for result in results} == {""}
            assert {result.split_scores for result in results} == {expected.split_scores}
            assert (actor in executor._actors) == comes_back


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_reasons_come_from_the_nodes_as_they_are(two_nodes):
    cluster, _ = two_nodes
    with pytest.raises(ValueError, match="timeout_s is -1 and must be above 0"):
        RayExecutor(TABLE, **{**LIMITS, "timeout_s": -1}, address=cluster.address)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_cluster():
    pytest.importorskip("ray")
    with pytest.raises(UsageError, match=r"no Ray cluster answers at 127\.0\.0\.1:1"):
        RayExecutor(TABLE, **LIMITS, address="127.0.0.1:1")
