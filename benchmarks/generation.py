"""Tokens per second of generation, ours and Hugging Face's `generate`.

    python -m benchmarks.generation
    python -m benchmarks.generation --model=HuggingFaceTB/SmolLM2-135M --batches=16 --peers=sdpa
    python -m benchmarks.generation --size=codellama_7b --dtype=bfloat16 --prompt_tokens=512 \\
        --new_tokens=256 --batches=8,64

All programs use the same random weights, prompts and options in one process. Figures are medians
over rounds in which they take turns. On a CPU they run on one core; on an accelerator the peers are
left out unless --peers names them, they run on it too, and JAX then takes memory as it needs it in
place of a run's share. `--peers=` needs no torch.

A step of decoding must read the weights and the filled part of the cache. The last columns have its
time, and the rate of those bytes beside the rate at which the device copies a large array.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import models
from benchmarks import accounting, memory_share, probes, records, turns
from benchmarks.decoding import PAD, STOP, Decoding
from benchmarks.random_model import SIZES, decoder_config, random_parameters
from benchmarks.turns import Program, Times
from env import command_line
from env.base import UsageError
from etpo_jax.config import SamplingConfig
from models.attention import IMPLEMENTATIONS
from models.config import DecoderConfig
from models.decode import unstack
from models.errors import ModelError
from models.repository import config_folder

_PEERS = ("eager", "sdpa", "static")

_SIZE = flags.DEFINE_enum("size", "tiny", list(SIZES), "Shape of the model; tiny: the stand-in's.")
_MODEL = flags.DEFINE_string(
    "model", None, "Model whose shape is taken in place of --size: a folder or a repository."
)
_BATCHES = flags.DEFINE_list("batches", ["1", "8", "64"], "Rows generated together.")
_PEER_NAMES = flags.DEFINE_list(
    "peers",
    None,
    "Forms of Hugging Face's generate: eager or sdpa attention, sdpa with a static cache. Default: "
    "all of them on a CPU, none elsewhere.",
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
_PIN = flags.DEFINE_bool("pin", None, "Run on one core. Default: on a CPU.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Measured runs of each program.", lower_bound=1)
_OUTPUT = flags.DEFINE_string(
    "output", None, "File for the table; its measurements are written beside it as JSON lines."
)


def main() -> None:
    batches = _batches()
    memory_share.use(shared=bool(_PEER_NAMES.value and any(_PEER_NAMES.value)))
    is_cpu = jax.default_backend() == "cpu"
    peers = _peers(is_cpu)
    torch = _import_torch() if peers else None
    is_pinned = is_cpu if _PIN.value is None else _PIN.value
    if is_pinned:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    if _MODEL.value is None:
        config = decoder_config(_SIZE.value, _PROMPT.value + _NEW.value)
    else:
        config = DecoderConfig.from_folder(config_folder(_MODEL.value))
    dtype = jnp.dtype(_DTYPE.value)
    params = jax.jit(lambda: random_parameters(config, dtype, stop_id=STOP))()
    networks = _hugging_face(torch, peers, config, params) if peers else {}
    weights = jax.jit(unstack, static_argnums=1)(params, config)
    del params
    lines = [_header(config, dtype, is_pinned), ""]
    columns = ["batch", *(f"{name} tokens/s" for name in ("etpo_jax", *peers))]
    columns += ["over best peer, CPU time", "wall"] * bool(peers)
    columns += ["prompts, ms", "a step, ms", "bytes it must read", "rate", "of a copy's"]
    lines += [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    print("\n".join(lines))
    made = records.beside(_OUTPUT.value)
    copy = probes.copy()
    for batch in batches:
        ours = Decoding(
            config, weights, batch, _PROMPT.value, _sampling(), attention=_ATTENTION.value
        )
        ours.check_lengths()
        programs: dict[str, Program] = {"etpo_jax": ours.generate}
        for name, network in networks.items():
            programs[name] = _theirs(torch, name, network, ours.tokens_bp)
        programs |= {"prompts": ours.read_prompts, "copy": copy.program}

        def note(name: str, index: int, cpu_s: float, wall_s: float, batch: int = batch) -> None:
            made.add(program=name, batch=batch, round=index, cpu_s=cpu_s, wall_s=wall_s)

        times = turns.measure(programs, rounds=_ROUNDS.value, on_times=note)
        lines.append(_row(config, dtype, batch, peers, times, copy.amount))
        print(lines[-1], flush=True)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text("\n".join(lines) + "\n")


def _header(config: DecoderConfig, dtype: Any, is_pinned: bool) -> str:
    return (
        f"{accounting.num_parameters(config) / 1e6:.2f} M parameters in {dtype}, {_PROMPT.value} "
        f"prompt and {_NEW.value} new tokens, top-k {_TOP_K.value}, temperature "
        f"{_TEMPERATURE.value:g}, on {jax.devices()[0].device_kind}"
        f"{' (one core)' if is_pinned else ''}, load average {os.getloadavg()[0]:.1f}; medians of "
        f"{_ROUNDS.value} rounds."
    )


def _row(
    config: DecoderConfig,
    dtype: Any,
    batch: int,
    peers: Sequence[str],
    times: dict[str, Times],
    copied: int,
) -> str:
    possible = copied / times["copy"].median("wall")
    ours = times["etpo_jax"]
    cells = [str(batch)]
    for name in ("etpo_jax", *peers):
        cells.append(f"{batch * _NEW.value / times[name].median('wall'):.0f}")
    for clock in ("cpu", "wall") if peers else ():
        best = min(times[name].median(clock) for name in peers)
        cells.append(f"{best / ours.median(clock):.1f}x")
    prompts_s = times["prompts"].median("wall")
    step_s = (ours.median("wall") - prompts_s) / (_NEW.value - 1)
    must = accounting.decode_step_bytes(config, batch, _PROMPT.value, _NEW.value, dtype.itemsize)
    cells += [f"{1e3 * prompts_s:.1f}", f"{1e3 * step_s:.2f}", f"{must / 1e9:.2f} GB"]
    cells += [f"{must / step_s / 1e9:.0f} GB/s", f"{must / step_s / possible:.0%}"]
    return f"| {' | '.join(cells)} |"


def _batches() -> list[int]:
    texts: Sequence[str] = _BATCHES.value
    if not texts or not all(text.isdecimal() and int(text) > 0 for text in texts):
        raise UsageError(f"--batches={','.join(texts)}: must be positive integers")
    return [int(text) for text in texts]


def _peers(is_cpu: bool) -> list[str]:
    """The peers that are measured, in the order of `_PEERS`."""
    if _PEER_NAMES.value is None:
        return list(_PEERS) if is_cpu else []
    unknown = [name for name in _PEER_NAMES.value if name not in (*_PEERS, "")]
    if unknown:
        raise UsageError(f"--peers={unknown[0]}: must be out of {', '.join(_PEERS)}")
    return [name for name in _PEERS if name in _PEER_NAMES.value]


def _sampling() -> SamplingConfig:
    return SamplingConfig(
        temperature=_TEMPERATURE.value,
        top_k=_TOP_K.value,
        max_new_tokens=_NEW.value,
        support_threshold=0.0,
    )


def _import_torch() -> Any:
    try:
        import torch
    except ImportError:
        raise UsageError("--peers: torch is not installed; give --peers= or install it") from None
    if jax.default_backend() == "cpu":
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        raise UsageError("--peers: torch does not see the accelerator; give --peers=")
    return torch


def _hugging_face(torch: Any, peers: list[str], config: DecoderConfig, params: Any) -> dict:
    """Writes the weights, reads them with `transformers` and checks that the logits agree."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    networks = {}
    with tempfile.TemporaryDirectory() as folder:
        models.save(folder, config, params)
        for name in peers:
            network: Any = transformers.AutoModelForCausalLM.from_pretrained(
                folder,
                attn_implementation="eager" if name == "eager" else "sdpa",
                dtype=getattr(torch, _DTYPE.value),
            )
            networks[name] = network.to(_torch_device()).eval()
    tokens_bs = np.arange(3, 19, dtype=np.int32)[None]
    position_bs, mask_bs = np.arange(16, dtype=np.int32)[None], np.ones((1, 16), np.bool_)
    network = models.Decoder(config, dtype=jnp.dtype(_DTYPE.value), precision="highest")
    expected = models.apply(network, params, tokens_bs, position_bs, mask_bs)
    with torch.inference_mode():
        tokens = torch.from_numpy(tokens_bs).long().to(_torch_device())
        actual = networks[peers[0]](tokens).logits.float().cpu().numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-3 if _DTYPE.value == "float32" else 0.1)
    return networks


def _torch_device() -> str:
    """Torch's name of the device that JAX computes on."""
    return "cpu" if jax.default_backend() == "cpu" else "cuda"


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
                eos_token_id=STOP,
                pad_token_id=PAD,
                **options,
            )
        if network.device.type != "cpu":
            torch.cuda.synchronize()
        assert generated.shape[1] == _PROMPT.value + _NEW.value

    return run


if __name__ == "__main__":
    command_line.run(main, errors=(ModelError,))
