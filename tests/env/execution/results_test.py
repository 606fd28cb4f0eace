"""The outcome of an execution is that of running its splits one after the other."""

import itertools

import pytest

from env.execution.results import Execution


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_order_of_arrival_does_not_matter(order):
    execution = Execution(3)
    for split in order:
        assert not execution.is_complete()
        execution.score(split, 0.5 + split / 8)
    assert execution.is_complete()
    result = execution.result(0.0)
    assert result.split_scores == (0.5, 0.625, 0.75)
    assert result.reward == 0.625
    assert result.error == ""


def test_the_first_failure_counts_whenever_it_comes():
    execution = Execution(4)
    execution.score(0, 0.5)
    execution.fail(3, "third")
    assert not execution.is_complete()  # splits 1 and 2 may still fail
    assert execution.is_wanted(2)
    execution.fail(2, "second")
    assert not execution.is_wanted(3)
    assert not execution.is_complete()
    execution.score(1, 0.75)
    assert execution.is_complete()
    result = execution.result(0.0)
    assert (result.reward, result.split_scores, result.error) == (-1.0, (0.5, 0.75), "second")


def test_time_that_was_taken_from_the_processes_does_not_count():
    execution = Execution(3)
    execution.start(100.0)
    for split, kept_s in enumerate([2.0, 1.0, 3.0]):
        execution.keep(split, kept_s)
        execution.score(split, 0.5)
    assert execution.result(110.0).wall_s == 5.0


def test_wall_time_runs_from_the_first_start():
    execution = Execution(1)
    execution.start(100.0)
    execution.start(101.0)
    execution.score(0, 1.0)
    assert execution.result(102.5).wall_s == 2.5


def test_a_split_may_be_lost_once():
    execution = Execution(2)
    assert execution.lose(0)
    assert execution.lose(1)
    assert not execution.lose(0)


def test_nothing_is_wanted_of_what_was_cancelled():
    execution = Execution(2)
    execution.future.cancel()
    assert not execution.is_wanted(0)
