"""Tokenizers: infilling prompts assembled token by token, and exact decoding."""

import json
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import tokenizers

from models.chat_template import Message, read_template
from models.config import read_json
from models.errors import ModelError
from models.repository import local_folder

FILL_ME = "<FILL_ME>"
# A character that merges with no neighbour. SentencePiece puts a space before every text; a text
# that continues another is encoded and decoded behind this character, which is then cut off, as
# the published CodeLlama code does.
_SENTINEL = "☺"
_VEIL = "\ue000"  # a character for private use, which no text has


class _Infilling(NamedTuple):
    """Tokens before the prefix, suffix and middle of a prompt, in that order."""

    prefix: str
    suffix: str
    middle: str
    end: str | None  # ends a middle like the end of text, in models that have such a token


_INFILLING = (
    _Infilling("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"),  # CodeLlama 7B and 13B, the stand-in
    _Infilling("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>", None),  # DeepSeek-Coder
    _Infilling("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>", None),  # Qwen2.5-Coder
)
# Shape of added tokens that steer a model, such as <|file_sep|>, <think> or [INST]. Published files
# do not call all of them special; other added tokens (rare letters, runs of spaces) are text.
_MARKER = re.compile(r"▁?(<[^<>\s]+>|\[[^\[\]\s]+\])")


class Tokenizer:
    """The tokenizer of a model folder.

    Attributes:
      eos_ids: ids that end an action: every end of text that the tokenizer, config.json or
        generation_config.json names, and the end of infilling.
      pad_id: id of padding, never one of `eos_ids`: the pad token of the folder if it is usable,
        else its unknown token, else the first other special token.
      vocab_size: number of ids in use, at most the vocabulary of the model. Embeddings are often
        padded to more rows; their ids have no text and are never sampled.
      has_infilling: whether the model also sees the text behind a gap.
    """

    def __init__(self, folder: str | pathlib.Path) -> None:
        """Reads `tokenizer.json` and the configuration files beside it.

        Args:
          folder: a folder or name, as `models.repository.local_folder` takes it.

        Raises:
          ModelError: the folder or its tokenizer is missing, unusable, or not this model's.
        """
        folder = local_folder(folder)
        names = _special_names(folder)
        self._chat_template = read_template(folder, names)
        self._backend, special_tokens = _read(folder, set(names.values()))
        config = read_json(folder / "config.json")
        size = config.get("vocab_size")
        if not isinstance(size, int):
            raise ModelError(f"{folder / 'config.json'}: vocab_size is missing")
        bos, eos, pad, unknown = (
            self._backend.token_to_id(names.get(f"{kind}_token", ""))
            for kind in ("bos", "eos", "pad", "unk")
        )
        self._infilling = self._infilling_ids(size)
        self.has_infilling = self._infilling is not None
        ends = [] if eos is None else [eos]
        for name in ("config.json", "generation_config.json"):
            ends += _eos_ids(folder / name, size)
        self.eos_ids = frozenset([*ends, *(self._infilling or ())[3:]])
        if not self.eos_ids:
            raise ModelError(f"{folder}: neither tokenizer nor config.json names an end of text")
        added = self._backend.get_added_tokens_decoder()
        # Special tokens beyond the model's rows, as fine-tuned folders have them, are not used.
        special = sorted(i for i in special_tokens if i < size)
        in_text = [
            *self._backend.get_vocab(with_added_tokens=False).values(),
            *(added.keys() - special_tokens),
        ]
        steering = {i for i, token in added.items() if token.special}
        self._steering = frozenset([*steering, *self.eos_ids, *(self._infilling or ())])
        self._sentinel_ids = self._sentinel()
        # The tokenizers of the CodeLlama format always begin a text with the begin token.
        is_code_llama = self._infilling is not None and len(self._infilling) > 3
        self._bos_ids = [bos] if is_code_llama and bos is not None else self._begin()
        self._dropped = frozenset([*special, *self.eos_ids, *(self._infilling or ())])
        self.vocab_size = 1 + max(*in_text, *self._bos_ids, *self._dropped)
        if self.vocab_size > size:
            raise ModelError(
                f"{folder}: the tokenizer has {self.vocab_size} tokens, config.json says {size}"
            )
        usable = [i for i in (pad, unknown, *special) if i in special and i not in self.eos_ids]
        if not usable:
            raise ModelError(f"{folder}: the tokenizer has no special token that can be padding")
        self.pad_id = usable[0]

    def encode(self, text: str) -> list[int]:
        """Ids of a text from its beginning, as transformers encodes it for the model.

        The begin-of-text token comes first if `tokenizer.json` adds it to a text, and always in the
        CodeLlama format. Text that spells a marker or a special token is encoded as text.
        """
        return self._bos_ids + self._encode(text)

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a prompt: infilled where it holds one `<FILL_ME>`, continued where it holds none.

        Raises:
          ValueError: the marker is repeated.
        """
        count = text.count(FILL_ME)
        if count > 1:
            raise ValueError(f"a prompt holds at most one {FILL_ME}, not {count}")
        return self.encode_infill(text) if count else self.encode(text)

    def encode_infill(self, text: str) -> list[int]:
        """Ids of a prompt with one gap; the model continues them with the text of the gap.

        Args:
          text: prompt with `<FILL_ME>` exactly once. Without infilling tokens the model completes
            the text before the marker.

        Raises:
          ValueError: the marker is missing or repeated.
        """
        if text.count(FILL_ME) != 1:
            raise ValueError(f"a prompt needs exactly one {FILL_ME}, not {text.count(FILL_ME)}")
        prefix, suffix = text.split(FILL_ME)
        if self._infilling is None:
            return self.encode(prefix)
        pre, suf, mid = self._infilling[:3]
        before = [*self._bos_ids, pre, *self._encode(prefix)]
        return [*before, suf, *self._encode_continuation(suffix), mid]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of an action with the white space at either end, and without special tokens.

        Invalid UTF-8 becomes U+FFFD.
        """
        kept = [int(i) for i in ids if int(i) not in self._dropped]
        text = self._backend.decode([*self._sentinel_ids, *kept], skip_special_tokens=False)
        return text.removeprefix(_SENTINEL) if self._sentinel_ids else text

    def _encode(self, text: str) -> list[int]:
        """Ids of a text from its beginning, without any special token."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        if self._steering.isdisjoint(ids):
            return ids
        for i, (start, end) in zip(ids, encoding.offsets, strict=True):
            # A vocabulary may hold the name of a special token as an ordinary piece. (The token of
            # unknown characters also stands for others than its name.)
            if i not in self._steering or end - start < 2:
                continue
            if str(self._backend.id_to_token(i)).removeprefix("▁") in text[start:end]:
                first, rest = text[: start + 1], text[start + 1 :]
                return self._encode(first) + self._encode_continuation(rest)
        return ids

    def _encode_continuation(self, text: str) -> list[int]:
        """Ids of a text that continues another, without the space that starts a text."""
        if not self._sentinel_ids:
            return self._encode(text)
        return self._encode(_SENTINEL + text)[len(self._sentinel_ids) :]

    def _sentinel(self) -> list[int]:
        """Ids of the sentinel; empty for a tokenizer that puts no space before a text."""
        once, twice = self._encode(_SENTINEL), self._encode(2 * _SENTINEL)
        return once if len(twice) < 2 * len(once) else []

    def _begin(self) -> list[int]:
        """Ids that the post-processor of `tokenizer.json` puts before a text."""
        text = self._backend.encode(_SENTINEL, add_special_tokens=False).ids
        whole: list[int] = self._backend.encode(_SENTINEL).ids
        starts = range(len(whole) - len(text) + 1)
        return next((whole[:i] for i in starts if whole[i : i + len(text)] == text), [])

    def _infilling_ids(self, size: int) -> tuple[int, ...] | None:
        """Ids of prefix, suffix, middle and perhaps end; None if the model has no infilling."""
        for names in _INFILLING:
            tokens = [name for name in names if name is not None]
            ids = [i for i in map(self._backend.token_to_id, tokens) if i is not None and i < size]
            if len(ids) == len(tokens):
                return tuple(ids)
        return None

    @property
    def infills_lines(self) -> bool:
        """True if the model was rarely trained on gaps in the middle of a line.

        Models with a token that ends a middle (CodeLlama, the stand-in) learnt gaps at any
        character.
        """
        return self._infilling is not None and len(self._infilling) == 3

    @property
    def has_chat_template(self) -> bool:
        """True if the folder has a chat template."""
        return self._chat_template is not None

    def render_chat(self, messages: Sequence[Message]) -> str:
        """The text of a conversation by the tokenizer's template, up to the model's answer.

        Raises:
          ModelError: there is no template, or it cannot be rendered.
        """
        if self._chat_template is None:
            raise ModelError("this tokenizer has no chat template")
        return self._chat_template.render(messages)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation, as `transformers` has them; errors as `render_chat`.

        The template's special tokens are tokens, those that a message spells stay text.
        """
        names = [str(self._backend.id_to_token(i)) for i in self._steering | self._dropped]
        spelt = [name for name in names if any(name in m["content"] for m in messages)]
        if not spelt:
            self._backend.encode_special_tokens = False
            try:
                encoding = self._backend.encode(
                    self.render_chat(messages), add_special_tokens=False
                )
                return encoding.ids
            finally:
                self._backend.encode_special_tokens = True
        # Names that a message spells are veiled until the template's own are taken out.
        veiled = [{**m, "content": _veil(m["content"], spelt)} for m in messages]
        pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        ids: list[int] = []
        for part in re.split(f"({pattern})", self.render_chat(veiled)):
            special = self._backend.token_to_id(part) if part in names else None
            text = part.replace(_VEIL, "")
            ids += self._encode(text) if special is None else [special]
        return ids


def _veil(text: str, names: Sequence[str]) -> str:
    """Puts a character into each of the names, so that the text spells none of them."""
    for name in names:
        text = text.replace(name, name[0] + _VEIL + name[1:])
    return text


def _read(folder: pathlib.Path, named: set[str]) -> tuple[tokenizers.Tokenizer, frozenset[int]]:
    """Reads the tokenizer that the fast tokenizers of transformers wrap.

    The wrappers start slowly, and some replace parts of the file or add tokens for which the model
    has no row.

    Args:
      folder: the model folder.
      named: special tokens by the other files of the folder.

    Returns:
      The tokenizer, without random or shortened encodings and without any way for text to become a
      marker or special token; and the ids of special tokens.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder}: no tokenizer in this model folder (tokenizer.json)")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        special = set()
        for token in values.get("added_tokens", ()):
            if token["special"] or token["content"] in named:
                special.add(token["id"])
            is_marker = _MARKER.fullmatch(token["content"]) is not None
            token["special"] = token["id"] in special or is_marker
        values |= {"truncation": None, "padding": None}
        if values["model"].get("dropout"):
            values["model"]["dropout"] = None
        backend = tokenizers.Tokenizer.from_str(json.dumps(values, ensure_ascii=False))
    except Exception as error:  # the library raises nothing narrower
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{path}: the tokenizer cannot be read ({reason})") from error
    backend.encode_special_tokens = True
    return backend, frozenset(special)


def _special_names(folder: pathlib.Path) -> dict[str, str]:
    """Special tokens by their names, such as "eos_token"."""
    values = {
        **_read_optional(folder / "special_tokens_map.json"),
        **_read_optional(folder / "tokenizer_config.json"),
    }
    contents = {
        name: token.get("content") if isinstance(token, dict) else token
        for name, token in values.items()
        if name.endswith("_token")
    }
    return {name: token for name, token in contents.items() if isinstance(token, str)}


def _read_optional(path: pathlib.Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _eos_ids(path: pathlib.Path, size: int) -> list[int]:
    """End-of-text ids that a configuration file of a model with `size` rows names."""
    value = _read_optional(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(i) is int for i in ids):
        raise ModelError(f"{path}: eos_token_id {value!r} is neither an id nor a list of ids")
    for i in ids:
        if not 0 <= i < size:
            raise ModelError(f"{path}: eos_token_id {i} is not an id from 0 to {size - 1}")
    return ids
