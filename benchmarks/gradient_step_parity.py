"""One ETPO update as two programs from the same start: ours and its peer in PyTorch.

`benchmarks.gradient_step` measures the two programs and its test compares their results. Torch is
imported when the peer is asked for.
"""

import dataclasses
import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.random_model import build_learner
from env.base import UsageError
from etpo_jax.acting.transitions import Batch
from etpo_jax.config import Config
from etpo_jax.devices.mesh import build_mesh
from models.config import DecoderConfig
from models.convert import abstract_parameters

MODES = {"retrace": "residual", "path": "dueling", "one_step": "residual"}
"""Critic losses that the peer knows, each with the reading of Q that it is trained with."""
TOLERANCE = 1e-4
_CHECKED_STEPS = 3
# Everything that the peer leaves out is switched off.
_PLAIN = {"policy_loss": "exact", "trust_region": 0.0, "support_threshold": 0.0, "temperature": 1.0}


@dataclasses.dataclass(frozen=True)
class Problem:
    """The common start of both programs, in NumPy arrays so that neither changes the other's.

    Attributes:
      config: settings of the update.
      decoder: sizes of every network.
      base: weights of the reference.
      state: `TrainState` with random networks, all different from the reference, and empty
        optimisers.
      batch: padded transitions.
    """

    config: Config
    decoder: DecoderConfig
    base: Any
    state: Any
    batch: Batch


def import_peer() -> Any:
    """Imports `benchmarks.gradient_step_torch`.

    Raises:
      UsageError: torch is not installed.
    """
    try:
        return importlib.import_module("benchmarks.gradient_step_torch")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
    raise UsageError("torch is not installed: this benchmark compares with it (pip install torch)")


def make_problem(
    decoder: DecoderConfig,
    mode: str,
    transitions: int,
    prompt: int,
    action: int,
    remat: str = "none",
) -> Problem:
    """Makes random networks and transitions.

    Args:
      decoder: sizes.
      mode: a critic loss of `MODES`.
      transitions: rows of the batch; every other one ends its episode.
      prompt, action: padded lengths in tokens.
      remat: `--remat` of our backward pass; the peer keeps every activation.
    """
    config = Config.from_dict(
        {**_PLAIN, "critic_loss": mode, "q_parameterization": MODES[mode], "remat": remat}
    )
    rng = np.random.default_rng(0)
    base = _random_parameters(rng, decoder)
    state = jax.tree.map(np.array, _learner(config, decoder, base).state)

    def near_base() -> Any:
        # As after some training: where all networks are equal the policy's gradient is zero.
        other = _random_parameters(rng, decoder)
        mix = jax.tree.map(
            lambda old, new: np.float32(0.9) * old + np.float32(0.1) * new, base, other
        )
        return {"params": mix}

    def critic(initial: Any) -> Any:
        value = initial.value
        if value is not None:
            value = (rng.normal(size=value.shape) / decoder.hidden_size).astype(np.float32)
        return dataclasses.replace(initial, trunk=near_base(), offset=np.float32(0.3), value=value)

    state = dataclasses.replace(
        state,
        policy=near_base(),
        critic=critic(state.critic),
        target_critic=critic(state.target_critic),
    )
    batch = _make_batch(rng, decoder.vocab_size, transitions, prompt, action)
    return Problem(config, decoder, base, state, batch)


def _random_parameters(rng: np.random.Generator, decoder: DecoderConfig) -> Any:
    """Float32 weights with activations of the order of one."""

    def array(path: Any, leaf: Any) -> np.ndarray:
        noise = rng.normal(size=leaf.shape)
        is_norm = "norm" in jax.tree_util.keystr(path)
        value = 1 + 0.1 * noise if is_norm else noise / math.sqrt(leaf.shape[-2])
        return value.astype(np.float32)

    return jax.tree_util.tree_map_with_path(array, abstract_parameters(decoder, jnp.float32))


def _learner(config: Config, decoder: DecoderConfig, base: Any) -> Any:
    mesh = build_mesh()
    with jax.set_mesh(mesh):
        return build_learner(config, decoder, jax.tree.map(jnp.array, base), mesh)


def _make_batch(
    rng: np.random.Generator, vocabulary: int, transitions: int, prompt: int, action: int
) -> Batch:
    def tokens(length: int) -> np.ndarray:
        return rng.integers(0, vocabulary, (transitions, length), np.int32)

    def lengths(length: int) -> np.ndarray:
        return rng.integers(length // 4 + 1, length + 1, (transitions, 1))

    prompt_mask_bp = np.arange(prompt) >= prompt - lengths(prompt)
    next_prompt_mask_bp = np.arange(prompt) >= prompt - lengths(prompt)
    action_mask_bj = np.arange(action) < lengths(action)
    # Around the probability of a random token, so that Retrace clips some ratios.
    log_probs_bj = rng.uniform(-0.5, 0.5, action_mask_bj.shape) - math.log(vocabulary)
    arrays: dict[str, Any] = {
        "prompt_tokens_bp": tokens(prompt),
        "prompt_mask_bp": prompt_mask_bp,
        "action_tokens_bj": tokens(action),
        "action_mask_bj": action_mask_bj,
        "log_probs_bj": np.where(action_mask_bj, log_probs_bj, 0).astype(np.float32),
        "reward_b": rng.uniform(-1, 1, transitions).astype(np.float32),
        "continues_b": (np.arange(transitions) % 2).astype(np.float32),
        "next_prompt_tokens_bp": tokens(prompt),
        "next_prompt_mask_bp": next_prompt_mask_bp,
    }
    return Batch(**arrays)


class Ours:
    """The learner as training calls it; every call takes one gradient step."""

    def __init__(self, problem: Problem):
        self._learner = _learner(problem.config, problem.decoder, problem.base)
        self._mesh = build_mesh()
        # Copies: the state is donated.
        self._learner.state = jax.tree.map(jnp.array, problem.state)
        batch = problem.batch
        if self._learner.networks.model.gains_by_packing:  # as the loop does on a CPU
            batch = batch.with_blocks()
        self._batch = jax.tree.map(jnp.array, batch)

    def __call__(self) -> dict[str, Any]:
        with jax.set_mesh(self._mesh):
            metrics = self._learner.learn(self._batch)
        jax.block_until_ready((self._learner.state, metrics))
        return metrics

    def moments(self) -> dict[str, Any]:
        """AdamW's first moments, which after one step are a share of the clipped gradients."""
        state = self._learner.state
        policy, critic = (
            optimizer[1].mu for optimizer in (state.policy_optimizer, state.critic_optimizer)
        )
        parts = {"trunk": critic.trunk["params"], "offset": critic.offset, "value": critic.value}
        return {"policy": policy["params"], "critic": parts}


def make_theirs(gradient_step_torch: Any, problem: Problem) -> Any:
    """Makes the peer at the same start."""
    return gradient_step_torch.Update(
        problem.config, problem.decoder, problem.base, problem.state, problem.batch
    )


def largest_difference(ours: Any, theirs: Any) -> float:
    """Largest relative difference of metrics and gradients over a few steps of both programs.

    Raises:
      RuntimeError: the difference is above `TOLERANCE`, or a step was not finite.
    """
    differences = {}
    for step in range(_CHECKED_STEPS):
        metrics, expected = ours(), theirs()
        if not float(metrics["is_finite"]) == float(expected["is_finite"]) == 1:
            raise RuntimeError(f"step {step} was not finite: {metrics} and {expected}")
        for name in expected:
            differences[f"{name} at step {step}"] = _relative(metrics[name], expected[name])
        peer_moments = theirs.moments()
        for network, moments in ours.moments().items():
            peers = jax.tree.leaves_with_path(peer_moments[network])
            # Rounding of the whole gradient is much of the little that some leaves have.
            floor = 0.01 * math.sqrt(sum(float(np.sum(np.square(peer))) for _, peer in peers))
            for (path, leaf), (_, peer) in zip(
                jax.tree.leaves_with_path(moments), peers, strict=True
            ):
                name = f"{network}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
                difference = _relative(leaf, peer, floor)
                differences[f"gradient of {name} at step {step}"] = difference
    worst = max(differences, key=lambda name: differences[name])
    if not differences[worst] <= TOLERANCE:
        raise RuntimeError(f"programs differ by {differences[worst]:.1e} in {worst}")
    return differences[worst]


def _relative(actual: Any, expected: Any, floor: float = 0.0) -> float:
    """Norm of the difference over the larger of the norm of `expected` and `floor`."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        return math.inf
    return float(np.linalg.norm(actual - expected) / max(float(np.linalg.norm(expected)), floor))
