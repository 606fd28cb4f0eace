"""Next-token training of a small decoder on tokenised documents, in plain JAX."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from models.config import DecoderConfig
from models.transformer import Decoder, positions


@dataclasses.dataclass(frozen=True)
class Example:
    """Token ids of one document.

    Attributes:
      tokens: prompt and answer, with the stop token.
      num_prompt_tokens: number of leading tokens that are given and not to be produced.
    """

    tokens: Sequence[int]
    num_prompt_tokens: int

    @property
    def num_action_tokens(self) -> int:
        return len(self.tokens) - self.num_prompt_tokens


class Batch(NamedTuple):
    """Right-padded sequences of one length.

    Attributes:
      tokens_bs: ids; 0 for padding.
      mask_bs: True for real tokens.
      slots_bj: index in s of each token to be produced; past the end for shorter answers.
      is_action_bj: True where there is such a token.
    """

    tokens_bs: Int[Array, "b s"]
    mask_bs: Bool[Array, "b s"]
    slots_bj: Int[Array, "b j"]
    is_action_bj: Bool[Array, "b j"]


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Length and learning rate of a training.

    Attributes:
      steps: optimizer steps.
      batch_tokens: tokens of one batch, padding included.
      learning_rate: peak rate of AdamW, after a warm-up of a twentieth of the steps; it then
        falls to a twentieth along a cosine.
      weight_decay: weight decay of all parameters.
    """

    steps: int
    batch_tokens: int
    learning_rate: float
    weight_decay: float = 0.05


# Lengths that sequences are padded to; each takes one compilation.
_LENGTHS = (48, 80, 112, 160, 256, 512)


def train(
    config: DecoderConfig,
    schedule: Schedule,
    examples: Sequence[Example],
    *,
    seed: int,
    report: Callable[[int, float], None],
) -> dict[str, Any]:
    """Trains a `Decoder` from scratch; the same arguments give the same result on a machine.

    Args:
      config: sizes of the network.
      schedule: length and learning rate.
      examples: documents; each pass over them has a random order of its own.
      seed: seed of the first parameters and of the orders.
      report: called about fifty times with the step and the loss per answer token, in nats.

    Returns:
      The parameters, on the host.

    Raises:
      ValueError: an example is longer than the longest bucket.
    """
    model = Decoder(config)
    rate = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=schedule.learning_rate,
        warmup_steps=schedule.steps // 20,
        decay_steps=schedule.steps,
        end_value=schedule.learning_rate / 20,
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(rate, b1=0.9, b2=0.98, weight_decay=schedule.weight_decay),
    )

    @jax.jit
    def init(key: Array) -> tuple[Any, Any]:
        blank = jnp.zeros((1, 2), jnp.int32)
        params = model.init(key, blank, blank, jnp.ones((1, 2), bool))["params"]
        return params, optimizer.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def update(params: Any, state: Any, batch: Batch) -> tuple[Any, Any, Float[Array, ""]]:
        loss, grads = jax.value_and_grad(answer_loss, argnums=1)(model, params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    params, state = init(jax.random.key(seed))
    losses = []
    every = max(1, schedule.steps // 50)
    stream = batches(examples, schedule, seed=seed)
    for step in range(1, schedule.steps + 1):
        params, state, loss = update(params, state, next(stream))
        losses.append(loss)
        if step % every == 0 or step == schedule.steps:
            report(step, float(np.mean(jax.device_get(losses))))
            losses = []
    return jax.device_get(params)


def answer_loss(model: Decoder, params: Any, batch: Batch) -> Float[Array, ""]:
    """Mean cross-entropy of the tokens of the answers, in nats."""
    hidden_bsd: Any = model.apply(
        {"params": params},
        batch.tokens_bs,
        positions(batch.mask_bs),
        batch.mask_bs,
        method="hidden",
    )
    # Each is predicted at the token before it, so that logits are needed there alone.
    slots_bj = jnp.minimum(batch.slots_bj, batch.tokens_bs.shape[1] - 1)
    before_bjd = jnp.take_along_axis(hidden_bsd, slots_bj[..., None] - 1, axis=1)
    logits_bjv: Any = model.apply({"params": params}, before_bjd, method="logits")
    targets_bj = jnp.take_along_axis(batch.tokens_bs, slots_bj, axis=1)
    losses_bj = optax.softmax_cross_entropy_with_integer_labels(logits_bjv, targets_bj)
    return jnp.sum(jnp.where(batch.is_action_bj, losses_bj, 0.0)) / jnp.sum(batch.is_action_bj)


def batches(examples: Sequence[Example], schedule: Schedule, *, seed: int) -> Iterator[Batch]:
    """Yields batches without end; each pass over the examples has an order of its own.

    Sequences of about the same length share a batch, for few shapes and little padding.
    """
    rng = np.random.default_rng(seed)
    buckets: dict[int, list[int]] = {}
    for i, example in enumerate(examples):
        fitting = [length for length in _LENGTHS if len(example.tokens) <= length]
        if not fitting:
            raise ValueError(f"a document of {len(example.tokens)} tokens exceeds {_LENGTHS[-1]}")
        buckets.setdefault(fitting[0], []).append(i)
    while True:
        chunks = []
        for length, members in sorted(buckets.items()):
            size = max(1, schedule.batch_tokens // length)
            num_actions = max(examples[i].num_action_tokens for i in members)
            # A last chunk that is not full borrows from the front, which keeps its shape.
            order = np.resize(rng.permutation(members), -(-len(members) // size) * size)
            chunks += [(length, num_actions, chunk) for chunk in order.reshape(-1, size)]
        for i in rng.permutation(len(chunks)):
            length, num_actions, chunk = chunks[i]
            yield _pad([examples[j] for j in chunk], length, num_actions)


def _pad(examples: Sequence[Example], length: int, num_actions: int) -> Batch:
    tokens_bs = np.zeros((len(examples), length), np.int32)
    prompt_b = np.array([example.num_prompt_tokens for example in examples], np.int32)
    count_b = np.array([len(example.tokens) for example in examples], np.int32)
    for row, example in enumerate(examples):
        tokens_bs[row, : count_b[row]] = example.tokens
    slots_bj = prompt_b[:, None] + np.arange(num_actions, dtype=np.int32)
    return Batch(
        tokens_bs=jnp.asarray(tokens_bs),
        mask_bs=jnp.asarray(np.arange(length) < count_b[:, None]),
        slots_bj=jnp.asarray(slots_bj),
        is_action_bj=jnp.asarray(slots_bj < count_b[:, None]),
    )
