"""Generation beside Hugging Face's `generate`, tokens per second: python -m benchmarks.generation.

The same random weights, written to a folder that both read, the same prompts and options, one
process, one core (on a CPU). Every round runs each program once, so that a busy machine slows all
alike; figures are medians over rounds. `--peers=` measures this project alone, without torch.
"""

import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import models
from benchmarks.random_model import decoder_config, num_parameters, random_parameters
from env import command_line
from env.base import UsageError
from etpo_jax.acting.sampler import Sampler
from etpo_jax.config import SamplingConfig
from models.attention import IMPLEMENTATIONS
from models.config import DecoderConfig
from models.decode import unstack

_SIZES = {
    # name: vocabulary, width, MLP, layers, heads, key heads, size of a head
    "tiny": (1024, 64, 176, 2, 4, 2, 16),
    "small": (2048, 256, 688, 4, 8, 4, 32),
    "codellama_7b": (32016, 4096, 11008, 32, 32, 32, 128),
}
_PEERS = ("eager", "sdpa", "static", "compiled")
_STOP, _PAD = 2, 0
_WARM_UP = 2  # torch.compile turns to dynamic shapes at the second call

_SIZE = flags.DEFINE_enum("size", "tiny", list(_SIZES), "Shape of the model; tiny: the stand-in's.")
_BATCHES = flags.DEFINE_list("batches", ["1", "8", "64"], "Rows generated together.")
_PEER_NAMES = flags.DEFINE_list(
    "peers",
    ["eager", "sdpa", "static"],
    "Of Hugging Face: eager or sdpa attention, sdpa with a static cache, the latter with "
    "torch.compile (compiled; needs a C++ compiler and minutes).",
)
_PROMPT = flags.DEFINE_integer("prompt_tokens", 64, "Tokens of a prompt.", lower_bound=1)
_NEW = flags.DEFINE_integer("new_tokens", 64, "Tokens generated in each row.", lower_bound=2)
_TOP_K = flags.DEFINE_integer("top_k", 50, "Tokens sampled among; 0 is all.", lower_bound=0)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Of sampling.", lower_bound=1e-3)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of weights and products.")
_ATTENTION = flags.DEFINE_enum(
    "attention", "reference", IMPLEMENTATIONS, "Of this project; splash decodes with a kernel too."
)
_PIN = flags.DEFINE_bool("pin", True, "Run on one core; turn it off with an accelerator.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Measured runs of each program.", lower_bound=1)


# Generates `--new_tokens` tokens in every row.
Program = Callable[[], None]


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one run, medians over rounds."""

    cpu_s: float
    wall_s: float


@dataclasses.dataclass(frozen=True)
class Limits:
    """What this machine does at best, measured.

    Attributes:
      flops_per_s: of a square matrix product of 1024.
      bytes_per_s: at which a product with a vector reads a matrix as large as all weights, which
        may fit into a cache.
    """

    flops_per_s: float
    bytes_per_s: float

    @classmethod
    def measure(cls, weight_bytes: int, dtype: Any) -> "Limits":
        square = jnp.ones((1024, 1024), dtype)
        columns = 1024
        matrix = jnp.ones((max(weight_bytes // (columns * square.itemsize), 1), columns), dtype)

        @jax.jit
        def products(square: jax.Array) -> jax.Array:
            return jax.lax.fori_loop(0, 8, lambda _, x: x @ square, square)

        @jax.jit
        def reads(matrix: jax.Array) -> jax.Array:
            # The next vector depends on the product before, or one product would do for all.
            def read(_: int, row: jax.Array) -> jax.Array:
                return row + (row @ matrix)[:1]

            return jax.lax.fori_loop(0, 32, read, jnp.zeros((matrix.shape[0],), dtype))

        return cls(
            flops_per_s=8 * 2 * 1024**3 / _best_s(lambda: products(square)),
            bytes_per_s=32 * matrix.nbytes / _best_s(lambda: reads(matrix)),
        )

    def bound_s(self, config: DecoderConfig, batch: int, itemsize: int) -> float:
        """Seconds that a run takes at least: its products, or reading weights and cache."""
        prompt, new = _PROMPT.value, _NEW.value
        head = config.hidden_size * config.vocab_size
        body = num_parameters(config) - head * (1 if config.tie_word_embeddings else 2)
        kv_size = config.num_kv_heads * config.head_dim * config.num_layers
        query_size = config.num_heads * config.head_dim * config.num_layers
        total_s = 2 * batch * (prompt * body + head) / self.flops_per_s
        for slots in range(prompt + 1, prompt + new):
            flops = 2 * batch * (body + head) + 4 * batch * slots * query_size
            read = (body + head + 2 * batch * slots * kv_size) * itemsize
            total_s += max(flops / self.flops_per_s, read / self.bytes_per_s)
        return total_s


def main() -> None:
    batches = _batches()
    peers = [name for name in _PEERS if name in _PEER_NAMES.value]
    unknown = [name for name in _PEER_NAMES.value if name not in (*_PEERS, "")]
    if unknown:
        raise UsageError(f"--peers={unknown[0]}: must be out of {', '.join(_PEERS)}")
    torch = _import_torch() if peers else None
    if _PIN.value:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    config = decoder_config(_SIZES[_SIZE.value], _PROMPT.value + _NEW.value)
    dtype = jnp.dtype(_DTYPE.value)
    params = random_parameters(config, dtype, stop_id=_STOP)
    networks = _hugging_face(torch, peers, config, params) if peers else {}
    weights = jax.jit(unstack, static_argnums=1)(params, config)
    del params
    weight_bytes = num_parameters(config) * dtype.itemsize
    limits = Limits.measure(weight_bytes, dtype)
    print(
        f"{num_parameters(config) / 1e6:.2f} M parameters in {dtype}, {_PROMPT.value} prompt and "
        f"{_NEW.value} new tokens, top-k {_TOP_K.value}, temperature {_TEMPERATURE.value:g}, on "
        f"{jax.devices()[0].device_kind}{' (one core)' if _PIN.value else ''}: "
        f"{limits.flops_per_s / 1e9:.0f} GFLOP/s, {limits.bytes_per_s / 1e9:.0f} GB/s\n"
    )
    columns = ["batch", *(f"{name} tokens/s" for name in ("etpo_jax", *peers))]
    columns += ["over best peer, CPU time", "wall"] * bool(peers) + ["share of bound"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for batch in batches:
        rng = np.random.default_rng(0)
        tokens_bp = rng.integers(3, config.vocab_size, (batch, _PROMPT.value), np.int32)
        programs = {"etpo_jax": _ours(config, weights, tokens_bp)}
        for name, network in networks.items():
            programs[name] = _theirs(torch, name, network, tokens_bp)
        times = _measure(programs)
        ours = times["etpo_jax"]
        cells = [str(batch), *(f"{batch * _NEW.value / t.wall_s:.0f}" for t in times.values())]
        for clock in ("cpu_s", "wall_s") if peers else ():
            best = min(getattr(times[name], clock) for name in peers)
            cells.append(f"{best / getattr(ours, clock):.1f}x")
        bound_s = limits.bound_s(config, batch, dtype.itemsize)
        print(f"| {' | '.join([*cells, f'{bound_s / ours.wall_s:.0%}'])} |", flush=True)


def _batches() -> list[int]:
    texts: Sequence[str] = _BATCHES.value
    if not texts or not all(text.isdecimal() and int(text) > 0 for text in texts):
        raise UsageError(f"--batches={','.join(texts)}: must be positive integers")
    return [int(text) for text in texts]


def _ours(config: DecoderConfig, weights: Any, tokens_bp: np.ndarray) -> Program:
    sampling = SamplingConfig(
        temperature=_TEMPERATURE.value, top_k=_TOP_K.value, max_new_tokens=_NEW.value
    )
    sampler = Sampler(config, [_STOP], _PAD, sampling, attention=_ATTENTION.value)
    mask_bp = np.ones(tokens_bp.shape, np.bool_)
    keys_b = jax.random.split(jax.random.key(1), len(tokens_bp))

    def run() -> None:
        mask_bj = np.asarray(sampler.generate(weights, tokens_bp, mask_bp, keys_b).action_mask_bj)
        if not mask_bj[:, -1].any():
            raise RuntimeError("every row drew the stop token: the run was shorter than asked for")

    return run


def _import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise UsageError("--peers: torch is not installed; give --peers= or install it") from None
    torch.set_num_threads(1)
    return torch


def _hugging_face(torch: Any, peers: list[str], config: DecoderConfig, params: Any) -> dict:
    """The same weights in `transformers`, and a check that they are."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    networks = {}
    with tempfile.TemporaryDirectory() as folder:
        models.save(folder, config, params)
        for name in peers:
            networks[name] = transformers.LlamaForCausalLM.from_pretrained(
                folder,
                attn_implementation="eager" if name == "eager" else "sdpa",
                dtype=getattr(torch, _DTYPE.value),
            ).eval()
    tokens_bs = np.arange(3, 19, dtype=np.int32)[None]
    position_bs, mask_bs = np.arange(16, dtype=np.int32)[None], np.ones((1, 16), np.bool_)
    network = models.Decoder(config, dtype=jnp.dtype(_DTYPE.value))
    expected = models.apply(network, params, tokens_bs, position_bs, mask_bs)
    with torch.inference_mode():
        actual = networks[peers[0]](torch.from_numpy(tokens_bs).long()).logits.float().numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-3 if _DTYPE.value == "float32" else 0.1)
    if "compiled" in networks:
        networks["compiled"].forward = torch.compile(networks["compiled"].forward)
    return networks


def _theirs(torch: Any, name: str, network: Any, tokens_bp: np.ndarray) -> Program:
    tokens = torch.from_numpy(tokens_bp).long().to(network.device)
    options = {"cache_implementation": "static"} if name in ("static", "compiled") else {}

    def run() -> None:
        with torch.inference_mode():
            generated = network.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                top_k=_TOP_K.value,
                temperature=_TEMPERATURE.value,
                max_new_tokens=_NEW.value,
                min_new_tokens=_NEW.value,
                eos_token_id=_STOP,
                pad_token_id=_PAD,
                **options,
            )
        assert generated.shape[1] == _PROMPT.value + _NEW.value

    return run


def _measure(programs: dict[str, Program]) -> dict[str, Times]:
    """Medians of rounds that run each program once."""
    for program in programs.values():
        for _ in range(_WARM_UP):
            program()
    cpu_s: dict[str, list[float]] = {name: [] for name in programs}
    wall_s: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(_ROUNDS.value):
        for name, program in programs.items():
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            program()
            cpu_s[name].append(time.process_time() - cpu_start)
            wall_s[name].append(time.perf_counter() - wall_start)
    return {
        name: Times(statistics.median(cpu_s[name]), statistics.median(wall_s[name]))
        for name in programs
    }


def _best_s(call: Callable[[], jax.Array]) -> float:
    """Wall seconds of the fastest of nine calls after a first."""
    call().block_until_ready()
    times = []
    for _ in range(9):
        start = time.perf_counter()
        call().block_until_ready()
        times.append(time.perf_counter() - start)
    return min(times)


if __name__ == "__main__":
    command_line.run(main)
