"""Generation of one shape as a benchmark calls it: whole actions, and their prompts alone."""

from typing import Any

import jax
import numpy as np

from etpo_jax.acting import endings
from etpo_jax.acting.sampler import Generation, Sampler
from etpo_jax.config import SamplingConfig
from models.config import DecoderConfig

STOP, PAD = 2, 0
"""Ids of the stop token, which random weights make unlikely, and of the padding."""


class Decoding:
    """Random prompts of one length, and actions of full length that follow them.

    Args:
      config: sizes of the decoder.
      weights: output of `models.decode.unstack`.
      rows: rows generated together.
      prompt: tokens of a prompt.
      sampling: how actions are drawn.
      attention: implementation for prompts and decoding.
    """

    def __init__(
        self,
        config: DecoderConfig,
        weights: Any,
        rows: int,
        prompt: int,
        sampling: SamplingConfig,
        *,
        attention: str = "reference",
    ):
        self._weights = weights
        rng = np.random.default_rng(0)
        self.tokens_bp = rng.integers(3, config.vocab_size, (rows, prompt), np.int32)
        self._mask_bp = np.ones(self.tokens_bp.shape, np.bool_)
        self._keys_b = jax.random.split(jax.random.key(1), rows)
        whole_sv = endings.state_table("", None, config.vocab_size)
        self._whole, self._first = (
            Sampler(config, [STOP], PAD, sampling, next_state_sv=table_sv, attention=attention)
            # The table is an argument of the compiled program: where every token ends the action,
            # the same program stops behind the prompt.
            for table_sv in (whole_sv, np.full_like(whole_sv, len(whole_sv) - 1))
        )

    def generate(self) -> Generation:
        """Whole actions; returns when all of them are there."""
        return jax.block_until_ready(self._call(self._whole))

    def read_prompts(self) -> Generation:
        """The same program, stopped as early as it stops at all: prompts and the first tokens."""
        return jax.block_until_ready(self._call(self._first))

    def check_lengths(self) -> None:
        """Raises RuntimeError if every row drew the stop token, so that a run was shorter."""
        mask_bj = np.asarray(self.generate().action_mask_bj)
        if not mask_bj[:, -1].any():
            raise RuntimeError("every row drew the stop token: the run was shorter than asked for")

    def _call(self, sampler: Sampler) -> Generation:
        return sampler.generate(self._weights, self.tokens_bp, self._mask_bp, self._keys_b)
