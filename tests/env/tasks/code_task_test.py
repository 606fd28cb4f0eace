"""Episodes of the code task over a fake executor."""

import json

import numpy as np
import pytest

from env.base import State, UsageError
from env.datasets import load_dataset
from env.execution.results import ExecutionResult
from env.tasks import prompts
from env.tasks.code_task import CodeTask


class FakeExecutor:
    """Bodies that contain "fail" fail; the others score a tenth of their length."""

    def __init__(self):
        self.batches = []
        self.is_closed = False

    def run(self, bodies):
        self.batches.append(list(bodies))
        return [
            ExecutionResult(-1.0, (), f"ValueError: {body}", 0.5)
            if "fail" in body
            else ExecutionResult(len(body) / 10, (len(body) / 10,) * 5, "", 0.25)
            for body in bodies
        ]

    def close(self):
        self.is_closed = True


@pytest.fixture(scope="module")
def dataset():
    return load_dataset("balance_scale")


def step(task, states, actions):
    return task.step(states, actions, [np.random.default_rng(0)] * len(states))


def test_a_program_that_runs_ends_the_episode_with_its_score(dataset):
    task = CodeTask(dataset, FakeExecutor())
    (outcome,) = step(task, [task.reset(np.random.default_rng(0))], ["good"])
    assert (outcome.reward, outcome.next_state, outcome.error) == (0.4, None, "")
    assert outcome.info == {"split_scores": [0.4] * 5, "wall_s": 0.25, "cached": False}


def test_a_failure_costs_one_and_leads_to_the_reflective_prompt(dataset):
    task = CodeTask(dataset, FakeExecutor())
    state = task.reset(np.random.default_rng(0))
    description = "Balance Scale Weight & Distance"
    assert task.render(state) == prompts.first_prompt(description, 62, 4)
    (outcome,) = step(task, [state], ["fail"])
    assert (outcome.reward, outcome.error) == (-1.0, "ValueError: fail")
    assert outcome.next_state.t == 1
    restored = State(1, json.loads(json.dumps(outcome.next_state.data)))
    assert task.render(restored) == prompts.reflective_prompt(
        description, 62, 4, "fail", "ValueError: fail"
    )
    assert task.render(restored, shorten=task.max_shorten) == prompts.reflective_prompt(
        description, 62, 4, "fail", "ValueError: fail", shorten=prompts.MAX_SHORTEN
    )


def test_the_step_limit_is_a_done(dataset):
    task = CodeTask(dataset, FakeExecutor(), max_steps=2)
    (first,) = step(task, [task.reset(np.random.default_rng(0))], ["fail"])
    (second,) = step(task, [first.next_state], ["fail again"])
    assert second.next_state is None
    assert (second.reward, second.error) == (-1.0, "ValueError: fail again")


def test_a_batch_is_one_run_in_order_and_refused_bodies_never_run(dataset):
    executor = FakeExecutor()
    task = CodeTask(dataset, executor)
    actions = ["one", "GridSearchCV(SVC(), {})", "fail", "three"]
    outcomes = step(task, [State(0, {})] * 4, actions)
    assert executor.batches == [["one", "fail", "three"]]
    assert [outcome.reward for outcome in outcomes] == [0.3, -1.0, -1.0, 0.5]
    refused = outcomes[1]
    assert refused.error == "do not use GridSearchCV"
    assert refused.next_state.data == {"body": actions[1], "error": "do not use GridSearchCV"}
    assert "function: do not use GridSearchCV. Please fix it." in task.render(refused.next_state)


def test_nothing_runs_when_everything_is_refused(dataset):
    executor = FakeExecutor()
    task = CodeTask(dataset, executor, forbidden_constructs=("import os", "eval"))
    assert [o.error for o in step(task, [State(4, {})], ["eval('1')"])] == ["do not use eval"]
    assert executor.batches == []


def test_nothing_is_refused_with_an_empty_list(dataset):
    task = CodeTask(dataset, FakeExecutor(), forbidden_constructs=())
    assert step(task, [State(0, {})], ["GridSearchCV("])[0].error == ""


def test_official_style_shows_the_whole_table(dataset):
    task = CodeTask(dataset, FakeExecutor(), prompt_style="official")
    assert "in shape (125, 4)" in task.render(State(0, {}))


def test_the_format_decides_the_style_where_none_is_given(dataset):
    for name in prompts.FORMATS:
        task, paper = CodeTask(dataset, None), CodeTask(dataset, None, prompt_style="paper")
        for other in (task, paper):
            other.use_format(name)
        scored = "predict_proba" in task.render(State(0, {}))
        assert scored == (name != "infill")
        assert "predict_proba" not in paper.render(State(0, {}))


def test_a_failure_is_a_second_turn_of_a_conversation(dataset):
    task = CodeTask(dataset, None)
    first = task.messages(State(0, {}))
    assert [turn["role"] for turn in first] == ["system", "user"]
    assert "Balance Scale Weight & Distance" in first[1]["content"]
    styled = CodeTask(dataset, None, prompt_style="paper")
    assert styled.messages(State(0, {}))[1]["content"] == styled.render(State(0, {}))
    body = "x = 1\n" + "    y = '```'\n" * 50
    state = State(1, {"body": body, "error": "ValueError: " + "long " * 100})
    turns = task.messages(state)
    assert turns[:2] == first
    assert [turn["role"] for turn in turns[2:]] == ["assistant", "user"]
    assert turns[2]["content"].count("```") == 2
    assert task.action_of(turns[2]["content"]).startswith("x = 1\n    y = ")
    shortest = task.messages(state, shorten=task.max_shorten)
    assert len(str(shortest)) < len(str(turns)) - 800


def test_program_name_and_close(dataset):
    executor = FakeExecutor()
    task = CodeTask(dataset, executor)
    assert task.name == "balance_scale"
    assert task.program("model = 1") == prompts.program("model = 1")
    task.close()
    assert executor.is_closed


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_steps": 0}, "max_steps is 0"),
        ({"prompt_style": "poem"}, "prompt_style is 'poem'"),
        ({"forbidden_constructs": ("",)}, "empty forbidden construct"),
    ],
)
def test_bad_settings_are_named(dataset, options, named):
    with pytest.raises(UsageError, match=named):
        CodeTask(dataset, FakeExecutor(), **options)
