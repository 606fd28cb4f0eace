"""A reward function that fails for all completions is named once, and the run goes on."""

import logging

import pytest

from env.base import State, Step
from env.tasks.function_task import FunctionTask
from etpo_jax.acting.plugin_failures import PluginFailures


def steps_of(reward, completions):
    task = FunctionTask(["p"], reward)
    return task.step([State(0, {"prompt": "p"})] * len(completions), completions, [])


@pytest.fixture
def messages(caplog):
    caplog.set_level(logging.WARNING)
    return caplog


def test_a_reward_that_fails_for_all_completions_is_named_once(messages):
    def reward(prompt, completion):
        raise NameError(completion[0])

    failures = PluginFailures()
    for completions in (["a", "ab"], ["ac", "ad"], ["x", "y"], ["b", "bb"]):
        failures.check(steps_of(reward, completions))
    assert [record.args[1] for record in messages.records] == ["NameError: a", "NameError: b"]
    assert "failed for all 2 completions" in messages.text


def test_errors_that_depend_on_the_completion_are_no_reason(messages):
    def reward(prompt, completion):
        return float(completion)

    failures = PluginFailures()
    failures.check(steps_of(reward, ["one", "two"]))
    failures.check(steps_of(reward, ["one", "2"]))
    failures.check([])
    assert not messages.records


def test_failures_of_programs_are_no_reason(messages):
    failed = Step(-1.0, None, "NameError: the program's own", {"wall_s": 0.1})
    PluginFailures().check([failed])
    assert not messages.records
