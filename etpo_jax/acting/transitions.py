"""Transitions on the host, and the padded batch of them that the update takes.

Lengths are rounded up to few buckets, so that jit compiles few programs.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True)
class Transition:
    """One executed action (s, a, r, s') with ids unpadded.

    Attributes:
      prompt_tokens: int32 [p], the state.
      action_tokens: int32 [j], what was sampled, its stop token included.
      log_probs: float32 [j], log mu of each token: the distribution that was really sampled from.
      reward: of the whole action.
      next_prompt_tokens: int32 [p'] of the next state, None where the episode ended.
      targets: float32 [j], what the critic regresses on at each token, where that is computed at
        collection (`--targets=collection`).
    """

    prompt_tokens: np.ndarray
    action_tokens: np.ndarray
    log_probs: np.ndarray
    reward: float
    next_prompt_tokens: np.ndarray | None
    targets: np.ndarray | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Batch:
    """Padded transitions. Prompts are left padded, so that logits at index P - 1 + j score token j.

    Attributes:
      prompt_tokens_bp, prompt_mask_bp: the states; True is a real token.
      action_tokens_bj, action_mask_bj: the actions, right padded.
      log_probs_bj: log mu of the action tokens, 0 on padding.
      reward_b: rewards.
      continues_b: 1 where there is a next state, 0 where the episode ended.
      next_prompt_tokens_bp, next_prompt_mask_bp: next states; one arbitrary real token in rows
        without any, so that attention stays defined.
      targets_bj: targets that came with the transitions, 0 on padding; None without any.
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
    targets_bj: Float[Array, "b j"] | None = None


def bucket(length: int, multiple: int, maximum: int) -> int:
    """Length of the bucket that `length` tokens are padded to.

    Args:
      length: tokens, from 0 to `maximum`.
      multiple: buckets are multiples of this, at least 1.
      maximum: the largest bucket, whether or not it is a multiple.

    Returns:
      The smallest positive multiple that holds `length`, or `maximum` where that is smaller.

    Raises:
      ValueError: a length outside [0, maximum], or a multiple or maximum below 1.
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
    """Sequences at the right end of int32 [b, length], and the mask of what is real."""
    tokens_bp = np.full((len(sequences), length), pad_id, np.int32)
    mask_bp = np.zeros((len(sequences), length), bool)
    for row, sequence in enumerate(sequences):
        tokens_bp[row, length - len(sequence) :] = sequence
        mask_bp[row, length - len(sequence) :] = True
    return tokens_bp, mask_bp


def pad_right(
    sequences: Sequence[np.ndarray], length: int, fill: int | float, dtype: type
) -> tuple[np.ndarray, np.ndarray]:
    """Sequences at the left end of [b, length] of this dtype, and the mask of what is real."""
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
    """Pads transitions to length buckets.

    States and next states share one bucket, so that the update is compiled for few shapes.
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
    arrays = {
        "prompt_tokens_bp": prompt_tokens_bp,
        "prompt_mask_bp": prompt_mask_bp,
        "action_tokens_bj": action_tokens_bj,
        "action_mask_bj": action_mask_bj,
        "log_probs_bj": log_probs_bj,
        "reward_b": np.array([t.reward for t in transitions], np.float32),
        "continues_b": np.array(
            [t.next_prompt_tokens is not None for t in transitions], np.float32
        ),
        "next_prompt_tokens_bp": next_prompt_tokens_bp,
        "next_prompt_mask_bp": next_prompt_mask_bp,
    }
    targets = [t.targets for t in transitions if t.targets is not None]
    if targets:
        arrays["targets_bj"], _ = pad_right(targets, action_length, 0.0, np.float32)
    return Batch(**arrays)  # type: ignore[arg-type]
