"""Actions from prompts: one jitted program that prefills a cache and decodes until all rows stop.

One program per number of rows and length of prompts. Weights are arguments, logits and the cache
never leave the device.
"""

import contextlib
import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, Key

from etpo_jax.acting import sampling
from etpo_jax.acting.sampling import Truncation
from etpo_jax.config import SamplingConfig
from models.config import DecoderConfig
from models.decode import Cache, Weights, decode_step, num_slots, prefill
from models.sharding import shard


class Generation(NamedTuple):
    """Sampled actions, on the device.

    Attributes:
      action_tokens_bj: int32; the stop token is part of the action, the pad token follows it. An
        action as long as the array may end without one.
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
      config: the decoder's sizes.
      sampling: how actions are drawn.
    """

    def __init__(
        self,
        config: DecoderConfig,
        eos_ids: Iterable[int],
        pad_id: int,
        sampling: SamplingConfig,
        *,
        mesh: Mesh | None = None,
        attention: str = "reference",
    ):
        """Compiles nothing yet.

        Args:
          config: the decoder's sizes.
          eos_ids: tokens that end an action.
          pad_id: what follows them; no stop token.
          sampling: how actions are drawn.
          mesh: rows are split over its axis `fsdp`, heads over `tensor`.
          attention: of prompts and of decoding, one of `models.attention.IMPLEMENTATIONS`.

        Raises:
          ValueError: no stop token, one outside the vocabulary, or padding with a stop token.
        """
        self.config = config
        self.sampling = sampling
        self._mesh = mesh
        self._attention = attention
        self._eos_ids = tuple(sorted(eos_ids))
        self._pad_id = pad_id
        for token in (*self._eos_ids, pad_id):
            if not 0 <= token < config.vocab_size:
                raise ValueError(f"token {token}: must be in [0, {config.vocab_size})")
        if not self._eos_ids or pad_id in self._eos_ids:
            raise ValueError(f"eos_ids={self._eos_ids}: must hold a token, and not pad_id={pad_id}")

    def generate(
        self,
        weights: Weights,
        prompt_tokens_bp: Int[Array | np.ndarray, "#b p"],
        prompt_mask_bp: Bool[Array | np.ndarray, "#b p"],
        keys_b: Key[Array, "b"],
        *,
        reference_weights: Weights | None = None,
        temperature: float | None = None,
    ) -> Generation:
        """Samples one action per key.

        What a row draws depends on its prompt and its key alone: not on other rows, their number,
        or the amount of padding.

        Args:
          weights: the policy's, of `models.decode.unstack`.
          prompt_tokens_bp: left padded prompts; a single row is shared by all keys and read once.
          prompt_mask_bp: True for real tokens.
          keys_b: typed random keys; token j of a row is drawn with `fold_in(key, j)`.
          reference_weights: the reference's; read only for a support mask, which needs them.
          temperature: instead of the configured one; above 0.

        Raises:
          ValueError: prompts and keys of different numbers, a support mask without reference, or a
            temperature that is not positive.
        """
        rows = prompt_tokens_bp.shape[0]
        if rows not in (1, keys_b.shape[0]):
            raise ValueError(f"{rows} prompts: must be 1 or as many as keys, {keys_b.shape[0]}")
        if temperature is not None and not temperature > 0:
            raise ValueError(f"temperature={temperature}: must be above 0 (greedy is top_k=1)")
        networks: tuple[Weights, ...] = (weights,)
        if self.sampling.support_threshold > 0:
            if reference_weights is None:
                raise ValueError(
                    f"support_threshold={self.sampling.support_threshold}: needs reference_weights"
                )
            networks = (weights, reference_weights)
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            return _generate(
                networks,
                prompt_tokens_bp,
                prompt_mask_bp,
                keys_b,
                Truncation.of(self.sampling, temperature),
                config=self.config,
                max_new_tokens=self.sampling.max_new_tokens,
                eos_ids=self._eos_ids,
                pad_id=self._pad_id,
                attention=self._attention,
            )


class _LoopState(NamedTuple):
    """What decoding carries from token to token.

    Attributes:
      step: tokens chosen so far, j.
      token_b: the last of them, not in the cache yet.
      is_stopped_b: the action has ended.
      caches: of the policy, and of the reference where there is a support mask.
      generation: the result; padding from `step` on.
    """

    step: Int[Array, ""]
    token_b: Int[Array, "b"]
    is_stopped_b: Bool[Array, "b"]
    caches: tuple[Cache, ...]
    generation: Generation


@functools.partial(
    jax.jit, static_argnames=("config", "max_new_tokens", "eos_ids", "pad_id", "attention")
)
def _generate(
    networks: tuple[Weights, ...],
    prompt_tokens_bp: Int[Array | np.ndarray, "#b p"],
    prompt_mask_bp: Bool[Array | np.ndarray, "#b p"],
    keys_b: Key[Array, "b"],
    truncation: Truncation,
    *,
    config: DecoderConfig,
    max_new_tokens: int,
    eos_ids: tuple[int, ...],
    pad_id: int,
    attention: str,
) -> Generation:
    """`Sampler.generate` for the policy, or the policy and the reference."""
    b, p = keys_b.shape[0], prompt_tokens_bp.shape[1]
    prompt_mask_bp = shard(jnp.asarray(prompt_mask_bp), "b", "-")
    prompt_tokens_bp = shard(jnp.asarray(prompt_tokens_bp), "b", "-")
    prompt_length_b = jnp.sum(prompt_mask_bp, axis=-1, dtype=jnp.int32)
    slot_m = jnp.arange(num_slots(p + max_new_tokens, attention), dtype=jnp.int32)
    # Of the slots behind the prompt, all up to the current one are real.
    slot_mask_bm = jnp.pad(prompt_mask_bp, ((0, 0), (0, slot_m.size - p)), constant_values=True)

    def choose(state: _LoopState, logits: tuple[Float[Array, "b v"], ...]) -> _LoopState:
        """Draws token `step` of every row."""
        weights_bv = sampling.weights(logits[0], truncation, *logits[1:])
        uniform_b = sampling.uniform(keys_b, state.step)
        token_b, log_prob_b = sampling.draw(weights_bv, uniform_b)
        is_real_b = ~state.is_stopped_b
        token_b = jnp.where(is_real_b, token_b, pad_id)
        tokens_bj, mask_bj, log_probs_bj = state.generation
        return _LoopState(
            step=state.step + 1,
            token_b=token_b,
            is_stopped_b=state.is_stopped_b | jnp.isin(token_b, jnp.array(eos_ids, jnp.int32)),
            caches=state.caches,
            generation=Generation(
                tokens_bj.at[:, state.step].set(token_b),
                mask_bj.at[:, state.step].set(is_real_b),
                log_probs_bj.at[:, state.step].set(jnp.where(is_real_b, log_prob_b, 0)),
            ),
        )

    def is_running(state: _LoopState) -> Bool[Array, ""]:
        return (state.step < max_new_tokens) & ~jnp.all(state.is_stopped_b)

    def append(state: _LoopState) -> _LoopState:
        """Reads the last token into the caches, then chooses the next."""
        slot = p + state.step - 1
        position_b = prompt_length_b + state.step - 1
        key_mask_bm = slot_mask_bm & (slot_m <= slot)
        logits, caches = zip(
            *(
                decode_step(
                    weights,
                    config,
                    state.token_b,
                    position_b,
                    slot,
                    cache,
                    key_mask_bm,
                    attention=attention,
                )
                for weights, cache in zip(networks, state.caches, strict=True)
            ),
            strict=True,
        )
        return choose(state._replace(caches=caches), logits)

    logits, caches = zip(
        *(
            prefill(
                weights,
                config,
                prompt_tokens_bp,
                prompt_mask_bp,
                slot_m.size,
                attention=attention,
            )
            for weights in networks
        ),
        strict=True,
    )
    # A shared prompt was read once; every row continues from its own copy.
    logits, caches, prompt_length_b, slot_mask_bm = jax.tree.map(
        lambda x: jnp.broadcast_to(x, (b, *x.shape[1:])),
        (logits, caches, prompt_length_b, slot_mask_bm),
    )
    empty = _LoopState(
        step=jnp.int32(0),
        token_b=jnp.full((b,), pad_id, jnp.int32),
        is_stopped_b=jnp.zeros((b,), jnp.bool_),
        caches=caches,
        generation=Generation(
            shard(jnp.full((b, max_new_tokens), pad_id, jnp.int32), "b", "-"),
            shard(jnp.zeros((b, max_new_tokens), jnp.bool_), "b", "-"),
            shard(jnp.zeros((b, max_new_tokens), jnp.float32), "b", "-"),
        ),
    )
    return jax.lax.while_loop(is_running, append, choose(empty, logits)).generation
