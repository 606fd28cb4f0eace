"""Perplexity of a network on text, which shows what training left of the language model (Table 3).

It is measured at temperature 1 over the whole vocabulary. Long texts are cut into overlapping
windows; every token but a text's first is predicted exactly once.
"""

import dataclasses
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

import models
from env.base import UsageError
from etpo_jax.acting.transitions import bucket, pad_right
from etpo_jax.algorithms.networks import Networks
from etpo_jax.distribution import TILT, Distribution
from etpo_jax.roles import Role

HELD_OUT = Path(models.__file__).parent / "tiny" / "heldout.jsonl"
"""Code that the stand-in was not trained on, in the stand-in's folder."""
_LENGTH_MULTIPLE = 64
# Rows of one program; logits exist for one row at a time.
_ROWS = 8
_WHOLE = Distribution(jnp.float32(1), jnp.float32(0))


class Window(NamedTuple):
    """A piece of a text.

    Attributes:
      ids: token ids.
      num_scored: number of tokens at the end that are predicted in this window.
    """

    ids: Sequence[int]
    num_scored: int


@dataclasses.dataclass(frozen=True)
class Perplexity:
    """Perplexity on some texts.

    Attributes:
      num_documents: number of texts.
      num_tokens: number of predicted tokens.
      nats: negative log-likelihood, summed over the predicted tokens.
    """

    num_documents: int
    num_tokens: int
    nats: float

    @property
    def value(self) -> float:
        """The perplexity, exp of the mean negative log-likelihood of a token."""
        return math.exp(self.nats / self.num_tokens)


def read_documents(path: Path) -> list[str]:
    """Reads the texts of a file: each line's `text` in a `.jsonl` file, else the file as one text.

    Raises:
      UsageError: naming the file and, in JSON lines, the line that is no object with a text.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--perplexity_files={path}: cannot be read as text: {error}") from error
    if path.suffix != ".jsonl":
        return [content]
    documents = []
    for number, line in enumerate(content.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            documents.append(json.loads(line)["text"])
        except (ValueError, KeyError, TypeError):
            documents.append(None)
        if not isinstance(documents[-1], str):
            raise UsageError(f'--perplexity_files={path}: line {number} is no object with a "text"')
    return documents


def windows(ids: Sequence[int], length: int, stride: int) -> Iterator[Window]:
    """Cuts a text into windows of at most `length` tokens, each `stride` after the one before.

    Every token but the first is scored once, where it has the most context: at least
    length - stride tokens beyond the first window.

    Raises:
      ValueError: `stride` is not in [1, length - 1].
    """
    if not 1 <= stride < length:
        raise ValueError(f"a stride of {stride} does not fit windows of {length} tokens")
    scored_until = 1
    for start in itertools.count(0, stride):
        if scored_until >= len(ids):
            return
        end = min(start + length, len(ids))
        yield Window(ids[start:end], end - scored_until)
        scored_until = end


class Scorer:
    """Measures the perplexity of any role with one compiled program, its tilt included."""

    def __init__(self, networks: Networks, pad_id: int, length: int, stride: int):
        """Prepares the program.

        Args:
          networks: the trunk and how its roles are read.
          pad_id: token id of padding.
          length: tokens of a window.
          stride: tokens between the starts of two windows.
        """
        self._pad_id = pad_id
        self._length = length
        self._stride = stride

        def nats(
            base: Any,
            role: Role,
            tokens_bs: Int[Array, "b s"],
            mask_bs: Bool[Array, "b s"],
            scored_bs: Bool[Array, "b s"],
        ) -> Float[Array, "b"]:
            hidden_bsd = networks.hidden(base, role, tokens_bs, mask_bs)
            has_tilt = TILT in role
            reference_bsd = networks.hidden(base, {}, tokens_bs, mask_bs) if has_tilt else None

            def row(columns: tuple[Array, Array | None, Array, Array]) -> Float[Array, ""]:
                hidden_sd, reference_sd, tokens_s, scored_s = columns
                logits_sv = networks.logits(base, role, hidden_sd[:-1])
                if reference_sd is not None:
                    of_reference_sv = networks.logits(base, {}, reference_sd[:-1])
                    reference = _WHOLE.reference(of_reference_sv)
                    logits_sv = _WHOLE.tilted(logits_sv, reference, role[TILT])
                log_probs_sv = jax.nn.log_softmax(logits_sv)
                taken_s = jnp.take_along_axis(log_probs_sv, tokens_s[1:, None], axis=-1)[:, 0]
                return -jnp.sum(jnp.where(scored_s[1:], taken_s, 0.0))

            return jax.lax.map(row, (hidden_bsd, reference_bsd, tokens_bs, scored_bs))

        self._nats = jax.jit(nats)

    def measure(self, base: Any, role: Role, documents: Sequence[Sequence[int]]) -> Perplexity:
        """The perplexity of `role` on documents of token ids; an empty role is the reference.

        Raises:
          ValueError: no document has two tokens.
        """
        pieces = [w for ids in documents for w in windows(ids, self._length, self._stride)]
        if not pieces:
            raise ValueError("nothing to predict: no text has two tokens")
        longest = max(len(piece.ids) for piece in pieces)
        length = bucket(longest, _LENGTH_MULTIPLE, self._length)
        nats = 0.0
        for group in _groups(pieces):
            nats += float(np.sum(self._score(base, role, group, length), dtype=np.float64))
        return Perplexity(len(documents), sum(piece.num_scored for piece in pieces), nats)

    def _score(
        self, base: Any, role: Role, group: Sequence[Window], length: int
    ) -> Float[np.ndarray, "b"]:
        # Rows without a token fill up the last group: one shape, one compilation.
        rows = [np.asarray(piece.ids, np.int32) for piece in group]
        rows += [np.empty(0, np.int32)] * (_ROWS - len(rows))
        tokens_bs, mask_bs = pad_right(rows, length, self._pad_id, np.int32)
        num_scored = [piece.num_scored for piece in group] + [0] * (_ROWS - len(group))
        ends_b1 = mask_bs.sum(axis=1, keepdims=True)
        starts_b1 = ends_b1 - np.array(num_scored)[:, None]
        columns_s = np.arange(length)
        scored_bs = (columns_s >= starts_b1) & (columns_s < ends_b1)
        return jax.device_get(self._nats(base, role, tokens_bs, mask_bs, scored_bs))


def _groups(pieces: Sequence[Window]) -> Iterator[Sequence[Window]]:
    return (pieces[start : start + _ROWS] for start in range(0, len(pieces), _ROWS))
