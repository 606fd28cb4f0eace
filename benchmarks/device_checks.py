"""Values of small programs on one device, to be compared with those of another.

    python -m benchmarks.device_checks FILE.npz

writes those of the stand-in on the devices of JAX_PLATFORMS.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import gradient_step_parity
from benchmarks.decoding import STOP, Decoding
from benchmarks.random_model import decoder_config, random_parameters
from etpo_jax.config import SamplingConfig
from models.attention import attend, causal_visibility
from models.decode import unstack

_ROWS, _PROMPT, _NEW = 8, 64, 32
_TRANSITIONS = 8
ATTENTION_TOLERANCE = 0.02
"""Largest norm of the difference, relative to the norm in float32: inputs have 8 bits of mantissa,
and so do the weights that are multiplied with the values."""
_TOKENS_TOLERANCE = 0.05
_LOG_PROBS_TOLERANCE = 1e-3
_STEP_TOLERANCE = 1e-3

Values = dict[str, np.ndarray]


def stand_in_values() -> Values:
    """Sampled actions and the first gradients of random networks of the stand-in's shape.

    Weights, prompts, keys and transitions are the same on every device.
    """
    config = decoder_config("tiny", _PROMPT + _NEW)
    params = jax.jit(lambda: random_parameters(config, jnp.float32, stop_id=STOP))()
    weights = jax.jit(unstack, static_argnums=1)(params, config)
    sampling = SamplingConfig(max_new_tokens=_NEW, top_k=50, support_threshold=0.0)
    generation = Decoding(config, weights, _ROWS, _PROMPT, sampling).generate()
    problem = gradient_step_parity.make_problem(config, "retrace", _TRANSITIONS, _PROMPT, _NEW)
    ours = gradient_step_parity.Ours(problem)
    metrics = ours()
    values = {
        "tokens": generation.action_tokens_bj,
        "log_probs": generation.log_probs_bj,
        **{f"metric/{name}": value for name, value in metrics.items()},
        **{
            f"gradient/{jax.tree_util.keystr(path, simple=True, separator='/')}": leaf
            for path, leaf in jax.tree.leaves_with_path(ours.moments())
        },
    }
    return {name: np.asarray(value) for name, value in values.items()}


def differences(here: Values, there: Values) -> Iterator[tuple[str, float, float]]:
    """Largest differences by what is compared: (name, difference, tolerance).

    A token that is drawn next to a boundary of its distribution may differ for rounding, and then
    so does the rest of its row: log probabilities are compared up to there.
    """
    is_same_bj = np.cumprod(here["tokens"] == there["tokens"], axis=1).astype(bool)
    yield "stand-in, share of tokens that differ", 1 - float(is_same_bj.mean()), _TOKENS_TOLERANCE
    distance_bj = np.abs(here["log_probs"] - there["log_probs"])
    yield (
        "stand-in, log probabilities, nats",
        float(np.max(distance_bj, where=is_same_bj, initial=0.0)),
        _LOG_PROBS_TOLERANCE,
    )
    for kind, title in (("metric/", "metrics"), ("gradient/", "gradients")):
        names = [name for name in here if name.startswith(kind)]
        floor = 0.0
        if kind == "gradient/":  # rounding of a whole gradient is much of what some leaves have
            floor = 0.01 * float(np.sqrt(sum(np.sum(np.square(there[name])) for name in names)))
        worst = max(relative(here[name], there[name], floor) for name in names)
        yield f"stand-in, {title} of a gradient step, relative", worst, _STEP_TOLERANCE


def relative(actual: Any, expected: Any, floor: float = 0.0) -> float:
    """Norm of the difference over the larger of the norm of `expected` and `floor`."""
    actual, expected = (np.asarray(value, np.float64) for value in (actual, expected))
    distance = float(np.linalg.norm(actual - expected))
    size = max(float(np.linalg.norm(expected)), floor)
    if not np.isfinite(distance):
        return float("inf")
    return distance / size if size else float(distance > 0)


class AttentionCase:
    """Attention of left padded rows with random queries, keys and values in bfloat16."""

    def __init__(self, rows: int, length: int, heads: int, size: int):
        keys = jax.random.split(jax.random.key(0), 4)
        self._inputs = tuple(
            jax.random.normal(key, (rows, length, heads, size), jnp.bfloat16) for key in keys[:3]
        )
        padding_b = np.arange(rows) * length // (2 * rows)  # up to almost half
        self._mask_bs = jnp.asarray(np.arange(length) >= padding_b[:, None])
        # Padding has outputs, which nothing reads: it takes no part in the comparison.
        cotangent = jax.random.normal(keys[3], (rows, length, heads, size), jnp.float32)
        self._cotangent = jnp.where(self._mask_bs[:, :, None, None], cotangent, 0)
        self._compiled: dict[str, Callable[..., tuple[jax.Array, ...]]] = {}

    def compare(self, implementation: str) -> dict[str, float]:
        """Relative differences of outputs and gradients from the reference in float32."""
        actual = self._values(implementation)(*self._inputs)
        names = ("output", "query", "key", "value")
        return {
            name: relative(jnp.float32(a), e)
            for name, a, e in zip(names, actual, self._expected, strict=True)
        }

    def program(self, implementation: str) -> Callable[[], Any]:
        """One forward and backward pass of an implementation, for measuring."""
        values = self._values(implementation)
        return lambda: jax.block_until_ready(values(*self._inputs))

    @functools.cached_property
    def _expected(self) -> tuple[jax.Array, ...]:
        """Output and gradients of the reference in float32."""
        exact = tuple(x.astype(jnp.float32) for x in self._inputs)
        with jax.default_matmul_precision("highest"):
            return self._values("reference")(*exact)

    def _values(self, implementation: str) -> Callable[..., tuple[jax.Array, ...]]:
        if implementation in self._compiled:
            return self._compiled[implementation]
        visible = causal_visibility(self._mask_bs, implementation)

        @jax.jit
        def values(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, ...]:
            output, back = jax.vjp(
                lambda q, k, v: attend(q, k, v, visible, implementation=implementation), q, k, v
            )
            real = jnp.where(self._mask_bs[:, :, None, None], output, 0)
            return real, *back(self._cotangent.astype(output.dtype))

        self._compiled[implementation] = values
        return values


if __name__ == "__main__":
    np.savez(sys.argv[1], **stand_in_values())  # type: ignore[arg-type]
