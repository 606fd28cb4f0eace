"""Seconds of one iteration by stage, ours and the authors' stages rewritten in PyTorch.

    python -m benchmarks.iteration --flagfile=launch/tiny.flags
    python -m benchmarks.iteration --flagfile=codellama_7b_h200.flags --prompt_tokens=512

Takes the flags of `etpo_jax.train`: shape of the model (its weights are random), numbers of
environments and transitions, lengths, precision, optimiser. No program is executed; rewards are
random, and as in a run whose programs all fail every episode has --max_steps steps: each action but
the last of an episode has a next prompt, as long as the prompt.

On a CPU both run on one core and processor time is reported, on an accelerator wall time. There the
peer is left out by default; with --peer it runs on the accelerator too, and JAX takes memory as it
needs it in place of a run's share. Without the peer no torch is needed.
"""

import dataclasses
import importlib
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import models
from benchmarks import accounting, memory_share, records
from benchmarks.decoding import PAD, STOP
from benchmarks.random_model import build_decoder, build_learner, random_parameters
from env import command_line
from env.base import UsageError
from etpo_jax import flags as settings_flags
from etpo_jax.acting.rollout import make_unstack
from etpo_jax.acting.sampler import Sampler
from etpo_jax.acting.transitions import Transition, collate
from etpo_jax.config import LENGTH_MULTIPLE, Config
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.launch_files import launch_folder
from models.config import DecoderConfig
from models.errors import ModelError
from models.repository import config_folder

_flags = flags.FlagValues()
_PROMPT = flags.DEFINE_integer(
    "prompt_tokens", 128, "Tokens of every prompt.", lower_bound=2, flag_values=_flags
)
_ROUNDS = flags.DEFINE_integer(
    "rounds", 5, "Measured iterations of each program.", lower_bound=1, flag_values=_flags
)
_PEER = flags.DEFINE_bool(
    "peer",
    None,
    "Measure the authors' stages too (needs torch). Default: on a CPU.",
    flag_values=_flags,
)
_SEQUENTIAL = flags.DEFINE_bool(
    "sequential",
    False,
    "One program after the other, where both do not fit into memory.",
    flag_values=_flags,
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "File for the text; its measurements are written beside it as JSON lines.",
    flag_values=_flags,
)
settings_flags.define_flags(_flags)

Stages = dict[str, float]
"""Seconds by stage."""


@dataclasses.dataclass
class Result:
    """Measurements of one program.

    Attributes:
      stages: seconds of every stage in each round.
      traffic: bytes between host and device in one iteration.
    """

    stages: list[Stages]
    traffic: int

    def median_s(self, stage: str | None = None) -> float:
        """Median seconds of one stage, or of the whole iteration."""
        return statistics.median(
            sum(stages.values()) if stage is None else stages.get(stage, 0.0)
            for stages in self.stages
        )


class Clock:
    """Seconds of stages: processor time on a CPU, wall time elsewhere."""

    def __init__(self, synchronize: Callable[[], None] = lambda: None):
        self._now = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
        self._synchronize = synchronize
        self._last = 0.0
        self.stages: Stages = {}

    def start(self) -> None:
        self.stages = {}
        self._last = self._now()

    def stop(self, stage: str) -> None:
        """Adds the time since the last call to `stage`."""
        self._synchronize()
        now = self._now()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._last
        self._last = now


class Ours:
    """The sampler and the update step as training calls them."""

    def __init__(self, config: Config, decoder: DecoderConfig):
        self._config = config
        self._mesh = build_mesh(config.model.mesh)
        dtype = jnp.dtype(config.model.compute_dtype)
        with jax.set_mesh(self._mesh):
            self._base = jax.jit(lambda: random_parameters(decoder, dtype, stop_id=STOP))()
            self._learner = build_learner(config, decoder, self._base, self._mesh)
            self._weights = make_unstack(build_decoder(config, decoder))
        # A support mask would sample with two networks, which the peer does not.
        sampling = dataclasses.replace(config.sampling, support_threshold=0.0)
        self._sampler = Sampler(
            decoder,
            [STOP],
            PAD,
            sampling,
            mesh=self._mesh,
            attention=config.model.attention,
            precision=config.model.matmul_precision,
        )
        self._rng = np.random.default_rng(0)
        self._vocabulary = decoder.vocab_size
        self.traffic = 0

    def iterate(self, clock: Clock) -> None:
        learning = self._config.learning
        with jax.set_mesh(self._mesh):
            clock.start()
            self.traffic = 0
            weights = jax.block_until_ready(self._weights(self._base, self._learner.policy_trunk()))
            clock.stop("weights for generation")
            transitions: list[Transition] = []
            for _ in range(self._config.run.steps_per_update):
                transitions += self._collect(weights)
                clock.stop("generation")
            del weights
            for _ in range(learning.gradient_steps_per_update):
                chosen = self._rng.choice(len(transitions), learning.minibatch_size)
                batch = collate(
                    [transitions[index] for index in chosen],
                    pad_id=PAD,
                    length_multiple=LENGTH_MULTIPLE,
                    max_prompt_length=self._config.model.max_prompt_length,
                    max_new_tokens=self._config.sampling.max_new_tokens,
                )
                self._count(batch)
                metrics = jax.device_get(self._learner.learn(batch))
                self._count(metrics)
                if not metrics["is_finite"]:
                    raise RuntimeError(f"a step was not finite: {metrics}")
            jax.block_until_ready(self._learner.state)
            clock.stop("gradient steps")

    def _collect(self, weights: Any) -> list[Transition]:
        rows = self._config.run.num_envs
        tokens_bp = self._rng.integers(3, self._vocabulary, (rows, _PROMPT.value), np.int32)
        mask_bp = np.ones(tokens_bp.shape, np.bool_)
        keys_b = jax.random.split(jax.random.key(int(self._rng.integers(2**31))), rows)
        generation = jax.device_get(self._sampler.generate(weights, tokens_bp, mask_bp, keys_b))
        self._count((tokens_bp, mask_bp, jax.random.key_data(keys_b), generation))
        lengths_b = generation.action_mask_bj.sum(axis=1)
        next_bp = self._rng.integers(3, self._vocabulary, (rows, _PROMPT.value), np.int32)
        continues_b = continuing(rows, self._config.task.max_steps)
        return [
            Transition(
                tokens_bp[row],
                generation.action_tokens_bj[row, : lengths_b[row]],
                generation.log_probs_bj[row, : lengths_b[row]],
                float(self._rng.uniform(-1, 1)),
                next_bp[row] if continues_b[row] else None,
            )
            for row in range(rows)
        ]

    def _count(self, tree: Any) -> None:
        self.traffic += sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(tree))


def continuing(rows: int, max_steps: int) -> np.ndarray:
    """True for the actions that are not the last of their episode, in a collection of `rows`."""
    return np.arange(rows) % max_steps != max_steps - 1


class Theirs:
    """`benchmarks.authors_stages` on the same shapes."""

    def __init__(self, config: Config, decoder: DecoderConfig):
        module = _import_peer()
        self._config = config
        self._vocabulary = decoder.vocab_size
        self._rng = np.random.default_rng(0)
        with tempfile.TemporaryDirectory() as folder:
            dtype = jnp.dtype(config.model.compute_dtype)
            params = jax.jit(lambda: random_parameters(decoder, dtype, stop_id=STOP))()
            models.save(folder, decoder, params)
            del params
            device = "cpu" if jax.default_backend() == "cpu" else "cuda"
            self.stages = module.AuthorsStages(folder, config, device, STOP, PAD)

    @property
    def traffic(self) -> int:
        return self.stages.traffic

    def iterate(self, clock: Clock) -> None:
        learning, run = self._config.learning, self._config.run
        self.stages.traffic = 0
        clock.start()
        prompts, actions = [], []
        for _ in range(run.steps_per_update):
            shape = (run.num_envs, _PROMPT.value)
            prompts.append(self._rng.integers(3, self._vocabulary, shape, np.int32))
            actions.append(self.stages.generate(prompts[-1]))
            clock.stop("generation")
        prompt_bp, action_bj = np.concatenate(prompts), np.concatenate(actions)
        reward_b = self._rng.uniform(-1, 1, len(prompt_bp))
        next_bp = self._rng.integers(3, self._vocabulary, prompt_bp.shape, np.int32)
        continues_b = continuing(len(prompt_bp), self._config.task.max_steps)
        targets_bj = self.stages.targets(prompt_bp, action_bj, reward_b, next_bp, continues_b)
        clock.stop("scores to the host, targets token by token")
        for _ in range(learning.gradient_steps_per_update):
            rows = self._rng.choice(len(prompt_bp), learning.minibatch_size)
            self.stages.update(prompt_bp[rows], action_bj[rows], targets_bj[rows])
        clock.stop("gradient steps")


def main() -> None:
    config = settings_flags.from_flags(_flags)
    if config.run.algorithm != "etpo":
        raise UsageError(f"--algorithm={config.run.algorithm}: this benchmark measures etpo")
    if _PROMPT.value > config.model.max_prompt_length:
        raise UsageError(
            f"--prompt_tokens={_PROMPT.value}: at most "
            f"--max_prompt_length={config.model.max_prompt_length}"
        )
    memory_share.use(shared=bool(_PEER.value))
    is_cpu = jax.default_backend() == "cpu"
    has_peer = is_cpu if _PEER.value is None else _PEER.value
    if has_peer:
        _import_peer()
    if is_cpu:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    decoder = DecoderConfig.from_folder(config_folder(config.model.model))
    makers: dict[str, Any] = {"etpo_jax": Ours}
    if has_peer:
        makers["authors' stages"] = Theirs
    results = _measure(makers, config, decoder)
    text = "\n".join([*_header(config, decoder, is_cpu), *_table(results, config, decoder)]) + "\n"
    print(text, end="")
    if _OUTPUT.value:
        pathlib.Path(_OUTPUT.value).write_text(text)


def _import_peer() -> Any:
    try:
        module = importlib.import_module("benchmarks.authors_stages")
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise UsageError("torch is not installed: give --nopeer or install it") from error
    if jax.default_backend() == "cpu":
        module.torch.set_num_threads(1)
    elif not module.torch.cuda.is_available():
        raise UsageError("torch does not see the accelerator: give --nopeer")
    return module


def _measure(makers: dict[str, Any], config: Config, decoder: DecoderConfig) -> dict[str, Result]:
    """Measures all programs in turns, or one after the other."""
    groups = [[name] for name in makers] if _SEQUENTIAL.value else [list(makers)]
    results: dict[str, Result] = {}
    made = records.beside(_OUTPUT.value)
    for names in groups:
        programs = {name: makers[name](config, decoder) for name in names}
        clocks = {
            name: Clock(program.stages.synchronize) if isinstance(program, Theirs) else Clock()
            for name, program in programs.items()
        }
        rounds: dict[str, list[Stages]] = {name: [] for name in names}
        for index in range(_ROUNDS.value + 1):
            for name in names:
                programs[name].iterate(clocks[name])
                made.add(program=name, round=index, seconds=clocks[name].stages)
                if index:  # the first compiles
                    rounds[name].append(clocks[name].stages)
        for name, program in programs.items():
            results[name] = Result(rounds[name], program.traffic)
        del programs, clocks
    return results


def _header(config: Config, decoder: DecoderConfig, is_cpu: bool) -> list[str]:
    learning, run = config.learning, config.run
    what = "processor time on one core" if is_cpu else "wall time"
    return [
        f"{accounting.num_parameters(decoder) / 1e6:.2f} M parameters with random weights, "
        f"{config.model.compute_dtype}, {config.finetune.finetune} fine-tuning, "
        f"{learning.optimizer_settings[0]}, on {jax.devices()[0].device_kind}: {what}, "
        f"medians of {_ROUNDS.value} rounds, load average {os.getloadavg()[0]:.1f}.",
        f"An iteration is {run.steps_per_update} x {run.num_envs} actions of at most "
        f"{config.sampling.max_new_tokens} tokens after prompts of {_PROMPT.value}, then "
        f"{learning.gradient_steps_per_update} gradient steps of {learning.minibatch_size} "
        "transitions.",
        "",
    ]


def _table(results: dict[str, Result], config: Config, decoder: DecoderConfig) -> list[str]:
    ours, *peers = results.values()
    peer = peers[0] if peers else None
    stages = list(dict.fromkeys(stage for r in results.values() for stage in r.stages[0]))
    columns = ["stage", *(f"{name}, ms" for name in results)]
    columns += ["ratio"] * bool(peer)
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for stage in [*stages, None]:
        seconds = [result.median_s(stage) for result in results.values()]
        cells = [stage or "whole iteration", *(f"{1e3 * s:.1f}" if s else "-" for s in seconds)]
        if peer:
            cells.append(f"{seconds[1] / seconds[0]:.2f}x" if all(seconds) else "-")
        lines.append(f"| {' | '.join(cells)} |")
    traffic = [f"{result.traffic / 1e6:.3f}" for result in results.values()]
    lines.append(f"| {' | '.join(['host-device traffic, MB', *traffic, *([''] * bool(peer))])} |")
    learning = config.learning
    new = config.run.collection_size * config.sampling.max_new_tokens
    flops = learning.gradient_steps_per_update * accounting.gradient_step_flops(
        decoder,
        learning,
        learning.minibatch_size,
        _PROMPT.value,
        config.sampling.max_new_tokens,
        _PROMPT.value,
    )
    per_s = flops / ours.median_s("gradient steps")
    return [
        *lines,
        "",
        f"etpo_jax: {new / ours.median_s('generation'):,.0f} tokens/s generated if all were of "
        f"full length, {per_s / 1e12:.3f} TFLOP/s in gradient steps (products with weights, for "
        "actions and next prompts; recomputation is not counted).",
    ]


if __name__ == "__main__":
    command_line.run(
        main, errors=(ModelError,), flag_values=_flags, flagfile_folders=(launch_folder(),)
    )
