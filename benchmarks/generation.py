"""Tokens per second of generation, ours and Hugging Face's `generate`.

    python -m benchmarks.generation
    python -m benchmarks.generation --model=HuggingFaceTB/SmolLM2-135M --batches=16 --peers=sdpa
    python -m benchmarks.generation --size=codellama_7b --dtype=bfloat16 --nopin --peers=

Both use the same random weights, prompts and options in one process, on one core of a CPU. Figures
are medians over rounds in which the programs take turns. `--peers=` needs no torch. Every step
reads all weights but those of the embedding, which bounds small batches: the last column has the
rate of that, and its share of the rate at which the device sums a large array.
"""

import os
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import models
from benchmarks import turns
from benchmarks.random_model import SIZES, decoder_config, num_parameters, random_parameters
from benchmarks.turns import Program
from env import command_line
from env.base import UsageError
from etpo_jax.acting.sampler import Sampler
from etpo_jax.config import SamplingConfig
from models.attention import IMPLEMENTATIONS
from models.config import DecoderConfig
from models.decode import unstack
from models.errors import ModelError
from models.repository import config_folder

_PEERS = ("eager", "sdpa", "static")
_STOP, _PAD = 2, 0
_MEMORY_BYTES = 1 << 28

_SIZE = flags.DEFINE_enum("size", "tiny", list(SIZES), "Shape of the model; tiny: the stand-in's.")
_MODEL = flags.DEFINE_string(
    "model", None, "Model whose shape is taken in place of --size: a folder or a repository."
)
_BATCHES = flags.DEFINE_list("batches", ["1", "8", "64"], "Rows generated together.")
_PEER_NAMES = flags.DEFINE_list(
    "peers",
    list(_PEERS),
    "Forms of Hugging Face's generate: eager or sdpa attention, sdpa with a static cache.",
)
_PROMPT = flags.DEFINE_integer("prompt_tokens", 64, "Tokens of a prompt.", lower_bound=1)
_NEW = flags.DEFINE_integer("new_tokens", 64, "Tokens generated in each row.", lower_bound=2)
_TOP_K = flags.DEFINE_integer("top_k", 50, "Tokens sampled among; 0 is all.", lower_bound=0)
_TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "Sampling temperature.", lower_bound=1e-3)
_DTYPE = flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Type of weights and products."
)
_ATTENTION = flags.DEFINE_enum(
    "attention", "reference", IMPLEMENTATIONS, "Our attention; splash decodes with a kernel too."
)
_PIN = flags.DEFINE_bool("pin", True, "Run on one core; turn it off with an accelerator.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Measured runs of each program.", lower_bound=1)


def main() -> None:
    batches = _batches()
    peers = [name for name in _PEERS if name in _PEER_NAMES.value]
    unknown = [name for name in _PEER_NAMES.value if name not in (*_PEERS, "")]
    if unknown:
        raise UsageError(f"--peers={unknown[0]}: must be out of {', '.join(_PEERS)}")
    torch = _import_torch() if peers else None
    if _PIN.value:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if _MODEL.value is None:
        config = decoder_config(_SIZE.value, _PROMPT.value + _NEW.value)
    else:
        config = DecoderConfig.from_folder(config_folder(_MODEL.value))
    dtype = jnp.dtype(_DTYPE.value)
    params = random_parameters(config, dtype, stop_id=_STOP)
    networks = _hugging_face(torch, peers, config, params) if peers else {}
    weights = jax.jit(unstack, static_argnums=1)(params, config)
    del params
    print(
        f"{num_parameters(config) / 1e6:.2f} M parameters in {dtype}, {_PROMPT.value} prompt and "
        f"{_NEW.value} new tokens, top-k {_TOP_K.value}, temperature {_TEMPERATURE.value:g}, on "
        f"{jax.devices()[0].device_kind}{' (one core)' if _PIN.value else ''}\n"
    )
    columns = ["batch", *(f"{name} tokens/s" for name in ("etpo_jax", *peers))]
    columns += ["over best peer, CPU time", "wall"] * bool(peers) + ["weights read, of possible"]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    embedding = config.vocab_size * config.hidden_size if config.has_lm_head else 0
    step_bytes = (num_parameters(config) - embedding) * dtype.itemsize
    for batch in batches:
        rng = np.random.default_rng(0)
        tokens_bp = rng.integers(3, config.vocab_size, (batch, _PROMPT.value), np.int32)
        programs = {"etpo_jax": _ours(config, weights, tokens_bp)}
        for name, network in networks.items():
            programs[name] = _theirs(torch, name, network, tokens_bp)
        programs["memory"] = _read_memory()
        times = turns.measure(programs, rounds=_ROUNDS.value)
        possible = _MEMORY_BYTES / times.pop("memory").median("wall")
        ours = times["etpo_jax"]
        cells = [str(batch)]
        cells += [f"{batch * _NEW.value / t.median('wall'):.0f}" for t in times.values()]
        for clock in ("cpu", "wall") if peers else ():
            best = min(times[name].median(clock) for name in peers)
            cells.append(f"{best / ours.median(clock):.1f}x")
        # Every new token reads all weights once, for all rows together.
        read = _NEW.value * step_bytes / ours.median("wall")
        cells.append(f"{read / 1e9:.1f} GB/s, {read / possible:.0%}")
        print(f"| {' | '.join(cells)} |", flush=True)


def _batches() -> list[int]:
    texts: Sequence[str] = _BATCHES.value
    if not texts or not all(text.isdecimal() and int(text) > 0 for text in texts):
        raise UsageError(f"--batches={','.join(texts)}: must be positive integers")
    return [int(text) for text in texts]


def _ours(config: DecoderConfig, weights: Any, tokens_bp: np.ndarray) -> Program:
    sampling = SamplingConfig(
        temperature=_TEMPERATURE.value,
        top_k=_TOP_K.value,
        max_new_tokens=_NEW.value,
        support_threshold=0.0,
    )
    sampler = Sampler(config, [_STOP], _PAD, sampling, attention=_ATTENTION.value)
    mask_bp = np.ones(tokens_bp.shape, np.bool_)
    keys_b = jax.random.split(jax.random.key(1), len(tokens_bp))

    def run() -> None:
        mask_bj = np.asarray(sampler.generate(weights, tokens_bp, mask_bp, keys_b).action_mask_bj)
        if not mask_bj[:, -1].any():
            raise RuntimeError("every row drew the stop token: the run was shorter than asked for")

    return run


def _read_memory() -> Program:
    array = jnp.ones((_MEMORY_BYTES // 4,), jnp.float32)
    total = jax.jit(jnp.sum)
    return lambda: jax.block_until_ready(total(array))


def _import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise UsageError("--peers: torch is not installed; give --peers= or install it") from None
    torch.set_num_threads(1)
    return torch


def _hugging_face(torch: Any, peers: list[str], config: DecoderConfig, params: Any) -> dict:
    """Writes the weights, reads them with `transformers` and checks that the logits agree."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    networks = {}
    with tempfile.TemporaryDirectory() as folder:
        models.save(folder, config, params)
        for name in peers:
            networks[name] = transformers.AutoModelForCausalLM.from_pretrained(
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
    return networks


def _theirs(torch: Any, name: str, network: Any, tokens_bp: np.ndarray) -> Program:
    tokens = torch.from_numpy(tokens_bp).long().to(network.device)
    options = {"cache_implementation": "static"} if name == "static" else {}

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


if __name__ == "__main__":
    command_line.run(main, errors=(ModelError,))
