"""The host's side of acting: prompts, sampling, decoding, and execution in the background."""

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from absl import logging

from env.base import State, Step, Task, UsageError
from etpo_jax.acting.sampler import Sampler
from etpo_jax.acting.transitions import Transition, bucket, pad_left
from etpo_jax.devices import hosts
from etpo_jax.roles import Role
from models import decode
from models.tokenizer import Tokenizer
from models.transformer import Decoder


class Prompts(Protocol):
    """Texts of states as a model takes them."""

    def encode(self, state: State) -> tuple[str, np.ndarray]:
        """The text of a state and its token ids; none for a model that takes text."""


class TokenPrompts:
    """Texts of states as token ids that fit the model's window."""

    def __init__(self, task: Task, tokenizer: Tokenizer, max_prompt_length: int):
        self._task = task
        self._max_prompt_length = max_prompt_length
        self._has_shortened = False
        self._encode = functools.lru_cache(maxsize=4096)(tokenizer.encode_prompt)

    def encode(self, state: State) -> tuple[str, np.ndarray]:
        """The longest rendering of `state` that fits, and its ids; the first shorter one is told.

        Raises:
          UsageError: if even the shortest rendering does not fit.
        """
        for shorten in range(self._task.max_shorten + 1):
            text = self._task.render(state, shorten=shorten)
            ids = self._encode(text)
            if len(ids) <= self._max_prompt_length:
                if shorten and not self._has_shortened:
                    self._has_shortened = True
                    logging.warning(
                        "--max_prompt_length=%d: longer prompts are shortened, the first of them "
                        "at step %d of an episode",
                        self._max_prompt_length,
                        state.t,
                    )
                return text, np.array(ids, np.int32)
        raise UsageError(
            f"--max_prompt_length={self._max_prompt_length}: the shortest prompt of "
            f"{self._task.name} has {len(ids)} tokens"
        )


@dataclasses.dataclass(frozen=True)
class Actions:
    """What one step of every episode sampled.

    Attributes:
      prompts, prompt_tokens: the states as text and ids.
      texts: the actions as text.
      tokens, log_probs: their ids, stop token included, and log mu of each; none of a model that
        gives text only.
      num_tokens: of all actions, as far as the model says.
    """

    prompts: list[str]
    prompt_tokens: list[np.ndarray]
    texts: list[str]
    tokens: list[np.ndarray]
    log_probs: list[np.ndarray]
    num_tokens: int


class Actor(Protocol):
    """Whatever turns prompts into actions."""

    def weights(self, trunk: Role) -> Any:
        """A role's variables as `act` takes them; made once per update."""

    def act(
        self,
        weights: Any,
        encoded: Sequence[tuple[str, np.ndarray]],
        key: jax.Array,
        *,
        reference_weights: Any = None,
    ) -> Actions:
        """One action for each encoded prompt."""


def make_unstack(model: Decoder) -> Callable[[Any, Role], Any]:
    """The jitted (base, trunk) -> the role's weights laid out for generation, adapters merged."""

    def unstack(base: Any, trunk: Role) -> Any:
        adapters = trunk.get("lora")
        return decode.unstack(
            trunk.get("params", base),
            model.config,
            dtype=model.dtype,
            lora=adapters,
            lora_config=None if adapters is None else model.lora,
        )

    return jax.jit(unstack)


class SamplingActor:
    """Samples actions from a model on our own devices."""

    def __init__(
        self,
        model: Decoder,
        base: Any,
        sampler: Sampler,
        tokenizer: Tokenizer,
        max_prompt_length: int,
        length_multiple: int,
    ):
        self._base = base
        self._sampler = sampler
        self._tokenizer = tokenizer
        self._max_prompt_length = max_prompt_length
        self._length_multiple = length_multiple
        self._unstack = make_unstack(model)

    def weights(self, trunk: Role) -> Any:
        """A role's variables laid out for generation."""
        return self._unstack(self._base, trunk)

    def act(
        self,
        weights: Any,
        encoded: Sequence[tuple[str, np.ndarray]],
        key: jax.Array,
        *,
        reference_weights: Any = None,
    ) -> Actions:
        """Samples one action for each encoded prompt.

        Args:
          weights: `models.decode.unstack` of the policy.
          encoded: text and ids of each state.
          key: row i uses `fold_in(key, i)`.
          reference_weights: of the reference, needed for a support mask.
        """
        prompt_tokens = [ids for _, ids in encoded]
        length = bucket(
            max(len(ids) for ids in prompt_tokens), self._length_multiple, self._max_prompt_length
        )
        # All at their first prompt, as when a run starts: it is read once for all of them.
        distinct = prompt_tokens[:1] if len({text for text, _ in encoded}) == 1 else prompt_tokens
        tokens_bp, mask_bp = pad_left(distinct, length, self._tokenizer.pad_id)
        keys_b = jax.vmap(functools.partial(jax.random.fold_in, key))(np.arange(len(encoded)))
        generation = hosts.fetch(
            self._sampler.generate(
                weights, tokens_bp, mask_bp, keys_b, reference_weights=reference_weights
            )
        )
        lengths_b = generation.action_mask_bj.sum(axis=1)
        tokens = [
            row[:length] for row, length in zip(generation.action_tokens_bj, lengths_b, strict=True)
        ]
        return Actions(
            prompts=[text for text, _ in encoded],
            prompt_tokens=prompt_tokens,
            texts=[self._tokenizer.decode(row.tolist()) for row in tokens],
            tokens=tokens,
            log_probs=[
                row[:length] for row, length in zip(generation.log_probs_bj, lengths_b, strict=True)
            ],
            num_tokens=int(lengths_b.sum()),
        )


class Episodes:
    """Episodes side by side; each starts anew when it ends. The state is a JSON value."""

    def __init__(self, task: Task, prompts: Prompts, num_envs: int, seed: int):
        self._task = task
        self._prompts = prompts
        self._seed = seed
        self._next_episode = 0
        self._env_step = 0
        self._episodes: list[int] = []
        self._states: list[State] = []
        for _ in range(num_envs):
            self._append_new(len(self._states))
        # One thread: it only waits for the executor, so that the device can work meanwhile.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "execution")

    @property
    def env_step(self) -> int:
        """Actions executed so far."""
        return self._env_step

    def encode(self) -> list[tuple[str, np.ndarray]]:
        """Text and ids of every current state."""
        return [self._prompts.encode(state) for state in self._states]

    def start(self, texts: Sequence[str]) -> concurrent.futures.Future[list[Step]]:
        """Begins to apply the first `len(texts)` episodes' actions in the background.

        Of several hosts each executes every n-th of them; `collect` brings them together.
        """
        mine = range(hosts.index(), len(texts), hosts.count())
        return self._thread.submit(
            self._task.step,
            [self._states[index] for index in mine],
            [texts[index] for index in mine],
            [self._rng(self._episodes[index], self._states[index].t + 1) for index in mine],
        )

    def collect(self, executing: concurrent.futures.Future[list[Step]]) -> list[Step]:
        """The outcome of every action that `start` was given, on every host."""
        steps = executing.result()
        if hosts.count() == 1:
            return steps
        shares = hosts.exchange([step.to_json() for step in steps])
        return [
            Step.from_json(shares[index % len(shares)][index // len(shares)])
            for index in range(sum(map(len, shares)))
        ]

    def finish(
        self, actions: Actions, steps: Sequence[Step]
    ) -> tuple[list[Transition], list[dict[str, Any]]]:
        """Moves on by one step of the first `len(steps)` episodes.

        Returns:
          The transitions, and a row for `episodes.jsonl` of each.
        """
        transitions, rows = [], []
        for index, step in enumerate(steps):
            self._env_step += 1
            state, episode = self._states[index], self._episodes[index]
            rows.append(
                {
                    "env_step": self._env_step,
                    "episode": episode,
                    "t": state.t,
                    "dataset": self._task.name,
                    "prompt": actions.prompts[index],
                    "action": actions.texts[index],
                    "reward": step.reward,
                    "error": step.error,
                    "wall_s": step.info.get("wall_s"),
                    "split_scores": step.info.get("split_scores"),
                    "cached": step.info.get("cached", False),
                }
            )
            next_tokens = None
            if step.next_state is None:
                self._renew(index)
            else:
                self._states[index] = step.next_state
                next_tokens = self._prompts.encode(step.next_state)[1]
            transitions.append(
                Transition(
                    prompt_tokens=actions.prompt_tokens[index],
                    action_tokens=actions.tokens[index],
                    log_probs=actions.log_probs[index],
                    reward=step.reward,
                    next_prompt_tokens=next_tokens,
                )
            )
        return transitions, rows

    def state(self) -> dict[str, Any]:
        """A JSON value that `restore` takes."""
        return {
            "next_episode": self._next_episode,
            "env_step": self._env_step,
            "episodes": list(self._episodes),
            "states": [{"t": state.t, "data": dict(state.data)} for state in self._states],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from what `state` gave."""
        self._next_episode = state["next_episode"]
        self._env_step = state["env_step"]
        self._episodes = list(state["episodes"])
        self._states = [State(value["t"], value["data"]) for value in state["states"]]

    def close(self) -> None:
        """Ends the background thread; what it executes is waited for."""
        self._thread.shutdown()

    def _rng(self, episode: int, t: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, episode, t])

    def _renew(self, index: int) -> None:
        episode = self._next_episode
        self._next_episode += 1
        self._episodes[index] = episode
        self._states[index] = self._task.reset(self._rng(episode, 0))

    def _append_new(self, index: int) -> None:
        self._episodes.append(-1)
        self._states.append(State(0, {}))
        self._renew(index)
