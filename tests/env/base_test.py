"""A user's task defines three methods and inherits the rest."""

import numpy as np
import pytest

from env.base import ChatTask, State, Step, Task


class Guess(Task):
    def reset(self, rng):
        return State(0, {"number": int(rng.integers(10))})

    def render(self, state, *, shorten=0):
        return "A number below ten: "

    def step(self, states, actions, rngs):
        return [
            Step(float(action == str(state.data["number"])), None, "", {})
            for state, action in zip(states, actions, strict=True)
        ]


def test_a_task_is_three_methods():
    task = Guess()
    state = task.reset(np.random.default_rng(0))
    (step,) = task.step([state], [str(state.data["number"])], [None])
    assert (step.reward, step.next_state) == (1.0, None)
    assert (task.name, task.max_shorten, task.program("7"), task.close()) == ("task", 0, "7", None)
    assert not isinstance(task, ChatTask)


@pytest.mark.parametrize("name", ["reset", "render", "step"])
def test_none_of_the_three_can_be_left_out(name):
    members = {key: vars(Guess)[key] for key in ("reset", "render", "step") if key != name}
    with pytest.raises(TypeError, match=name):
        type("Partial", (Task,), members)()


def test_steps_survive_json():
    for following in (None, State(1, {"a": 1})):
        step = Step(0.5, following, "", {"x": [1]})
        assert Step.from_json(step.to_json()) == step
