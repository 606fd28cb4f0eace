"""CPU time of an update step beside the same mathematics in PyTorch: `benchmarks.update`.

The jitted step of `etpo_jax.update` against `benchmarks.update_torch`: same weights, same batch,
float32, one process and one core for both. First both take steps whose metrics and gradients must
agree; then they take turns, so that a busy machine slows both alike. Needs torch, which nothing
else here does.
"""

import dataclasses
import importlib
import math
import os
import pathlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from env import command_line
from env.base import UsageError
from etpo_jax import update
from etpo_jax.batch import Batch
from etpo_jax.config import Config
from etpo_jax.mesh import build_mesh
from etpo_jax.networks import Networks
from etpo_jax.train_state import Critic, TrainState
from models.config import DecoderConfig
from models.convert import abstract_parameters
from models.transformer import Decoder

_SIZES = {
    # name: vocabulary, width, MLP, layers, heads, key heads, size of a head
    "tiny": (1024, 64, 176, 2, 4, 2, 16),
    "medium": (2048, 256, 688, 4, 8, 4, 32),
}
# Losses that the peer knows, each with the reading of Q that it is trained with.
MODES = {"path": "dueling", "retrace": "residual", "one_step": "residual"}
_TRANSITIONS = 16
_SHAPES = ((128, 64), (64, 32))
"""Tokens of prompt and action: the demonstration's bucket, and a short one."""
TOLERANCE = 1e-4
_CHECKED_STEPS = 3
_ROUND_S = 0.5

_SIZE = flags.DEFINE_enum("size", "tiny", list(_SIZES), "Shape of the model; tiny: the stand-in's.")
_MODE = flags.DEFINE_enum("mode", "path", list(MODES), "Critic loss.")
_REPEATS = flags.DEFINE_integer("repeats", 7, "Measured rounds of each program.", lower_bound=5)
_OUTPUT = flags.DEFINE_string("output", None, "File for the table as well.")

Program = Callable[[], Any]


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


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one step in each round."""

    cpu: list[float]
    wall: list[float]


def main() -> None:
    update_torch = import_peer()
    update_torch.torch.set_num_threads(1)
    # Before anything starts XLA's threads, which inherit it.
    core = min(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {core})
    jax.config.update("jax_platforms", "cpu")
    torch_version = update_torch.torch.__version__
    lines = [
        f"One update of {_TRANSITIONS} transitions, {_SIZE.value} model, critic loss {_MODE.value} "
        f"with {MODES[_MODE.value]} Q, float32, one core of {os.cpu_count()}, load average "
        f"{os.getloadavg()[0]:.1f}; jax {jax.__version__}, torch {torch_version}; median of "
        f"{_REPEATS.value} rounds and range of their ratios.",
        "",
        "| prompt + action | etpo_jax CPU ms | torch CPU ms | torch / etpo_jax | etpo_jax wall ms |"
        " torch wall ms | torch / etpo_jax | largest difference |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for prompt, action in _SHAPES:
        problem = make_problem(sizes(_SIZE.value), _MODE.value, _TRANSITIONS, prompt, action)
        ours, theirs = Ours(problem), make_theirs(update_torch, problem)
        difference = largest_difference(ours, theirs)
        times = _measure([ours, theirs], _REPEATS.value)
        lines.append(_row(f"{prompt} + {action}", *times, difference))
    text = "\n".join(lines) + "\n"
    print(text, end="")
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(text)


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


def sizes(name: str) -> DecoderConfig:
    """The decoder of a `--size`."""
    vocabulary, width, mlp, layers, heads, kv_heads, head_dim = _SIZES[name]
    return DecoderConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        rope_theta=10000.0,
        rope_scaling=None,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        attention_bias=False,
        max_position_embeddings=1024,
    )


def make_problem(
    decoder: DecoderConfig, mode: str, transitions: int, prompt: int, action: int
) -> Problem:
    """Random networks and transitions.

    Args:
      decoder: sizes.
      mode: a critic loss of `MODES`.
      transitions: of the batch; every other one ends its episode.
      prompt, action: padded lengths in tokens.
    """
    config = Config.from_dict(
        {"critic_loss": mode, "q_parameterization": MODES[mode], "remat": "none"}
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
    state = jax.tree.map(np.array, update.initial_state(networks, base, config))
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
        networks = Networks(
            Decoder(problem.decoder), problem.config.learning.q_parameterization, tie_policy=False
        )
        self._mesh = build_mesh()
        with jax.set_mesh(self._mesh):
            self._step = update.make_update_step(networks, problem.config, self._mesh)
        self._hyper = update.Hyperparameters.of(problem.config)
        # Copies: the state is donated.
        self._state, self._base, self._batch = jax.tree.map(
            jnp.array, (problem.state, problem.base, problem.batch)
        )

    def __call__(self) -> update.Metrics:
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


def _measure(programs: list[Program], repeats: int) -> list[Times]:
    """Rounds in which each program runs for a while, first one and then the other in front."""
    counts = []
    for program in programs:
        start = time.perf_counter()
        program()
        counts.append(max(1, round(_ROUND_S / (time.perf_counter() - start))))
    times = [Times([], []) for _ in programs]
    for index in range(repeats):
        order = range(len(programs)) if index % 2 else reversed(range(len(programs)))
        for position in order:
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            for _ in range(counts[position]):
                programs[position]()
            wall_s, cpu_s = time.perf_counter() - wall_start, time.process_time() - cpu_start
            times[position].wall.append(wall_s / counts[position])
            times[position].cpu.append(cpu_s / counts[position])
    return times


def _row(name: str, ours: Times, theirs: Times, difference: float) -> str:
    cells = [name]
    for clock in ("cpu", "wall"):
        our_s, their_s = getattr(ours, clock), getattr(theirs, clock)
        ratios = [b / a for a, b in zip(our_s, their_s, strict=True)]
        our_ms, their_ms = 1e3 * statistics.median(our_s), 1e3 * statistics.median(their_s)
        cells += [f"{our_ms:.1f}", f"{their_ms:.1f}"]
        cells.append(f"{their_ms / our_ms:.2f}x ({min(ratios):.2f} to {max(ratios):.2f})")
    return f"| {' | '.join([*cells, f'{difference:.0e}'])} |"


if __name__ == "__main__":
    command_line.run(main)
