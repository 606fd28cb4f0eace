"""Rewards by a function of the user's, whatever that function does."""

import asyncio
import sys

import numpy as np
import pytest

from env.base import ChatTask, UsageError
from env.tasks.function_task import FunctionTask


class UnprintableError(Exception):
    def __str__(self):
        raise RuntimeError


def step(reward, action="a", **options):
    task = FunctionTask(["prompt"], reward, **options)
    (outcome,) = task.step([task.reset(np.random.default_rng(0))], [action], [None])
    return outcome


def test_each_completion_is_rewarded_for_its_own_prompt():
    task = FunctionTask(["a: ", "bb: "], lambda prompt, completion: len(prompt) + len(completion))
    rng = np.random.default_rng(0)
    states = [task.reset(rng) for _ in range(40)]
    assert {task.render(state) for state in states} == {"a: ", "bb: "}
    outcomes = task.step(states, ["xyz"] * 40, [None] * 40)
    assert [o.reward for o in outcomes] == [len(task.render(s)) + 3.0 for s in states]
    assert {(o.next_state, o.error) for o in outcomes} == {(None, "")}
    assert task.program("xyz") == "xyz"
    assert task.name == "function"
    assert isinstance(task, ChatTask)
    assert task.action_of("xyz") == "xyz"


@pytest.mark.parametrize("value", [1, 0.5, True, np.float32(2), np.array(3)])
def test_anything_that_is_a_number_is_a_reward(value):
    outcome = step(lambda prompt, completion: value)
    assert (outcome.reward, outcome.error) == (float(value), "")


@pytest.mark.parametrize("value", [None, "1.0", float("nan"), float("inf"), [1, 2], 1j])
def test_a_reward_that_is_no_finite_number_is_a_failure(value):
    outcome = step(lambda prompt, completion: value)
    assert (outcome.reward, outcome.next_state) == (-1.0, None)
    assert outcome.error.startswith("ValueError: the reward function returned ")
    assert outcome.error.endswith("not a finite number")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (KeyError("missing"), "KeyError: 'missing'"),
        (ValueError("two\nlines <FILL_ME>"), "ValueError: two lines FILL_ME"),
        (ValueError(), "ValueError"),
        (SystemExit(3), "SystemExit: 3"),
        (asyncio.CancelledError(), "CancelledError"),
        (BaseExceptionGroup("two", [SystemExit()]), "BaseExceptionGroup: two (1 sub-exception)"),
        (UnprintableError(), "UnprintableError"),
    ],
)
def test_a_reward_that_raises_is_a_failure_with_that_error(error, text):
    def reward(prompt, completion):
        raise error

    outcome = step(reward, failure_reward=-2)
    assert (outcome.reward, outcome.error) == (-2.0, text)


def test_an_interrupt_is_no_failure():
    def reward(prompt, completion):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        step(reward)


def test_a_failure_says_nothing_about_the_others():
    task = FunctionTask(["p"], lambda prompt, completion: float(completion or sys.exit("empty")))
    states = [task.reset(np.random.default_rng(0))] * 3
    outcomes = task.step(states, ["1", "", "3"], [None] * 3)
    assert [outcome.reward for outcome in outcomes] == [1.0, -1.0, 3.0]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([], abs), {}, "prompts is empty"),
        (("text", abs), {}, "prompts is one text"),
        ((["a", 3], abs), {}, r"prompts\[1\] is 3 and must be a text"),
        ((["<FILL_ME> and <FILL_ME>"], abs), {}, r"prompts\[0\] holds <FILL_ME> more than once"),
        ((["a"], 1.0), {}, "reward is 1.0 and must be a function"),
        ((["a"], abs), {"failure_reward": float("nan")}, "failure_reward is nan"),
    ],
)
def test_arguments_that_cannot_be_used_are_named(arguments, options, message):
    with pytest.raises(UsageError, match=message):
        FunctionTask(*arguments, **options)
