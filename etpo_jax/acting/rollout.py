"""Prompts of a task's states, and actions from prompts; `episodes` applies the actions."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import jax
import numpy as np
from absl import logging

from env.base import State, Task, UsageError
from env.tasks.endings import program_text
from etpo_jax.acting import formats
from etpo_jax.acting.formats import Prompt
from etpo_jax.acting.sampler import Sampler
from etpo_jax.acting.transitions import bucket, pad_left
from etpo_jax.devices import hosts
from etpo_jax.distribution import TILT
from etpo_jax.roles import Role
from models import decode
from models.tokenizer import Tokenizer
from models.transformer import Decoder


class Prompts(Protocol):
    """Renders the states of a task as one kind of actor reads them."""

    def encode(self, state: State) -> Prompt:
        """The prompt of a state; equal states give equal prompts."""


class TokenPrompts:
    """Renders states as token ids that fit the model's window."""

    def __init__(
        self,
        task: Task,
        tokenizer: Tokenizer,
        max_prompt_length: int,
        prompt_format: str = "infill",
    ):
        """Prompts of `task` with at most `max_prompt_length` ids, in one of `formats.FORMATS`.

        The task is told the format, where it has several renderings of a state.
        """
        self._task = task
        self._tokenizer = tokenizer
        self._max_prompt_length = max_prompt_length
        self._format = prompt_format
        self._has_shortened = False
        self._of_text = functools.lru_cache(maxsize=4096)(formats.text_prompt)
        # A task need not be a subclass of Task.
        use_format = getattr(task, "use_format", None)
        if use_format is not None:
            use_format(prompt_format)

    @property
    def action_end(self) -> str:
        """The end of the task's actions beside stop tokens, see `env.base.Task`.

        In the answer of a chat model, the fence that closes the code ends a function.
        """
        end = getattr(self._task, "action_end", "")
        return "fence" if self._format == "chat" and end == "function" else end

    def encode(self, state: State) -> Prompt:
        """The longest rendering of `state` that fits; the first that is shortened logs a warning.

        Raises:
          UsageError: if even the shortest rendering does not fit.
        """
        for shorten in range(self._task.max_shorten + 1):
            prompt = self._render(state, shorten)
            if len(prompt.tokens) <= self._max_prompt_length:
                if shorten and not self._has_shortened:
                    self._has_shortened = True
                    logging.warning(
                        "--max_prompt_length=%d: longer prompts are shortened, the first of them "
                        "at step %d of an episode",
                        self._max_prompt_length,
                        state.t,
                    )
                return prompt
        raise UsageError(
            f"--max_prompt_length={self._max_prompt_length}: the shortest prompt of "
            f"{self._task.name} has {len(prompt.tokens)} tokens"
        )

    def _render(self, state: State, shorten: int) -> Prompt:
        if self._format != "chat":
            text = self._task.render(state, shorten=shorten)
            return self._of_text(self._tokenizer, text, self._format)
        messages = formats.conversation(self._task, state, shorten=shorten)
        read = getattr(self._task, "action_of", str)
        return formats.chat_prompt(self._tokenizer, messages, read)


@dataclasses.dataclass(frozen=True)
class Actions:
    """Actions of one step, one for each prompt and in the order of the prompts.

    Attributes:
      prompts: texts of the states.
      prompt_tokens: int32 ids [p] of each state.
      texts: texts of the actions, without what ends them.
      tokens: int32 ids [j] of each action, the one that ends it included; empty for a model that
        gives text only, as are prompt_tokens and log_probs.
      log_probs: float32 [j], log mu of each token: the distribution that it was drawn from.
      num_tokens: tokens of all actions together, or 0 where the model does not count them.
    """

    prompts: list[str]
    prompt_tokens: list[np.ndarray]
    texts: list[str]
    tokens: list[np.ndarray]
    log_probs: list[np.ndarray]
    num_tokens: int

    def rows(self, indices: Sequence[int]) -> Self:
        """The actions of these prompts."""
        tokens = [self.tokens[index] for index in indices]
        return type(self)(
            prompts=[self.prompts[index] for index in indices],
            prompt_tokens=[self.prompt_tokens[index] for index in indices],
            texts=[self.texts[index] for index in indices],
            tokens=tokens,
            log_probs=[self.log_probs[index] for index in indices],
            num_tokens=sum(map(len, tokens)),
        )

    @classmethod
    def join(cls, parts: Sequence["Actions"]) -> Self:
        """Actions of one part after the other."""
        return cls(
            prompts=[prompt for part in parts for prompt in part.prompts],
            prompt_tokens=[tokens for part in parts for tokens in part.prompt_tokens],
            texts=[text for part in parts for text in part.texts],
            tokens=[tokens for part in parts for tokens in part.tokens],
            log_probs=[log_probs for part in parts for log_probs in part.log_probs],
            num_tokens=sum(part.num_tokens for part in parts),
        )


class Actor(Protocol):
    """Turns prompts into actions.

    Implementations hold no policy: `act` gets the weights of the policy that is to act, so that
    one actor serves every update, and evaluation as well.
    """

    def weights(self, trunk: Role) -> Any:
        """The variables of a role in the form that `act` takes; called once per update.

        An actor whose model is elsewhere returns None.
        """

    def act(
        self,
        weights: Any,
        prompts: Sequence[Prompt],
        key: jax.Array,
        *,
        reference_weights: Any = None,
    ) -> Actions:
        """Chooses one action for each prompt.

        Args:
          weights: the policy, from `weights`.
          prompts: at least one prompt.
          key: typed random key, the only source of randomness on our side.
          reference_weights: the reference, from `weights`; for a support mask or a tilt.

        Raises:
          UsageError: if no action can be had, for reasons that the user can remove.
        """


def make_unstack(model: Decoder) -> Callable[[Any, Role], Any]:
    """Builds the jitted function of (base, role) that lays out weights for `Sampler.generate`.

    Adapters are merged into the weights; the coefficients of a tilt stand beside them.
    """

    def unstack(base: Any, trunk: Role) -> Any:
        adapters = trunk.get("lora")
        weights = decode.unstack(
            trunk.get("params", base),
            model.config,
            dtype=model.dtype,
            lora=adapters,
            lora_config=None if adapters is None else model.lora,
        )
        return weights if TILT not in trunk else {**weights, TILT: trunk[TILT]}

    return jax.jit(unstack)


class SamplingActor:
    """Samples actions from a model on the devices of this process."""

    def __init__(
        self,
        model: Decoder,
        base: Any,
        sampler: Sampler,
        tokenizer: Tokenizer,
        max_prompt_length: int,
        length_multiple: int,
        *,
        action_end: str = "",
    ):
        """Prompts are padded to a multiple of `length_multiple`, up to `max_prompt_length`.

        The texts of actions go without what ends them, see `env.base.Task.action_end`; `sampler`
        must stop there.
        """
        self._base = base
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._max_prompt_length = max_prompt_length
        self._length_multiple = length_multiple
        self._action_end = action_end
        self._unstack = make_unstack(model)

    def weights(self, trunk: Role) -> Any:
        """The variables of a role, laid out for generation."""
        return self._unstack(self._base, trunk)

    def act(
        self,
        weights: Any,
        prompts: Sequence[Prompt],
        key: jax.Array,
        *,
        reference_weights: Any = None,
        flattening: float = 1.0,
    ) -> Actions:
        """Samples one action for each prompt; row i draws with `fold_in(key, i)`.

        `flattening` is that of `Sampler.generate`.
        """
        prompt_tokens = [prompt.tokens for prompt in prompts]
        length = bucket(
            max(len(ids) for ids in prompt_tokens), self._length_multiple, self._max_prompt_length
        )
        # Episodes that begin together share one prompt, which the model then reads once.
        is_shared = len({prompt.text for prompt in prompts}) == 1
        distinct = prompt_tokens[:1] if is_shared else prompt_tokens
        tokens_bp, mask_bp = pad_left(distinct, length, self._tokenizer.pad_id)
        keys_b = jax.vmap(functools.partial(jax.random.fold_in, key))(np.arange(len(prompts)))
        generation = hosts.fetch(
            self._sampler.generate(
                weights,
                tokens_bp,
                mask_bp,
                keys_b,
                reference_weights=reference_weights,
                flattening=flattening,
            )
        )
        lengths_b = generation.action_mask_bj.sum(axis=1)
        tokens = [
            row[:length] for row, length in zip(generation.action_tokens_bj, lengths_b, strict=True)
        ]
        return Actions(
            prompts=[prompt.text for prompt in prompts],
            prompt_tokens=prompt_tokens,
            texts=[
                prompt.read(program_text(self._tokenizer.decode(row.tolist()), self._action_end))
                for prompt, row in zip(prompts, tokens, strict=True)
            ],
            tokens=tokens,
            log_probs=[
                row[:length] for row, length in zip(generation.log_probs_bj, lengths_b, strict=True)
            ],
            num_tokens=int(lengths_b.sum()),
        )
