"""Transitions on the host, and the padded batch of them that the update takes.

Lengths are rounded up to few buckets, so that jit compiles few programs.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from models import packing


@dataclasses.dataclass(frozen=True)
class Transition:
    """One executed action (s, a, r, s'), with unpadded ids.

    Attributes:
      prompt_tokens: int32 [p], ids of the state.
      action_tokens: int32 [j], ids of the sampled action, stop token included.
      log_probs: float32 [j], log mu of each token: the distribution that it was drawn from.
      reward: reward of the whole action.
      next_prompt_tokens: int32 [p'], ids of the next state; None where the episode ended.
    """

    prompt_tokens: np.ndarray
    action_tokens: np.ndarray
    log_probs: np.ndarray
    reward: float
    next_prompt_tokens: np.ndarray | None


class Blocks(NamedTuple):
    """Blocks that sequences of a batch are packed into (`models.packing`), 0 to keep the padding.

    Attributes:
      action: of prompts with their actions.
      next_prompt: of next prompts.
    """

    action: int = 0
    next_prompt: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Padded transitions. Prompts are left padded, so that logits at index P - 1 + j score token j.

    Attributes:
      prompt_tokens_bp, prompt_mask_bp: states, left padded; the mask is True for real tokens.
      action_tokens_bj, action_mask_bj: actions, right padded.
      log_probs_bj: log mu of the action tokens, 0 on padding.
      reward_b: reward of each action.
      continues_b: 1 where there is a next state, 0 where the episode ended.
      next_prompt_tokens_bp, next_prompt_mask_bp: next states, left padded; rows without a next
        state hold one arbitrary real token, so that attention stays defined.
      blocks: packing of these rows, or of any part of them; another value is another program.
      microbatch_blocks: packing of a microbatch, as `gradients.in_microbatches` cuts them.
    """

    prompt_tokens_bp: Int[Array, "b p"]
    prompt_mask_bp: Bool[Array, "b p"]
    action_tokens_bj: Int[Array, "b j"]
    action_mask_bj: Bool[Array, "b j"]
    log_probs_bj: Float[Array, "b j"]
    reward_b: Float[Array, "b"]
    continues_b: Float[Array, "b"]
    next_prompt_tokens_bp: Int[Array, "b q"]
    next_prompt_mask_bp: Bool[Array, "b q"]
    blocks: Blocks = dataclasses.field(default=Blocks(), metadata={"static": True})
    microbatch_blocks: Blocks = dataclasses.field(default=Blocks(), metadata={"static": True})

    def as_microbatch(self) -> Self:
        """The same rows, packed as a microbatch."""
        return dataclasses.replace(self, blocks=self.microbatch_blocks)

    def with_blocks(self, num_microbatches: int = 1) -> Self:
        """The same rows of NumPy arrays, to be packed as a whole or in so many microbatches."""
        actions = (
            np.concatenate([self.prompt_tokens_bp, self.action_tokens_bj], axis=1),
            np.concatenate([self.prompt_mask_bp, self.action_mask_bj], axis=1),
        )
        next_prompts = (self.next_prompt_tokens_bp, self.next_prompt_mask_bp)

        def count(*tokens_and_mask: Any) -> int:
            tokens_bs, mask_bs = (np.asarray(array_bs) for array_bs in tokens_and_mask)
            parts = [slice(part, None, num_microbatches) for part in range(num_microbatches)]
            return packing.bucket(
                max(packing.count_blocks(tokens_bs[part], mask_bs[part]) for part in parts)
            )

        blocks = Blocks(count(*actions), count(*next_prompts))
        if num_microbatches == 1:
            return dataclasses.replace(self, blocks=blocks)
        return dataclasses.replace(self, microbatch_blocks=blocks)


def bucket(length: int, multiple: int, maximum: int) -> int:
    """Length of the bucket that `length` tokens are padded to.

    Args:
      length: number of tokens, from 0 to `maximum`.
      multiple: buckets are multiples of this, at least 1.
      maximum: the largest bucket, which need not be a multiple.

    Returns:
      The smallest positive multiple that is at least `length`, or `maximum` if that is smaller.

    Raises:
      ValueError: if the length is outside [0, maximum], or multiple or maximum is below 1.
    """
    if multiple < 1:
        raise ValueError(f"multiple={multiple}: must be at least 1")
    if maximum < 1:
        raise ValueError(f"maximum={maximum}: must be at least 1")
    if not 0 <= length <= maximum:
        raise ValueError(f"length={length}: must be from 0 to maximum={maximum}")
    return min(max(-(-length // multiple), 1) * multiple, maximum)


def pad_left(
    sequences: Sequence[np.ndarray], length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences at the right end of int32 [b, length], and the mask of their tokens."""
    tokens_bp = np.full((len(sequences), length), pad_id, np.int32)
    mask_bp = np.zeros((len(sequences), length), bool)
    for row, sequence in enumerate(sequences):
        tokens_bp[row, length - len(sequence) :] = sequence
        mask_bp[row, length - len(sequence) :] = True
    return tokens_bp, mask_bp


def pad_right(
    sequences: Sequence[np.ndarray], length: int, fill: int | float, dtype: type
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences at the left end of [b, length] of this dtype, and the mask of their elements."""
    values_bj: np.ndarray = np.full((len(sequences), length), fill, dtype)
    mask_bj = np.zeros((len(sequences), length), bool)
    for row, sequence in enumerate(sequences):
        values_bj[row, : len(sequence)] = sequence
        mask_bj[row, : len(sequence)] = True
    return values_bj, mask_bj


def collate(
    transitions: Sequence[Transition],
    *,
    pad_id: int,
    length_multiple: int,
    max_prompt_length: int,
    max_new_tokens: int,
) -> Batch:
    """Pads transitions to a batch whose lengths are buckets.

    States and next states have one length, so that the update is compiled for few shapes.
    """
    absent = np.array([pad_id], np.int32)
    next_prompts = [
        absent if t.next_prompt_tokens is None else t.next_prompt_tokens for t in transitions
    ]
    prompts = [t.prompt_tokens for t in transitions]
    prompt_length = bucket(
        max(len(prompt) for prompt in (*prompts, *next_prompts)), length_multiple, max_prompt_length
    )
    action_length = bucket(
        max(len(t.action_tokens) for t in transitions), length_multiple, max_new_tokens
    )
    prompt_tokens_bp, prompt_mask_bp = pad_left(prompts, prompt_length, pad_id)
    next_prompt_tokens_bp, next_prompt_mask_bp = pad_left(next_prompts, prompt_length, pad_id)
    action_tokens_bj, action_mask_bj = pad_right(
        [t.action_tokens for t in transitions], action_length, pad_id, np.int32
    )
    log_probs_bj, _ = pad_right([t.log_probs for t in transitions], action_length, 0.0, np.float32)
    continues = [t.next_prompt_tokens is not None for t in transitions]
    arrays = {
        "prompt_tokens_bp": prompt_tokens_bp,
        "prompt_mask_bp": prompt_mask_bp,
        "action_tokens_bj": action_tokens_bj,
        "action_mask_bj": action_mask_bj,
        "log_probs_bj": log_probs_bj,
        "reward_b": np.array([t.reward for t in transitions], np.float32),
        "continues_b": np.array(continues, np.float32),
        "next_prompt_tokens_bp": next_prompt_tokens_bp,
        "next_prompt_mask_bp": next_prompt_mask_bp,
    }
    return Batch(**arrays)  # type: ignore[arg-type]
