"""A small text MDP: spell the word of a place, letter by letter, while places change by chance.

Its soft-optimal values and policy can be computed exactly, yet it has everything that the
token-level theory is about: actions of one to four tokens, ended by a stop token or by the length
limit, a reward at an action's last token, stochastic transitions, several steps.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from env.base import State, Step, Task, UsageError

LETTERS = ("a", "b", "c")
STOP = ""
"""The stop token, which stands for the token that ends an action in the caller's vocabulary."""
TOKENS = (*LETTERS, STOP)
MAX_TOKENS = 4
"""Largest number of tokens of an action, stop token included; a fourth letter ends it too."""

_WORDS = {"red": "ab", "green": "cab", "blue": "b"}
PLACES = tuple(_WORDS)
_CONTROL = 0.75
"""Probability that the last letter decides the next place; otherwise it is drawn uniformly."""


class ToyTask(Task):
    """Episodes of `max_steps` actions.

    The text of an action is read letter by letter, up to `MAX_TOKENS`. Other characters than the
    letters of the alphabet are ignored, so that every text is an action and none fails.
    """

    name = "toy"

    def __init__(self, *, max_steps: int = 3):
        if max_steps < 1:
            raise UsageError(f"max_steps is {max_steps} and must be at least 1")
        self.max_steps = max_steps

    def reset(self, rng: np.random.Generator) -> State:
        """Draws a place uniformly."""
        return self.state(0, str(rng.choice(PLACES)))

    def state(self, t: int, place: str) -> State:
        """Returns the state of step `t` in `place`."""
        return State(t, {"place": place})

    def render(self, state: State, *, shorten: int = 0) -> str:
        """Returns a line that tells the place and the number of steps left."""
        del shorten
        left = self.max_steps - state.t
        return f"place {state.data['place']}, steps left {left}, word: <FILL_ME>\n"

    def step(
        self, states: Sequence[State], actions: Sequence[str], rngs: Sequence[np.random.Generator]
    ) -> list[Step]:
        """Rewards each word and draws the next place from `transition`."""
        return [
            self._step(state, letters_of(action), rng)
            for state, action, rng in zip(states, actions, rngs, strict=True)
        ]

    def program(self, action: str) -> str:
        """Returns the word that the action was taken for."""
        return letters_of(action) + "\n"

    def _step(self, state: State, letters: str, rng: np.random.Generator) -> Step:
        place = state.data["place"]
        following = str(rng.choice(PLACES, p=transition(place, letters)))
        is_last = state.t + 1 >= self.max_steps
        next_state = None if is_last else self.state(state.t + 1, following)
        return Step(reward(place, letters), next_state, "", {"letters": letters})


def letters_of(action: str) -> str:
    """Returns the letters of the alphabet in a text, `MAX_TOKENS` at most."""
    return "".join(c for c in action if c in LETTERS)[:MAX_TOKENS]


def actions() -> list[tuple[str, ...]]:
    """Returns all actions: up to three letters and a stop token, or four letters."""
    stopped = [
        (*letters, STOP)
        for length in range(MAX_TOKENS)
        for letters in itertools.product(LETTERS, repeat=length)
    ]
    return stopped + list(itertools.product(LETTERS, repeat=MAX_TOKENS))


def is_complete(tokens: Sequence[str]) -> bool:
    """Returns whether a token sequence is an action rather than the beginning of one."""
    return len(tokens) == MAX_TOKENS or (len(tokens) > 0 and tokens[-1] == STOP)


def reward(place: str, letters: str) -> float:
    """Returns the share of letters that are right and in their place, between 0 and 1."""
    word = _WORDS[place]
    hits = sum(a == b for a, b in zip(word, letters, strict=False))
    return hits / max(len(word), len(letters))


def transition(place: str, letters: str) -> np.ndarray:
    """Returns the probabilities [places] of the next place; an empty word tends to stay."""
    target = LETTERS.index(letters[-1]) if letters else PLACES.index(place)
    probabilities = np.full(len(PLACES), (1 - _CONTROL) / len(PLACES))
    probabilities[target] += _CONTROL
    return probabilities
