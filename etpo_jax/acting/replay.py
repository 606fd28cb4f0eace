"""The replay buffer D of Algorithm 1: the newest transitions, in NumPy on the host."""

from collections.abc import Sequence

import numpy as np

from etpo_jax.acting.transitions import Transition

_ABSENT = -1  # length of the next state where an episode ended


class Replay:
    """A ring buffer in arrays of fixed shapes, so that all checkpoints of a run have one layout."""

    def __init__(self, capacity: int, max_prompt_length: int, max_new_tokens: int):
        """Allocates an empty buffer.

        Args:
          capacity: transitions that the buffer holds.
          max_prompt_length: longest prompt in tokens.
          max_new_tokens: longest action in tokens.
        """
        self._arrays: dict[str, np.ndarray] = {
            "prompt_tokens": np.zeros((capacity, max_prompt_length), np.int32),
            "prompt_length": np.zeros(capacity, np.int32),
            "action_tokens": np.zeros((capacity, max_new_tokens), np.int32),
            "action_length": np.zeros(capacity, np.int32),
            "log_probs": np.zeros((capacity, max_new_tokens), np.float32),
            "reward": np.zeros(capacity, np.float32),
            "next_prompt_tokens": np.zeros((capacity, max_prompt_length), np.int32),
            "next_prompt_length": np.full(capacity, _ABSENT, np.int32),
            "num_added": np.zeros((), np.int64),
        }
        self._capacity = capacity

    def __len__(self) -> int:
        return min(int(self._arrays["num_added"]), self._capacity)

    def add(self, transitions: Sequence[Transition]) -> None:
        """Appends transitions in place of the oldest.

        Raises:
          ValueError: if the transitions outnumber the capacity, or one is too long.
        """
        if len(transitions) > self._capacity:
            raise ValueError(
                f"{len(transitions)} transitions do not fit into a replay of {self._capacity}"
            )
        arrays = self._arrays
        for transition in transitions:
            slot = int(arrays["num_added"]) % self._capacity
            _store(arrays, "prompt", slot, transition.prompt_tokens)
            _store(arrays, "action", slot, transition.action_tokens)
            arrays["log_probs"][slot, : len(transition.log_probs)] = transition.log_probs
            arrays["reward"][slot] = transition.reward
            if transition.next_prompt_tokens is None:
                arrays["next_prompt_length"][slot] = _ABSENT
            else:
                _store(arrays, "next_prompt", slot, transition.next_prompt_tokens)
            arrays["num_added"] += 1

    def sample(self, size: int, rng: np.random.Generator) -> list[Transition]:
        """Draws transitions uniformly.

        None is drawn twice, unless fewer than `size` are stored.

        Raises:
          ValueError: if nothing is stored.
        """
        if not len(self):
            raise ValueError("cannot sample from an empty replay")
        slots = rng.choice(len(self), size=size, replace=size > len(self))
        return [self._get(int(slot)) for slot in slots]

    def newest(self, count: int) -> list[Transition]:
        """The last `count` transitions added, or all if there are fewer; the newest last."""
        end = int(self._arrays["num_added"])
        first = end - min(count, len(self))
        return [self._get(index % self._capacity) for index in range(first, end)]

    def _get(self, slot: int) -> Transition:
        arrays = self._arrays
        action_length = arrays["action_length"][slot]
        next_length = arrays["next_prompt_length"][slot]
        return Transition(
            prompt_tokens=arrays["prompt_tokens"][slot, : arrays["prompt_length"][slot]].copy(),
            action_tokens=arrays["action_tokens"][slot, :action_length].copy(),
            log_probs=arrays["log_probs"][slot, :action_length].copy(),
            reward=float(arrays["reward"][slot]),
            next_prompt_tokens=None
            if next_length == _ABSENT
            else arrays["next_prompt_tokens"][slot, :next_length].copy(),
        )

    def state(self) -> dict[str, np.ndarray]:
        """Copies the contents for a checkpoint."""
        return {name: array.copy() for name, array in self._arrays.items()}

    def restore(self, state: dict[str, np.ndarray]) -> None:
        """Takes over contents that `state` returned.

        Raises:
          ValueError: if an array has another shape.
        """
        for name, array in self._arrays.items():
            if np.shape(state[name]) != array.shape:
                raise ValueError(
                    f"replay array {name} has shape {np.shape(state[name])}, not {array.shape}"
                )
            array[...] = state[name]


def _store(arrays: dict[str, np.ndarray], name: str, slot: int, tokens: np.ndarray) -> None:
    arrays[f"{name}_tokens"][slot, : len(tokens)] = tokens
    arrays[f"{name}_length"][slot] = len(tokens)
