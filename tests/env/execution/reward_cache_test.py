"""Equal programs are executed once; results of different settings are never mixed up."""

import dataclasses
import errno
import json
import threading

import numpy as np
import pandas as pd
import pytest

from env.base import UsageError
from env.datasets import load_dataset
from env.execution import metrics, reward_cache
from env.execution.program import BUILD_MODEL
from env.execution.results import ExecutionResult
from env.execution.reward_cache import CachedExecutor, reward_context
from env.sandbox.limits import Limits
from env.tasks.code_task import CodeTask


class CountingExecutor:
    """Scores a body by its length and fails what is an error's name; remembers what it ran."""

    def __init__(self, isolation="landlock"):
        self.isolation = isolation
        self.ran = []
        self.is_closed = False

    def run(self, bodies):
        self.ran += bodies
        return [
            ExecutionResult(-1.0, (0.1,), f"{body}: again", 1.0)
            if body.endswith("Error")
            else ExecutionResult(len(body) / 3, (len(body) / 3, 0.1 + 0.2), "", 0.5)
            for body in bodies
        ]

    def close(self):
        self.is_closed = True


CONTEXT = {"dataset": "0123", "num_splits": 5}


def cached(folder, executor=None, **changes):
    return CachedExecutor(executor or CountingExecutor(), folder, {**CONTEXT, **changes})


def test_a_known_body_is_not_executed_again_even_by_another_process(tmp_path):
    first, second = CountingExecutor(), CountingExecutor()
    executed = cached(tmp_path, first).run(["abc", "ValueError"])
    remembered = cached(tmp_path, second).run(["ValueError", "abc"])
    assert second.ran == []
    assert [r.cached for r in executed + remembered] == [False, False, True, True]
    assert [dataclasses.replace(r, cached=False) for r in remembered] == executed[::-1]
    assert executed[0].split_scores == (1.0, 0.1 + 0.2)  # to the last bit


def test_equal_bodies_of_one_call_are_executed_once(tmp_path):
    executor = CountingExecutor()
    cache = cached(tmp_path, executor)
    results = cache.run(["a", "bb", "a", "a  \n", "bb"])
    assert executor.ran == ["a", "bb"]
    assert [r.cached for r in results] == [False, False, True, True, True]
    assert [r.reward for r in results] == [1 / 3, 2 / 3, 1 / 3, 1 / 3, 2 / 3]
    assert (cache.hits, cache.misses) == (3, 2)
    cache.run(["a", "ccc"])
    assert (cache.hits, cache.misses) == (4, 3)
    assert cache.run([]) == []


@pytest.mark.parametrize("error", ["TimeoutError", "MemoryError", "SystemError"])
def test_outcomes_of_load_and_memory_are_tried_again(tmp_path, error):
    executor = CountingExecutor()
    cache = cached(tmp_path, executor)
    assert cache.run([error])[0].error == f"{error}: again"
    assert not cache.run([error])[0].cached
    assert executor.ran == [error, error]


def test_a_full_disk_costs_the_memory_and_nothing_else(tmp_path, monkeypatch, caplog):
    executor = CountingExecutor()
    known = cached(tmp_path, executor)

    def fail(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(reward_cache, "_write", fail)
    assert [result.cached for result in known.run(["abc", "abd"])] == [False, False]
    assert [result.cached for result in known.run(["abc"])] == [False]
    assert executor.ran == ["abc", "abd", "abc"]
    (record,) = caplog.records
    assert "cannot be remembered" in record.getMessage()
    assert "No space left on device" in record.getMessage()


def _relatives(dataset):
    """Tables with the same features whose rewards are others."""
    frame = pd.DataFrame(dataset.features, columns=dataset.feature_names)
    texts = frame.astype({"left-weight": str}).astype({"left-weight": object})
    return [
        dataclasses.replace(dataset, stratified=True),
        dataclasses.replace(dataset, labels=dataset.labels.astype(np.float64)),
        dataclasses.replace(dataset, frame=frame),
        dataclasses.replace(dataset, frame=frame.rename(columns={"left-weight": "weight"})),
        dataclasses.replace(dataset, frame=frame.astype({"left-weight": np.int64})),
        dataclasses.replace(dataset, frame=texts),
    ]


def test_an_interval_is_remembered(tmp_path):
    class WithInterval(CountingExecutor):
        def run(self, bodies):
            return [
                dataclasses.replace(result, interval=(0.25, 0.5)) for result in super().run(bodies)
            ]

    cache = cached(tmp_path, WithInterval())
    cache.run(["abc"])
    (result,) = cached(tmp_path, CountingExecutor()).run(["abc"])
    assert (result.cached, result.interval) == (True, (0.25, 0.5))


def test_a_holdout_context_needs_a_holdout():
    plain = {"num_splits": 5, "metric": metrics.find("roc_auc"), "limits": Limits()}
    with pytest.raises(UsageError, match="no holdout rows"):
        reward_context(load_dataset("balance_scale"), **plain, holdout=True)


def test_whatever_a_reward_depends_on_keeps_results_apart(tmp_path, monkeypatch):
    dataset = load_dataset("balance_scale")
    other = load_dataset("tic_tac_toe")
    plain = {"num_splits": 5, "metric": metrics.find("roc_auc"), "limits": Limits()}
    contexts = [
        reward_context(dataset, **plain),
        reward_context(other, **plain),
        reward_context(dataset, **{**plain, "num_splits": 3}),
        reward_context(dataset, **{**plain, "limits": Limits(memory_bytes=2**29)}),
        reward_context(dataset, **{**plain, "limits": Limits(max_threads=1)}),
        reward_context(dataset, **{**plain, "limits": Limits(max_output_bytes=1)}),
        reward_context(dataset, **plain, libraries=["no_such_library"]),
        reward_context(dataset, **{**plain, "metric": metrics.find("accuracy")}),
        reward_context(
            dataset, **{**plain, "metric": metrics.Metric("roc_auc", lambda y, p: 0.0, "changed")}
        ),
        *(reward_context(table, **plain) for table in _relatives(dataset)),
        reward_context(dataclasses.replace(dataset, holdout=dataset), **plain, holdout=True),
        reward_context(dataclasses.replace(dataset, holdout=other), **plain, holdout=True),
    ]
    for context in contexts:
        executor = CountingExecutor()
        CachedExecutor(executor, tmp_path, context).run(["abc"])
        assert executor.ran == ["abc"]
    for template in (
        dataclasses.replace(BUILD_MODEL, function="make"),
        dataclasses.replace(BUILD_MODEL, before=f"import math\n{BUILD_MODEL.before}"),
    ):
        executor = CountingExecutor()
        CachedExecutor(executor, tmp_path, contexts[0], template).run(["abc"])
        assert executor.ran == ["abc"]
    unsafe = CountingExecutor(isolation="unsafe")
    CachedExecutor(unsafe, tmp_path, contexts[0]).run(["abc"])
    assert unsafe.ran == ["abc"]
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99")
    upgraded = CountingExecutor()
    CachedExecutor(upgraded, tmp_path, contexts[0]).run(["abc"])
    assert upgraded.ran == ["abc"]
    again = CountingExecutor()
    CachedExecutor(again, tmp_path, contexts[0]).run(["abc"])
    assert again.ran == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"reward": "much", "split_scores": []}', "\x00"]
)
def test_a_damaged_entry_is_executed_and_mended(tmp_path, content):
    cached(tmp_path).run(["abc"])
    (entry,) = (p for p in tmp_path.rglob("*.json") if p.name != "context.json")
    entry.write_text(content)
    executor = CountingExecutor()
    cache = cached(tmp_path, executor)
    assert cache.run(["abc"])[0].reward == 1.0
    assert executor.ran == ["abc"]
    assert json.loads(entry.read_text())["reward"] == 1.0


def test_a_folder_says_what_it_holds(tmp_path):
    cached(tmp_path).run(["abc"])
    (context,) = tmp_path.glob("*/context.json")
    assert json.loads(context.read_text())["dataset"] == "0123"
    assert not list(tmp_path.rglob("*.part"))


def test_half_a_surrogate_pair_is_a_body_too(tmp_path):
    assert cached(tmp_path).run(["\ud800"])[0].reward == 1 / 3


def test_many_threads(tmp_path):
    cache = cached(tmp_path)
    bodies = [f"{i % 7}" * (i % 7 + 1) for i in range(50)]
    results = {}

    def work(n):
        results[n] = cache.run(bodies)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for found in results.values():
        assert [r.reward for r in found] == [len(body) / 3 for body in bodies]
    assert cache.hits + cache.misses == 200


def test_a_task_tells_hits_and_closes_the_executor(tmp_path):
    executor = CountingExecutor()
    task = CodeTask(load_dataset("balance_scale"), cached(tmp_path, executor))
    state = task.reset(None)
    first, second = (task.step([state], ["abc"], [None])[0] for _ in range(2))
    assert (first.info["cached"], second.info["cached"]) == (False, True)
    assert first.reward == second.reward == 1.0
    assert cached(tmp_path, executor).isolation == "landlock"
    task.close()
    assert executor.is_closed
