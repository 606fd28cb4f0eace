"""A task made from prompts and a reward function of the user's."""

import hashlib
import inspect
import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from env.base import FILL_ME, State, Step, Task, UsageError
from env.execution.error_text import clean_error
from env.execution.results import FAILURE_REWARD
from env.tasks.answers import ANY_TEXT

RAISED = "raised"
"""Member of `Step.info` that is there if the reward function raised an exception."""


class FunctionTask(Task):
    """Episodes of one step: a prompt, a completion, and the reward that a function gives it.

    Args:
      prompts: texts to draw from uniformly, each with at most one `<FILL_ME>`.
      reward: takes prompt and completion and returns a finite number. It runs in a background
        thread of the trainer. If it raises or returns anything else, the completion has failed; a
        run in which nothing else happens ends with that error. No limit of time is set: the run
        waits for it, so a reward that may hang needs its own limit.
      failure_reward: reward of a completion that failed; finite.
      name: stands in the logs as the data set of an episode.

    Raises:
      UsageError: naming the argument that cannot be used.
    """

    instructions = ANY_TEXT

    def __init__(
        self,
        prompts: Sequence[str],
        reward: Callable[[str, str], float],
        *,
        failure_reward: float = FAILURE_REWARD,
        name: str = "function",
    ):
        if isinstance(prompts, str):
            raise UsageError("prompts is one text and must be a sequence of texts")
        self._prompts = tuple(prompts)
        if not self._prompts:
            raise UsageError("prompts is empty and must hold at least one text")
        for i, prompt in enumerate(self._prompts):
            if not isinstance(prompt, str):
                raise UsageError(f"prompts[{i}] is {prompt!r:.80} and must be a text")
            if prompt.count(FILL_ME) > 1:
                raise UsageError(f"prompts[{i}] holds {FILL_ME} more than once: {prompt!r:.80}")
        if not callable(reward):
            raise UsageError(f"reward is {reward!r:.80} and must be a function")
        if not math.isfinite(failure_reward):
            raise UsageError(f"failure_reward is {failure_reward} and must be finite")
        self.name = name
        self._reward = reward
        self._failure_reward = float(failure_reward)

    def reset(self, rng: np.random.Generator) -> State:
        """Draws a prompt."""
        return State(0, {"prompt": self._prompts[rng.integers(len(self._prompts))]})

    def render(self, state: State, *, shorten: int = 0) -> str:
        """Returns the prompt that was drawn."""
        del shorten
        return state.data["prompt"]

    def step(
        self, states: Sequence[State], actions: Sequence[str], rngs: Sequence[np.random.Generator]
    ) -> list[Step]:
        """Rewards each completion and ends its episode."""
        del rngs
        return [
            self._step(state.data["prompt"], action)
            for state, action in zip(states, actions, strict=True)
        ]

    def action_of(self, answer: str) -> str:
        """Returns the answer itself: the reward function decides what it is worth."""
        return answer

    def _step(self, prompt: str, completion: str) -> Step:
        try:
            reward = _finite(self._reward(prompt, completion))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # the user's own code, which may raise anything
            return Step(self._failure_reward, None, _describe(error), {RAISED: True})
        return Step(reward, None, "", {})


def digest(prompts: Sequence[str], reward: Callable[[str, str], float]) -> str:
    """Tells prompts and reward functions apart, as far as the source of the function is known."""
    try:
        source = inspect.getsource(reward)
    except (OSError, TypeError):
        source = ""
    name = getattr(reward, "__qualname__", type(reward).__qualname__)
    text = json.dumps([list(prompts), name, source])
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _finite(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"the reward function returned {value!r:.80}, not a finite number")
    return number


def _describe(error: BaseException) -> str:
    try:
        message = str(error)
    except Exception:  # the exception's own code
        message = ""
    return clean_error(f"{type(error).__name__}: {message}".rstrip(": "))
