"""Episodes of a task side by side: its steps, and what they leave for learning and for the log.

A loop of `Episodes.encode`, `rollout.Actor.act`, `Episodes.start`, `Episodes.collect` and
`Episodes.finish` plays; the device is free between `start` and `collect`.
"""

import concurrent.futures
import functools
import json
import math
import numbers
import queue
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from env.base import State, Step, Task, UsageError
from etpo_jax.acting.formats import Prompt
from etpo_jax.acting.rollout import Actions, Prompts
from etpo_jax.acting.transitions import Transition
from etpo_jax.devices import hosts

_Started = tuple[concurrent.futures.Future[list[Step]], Callable[[], list[Step]]]


def checked_step(
    task: Task,
    states: Sequence[State],
    actions: Sequence[str],
    rngs: Sequence[np.random.Generator],
) -> list[Step]:
    """Steps a task and checks what it returns.

    Raises:
      UsageError: naming what is wrong, before it is learnt from.
    """
    try:
        steps = task.step(states, actions, rngs)
    except Exception as error:
        raise _explained(task, error) from error
    if not isinstance(steps, Sequence) or len(steps) != len(actions):
        raise UsageError(
            f"task {task.name}: step must return {len(actions)} steps, not {steps!r:.80}"
        )
    for step in steps:
        reward = step.reward if isinstance(step, Step) and isinstance(step.error, str) else None
        if not isinstance(reward, numbers.Real) or not math.isfinite(reward):
            raise UsageError(
                f"task {task.name}: step must return steps with a finite reward and a text as "
                f"error, not {step!r:.80}"
            )
        if step.next_state is not None:
            _check_state(task, step.next_state)
    return list(steps)


def _explained(task: Task, error: Exception) -> Exception:
    """One line about what the code of a user's task raised; errors of our own stay as they are."""
    frames = traceback.extract_tb(error.__traceback__)
    own = type(task).__module__.partition(".")[0] in ("env", "etpo_jax")
    if own or isinstance(error, UsageError) or not frames:
        return error
    place = f"{frames[-1].filename}, line {frames[-1].lineno}"
    text = " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")
    return UsageError(f"task {task.name}: step raised {text} ({place})")


def transition_of(actions: Actions, index: int, step: Step, prompts: Prompts) -> Transition:
    """The transition of one of the actions, of which a task made this step."""
    next_tokens = None
    if step.next_state is not None:
        next_tokens = prompts.encode(step.next_state).tokens
    return Transition(
        prompt_tokens=actions.prompt_tokens[index],
        action_tokens=actions.tokens[index],
        log_probs=actions.log_probs[index],
        reward=step.reward,
        next_prompt_tokens=next_tokens,
    )


def _check_state(task: Task, state: Any) -> State:
    """A state of the task, if checkpoints can hold it; raises UsageError otherwise."""
    try:
        json.dumps(state.data)
    except (AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            f"task {task.name}: a state must be a State whose data are JSON values: {error}"
        ) from error
    return state


def _execute(started: "queue.SimpleQueue[_Started | None]") -> None:
    """Takes steps one after another until there is a None among them."""
    while (work := started.get()) is not None:
        executing, step = work
        try:
            executing.set_result(step())
        except BaseException as error:  # whoever waits for the step gets it
            executing.set_exception(error)


class Episodes:
    """Episodes of one task side by side; an episode that ends is followed by a new one.

    A step has three parts, `start`, `collect` and `finish`, so that other work fits in while the
    task executes the actions.
    """

    def __init__(self, task: Task, prompts: Prompts, num_envs: int, seed: int):
        """Begins `num_envs` episodes, whose randomness depends on `seed` and their numbers."""
        self._task = task
        self._prompts = prompts
        self._seed = seed
        self._next_episode = 0
        self._env_step = 0
        self._episodes = [-1] * num_envs
        self._states = [State(0, {})] * num_envs
        for index in range(num_envs):
            self._renew(index)
        self._started: queue.SimpleQueue[_Started | None] = queue.SimpleQueue()
        # One thread is enough: it only waits for the executor while the device works. A daemon, so
        # that a step without end does not keep an interrupted program from ending.
        threading.Thread(
            target=_execute, args=(self._started,), name="execution", daemon=True
        ).start()

    @property
    def env_step(self) -> int:
        """Actions executed so far."""
        return self._env_step

    def encode(self) -> list[Prompt]:
        """Prompts of all current states."""
        return [self._prompts.encode(state) for state in self._states]

    def start(self, texts: Sequence[str]) -> concurrent.futures.Future[list[Step]]:
        """Begins to apply one action to each of the first `len(texts)` episodes, in the background.

        With n hosts, each host executes every n-th action, and `collect` exchanges the outcomes.
        """
        mine = range(hosts.index(), len(texts), hosts.count())
        step = functools.partial(
            checked_step,
            self._task,
            [self._states[index] for index in mine],
            [texts[index] for index in mine],
            [self._rng(self._episodes[index], self._states[index].t + 1) for index in mine],
        )
        executing: concurrent.futures.Future[list[Step]] = concurrent.futures.Future()
        self._started.put((executing, step))
        return executing

    def collect(self, executing: concurrent.futures.Future[list[Step]]) -> list[Step]:
        """Waits for the outcomes of all actions given to `start`; every host gets all of them."""
        steps = executing.result()
        if hosts.count() == 1:
            return steps
        shares = hosts.exchange([step.to_json() for step in steps])
        return [
            Step.from_json(shares[index % len(shares)][index // len(shares)])
            for index in range(sum(map(len, shares)))
        ]

    def finish(
        self, actions: Actions, steps: Sequence[Step]
    ) -> tuple[list[Transition], list[dict[str, Any]]]:
        """Moves the first `len(steps)` episodes on by one step.

        Returns:
          The transitions, and for each its row of `episodes.jsonl`.
        """
        transitions, rows = [], []
        for index, step in enumerate(steps):
            self._env_step += 1
            state, episode = self._states[index], self._episodes[index]
            rows.append(
                {
                    "env_step": self._env_step,
                    "episode": episode,
                    "t": state.t,
                    "dataset": self._task.name,
                    "prompt": actions.prompts[index],
                    "action": actions.texts[index],
                    "reward": step.reward,
                    "error": step.error,
                    "wall_s": step.info.get("wall_s"),
                    "split_scores": step.info.get("split_scores"),
                    "cached": step.info.get("cached", False),
                }
            )
            if step.next_state is None:
                self._renew(index)
            else:
                self._states[index] = step.next_state
            transitions.append(transition_of(actions, index, step, self._prompts))
        return transitions, rows

    def state(self) -> dict[str, Any]:
        """Contents for a checkpoint, as a JSON value that `restore` takes."""
        return {
            "next_episode": self._next_episode,
            "env_step": self._env_step,
            "episodes": list(self._episodes),
            "states": [{"t": state.t, "data": dict(state.data)} for state in self._states],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a value that `state` returned."""
        self._next_episode = state["next_episode"]
        self._env_step = state["env_step"]
        self._episodes = list(state["episodes"])
        self._states = [State(value["t"], value["data"]) for value in state["states"]]

    def close(self) -> None:
        """Ends the background thread after the step that is under way, without waiting for it."""
        self._started.put(None)

    def _rng(self, episode: int, t: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, episode, t])

    def _renew(self, index: int) -> None:
        episode = self._next_episode
        self._next_episode += 1
        self._episodes[index] = episode
        self._states[index] = _check_state(self._task, self._task.reset(self._rng(episode, 0)))
