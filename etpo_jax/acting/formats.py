"""Prompt formats: how the state of a task becomes token ids, and a completion the action.

`infill` shows the text on both sides of `<FILL_ME>` by the model's infilling tokens, `complete` the
text before it, and `chat` is a conversation by the tokenizer's chat template.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from env.base import FILL_ME, State, Task, UsageError
from env.tasks.answers import ANY_TEXT
from env.tasks.prompts import FORMATS
from models.chat_template import Message
from models.tokenizer import Tokenizer

_BLANK_LINES = re.compile(r"\A(?:[ \t]*\n)+")


class Prompt(NamedTuple):
    """A prompt as a model reads it, with the function that reads the completion.

    Attributes:
      text: the state's text, or the whole conversation in the format chat.
      tokens: int32 ids [p]; none for a model that takes text.
      read: makes the action of a completion.
    """

    text: str
    tokens: np.ndarray
    read: Callable[[str], str] = str


def choose(setting: str, tokenizer: Tokenizer) -> str:
    """The format that the setting and a model make: one of `FORMATS`.

    `auto` is chat for a tokenizer with a chat template, else infill for a model with infilling
    tokens, else complete.

    Args:
      setting: auto or a format.
      tokenizer: the model's.

    Raises:
      UsageError: the model does not have what the format needs.
    """
    able = {
        "chat": tokenizer.has_chat_template,
        "infill": tokenizer.has_infilling,
        "complete": True,
    }
    if setting == "auto":
        return next(name for name, is_able in able.items() if is_able)
    if not able[setting]:
        lack = {"chat": "chat template", "infill": "infilling tokens"}[setting]
        raise UsageError(f"--prompt_format={setting}: this model's tokenizer has no {lack}")
    return setting


def usable(tokenizer: Tokenizer) -> list[str]:
    """The formats that a model can be prompted in."""
    is_able = {"infill": tokenizer.has_infilling, "chat": tokenizer.has_chat_template}
    return [name for name in FORMATS if is_able.get(name, True)]


def describe(setting: str, tokenizer: Tokenizer) -> str:
    """The chosen format as a line for the screen, such as "prompts: infill (auto)"."""
    chosen = choose(setting, tokenizer)
    return f"prompts: {chosen}{' (auto)' if setting == 'auto' else ''}"


def conversation(task: Task, state: State, *, shorten: int = 0) -> list[Message]:
    """The state as turns of a conversation: those of the task, else instructions and its text."""
    messages = getattr(task, "messages", None)
    if messages is not None:
        return messages(state, shorten=shorten)
    return _request(task.render(state, shorten=shorten), getattr(task, "instructions", ANY_TEXT))


def chat_prompt(
    tokenizer: Tokenizer, messages: list[Message], read: Callable[[str], str] = str
) -> Prompt:
    """The prompt of a conversation; `read` takes the action out of an answer."""
    ids = np.array(tokenizer.encode_chat(messages), np.int32)
    return Prompt(tokenizer.render_chat(messages), ids, read)


def text_prompt(tokenizer: Tokenizer, text: str, prompt_format: str) -> Prompt:
    """The prompt of a text with at most one `<FILL_ME>`; without one the completion follows it.

    Where a model has not learnt gaps at any character, white space before the marker belongs to the
    completion, and a marker that is first on its line stands for whole lines. The action has
    neither the white space nor the last line break.

    Args:
      tokenizer: the model's.
      text: as a task renders it.
      prompt_format: one of `FORMATS`.

    Raises:
      ValueError: the marker is repeated.
    """
    if prompt_format == "chat":
        return chat_prompt(tokenizer, _request(text, ANY_TEXT))
    is_literal = prompt_format == "infill" and not tokenizer.infills_lines
    if is_literal or text.count(FILL_ME) != 1:
        return Prompt(text, np.array(tokenizer.encode_prompt(text), np.int32))
    before, after = text.split(FILL_ME)
    kept = before.rstrip(" \t")
    has_lines = kept.endswith("\n") or not kept
    ends_line = has_lines and after.startswith("\n")
    if prompt_format == "complete":
        ids = tokenizer.encode(kept)
    else:
        ids = tokenizer.encode_infill(kept + FILL_ME + after[ends_line:])

    def read(completion: str) -> str:
        if has_lines:
            completion = _BLANK_LINES.sub("", completion)
        if kept != before:
            completion = completion.lstrip(" \t")
        return completion.removesuffix("\n") if ends_line else completion

    return Prompt(text, np.array(ids, np.int32), read)


def _request(text: str, instructions: str) -> list[Message]:
    return [{"role": "system", "content": instructions}, {"role": "user", "content": text}]
