"""Ends of actions as tables over token ids, so that the decoding loop decides them.

Reading a text character by character, a small automaton knows whether the action has ended. A
table says for each of its states and each token in which state the text of that token leaves it:
one look-up for each row and token, and other tokenizers are other contents of the same array.
`env.tasks.endings` has the same ends on whole texts.
"""

import functools

import numpy as np
from jaxtyping import UInt8

from models.tokenizer import Tokenizer

_BREAK, _BLANK, _BRACKET, _TICK, _OTHER = range(5)
_KIND_OF_ASCII = np.full(128, _OTHER, np.uint8)
for _kind, _characters in ((_BREAK, "\n\r"), (_BLANK, " \t\f"), (_BRACKET, ")]}"), (_TICK, "`")):
    _KIND_OF_ASCII[list(_characters.encode())] = _kind

START = 0
"""State in which every action begins."""


def _automaton(*rows: tuple[int, int, int, int, int]) -> UInt8[np.ndarray, "s k"]:
    """Array of these rows and of the end."""
    return np.array([*rows, (len(rows),) * 5], np.uint8)


def _make_automata() -> dict[str, UInt8[np.ndarray, "s k"]]:
    inside, margin, left = range(3)
    function = _automaton(
        (margin, inside, inside, inside, inside),
        (margin, inside, inside, left, left),  # after a line break
    )
    # Before a fenced block: number of backticks in a row, then the rest of the fence's line.
    none, one, two, opening, rest, inline = range(6)
    code, code_one, code_two, closed = range(6, 10)
    fence = _automaton(
        (none, none, none, one, none),
        (none, none, none, two, none),
        (none, none, none, opening, none),
        (code, rest, rest, opening, rest),
        (code, rest, rest, inline, rest),
        (none, inline, inline, inline, inline),  # ```code``` within a line opens no block
        (code, code, code, code_one, code),
        (code, code, code, code_two, code),
        (code, code, code, closed, code),
    )
    return {"": _automaton((START,) * 5), "function": function, "fence": fence}


AUTOMATA = _make_automata()
"""The automaton of each value of `Task.action_end`: the state that follows state s after a
character of kind k. The kinds are line break, blank, closing bracket, backtick and any other
character; the last state is the end, which is never left."""


def state_table(
    action_end: str, tokenizer: Tokenizer | None, vocab_size: int
) -> UInt8[np.ndarray, "s v"]:
    """State that each token leads to from each state, by the text of the token.

    Args:
      action_end: a key of `AUTOMATA`.
      tokenizer: decodes the tokens; special tokens have no text and change no state. Not read
        for the ending "".
      vocab_size: number of columns; tokens beyond the tokenizer's change no state.

    Raises:
      ValueError: an unknown ending.
    """
    if action_end not in AUTOMATA:
        raise ValueError(f"action_end={action_end!r}: must be one of {', '.join(AUTOMATA)}")
    next_sk = AUTOMATA[action_end]
    state_sv = np.repeat(np.arange(len(next_sk), dtype=np.uint8)[:, None], vocab_size, axis=1)
    if action_end and tokenizer is not None:
        kinds_n, start_v, length_v = _kinds(tokenizer)
        # One character of every text at a time, the texts that still have one.
        for index in range(length_v[:vocab_size].max(initial=0)):
            (token_u,) = np.nonzero(length_v[:vocab_size] > index)
            kind_u = kinds_n[start_v[token_u] + index]
            state_sv[:, token_u] = next_sk[state_sv[:, token_u], kind_u]
    return state_sv


@functools.lru_cache(maxsize=4)
def _kinds(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Kinds of the characters of all tokens one after another; start and length of each token.

    The tables need no bytes: part of a character of several bytes decodes to U+FFFD, which is as
    little white space, bracket or backtick as the character.
    """
    texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    length_v = np.fromiter(map(len, texts), np.int64, len(texts))
    points_n = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds_n = np.where(points_n < 128, _KIND_OF_ASCII[points_n % 128], _OTHER).astype(np.uint8)
    return kinds_n, np.cumsum(length_v) - length_v, length_v
