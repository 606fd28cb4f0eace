"""Stages of `benchmarks.device`, each run in a process of its own.

A process reads its task as JSON on standard input and adds what it measures to the file of JSON
lines that the task names, at once, so that a stage that is killed keeps what it has. Records have
`stage`, `what`, `result` (text for the table), `beside` (what it is to be compared with), `is_ok`
(null where nothing is judged) and further numbers by name.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import accounting, device_checks, probes, records, turns
from benchmarks.decoding import PAD, STOP, Decoding
from benchmarks.random_model import build_learner, decoder_config, random_parameters
from benchmarks.records import Records
from env.flagfiles import expand_flagfiles
from etpo_jax import flags as settings_flags
from etpo_jax.acting.transitions import Batch, Transition, collate
from etpo_jax.config import LENGTH_MULTIPLE, Config, SamplingConfig
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.launch_files import launch_folder
from etpo_jax.runs import files, versions
from models.config import DecoderConfig
from models.decode import unstack
from models.repository import config_folder

_ROUNDS = 3
_GIGA, _TERA = 1e9, 1e12
_CONTINUING = 5
"""One of so many transitions ends its episode; the others have a next prompt."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the measured model and of its workload.

    Attributes:
      model: a name of `random_model.SIZES`.
      dtype: type of weights and products in generation.
      prompt, new: tokens of a prompt and of an action.
      rows: rows generated together, one measurement each.
      attention: rows, tokens, heads and size of a head of the attention that is compared.
      flags: flags of the run whose gradient step is measured.
    """

    model: str
    dtype: str
    prompt: int
    new: int
    rows: tuple[int, ...]
    attention: tuple[int, int, int, int]
    flags: tuple[str, ...]


SIZES = {
    "codellama_7b": Sizes(
        "codellama_7b",
        "bfloat16",
        512,
        256,
        (8, 64),
        (4, 768, 32, 128),
        ("--flagfile=codellama_7b_h200.flags", "--flagfile=codellama_7b_full.flags"),
    ),
    "tiny": Sizes(
        "tiny",
        "float32",
        32,
        16,
        (2, 4),
        (2, 48, 4, 16),
        ("--flagfile=tiny.flags", "--max_prompt_length=32", "--max_new_tokens=16"),
    ),
}
"""Sizes by the value of `--model`; tiny runs on a CPU."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One stage of one session.

    Attributes:
      stage: a name of `STAGES`.
      model: a name of `SIZES`.
      layers: layers of the model in place of all; 0 for all.
      records: file that measurements are added to.
      work: folder for files that are not kept.
    """

    stage: str
    model: str
    layers: int
    records: str
    work: str

    @property
    def sizes(self) -> Sizes:
        """Sizes of the measured model and of its workload."""
        return SIZES[self.model]

    def shortened(self, decoder: DecoderConfig) -> DecoderConfig:
        """The decoder with the number of layers that the task allows."""
        return dataclasses.replace(decoder, num_layers=self.layers) if self.layers else decoder

    def ceiling(self, name: str) -> float:
        """A rate that the stage `ceilings` has measured, or 0."""
        found = [row for row in records.read(self.records) if row.get("ceiling") == name]
        return found[-1]["rate"] if found else 0.0


Add = Callable[..., None]


def versions_and_limits(task: Task, add: Add) -> None:
    """Records versions, memory limits and the target with which to compile elsewhere."""
    device = jax.devices()[0]
    found = {key: value for key, value in versions.current().items() if value}
    add(
        f"{device.device_kind} x {jax.device_count()}",
        ", ".join(f"{name} {found[name]}" for name in ("jax", "jaxlib", "flax", "python")),
        platform=device.platform,
        device_kind=device.device_kind,
        versions=found,
        platform_version=getattr(device.client, "platform_version", ""),
        cpu_cores=os.cpu_count(),
        variables={name: text for name, text in os.environ.items() if name.startswith("XLA_")},
    )
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        text = f"{stats['bytes_limit'] / 2**30:.1f} GiB"
        add("memory that JAX may fill", text, bytes_limit=stats["bytes_limit"])
    jax.block_until_ready(_target_probe(jnp.ones(8)))
    # XLA writes the target beside the programs that it dumps; on a CPU there is none.
    targets = list(pathlib.Path(task.work, "dump").glob("**/*gpu_target_config.pbtxt"))
    if targets:
        target = pathlib.Path(task.records).with_suffix(".target.txtpb")
        target.write_text(targets[0].read_text())
        add("target for compilation elsewhere", target.name)
    elif device.platform == "gpu":
        add("target for compilation elsewhere", "XLA wrote none", is_ok=False)


@jax.jit
def _target_probe(x: jax.Array) -> jax.Array:
    return x + 1


def ceilings(task: Task, add: Add) -> None:
    """The rates of a large copy and of large products."""
    copy = probes.copy()
    rate = _rate(copy)
    add("copy", f"{rate / _GIGA:,.0f} GB/s", copy.what, ceiling="copy", rate=rate)
    for dtype in (jnp.bfloat16, jnp.float32):
        for precision in ("default", "highest")[: 1 + (dtype == jnp.float32)]:
            with jax.default_matmul_precision(precision):
                product = probes.matmul(dtype)
                rate = _rate(product)
            name = f"product, {jnp.dtype(dtype)}, precision {precision}"
            ceiling = f"{jnp.dtype(dtype)} {precision}"
            text = f"{rate / _TERA:,.2f} TFLOP/s"
            add(name, text, product.what, ceiling=ceiling, rate=rate)


def _rate(probe: probes.Probe) -> float:
    times = turns.measure({"probe": probe.program}, rounds=_ROUNDS)["probe"]
    return probe.amount / times.median("wall")


def stand_in(task: Task, add: Add) -> None:
    """Gradient step and generation of the stand-in's shape here and on a CPU, float32, highest."""
    file = pathlib.Path(task.work) / "on_a_cpu.npz"
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.device_checks", str(file)],
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.PIPE,
        text=True,
    ) as on_a_cpu:
        here = device_checks.stand_in_values()
        _, errors = on_a_cpu.communicate()
    if on_a_cpu.returncode:
        add("on a CPU", _last_line(errors), is_ok=False)
        return
    for name, difference, tolerance in device_checks.differences(here, dict(np.load(file))):
        text = f"at most {tolerance:g} from the CPU"
        add(name, f"{difference:.1e}", text, is_ok=difference <= tolerance, difference=difference)


def attention(task: Task, add: Add) -> None:
    """Attention's implementations with left padding against float32, values and gradients."""
    rows, length, heads, size = task.sizes.attention
    shape = f"{rows} x {length} tokens, {heads} heads of {size}"
    case = device_checks.AttentionCase(rows, length, heads, size)
    names = ("reference", "xla", *(["cudnn"] if jax.default_backend() == "gpu" else []))
    for name in names:
        try:
            found = case.compare(name)
        except Exception as error:  # the other implementations are still worth knowing
            text = f"{type(error).__name__}: {_last_line(str(error))}"
            add(f"{name}, {shape}", text, is_ok=False)
            continue
        seconds = turns.measure({name: case.program(name)}, rounds=_ROUNDS)[name].median("wall")
        worst = max(found.values())
        add(
            f"{name}, {shape}",
            f"{worst:.1e}, {1e3 * seconds:.2f} ms forward and backward",
            f"at most {device_checks.ATTENTION_TOLERANCE:g} from float32",
            is_ok=worst <= device_checks.ATTENTION_TOLERANCE,
            differences=found,
            seconds=seconds,
        )


def generation(task: Task, add: Add) -> None:
    """Tokens per second with random weights, and what sampling among all tokens would save."""
    for index, rows in enumerate(task.sizes.rows):
        _measure_generation(task, add, rows, "top-k 50", top_k=50)
        if index == 0:
            _measure_generation(task, add, rows, "no top-k", top_k=0)


def variant(task: Task, add: Add) -> None:
    """The first generation again under the compiler flags that `benchmarks.device` has set."""
    name = os.environ.get("ETPO_VARIANT", "same flags")
    _measure_generation(task, add, task.sizes.rows[0], name, top_k=50)


def _measure_generation(task: Task, add: Add, rows: int, variant: str, *, top_k: int) -> None:
    sizes = task.sizes
    config = task.shortened(decoder_config(sizes.model, sizes.prompt + sizes.new))
    dtype = jnp.dtype(sizes.dtype)
    sampling = SamplingConfig(
        temperature=1.0, top_k=top_k, max_new_tokens=sizes.new, support_threshold=0.0
    )
    decoding = Decoding(config, _weights(config, dtype), rows, sizes.prompt, sampling)
    shape = f"{rows} rows, {sizes.prompt} + {sizes.new} tokens, {config.num_layers} layers"
    name = f"{shape}, {variant}"
    start = time.perf_counter()
    decoding.check_lengths()
    first_s = time.perf_counter() - start
    add(f"{name}: first call", f"{first_s:.1f} s", compiled=True, seconds=first_s)
    programs = {"whole": decoding.generate, "prompts": decoding.read_prompts}
    times = turns.measure(programs, rounds=_ROUNDS)
    whole_s, prompts_s = (times[name].median("wall") for name in programs)
    step_s = (whole_s - prompts_s) / (sizes.new - 1)
    must = accounting.decode_step_bytes(config, rows, sizes.prompt, sizes.new, dtype.itemsize)
    copy = task.ceiling("copy")
    beside = ""
    if copy:
        beside = f"floor {1e3 * must / copy:.2f} ms a step, {must / step_s / copy:.0%} of a copy"
    add(
        name,
        f"{rows * sizes.new / whole_s:,.0f} tokens/s; prompts {1e3 * prompts_s:.0f} ms, "
        f"a step {1e3 * step_s:.2f} ms",
        beside,
        whole_s=whole_s,
        prompts_s=prompts_s,
        step_s=step_s,
        must_bytes=must,
        peak_bytes=_peak_bytes(),
    )


_WEIGHTS: dict[DecoderConfig, Any] = {}


def _weights(config: DecoderConfig, dtype: Any) -> Any:
    """Random weights laid out for generation, made on the device once."""
    if config not in _WEIGHTS:
        params = jax.jit(lambda: random_parameters(config, dtype, stop_id=STOP))()
        _WEIGHTS[config] = jax.block_until_ready(jax.jit(unstack, static_argnums=1)(params, config))
    return _WEIGHTS[config]


def gradient_step(task: Task, add: Add) -> None:
    """A gradient step of all weights of random networks, with next prompts."""
    config = _run_config(task)
    decoder = task.shortened(DecoderConfig.from_folder(config_folder(config.model.model)))
    mesh = build_mesh(config.model.mesh)
    with jax.set_mesh(mesh):
        dtype = jnp.dtype(config.model.compute_dtype)
        base = jax.jit(lambda: random_parameters(decoder, dtype, stop_id=STOP))()
        learner = build_learner(config, decoder, base, mesh)
        batch = _batch(config, decoder.vocab_size)
        rows, prompt = batch.prompt_tokens_bp.shape
        action = batch.action_tokens_bj.shape[1]
        name = (
            f"{rows} transitions of {prompt} + {action} tokens, {decoder.num_layers} layers, "
            f"{config.model.attention}"
        )

        def step() -> dict[str, Any]:
            metrics = learner.learn(batch)
            jax.block_until_ready((learner.state, metrics))
            return metrics

        start = time.perf_counter()
        metrics = jax.device_get(step())
        first_s = time.perf_counter() - start
        add(
            f"{name}: first call",
            f"{first_s:.1f} s",
            compiled=True,
            seconds=first_s,
            is_ok=bool(metrics["is_finite"]),
            metrics={key: float(value) for key, value in metrics.items()},
        )
        seconds = turns.measure({"step": step}, rounds=_ROUNDS, warm_up=0)["step"].median("wall")
    flops = accounting.gradient_step_flops(decoder, config.learning, rows, prompt, action, prompt)
    rate, peak = flops / seconds, _peak_bytes()
    product = task.ceiling("bfloat16 default")
    add(
        name,
        f"{seconds:.3f} s, {rate / _TERA:,.3f} TFLOP/s"
        + (f", peak {peak / 2**30:.1f} GiB" if peak else ""),
        f"{rate / product:.0%} of a large bfloat16 product" if product else "",
        step_s=seconds,
        flops=flops,
        peak_bytes=peak,
    )


def _run_config(task: Task) -> Config:
    """Settings of the run whose gradient step is measured."""
    arguments = [*task.sizes.flags]
    if jax.default_backend() == "gpu":
        arguments.append("--attention=cudnn")
    values = flags.FlagValues()
    settings_flags.define_flags(values)
    values(["device", *expand_flagfiles(arguments, (launch_folder(),))])
    return settings_flags.from_flags(values)


def _batch(config: Config, vocabulary: int) -> Batch:
    """Transitions of full length; four of five have a next prompt."""
    rng = np.random.default_rng(0)

    def tokens(length: int) -> np.ndarray:
        return rng.integers(3, vocabulary, length, np.int32)

    prompt, action = config.model.max_prompt_length, config.sampling.max_new_tokens
    transitions = [
        Transition(
            tokens(prompt),
            tokens(action),
            np.full(action, -np.log(vocabulary), np.float32),
            float(rng.uniform(-1, 1)),
            tokens(prompt) if row % _CONTINUING else None,
        )
        for row in range(config.learning.minibatch_size)
    ]
    return collate(
        transitions,
        pad_id=PAD,
        length_multiple=LENGTH_MULTIPLE,
        max_prompt_length=prompt,
        max_new_tokens=action,
    )


def training(task: Task, add: Add) -> None:
    """A run of the stand-in that is saved, resumed by the same command and reported."""
    run_dir = pathlib.Path(task.work) / "run"
    for steps, name in ((16, "first update"), (32, "second update, resumed")):
        command = [
            *(sys.executable, "-m", "etpo_jax.train", "--flagfile=tiny.flags"),
            *(f"--run_dir={run_dir}", f"--num_env_steps={steps}", "--gradient_steps_per_update=2"),
        ]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - start
        if done.returncode:
            add(name, _last_line(done.stderr), is_ok=False, output=done.stderr[-2000:])
            return
        rows = list(files.read_rows(run_dir / "metrics.jsonl"))
        is_resumed = [row["update"] for row in rows] == list(range(1, steps // 16 + 1))
        is_resumed &= (steps == 16) != ("Resuming" in done.stdout)
        runnable = rows[-1]["runnable_rate"]
        text = f"{seconds:.0f} s with the start, {runnable:.0%} of the programs run"
        add(name, text, is_ok=is_resumed and runnable > 0, metrics=rows[-1], seconds=seconds)
    has_report = (run_dir / "report.html").exists()
    add("report", "written" if has_report else "not drawn: matplotlib is not installed")


def _peak_bytes() -> int:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1][:300]


STAGES: dict[str, Callable[[Task, Add], None]] = {
    "device": versions_and_limits,
    "ceilings": ceilings,
    "stand_in": stand_in,
    "attention": attention,
    "generation": generation,
    "variant": variant,
    "gradient_step": gradient_step,
    "training": training,
}
"""Stages by name, in order of value."""


def main() -> None:
    """Runs the stage that standard input describes."""
    task = Task(**json.load(sys.stdin))
    made = Records(task.records)

    def add(
        what: str, result: str, beside: str = "", *, is_ok: bool | None = None, **numbers: Any
    ) -> None:
        judged = None if is_ok is None else bool(is_ok)
        made.add(stage=task.stage, what=what, result=result, beside=beside, is_ok=judged, **numbers)
        print(f"{task.stage}: {what}: {result}", flush=True)

    STAGES[task.stage](task, add)


if __name__ == "__main__":
    main()
