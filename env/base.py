"""What a task is: the protocol between the trainer and anything that answers text with rewards."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np


class UsageError(Exception):
    """Bad input by the user; the text is the one line that they see (programs exit with 2)."""


@dataclasses.dataclass(frozen=True)
class State:
    """One state of an episode: a plain value, so that a run can be checkpointed between any steps.

    Attributes:
      t: environment steps already taken in this episode.
      data: JSON values only; their meaning belongs to the task.
    """

    t: int
    data: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Step:
    """The outcome of one action.

    Attributes:
      reward: r(s_t, a_t) of Eq. 10.
      next_state: s_{t+1}, or None when the episode is over (there is nothing to bootstrap from).
      error: what went wrong, one line; "" when the action worked.
      info: JSON values for the logs, such as `split_scores` and `wall_s`.
    """

    reward: float
    next_state: State | None
    error: str
    info: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Step":
        """The inverse of `to_json`."""
        state = values["next_state"]
        return cls(**{**values, "next_state": None if state is None else State(**state)})


class Task(Protocol):
    """A family of episodes in which a text answers a prompt.

    `step` takes many episodes at once, so that a task can work on all of them in parallel, and is
    called from a background thread of the trainer.
    """

    name: str
    max_shorten: int

    def reset(self, rng: np.random.Generator) -> State:
        """The first state of a new episode."""

    def render(self, state: State, *, shorten: int = 0) -> str:
        """The prompt of a state (the paper's eta), holding exactly one `<FILL_ME>`.

        `shorten` from 1 to `max_shorten` gives ever shorter texts, for prompts that exceed the
        model's window.
        """

    def step(
        self, states: Sequence[State], actions: Sequence[str], rngs: Sequence[np.random.Generator]
    ) -> list[Step]:
        """Applies `actions[i]` in `states[i]`; never raises for a bad action."""

    def program(self, action: str) -> str:
        """The action as a text that stands on its own, for `best_code.py`."""

    def close(self) -> None:
        """Releases processes and files; the task is not used afterwards."""


@runtime_checkable
class ChatTask(Task, Protocol):
    """A task whose prompts a chat model can be asked to complete.

    Attributes:
      instructions: the system message: what an answer must look like.
    """

    instructions: str

    def action_of(self, answer: str) -> str:
        """The action that an answer means: code without the talk around it, say."""
