"""A reward function that always fails ends the run, one that fails at times does not."""

import pytest

from env.base import State, Step, UsageError
from env.tasks.function_task import FunctionTask
from etpo_jax.acting.plugin_failures import PluginFailures


def steps_of(reward, completions):
    task = FunctionTask(["p"], reward)
    return task.step([State(0, {"prompt": "p"})] * len(completions), completions, [])


def fail_with(error):
    def reward(prompt, completion):
        raise error

    return reward


@pytest.mark.parametrize(("error", "collections"), [(NameError("x"), 1), (ValueError("x"), 3)])
def test_a_reward_that_always_fails_ends_the_run(error, collections):
    failures, steps = PluginFailures(), steps_of(fail_with(error), ["a", "b"])
    for _ in range(collections - 1):
        failures.check(steps, has_worked=False)
    with pytest.raises(UsageError, match=f"every one of 2 completions with {type(error).__name__}"):
        failures.check(steps, has_worked=False)


def test_a_run_in_which_anything_worked_goes_on():
    failures, steps = PluginFailures(), steps_of(fail_with(NameError("x")), ["a", "b"])
    failures.check(steps, has_worked=True)
    failures.check([*steps, Step(0.5, None, "", {})], has_worked=False)
    failures.check([], has_worked=False)


def test_errors_that_depend_on_the_completion_do_not_count():
    def reward(prompt, completion):
        return float(completion)

    failures = PluginFailures()
    for _ in range(5):
        failures.check(steps_of(reward, ["one", "two"]), has_worked=False)
    for _ in range(2):
        failures.check(steps_of(reward, ["one", "one"]), has_worked=False)
    with pytest.raises(UsageError, match=r"could not convert string to float: 'one'"):
        failures.check(steps_of(reward, ["one", "one"]), has_worked=False)


def test_failures_of_programs_do_not_count():
    failed = Step(-1.0, None, "NameError: the program's own", {"wall_s": 0.1})
    for _ in range(5):
        PluginFailures().check([failed], has_worked=False)
