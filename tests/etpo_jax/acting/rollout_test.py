"""Prompts are shortened until they fit the model's window."""

import pytest

from env.base import State, UsageError
from etpo_jax.acting.rollout import TokenPrompts


class Repeat:
    """A task whose prompts are a number of words, fewer when shortened."""

    name = "repeat"
    max_shorten = 2

    def render(self, state, *, shorten=0):
        return "word " * (state.data["words"] - 4 * shorten)


class Words:
    infills_lines = False

    def encode_prompt(self, text):
        return [7] * len(text.split())


@pytest.fixture
def messages(monkeypatch):
    found = []
    monkeypatch.setattr(
        "absl.logging.warning", lambda text, *arguments: found.append(text % arguments)
    )
    return found


def test_the_longest_text_that_fits_is_taken_and_shortening_is_told_once(messages):
    prompts = TokenPrompts(Repeat(), Words(), max_prompt_length=10)
    assert len(prompts.encode(State(0, {"words": 10})).tokens) == 10
    assert messages == []
    assert len(prompts.encode(State(1, {"words": 13})).tokens) == 9
    assert len(prompts.encode(State(2, {"words": 18})).tokens) == 10
    assert len(messages) == 1
    assert "--max_prompt_length=10" in messages[0]


def test_a_prompt_that_never_fits_is_an_error():
    prompts = TokenPrompts(Repeat(), Words(), max_prompt_length=10)
    with pytest.raises(UsageError, match="the shortest prompt of repeat has 12 tokens"):
        prompts.encode(State(0, {"words": 20}))
