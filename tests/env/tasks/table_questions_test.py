"""Episodes of questions, checked against the table that the prompt shows."""

import dataclasses
import json
import re

import numpy as np
import pytest

from env.base import State, UsageError
from env.datasets import load_dataset
from env.tasks.table_questions import NUM_ROWS, TableQuestions


@pytest.fixture(scope="module")
def task():
    return TableQuestions(load_dataset("balance_scale"))


def read(prompt):
    """The shown columns, name -> cells, and the open question."""
    lines = prompt.splitlines()
    rows = [line.split(" | ") for line in lines[1 : NUM_ROWS + 2]]
    columns = dict(zip(rows[0], zip(*rows[1:], strict=True), strict=True))
    return columns, lines[-2].removeprefix("Question: ")


def solve(prompt):
    """The answer, from the text alone."""
    columns, question = read(prompt)
    if found := re.fullmatch(r"What is the (largest|smallest) (.+)\?", question):
        pick = max if found[1] == "largest" else min
        return f"{pick(map(float, columns[found[2]])):g}"
    if found := re.fullmatch(r"How many rows have a (.+) above (.+)\?", question):
        return str(sum(float(cell) > float(found[2]) for cell in columns[found[1]]))
    found = re.fullmatch(r"What is the (.+) of row (\d)\?", question)
    return columns[found[1]][int(found[2]) - 1]


def test_the_answer_follows_from_the_prompt_in_every_turn(task):
    kinds = set()
    for seed in range(40):
        state = task.reset(np.random.default_rng(seed))
        for turn in range(3):
            assert state.t == turn
            prompt = task.render(state)
            kinds.add(read(prompt)[1].split()[3])
            (step,) = task.step([state], [solve(prompt)], [None])
            assert (step.reward, step.error) == (1.0, "")
            state = step.next_state
        assert state is None
    assert {"largest", "smallest", "have", "class", "left-weight"} < kinds


def test_a_wrong_answer_earns_nothing_and_is_shown_with_the_right_one(task):
    state = task.reset(np.random.default_rng(0))
    right = solve(task.render(state))
    (step,) = task.step([state], ["zebra <FILL_ME>\x00"], [None])
    assert (step.reward, step.error) == (0.0, f"the answer is {right}")
    prompt = task.render(step.next_state)
    assert f"Answer: zebra FILL_ME (wrong: {right})" in prompt
    assert prompt.count("<FILL_ME>") == 1
    assert prompt.endswith("Answer: <FILL_ME>\n")
    shorter = task.render(step.next_state, shorten=task.max_shorten)
    assert "zebra" not in shorter
    assert read(shorter) == read(prompt)


def test_only_the_first_line_of_an_action_counts(task):
    state = task.reset(np.random.default_rng(0))
    right = solve(task.render(state))
    actions = [f"  {right}\nQuestion: more", right + "0", "", "\n"]
    rewards = [step.reward for step in task.step([state] * 4, actions, [None] * 4)]
    assert rewards == [1.0, 0.0, 0.0, 0.0]
    assert task.program(actions[0]) == f"{right}\n"


def test_states_survive_json_and_episodes_differ(task):
    state = task.reset(np.random.default_rng(0))
    (step,) = task.step([state], ["1"], [None])
    copy = State(1, json.loads(json.dumps(step.next_state.data)))
    assert task.render(copy) == task.render(step.next_state)
    prompts = {task.render(task.reset(np.random.default_rng(seed))) for seed in range(10)}
    assert len(prompts) == 10
    task.close()


def test_what_no_question_can_be_asked_about_is_refused():
    dataset = load_dataset("balance_scale")
    with pytest.raises(UsageError, match="max_steps"):
        TableQuestions(dataset, max_steps=0)
    with pytest.raises(UsageError, match="names of the classes"):
        TableQuestions(dataclasses.replace(dataset, class_names=()))
    numbers = dataclasses.replace(dataset, labels=dataset.labels / 2, class_names=())
    with pytest.raises(UsageError, match="names of the classes"):
        TableQuestions(numbers)
    few = dataclasses.replace(dataset, labels=dataset.labels[:3])
    with pytest.raises(UsageError, match="4 rows at least"):
        TableQuestions(few)
