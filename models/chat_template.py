"""Chat templates of tokenizers: a conversation as the text that a chat model continues."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from models.config import read_json
from models.errors import ModelError

Message = Mapping[str, str]
"""One turn of a conversation: `role` is "system", "user" or "assistant", `content` its text."""

# Answers are short: a model that can think aloud is asked not to. A date that changes would change
# the prompts of a run that is resumed; Llama's templates name this one themselves.
_VARIABLES: dict[str, Any] = {"enable_thinking": False, "date_string": "26 Jul 2024"}


class ChatTemplate:
    """A template in Jinja, rendered as `transformers` renders it, in its sandbox."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], path: pathlib.Path):
        """Takes a template, the special tokens by name that it may use, and its file."""
        self._source = source
        self._special_tokens = special_tokens
        self._path = path

    def render(self, messages: Sequence[Message]) -> str:
        """The conversation up to where the model's answer begins.

        A template that refuses system messages gets that text at the start of the user's first.

        Raises:
          ModelError: the template cannot be rendered.
        """
        try:
            return self._render(messages)
        except Exception as error:  # a template may raise anything
            if messages[0]["role"] != "system":
                raise self._unusable(error) from error
        system, first, *others = messages
        merged = {**first, "content": f"{system['content']}\n\n{first['content']}"}
        try:
            return self._render([merged, *others])
        except Exception as error:
            raise self._unusable(error) from error

    def _render(self, messages: Sequence[Message]) -> str:
        # Starts slowly, and only chat models need it.
        from transformers.utils.chat_template_utils import render_jinja_template

        variables: dict[str, Any] = {**self._special_tokens, **_VARIABLES}
        # Annotated there as a text, it is a pair of texts and places.
        rendered: Any = render_jinja_template(
            [[dict(message) for message in messages]],
            chat_template=self._source,
            add_generation_prompt=True,
            **variables,
        )
        return rendered[0][0]

    def _unusable(self, error: Exception) -> ModelError:
        reason = " ".join(str(error).split())[:200]
        return ModelError(f"{self._path}: the chat template cannot be rendered ({reason})")


def read_template(folder: pathlib.Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
    """Reads the chat template of a model folder, None if it has none.

    It is `chat_template.jinja`, else `chat_template` in `tokenizer_config.json`; of several
    templates the one that is named "default".

    Raises:
      ModelError: what stands in its place is no template.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return ChatTemplate(path.read_text(encoding="utf-8"), special_tokens, path)
    path = folder / "tokenizer_config.json"
    value: Any = read_json(path).get("chat_template") if path.is_file() else None
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value}
        value = named.get("default")
    if value is None:
        return None
    if not isinstance(value, str):
        raise ModelError(f"{path}: chat_template is no text")
    return ChatTemplate(value, special_tokens, path)
