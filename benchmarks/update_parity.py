"""One ETPO update as two programs from the same start: ours and its peer in PyTorch.

What `benchmarks.update` measures and its test compares; torch is imported only when asked for.
"""

import dataclasses
import importlib
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from env.base import UsageError
from etpo_jax.acting.transitions import Batch
from etpo_jax.algorithms import etpo
from etpo_jax.algorithms.hyperparameters import Hyperparameters
from etpo_jax.algorithms.networks import Networks
from etpo_jax.algorithms.train_state import Critic, TrainState
from etpo_jax.config import Config
from etpo_jax.devices.mesh import build_mesh
from models.config import DecoderConfig
from models.convert import abstract_parameters
from models.transformer import Decoder

MODES = {"retrace": "residual", "path": "dueling", "one_step": "residual"}
"""Critic losses that the peer knows, each with the reading of Q that it is trained with."""
TOLERANCE = 1e-4
_CHECKED_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Problem:
    """Where both programs start. Arrays are NumPy's, so that neither can change the other's.

    Attributes:
      config: settings of the update.
      decoder: sizes of every network.
      base: weights of the reference.
      state: the other networks, all different from it, and empty optimisers.
      batch: padded transitions.
    """

    config: Config
    decoder: DecoderConfig
    base: Any
    state: TrainState
    batch: Batch


def import_peer() -> Any:
    """`benchmarks.update_torch`.

    Raises:
      UsageError: torch is not installed.
    """
    try:
        return importlib.import_module("benchmarks.update_torch")
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
    """Random networks and transitions.

    Args:
      decoder: sizes.
      mode: a critic loss of `MODES`.
      transitions: of the batch; every other one ends its episode.
      prompt, action: padded lengths in tokens.
      remat: what our backward pass computes again; the peer keeps everything.
    """
    config = Config.from_dict(
        {"critic_loss": mode, "q_parameterization": MODES[mode], "remat": remat}
    )
    rng = np.random.default_rng(0)
    leaves, tree = jax.tree.flatten_with_path(abstract_parameters(decoder, jnp.float32))

    def parameters() -> Any:
        arrays = []
        for path, leaf in leaves:
            noise = rng.normal(size=leaf.shape)
            is_norm = "norm" in jax.tree_util.keystr(path)
            array = 1 + 0.1 * noise if is_norm else noise / math.sqrt(leaf.shape[-2])
            arrays.append(array.astype(np.float32))
        return tree.unflatten(arrays)

    base = parameters()

    def near_base() -> Any:
        # As after some training: where all networks are equal the policy's gradient is zero.
        mix = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, base, parameters())
        return {"params": jax.tree.map(lambda leaf: leaf.astype(np.float32), mix)}

    def critic() -> Critic:
        width = decoder.hidden_size
        value = rng.normal(size=width) / width if MODES[mode] == "dueling" else None
        return Critic(
            trunk=near_base(),
            offset=np.float32(0.3),
            value=None if value is None else value.astype(np.float32),
        )

    networks = Networks(Decoder(decoder), MODES[mode], tie_policy=False)
    state = jax.tree.map(np.array, etpo.initial_state(networks, base, config))
    state = dataclasses.replace(state, policy=near_base(), critic=critic(), target_critic=critic())
    batch = _make_batch(rng, decoder.vocab_size, transitions, prompt, action)
    return Problem(config, decoder, base, state, batch)


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
    arrays = {
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
    """The jitted update step, called as training does; every call takes one step."""

    def __init__(self, problem: Problem):
        config = problem.config
        model = Decoder(problem.decoder, remat=config.model.remat)
        networks = Networks(model, config.learning.q_parameterization, tie_policy=False)
        self._mesh = build_mesh()
        with jax.set_mesh(self._mesh):
            self._step = etpo.make_update_step(networks, config, self._mesh)
        self._hyper = Hyperparameters.of(config)
        # Copies: the state is donated.
        self._state, self._base, self._batch = jax.tree.map(
            jnp.array, (problem.state, problem.base, problem.batch)
        )

    def __call__(self) -> etpo.Metrics:
        with jax.set_mesh(self._mesh):
            self._state, metrics = self._step(self._state, self._base, self._batch, self._hyper)
        jax.block_until_ready((self._state, metrics))
        return metrics

    def moments(self) -> dict[str, Any]:
        """AdamW's first moments: after one step its share of the clipped gradients."""
        policy, critic = (
            optimizer[1].mu
            for optimizer in (self._state.policy_optimizer, self._state.critic_optimizer)
        )
        parts = {"trunk": critic.trunk["params"], "offset": critic.offset, "value": critic.value}
        return {"policy": policy["params"], "critic": parts}


def make_theirs(update_torch: Any, problem: Problem) -> Any:
    """The peer at the same start."""
    return update_torch.Update(
        problem.config, problem.decoder, problem.base, problem.state, problem.batch
    )


def largest_difference(ours: Any, theirs: Any) -> float:
    """Relative difference of metrics and gradients over a few steps of both; the largest one.

    Raises:
      RuntimeError: it is above `TOLERANCE`, or a step was not finite.
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
    """Norm of the difference over that of `expected`, or over `floor` if that is larger."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        return math.inf
    return float(np.linalg.norm(actual - expected) / max(np.linalg.norm(expected), floor))
