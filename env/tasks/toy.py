"""A small text MDP: spell the word of a place, letter by letter, while places change by chance.

Small enough for its soft-optimal values and policy to be computed exactly (`toy_optimum`), yet
with all that the token-level theory is about: actions of one to four tokens, ended by a stop token
or by the length limit, a reward at an action's last token, stochastic transitions, several steps.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from env.base import State, Step, UsageError

LETTERS = ("a", "b", "c")
STOP = ""
"""The stop token: whatever ends an action in the vocabulary of the caller."""
TOKENS = (*LETTERS, STOP)
MAX_TOKENS = 4
"""Tokens of an action at most, the stop token included; a fourth letter ends an action too."""

_WORDS = {"red": "ab", "green": "cab", "blue": "b"}
PLACES = tuple(_WORDS)
_CONTROL = 0.75
"""Probability that the last letter decides where to go next; otherwise all places are alike."""


class ToyTask:
    """Episodes of `max_steps` actions; an `env.base.Task`.

    The text of an action is read letter by letter, up to `MAX_TOKENS`; what is no letter of the
    alphabet is passed over, so that every text is an action and none fails.
    """

    name = "toy"
    max_shorten = 0

    def __init__(self, *, max_steps: int = 3):
        if max_steps < 1:
            raise UsageError(f"max_steps is {max_steps} and must be at least 1")
        self.max_steps = max_steps

    def reset(self, rng: np.random.Generator) -> State:
        """A place drawn uniformly."""
        return self.state(0, str(rng.choice(PLACES)))

    def state(self, t: int, place: str) -> State:
        """The state of step `t` in `place`."""
        return State(t, {"place": place})

    def render(self, state: State, *, shorten: int = 0) -> str:
        """Where one is and how many steps are left."""
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
        """The word that was read."""
        return letters_of(action) + "\n"

    def close(self) -> None:
        """Nothing to release."""

    def _step(self, state: State, letters: str, rng: np.random.Generator) -> Step:
        place = state.data["place"]
        following = str(rng.choice(PLACES, p=transition(place, letters)))
        is_last = state.t + 1 >= self.max_steps
        next_state = None if is_last else self.state(state.t + 1, following)
        return Step(reward(place, letters), next_state, "", {"letters": letters})


def letters_of(action: str) -> str:
    """The letters of the alphabet in a text, `MAX_TOKENS` at most."""
    return "".join(c for c in action if c in LETTERS)[:MAX_TOKENS]


def actions() -> list[tuple[str, ...]]:
    """All actions as token sequences: up to three letters and the stop token, or four letters."""
    stopped = [
        (*letters, STOP)
        for length in range(MAX_TOKENS)
        for letters in itertools.product(LETTERS, repeat=length)
    ]
    return stopped + list(itertools.product(LETTERS, repeat=MAX_TOKENS))


def is_complete(tokens: Sequence[str]) -> bool:
    """Whether a token sequence is an action rather than the beginning of one."""
    return len(tokens) == MAX_TOKENS or (len(tokens) > 0 and tokens[-1] == STOP)


def reward(place: str, letters: str) -> float:
    """The share of letters that are right and in their place, between 0 and 1."""
    word = _WORDS[place]
    hits = sum(a == b for a, b in zip(word, letters, strict=False))
    return hits / max(len(word), len(letters))


def transition(place: str, letters: str) -> np.ndarray:
    """Probabilities [places] of the next place; without a letter one tends to stay."""
    target = LETTERS.index(letters[-1]) if letters else PLACES.index(place)
    probabilities = np.full(len(PLACES), (1 - _CONTROL) / len(PLACES))
    probabilities[target] += _CONTROL
    return probabilities
