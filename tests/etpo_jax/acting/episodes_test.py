"""Steps run in the background, and what a task returns is checked."""

import threading
import time

import pytest

from env.base import State, Step, Task, UsageError
from env.tasks.function_task import FunctionTask
from etpo_jax.acting.episodes import Episodes
from etpo_jax.acting.rollout import TokenPrompts


class Words:
    infills_lines = False

    def encode_prompt(self, text):
        return [7] * len(text.split())


@pytest.fixture
def open_episodes():
    """Makes an episode of the task with that reward; closes it in the end."""
    opened = []

    def make(reward):
        task = FunctionTask(["prompt"], reward)
        opened.append(Episodes(task, TokenPrompts(task, Words(), 10), 1, seed=0))
        return opened[-1]

    yield make
    for episodes in opened:
        episodes.close()


def test_all_steps_run_in_one_background_thread(open_episodes):
    threads = []
    episodes = open_episodes(lambda prompt, text: threads.append(threading.current_thread()) or 1)
    for text in ("a", "b"):
        (step,) = episodes.collect(episodes.start([text]))
        assert step.reward == 1
    first, second = threads
    assert first is second
    assert first is not threading.main_thread()
    episodes.close()
    first.join(10)
    assert not first.is_alive()


def test_an_error_of_the_task_reaches_the_one_who_collects(open_episodes):
    def reward(prompt, text):
        raise KeyboardInterrupt

    episodes = open_episodes(reward)
    with pytest.raises(KeyboardInterrupt):
        episodes.collect(episodes.start(["a"]))


def test_a_step_without_end_keeps_nothing_from_ending(open_episodes):
    begun, may_end, threads = threading.Event(), threading.Event(), []

    def reward(prompt, text):
        threads.append(threading.current_thread())
        begun.set()
        return float(may_end.wait(60))

    episodes = open_episodes(reward)
    episodes.start(["a"])
    assert begun.wait(60)
    (thread,) = threads
    start = time.monotonic()
    episodes.close()
    assert time.monotonic() - start < 30
    assert thread.daemon  # the interpreter does not wait for it either
    may_end.set()
    thread.join(60)
    assert not thread.is_alive()


class Answers(Task):
    """A task whose steps are what a test gives."""

    def __init__(self, steps, data=None):
        self.steps, self.data = steps, data or {}

    def reset(self, rng):
        return State(0, self.data)

    def render(self, state, *, shorten=0):
        return "prompt"

    def step(self, states, actions, rngs):
        return self.steps


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (None, "must return 1 steps, not None"),
        ([], r"must return 1 steps, not \[\]"),
        ([(1.0, None)], "a finite reward and a text as error"),
        ([Step(float("nan"), None, "", {})], "a finite reward"),
        ([Step("1", None, "", {})], "a finite reward"),
        ([Step(1.0, None, None, {})], "a text as error"),
        ([Step(1.0, State(1, {"seen": {1}}), "", {})], "JSON values: Object of type set"),
        ([Step(1.0, {"t": 1}, "", {})], "a state must be a State"),
    ],
)
def test_what_a_task_returns_is_checked_before_it_is_learnt_from(steps, message):
    task = Answers(steps)
    episodes = Episodes(task, TokenPrompts(task, Words(), 10), 1, seed=0)
    with pytest.raises(UsageError, match=f"task task: .*{message}"):
        episodes.collect(episodes.start(["action"]))
    episodes.close()


def test_a_first_state_that_no_checkpoint_can_hold_is_refused():
    task = Answers([], data={"seen": {1}})
    with pytest.raises(UsageError, match="task task: a state must be a State whose data are JSON"):
        Episodes(task, TokenPrompts(task, Words(), 10), 1, seed=0)
