"""Tasks, states and steps: the interface between the trainer and an environment."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

FILL_ME = "<FILL_ME>"
"""Marks the place in a prompt that the action replaces."""


class UsageError(ValueError):
    """Bad input by the user; the text is the one line that they see (programs exit with 2)."""


@dataclasses.dataclass(frozen=True)
class State:
    """One state of an episode: a plain value, so that a run can be checkpointed between any steps.

    Attributes:
      t: environment steps already taken in this episode.
      data: JSON values that only the task interprets.
    """

    t: int
    data: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Step:
    """The outcome of one action.

    Attributes:
      reward: r(s_t, a_t) of Eq. 10.
      next_state: s_{t+1}, or None when the episode is over and nothing is bootstrapped.
      error: one line that says why the action failed; "" when it worked.
      info: JSON values for the logs, such as `split_scores` and `wall_s`.
    """

    reward: float
    next_state: State | None
    error: str
    info: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Returns the step as a dict of JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Step":
        """Restores a step from the result of `to_json`."""
        state = values["next_state"]
        return cls(**{**values, "next_state": None if state is None else State(**state)})


class Task(Protocol):
    """A family of episodes in which a text, the action, answers a prompt.

    Subclass it and define `reset`, `render` and `step`; the rest has defaults. A class with the
    same members that is no subclass is a task too.

    `reset` and `render` run in the trainer's main thread. `step` runs in a background thread while
    the device works, one call at a time and with many episodes per call, so that a task can work
    on all of them in parallel. No method runs inside jit. Whatever is random comes from the
    generators that `reset` and `step` are given: the same seed must give the same episodes.

    Attributes:
      name: stands in the logs as the data set of an episode.
      max_shorten: the largest `shorten` for which `render` gives another, shorter text.
      action_end: what ends an action beside the model's stop tokens. "" is nothing; "function" is
        the first later line that begins at the margin and so leaves the function whose body the
        action continues; "fence" is the fence that closes the first fenced code block. Decoding
        stops with the token that brings the end, which is the action's last; `step` gets the text
        before it.
    """

    name: str = "task"
    max_shorten: int = 0
    action_end: str = ""

    @abc.abstractmethod
    def reset(self, rng: np.random.Generator) -> State:
        """Returns the first state of a new episode."""

    @abc.abstractmethod
    def render(self, state: State, *, shorten: int = 0) -> str:
        """Returns the prompt of a state (the paper's eta).

        The prompt holds at most one `FILL_ME`, which the action replaces; without one the action
        follows the prompt. `shorten` from 1 to `max_shorten` gives ever shorter texts, for prompts
        that exceed the model's window.
        """

    @abc.abstractmethod
    def step(
        self, states: Sequence[State], actions: Sequence[str], rngs: Sequence[np.random.Generator]
    ) -> list[Step]:
        """Applies `actions[i]` in `states[i]`; never raises for a bad action."""

    def program(self, action: str) -> str:
        """Returns the action as a text that stands on its own, for `best_code.py`."""
        return action

    def close(self) -> None:
        """Releases processes and files; the task is not used afterwards.

        An interrupted run does not wait for a `step` that is under way, which may fail then.
        """
        return None


@runtime_checkable
class ChatTask(Task, Protocol):
    """A task whose prompts a chat model can be asked to complete.

    Attributes:
      instructions: the system message, which says what an answer must look like.
    """

    instructions: str

    def action_of(self, answer: str) -> str:
        """Extracts the action from an answer, for example code from the text around it."""
