"""Actions from prompts: one jitted program that reads prompts into a cache and decodes from it.

A program is compiled per number of rows and prompt length. Weights are arguments of it; logits and
the cache never leave the device.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from etpo_jax.acting import endings, sampling
from etpo_jax.acting.sampling import Truncation
from etpo_jax.config import SamplingConfig
from etpo_jax.distribution import MASKED, TILT
from models.config import DecoderConfig
from models.decode import Cache, Weights, decode_step, grow, num_slots, prefill
from models.precision import matmul_precision
from models.sharding import shard

# Tokens between two looks at whether all rows have ended, on accelerators.
_STEPS_UNTIL_CHECK = 4
# Attention reads the whole cache, so decoding is a sequence of loops, and before each of them the
# cache grows by the tokens that it may choose. Every loop is compiled, so there are few.
_LEAST_SEGMENT = 64
_MAX_SEGMENTS = 4


class Generation(NamedTuple):
    """Sampled actions, on the device.

    Attributes:
      action_tokens_bj: int32 ids; the token that ends an action belongs to it, and pad tokens
        follow. An action that fills the array may lack such a token.
      action_mask_bj: True for the tokens of the action.
      log_probs_bj: float32 nats of each token under the distribution that it was drawn from; 0
        where the mask is False.
    """

    action_tokens_bj: Int[Array, "b j"]
    action_mask_bj: Bool[Array, "b j"]
    log_probs_bj: Float[Array, "b j"]


class Sampler:
    """Samples actions with one model and one way of sampling; holds no weights.

    Attributes:
      config: sizes of the decoder.
      sampling: how actions are drawn.
    """

    def __init__(
        self,
        config: DecoderConfig,
        eos_ids: Iterable[int],
        pad_id: int,
        sampling: SamplingConfig,
        *,
        next_state_sv: UInt8[np.ndarray, "s v"] | None = None,
        vocabulary: int | None = None,
        mesh: Mesh | None = None,
        attention: str = "reference",
        precision: str = "default",
    ):
        """Prepares a sampler; the first call of `generate` compiles.

        Args:
          config: sizes of the decoder.
          eos_ids: tokens that end an action.
          pad_id: token that fills a row behind its action; must not be a stop token.
          sampling: how actions are drawn.
          next_state_sv: other ends of actions, as `endings.state_table` makes them; None for stop
            tokens only.
          vocabulary: number of ids with a token; those from it on pad the embedding and are never
            drawn. None for all. Losses keep them: a published model gives them next to nothing.
          mesh: devices; rows are split over the axis `fsdp`, heads over `tensor`.
          attention: implementation for prompts and decoding, one of
            `models.attention.IMPLEMENTATIONS`.
          precision: that of float32 products, one of `models.precision.PRECISIONS`.

        Raises:
          ValueError: no stop token, a token outside the vocabulary, or padding with a stop token.
        """
        eos_ids = tuple(sorted(eos_ids))
        for token in (*eos_ids, pad_id):
            if not 0 <= token < config.vocab_size:
                raise ValueError(f"token {token}: must be in [0, {config.vocab_size})")
        if not eos_ids or pad_id in eos_ids:
            raise ValueError(f"eos_ids={eos_ids}: must hold a token, and not pad_id={pad_id}")
        self.config = config
        self.sampling = sampling
        self._mesh = mesh
        if next_state_sv is None:
            next_state_sv = endings.state_table("", None, config.vocab_size)
        self._next_state_sv = next_state_sv.copy()
        self._next_state_sv[:, list(eos_ids)] = len(next_state_sv) - 1
        vocabulary = min(vocabulary or config.vocab_size, config.vocab_size)
        self._static = _Static(config, sampling.max_new_tokens, pad_id, attention, vocabulary)
        self._precision = precision

    def generate(
        self,
        weights: Weights,
        prompt_tokens_bp: Int[Array | np.ndarray, "#b p"],
        prompt_mask_bp: Bool[Array | np.ndarray, "#b p"],
        keys_b: Key[Array, "b"],
        *,
        reference_weights: Weights | None = None,
        temperature: float | None = None,
        flattening: float = 1.0,
    ) -> Generation:
        """Samples one action per key.

        The action of a row depends on its prompt and its key alone: not on other rows, on the
        number of rows, or on the amount of padding.

        Args:
          weights: the policy, as `models.decode.unstack` returns it, with the coefficients of its
            tilt, if it has one, as `distribution.TILT`.
          prompt_tokens_bp: left padded prompts; a single row is read once and shared by all keys.
          prompt_mask_bp: True for real tokens.
          keys_b: typed random keys; token j of a row is drawn with `fold_in(key, j)`.
          reference_weights: the reference, likewise; required for a support mask or a tilt, else
            not read.
          temperature: overrides the configured temperature; above 0.
          flattening: samples pi^(1 / flattening), normalised, in place of pi; the support stays.

        Raises:
          ValueError: numbers of prompts and keys that differ, a support mask without reference, or
            a temperature that is not positive.
        """
        rows = prompt_tokens_bp.shape[0]
        if rows not in (1, keys_b.shape[0]):
            raise ValueError(f"{rows} prompts: must be 1 or as many as keys, {keys_b.shape[0]}")
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature={temperature}: must be above 0 (greedy is top_k=1)")
        networks: tuple[Weights, ...] = (weights,)
        if self.sampling.support_threshold > 0 or TILT in weights:
            if reference_weights is None:
                what = f"support_threshold={self.sampling.support_threshold}"
                raise ValueError(f"{TILT if TILT in weights else what}: needs reference_weights")
            networks = (weights, reference_weights)
        mesh = contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh)
        with mesh, matmul_precision(self._precision):
            return _generate(
                networks,
                prompt_tokens_bp,
                prompt_mask_bp,
                keys_b,
                Truncation.of(self.sampling, temperature, flattening),
                self._next_state_sv,
                static=self._static,
            )


@dataclasses.dataclass(frozen=True)
class _Static:
    """Settings that are compiled into a program, beside the shapes of its arguments."""

    config: DecoderConfig
    max_new_tokens: int
    pad_id: int
    attention: str
    vocabulary: int


class _LoopState(NamedTuple):
    """Values that decoding carries from token to token.

    Attributes:
      step: number j of tokens chosen so far.
      token_b: the token chosen last, which is not in the cache yet.
      end_state_b: state of each row in the table of ends; the last one says that the action has
        ended.
      caches: cache of the policy, and of the reference where sampling reads it.
      generation: the result; padding from index `step` on.
    """

    step: Int[Array, ""]
    token_b: Int[Array, "b"]
    end_state_b: UInt8[Array, "b"]
    caches: tuple[Cache, ...]
    generation: Generation


@functools.partial(jax.jit, static_argnames="static")
def _generate(
    networks: tuple[Weights, ...],
    prompt_tokens_bp: Int[Array | np.ndarray, "#b p"],
    prompt_mask_bp: Bool[Array | np.ndarray, "#b p"],
    keys_b: Key[Array, "b"],
    truncation: Truncation,
    next_state_sv: UInt8[Array | np.ndarray, "s v"],
    *,
    static: _Static,
) -> Generation:
    """The jitted part of `Sampler.generate`, for the policy or the policy and the reference."""
    b, p = keys_b.shape[0], prompt_tokens_bp.shape[1]
    mask_bp = shard(jnp.asarray(prompt_mask_bp), "b", "-")
    tokens_bp = shard(jnp.asarray(prompt_tokens_bp), "b", "-")
    ends = _ends_of_segments(static)
    read = [
        prefill(
            weights,
            static.config,
            tokens_bp,
            mask_bp,
            num_slots(p + ends[0], static.attention),
            attention=static.attention,
        )
        for weights in networks
    ]
    prompt_length_b = jnp.sum(mask_bp, axis=-1, dtype=jnp.int32)
    # A shared prompt was read once; every row continues from its own copy.
    (logits, caches), prompt_length_b, mask_bp = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (b, *x.shape[1:])),
        (tuple(zip(*read, strict=True)), prompt_length_b, mask_bp),
    )
    decoding = _Decoding(
        networks,
        mask_bp,
        prompt_length_b,
        keys_b,
        truncation,
        jnp.asarray(next_state_sv),
        static=static,
    )
    state = decoding.choose(_before_the_first_token(b, caches, static), logits)
    for end in ends:
        length = num_slots(p + end, static.attention)
        caches = tuple(grow(cache, length) for cache in state.caches)
        state = decoding.run(state._replace(caches=caches), end)
    return state.generation


def _ends_of_segments(static: _Static) -> list[int]:
    """Numbers of chosen tokens at which decoding goes over to a loop with a longer cache."""
    last = static.max_new_tokens
    if static.attention == "splash":  # its kernel reads no more than the filled slots anyway
        return [last]
    num_segments = min(_MAX_SEGMENTS, -(-last // _LEAST_SEGMENT))
    length = -(-last // (num_segments * _STEPS_UNTIL_CHECK)) * _STEPS_UNTIL_CHECK
    return [*range(length, last, length), last]


def _before_the_first_token(b: int, caches: tuple[Cache, ...], static: _Static) -> _LoopState:
    """State of decoding when the prompts have been read and nothing has been chosen."""
    shape = (b, static.max_new_tokens)
    return _LoopState(
        step=jnp.int32(0),
        token_b=jnp.full((b,), static.pad_id, jnp.int32),
        end_state_b=jnp.full((b,), endings.START, jnp.uint8),
        caches=caches,
        generation=Generation(
            shard(jnp.full(shape, static.pad_id, jnp.int32), "b", "-"),
            shard(jnp.zeros(shape, jnp.bool_), "b", "-"),
            shard(jnp.zeros(shape, jnp.float32), "b", "-"),
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Decoding:
    """The decoding loop over rows whose prompts have been read: its condition and its body.

    Attributes:
      networks: weights of the policy, and of the reference where sampling reads it.
      prompt_mask_bp: True for real tokens of the prompts, which take the first slots of the cache.
      prompt_length_b: number of real tokens of each prompt.
      keys_b: random key of each row.
      truncation: how logits become the distribution that is sampled from.
      next_state_sv: state that a token leads to from each state, stop tokens included.
      static: settings compiled into the program.
    """

    networks: tuple[Weights, ...]
    prompt_mask_bp: Bool[Array, "b p"]
    prompt_length_b: Int[Array, "b"]
    keys_b: Key[Array, "b"]
    truncation: Truncation
    next_state_sv: UInt8[Array, "s v"]
    static: _Static

    def run(self, state: _LoopState, end: int) -> _LoopState:
        """Appends tokens until every row has `end` of them or has ended.

        Whether all rows have ended is looked at every few tokens on accelerators, because a GPU
        waits for the host then. Until then ended rows get padding, and what a row gets beyond
        `max_new_tokens` is dropped.
        """
        steps = jax.lax.platform_dependent(
            cpu=lambda: jnp.int32(1), default=lambda: jnp.int32(_STEPS_UNTIL_CHECK)
        )

        def is_running(state: _LoopState) -> Bool[Array, ""]:
            return (state.step < end) & ~jnp.all(self.is_ended(state))

        def append_some(state: _LoopState) -> _LoopState:
            return jax.lax.fori_loop(0, steps, lambda _, one: self.append(one), state)

        return jax.lax.while_loop(is_running, append_some, state)

    def append(self, state: _LoopState) -> _LoopState:
        """Reads the last token into the caches, then chooses the next."""
        p, m = self.prompt_mask_bp.shape[1], state.caches[0][0]["k"].shape[3]
        slot = p + state.step - 1
        position_b = self.prompt_length_b + state.step - 1
        # Among the slots behind the prompt, all up to the current one are real.
        real_bm = jnp.pad(self.prompt_mask_bp, ((0, 0), (0, m - p)), constant_values=True)
        key_mask_bm = real_bm & (jnp.arange(m, dtype=jnp.int32) <= slot)
        read = [
            decode_step(
                weights,
                self.static.config,
                state.token_b,
                position_b,
                slot,
                cache,
                key_mask_bm,
                attention=self.static.attention,
            )
            for weights, cache in zip(self.networks, state.caches, strict=True)
        ]
        logits, caches = zip(*read, strict=True)
        return self.choose(state._replace(caches=caches), logits)

    def choose(self, state: _LoopState, logits: tuple[Float[Array, "b v"], ...]) -> _LoopState:
        """Draws token `step` of every row from the logits of the networks."""
        if self.static.vocabulary < self.static.config.vocab_size:
            has_token_v = jnp.arange(self.static.config.vocab_size) < self.static.vocabulary
            logits = tuple(jnp.where(has_token_v, of_network, MASKED) for of_network in logits)
        reference_bv = logits[1] if len(logits) > 1 else None
        weights_bv = sampling.weights(
            logits[0], self.truncation, reference_bv, self.networks[0].get(TILT)
        )
        uniform_b = sampling.uniform(self.keys_b, state.step)
        token_b, log_prob_b = sampling.draw(weights_bv, uniform_b)
        is_real_b = ~self.is_ended(state)
        token_b = jnp.where(is_real_b, token_b, self.static.pad_id)
        tokens_bj, mask_bj, log_probs_bj = state.generation
        return _LoopState(
            step=state.step + 1,
            token_b=token_b,
            end_state_b=self.next_state_sv[state.end_state_b, token_b],
            caches=state.caches,
            generation=Generation(
                tokens_bj.at[:, state.step].set(token_b),
                mask_bj.at[:, state.step].set(is_real_b),
                log_probs_bj.at[:, state.step].set(jnp.where(is_real_b, log_prob_b, 0)),
            ),
        )

    def is_ended(self, state: _LoopState) -> Bool[Array, "b"]:
        """True for rows whose action has ended."""
        return state.end_state_b == self.next_state_sv.shape[0] - 1
