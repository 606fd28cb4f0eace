"""Acting as the host sees it: prompts of states, actions from prompts, episodes of a task.

A loop of `Episodes.encode`, `Actor.act`, `Episodes.start`, `Episodes.collect` and
`Episodes.finish` plays; the device is free between `start` and `collect`.
"""

import concurrent.futures
import dataclasses
import functools
import json
import math
import numbers
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, Self

import jax
import numpy as np
from absl import logging

from env.base import State, Step, Task, UsageError
from env.tasks.endings import program_text
from etpo_jax.acting import formats
from etpo_jax.acting.formats import Prompt
from etpo_jax.acting.sampler import Sampler
from etpo_jax.acting.transitions import Transition, bucket, pad_left
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


_Started = tuple[concurrent.futures.Future[list[Step]], Callable[[], list[Step]]]


def checked_step(
    task: Task,
    states: Sequence[State],
    actions: Sequence[str],
    rngs: Sequence[np.random.Generator],
) -> list[Step]:
    """Steps a task and checks what it returns.

    Raises:
      UsageError: naming what is wrong, before it is learnt from.
    """
    steps = task.step(states, actions, rngs)
    if not isinstance(steps, Sequence) or len(steps) != len(actions):
        raise UsageError(
            f"task {task.name}: step must return {len(actions)} steps, not {steps!r:.80}"
        )
    for step in steps:
        reward = step.reward if isinstance(step, Step) and isinstance(step.error, str) else None
        if not isinstance(reward, numbers.Real) or not math.isfinite(reward):
            raise UsageError(
                f"task {task.name}: step must return steps with a finite reward and a text as "
                f"error, not {step!r:.80}"
            )
        if step.next_state is not None:
            _check_state(task, step.next_state)
    return list(steps)


def _check_state(task: Task, state: Any) -> State:
    """A state of the task, if checkpoints can hold it; raises UsageError otherwise."""
    try:
        json.dumps(state.data)
    except (AttributeError, TypeError, ValueError) as error:
        raise UsageError(
            f"task {task.name}: a state must be a State whose data are JSON values: {error}"
        ) from error
    return state


def _execute(started: "queue.SimpleQueue[_Started | None]") -> None:
    """Takes steps one after another until there is a None among them."""
    while (work := started.get()) is not None:
        executing, step = work
        try:
            executing.set_result(step())
        except BaseException as error:  # whoever waits for the step gets it
            executing.set_exception(error)


class Episodes:
    """Episodes of one task side by side; an episode that ends is followed by a new one.

    A step has three parts, `start`, `collect` and `finish`, so that other work fits in while the
    task executes the actions.
    """

    def __init__(self, task: Task, prompts: Prompts, num_envs: int, seed: int):
        """Begins `num_envs` episodes, whose randomness depends on `seed` and their numbers."""
        self._task = task
        self._prompts = prompts
        self._seed = seed
        self._next_episode = 0
        self._env_step = 0
        self._episodes = [-1] * num_envs
        self._states = [State(0, {})] * num_envs
        for index in range(num_envs):
            self._renew(index)
        self._started: queue.SimpleQueue[_Started | None] = queue.SimpleQueue()
        # One thread is enough: it only waits for the executor while the device works. A daemon, so
        # that a step without end does not keep an interrupted program from ending.
        threading.Thread(
            target=_execute, args=(self._started,), name="execution", daemon=True
        ).start()

    @property
    def env_step(self) -> int:
        """Actions executed so far."""
        return self._env_step

    def encode(self) -> list[Prompt]:
        """Prompts of all current states."""
        return [self._prompts.encode(state) for state in self._states]

    def start(self, texts: Sequence[str]) -> concurrent.futures.Future[list[Step]]:
        """Begins to apply one action to each of the first `len(texts)` episodes, in the background.

        With n hosts, each host executes every n-th action, and `collect` exchanges the outcomes.
        """
        mine = range(hosts.index(), len(texts), hosts.count())
        step = functools.partial(
            checked_step,
            self._task,
            [self._states[index] for index in mine],
            [texts[index] for index in mine],
            [self._rng(self._episodes[index], self._states[index].t + 1) for index in mine],
        )
        executing: concurrent.futures.Future[list[Step]] = concurrent.futures.Future()
        self._started.put((executing, step))
        return executing

    def collect(self, executing: concurrent.futures.Future[list[Step]]) -> list[Step]:
        """Waits for the outcomes of all actions given to `start`; every host gets all of them."""
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
        """Moves the first `len(steps)` episodes on by one step.

        Returns:
          The transitions, and for each its row of `episodes.jsonl`.
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
                next_tokens = self._prompts.encode(step.next_state).tokens
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
        """Contents for a checkpoint, as a JSON value that `restore` takes."""
        return {
            "next_episode": self._next_episode,
            "env_step": self._env_step,
            "episodes": list(self._episodes),
            "states": [{"t": state.t, "data": dict(state.data)} for state in self._states],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continues from a value that `state` returned."""
        self._next_episode = state["next_episode"]
        self._env_step = state["env_step"]
        self._episodes = list(state["episodes"])
        self._states = [State(value["t"], value["data"]) for value in state["states"]]

    def close(self) -> None:
        """Ends the background thread after the step that is under way, without waiting for it."""
        self._started.put(None)

    def _rng(self, episode: int, t: int) -> np.random.Generator:
        return np.random.default_rng([self._seed, episode, t])

    def _renew(self, index: int) -> None:
        episode = self._next_episode
        self._next_episode += 1
        self._episodes[index] = episode
        self._states[index] = _check_state(self._task, self._task.reset(self._rng(episode, 0)))
