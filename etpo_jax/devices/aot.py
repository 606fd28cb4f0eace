"""Ahead-of-time compilation of a run's programs for TPUs that need not exist.

`libtpu` compiles for a topology such as `v5e:4x4` on any host. Every program is compiled in a
process of its own, which reads its task as JSON on standard input and prints one JSON object,
because the library can be loaded only once in a process and not beside an accelerator in use.
"""

import dataclasses
import functools
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from env.base import UsageError
from etpo_jax.acting.endings import state_table
from etpo_jax.acting.sampler import Sampler
from etpo_jax.acting.transitions import Batch
from etpo_jax.algorithms.base import AbstractRun
from etpo_jax.config import Config
from etpo_jax.devices import memory
from etpo_jax.devices.mesh import AXES, axis_sizes
from etpo_jax.distribution import NUM_TILTS, TILT
from models import decode
from models.config import DecoderConfig
from models.convert import abstract_parameters
from models.repository import config_folder
from models.sharding import shardings

PROGRAMS = ("generation", "gradient_step")
_TOPOLOGY = re.compile(r"(v4|v5p):\d+x\d+x\d+|(v5e|v6e):\d+x\d+")
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # Otherwise a second process dies on the lock of the first.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Otherwise the library asks a metadata server which host this is.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    # Several times cheaper to compile; memory is within 3 % of that of the usual level.
    "JAX_OPTIMIZATION_LEVEL": "O0",
}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Bytes per chip that the compiler reports for one program.

    Attributes:
      program: one of `PROGRAMS`.
      arguments: bytes of the arguments.
      temporaries: bytes beside arguments and results.
      results: bytes of the results that do not take the place of a donated argument.
      compile_s: seconds of compilation on this host.
      host_bytes: memory of the compiling process at its peak.
      error: message of the compiler if the program does not fit, else empty.
    """

    program: str
    arguments: int = 0
    temporaries: int = 0
    results: int = 0
    compile_s: float = 0.0
    host_bytes: int = 0
    error: str = ""

    @property
    def total(self) -> int:
        """Bytes of arguments, temporaries and results together."""
        return self.arguments + self.temporaries + self.results


def compile_for(config: Config, topology: str, programs: Sequence[str]) -> list[Compiled]:
    """Compiles programs of a run for a TPU topology such as "v5e:4x4" or "v5p:2x2x1".

    Raises:
      UsageError: libtpu is not installed, there is no such topology, or --mesh does not fit it.
    """
    if not _TOPOLOGY.fullmatch(topology):
        raise UsageError(f"--aot={topology}: must be such as v5e:4x4, v6e:2x4, v5p:2x2x1, v4:2x2x4")
    if config.model.attention == "cudnn":
        raise UsageError(f"--aot={topology}: --attention=cudnn is for NVIDIA GPUs")
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError(
            f"--aot={topology}: libtpu is not installed (pip install -r requirements-tpu.txt)"
        )
    return [_in_process(config, topology, program) for program in programs]


def _in_process(config: Config, topology: str, program: str) -> Compiled:
    task = {"config": config.to_dict(), "topology": topology, "program": program}
    done = subprocess.run(
        [sys.executable, "-m", "etpo_jax.devices.aot"],
        input=json.dumps(task),
        env={**os.environ, **_ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UsageError(f"--aot={topology}: the compiler failed: {reason}")
    answer = json.loads(lines[-1])
    if "usage" in answer:
        raise UsageError(answer["usage"])
    return Compiled(**answer)


# The child ----------------------------------------------------------------------------------------


def _main() -> None:
    task = json.load(sys.stdin)
    try:
        answer = dataclasses.asdict(
            _compile(Config.from_dict(task["config"]), task["topology"], task["program"])
        )
    except UsageError as error:
        answer = {"usage": str(error)}
    print(json.dumps(answer))


def _compile(config: Config, topology: str, program: str) -> Compiled:
    import resource

    mesh = _topology_mesh(topology, config.model.mesh)
    decoder = DecoderConfig.from_folder(config_folder(config.model.model))
    with jax.set_mesh(mesh):
        lower = {"generation": _lower_generation, "gradient_step": _lower_gradient_step}[program]
        lowered = lower(config, decoder, mesh)
        if lowered is None:
            raise UsageError(f"--aot: --algorithm={config.run.algorithm} defines no lower_step")
        start = time.perf_counter()
        try:
            analysis = lowered.compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            text = str(error)
            if "RESOURCE_EXHAUSTED" not in text:
                raise
            return Compiled(program, error=_first_sentences(text))
    return Compiled(
        program,
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        results=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        compile_s=time.perf_counter() - start,
        host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _first_sentences(text: str) -> str:
    found = re.search(r"Used [\d.]+[KMGT] of [\d.]+[KMGT] hbm\. Exceeded[^.]*\.\d+[KMGT]", text)
    return found.group() if found else " ".join(text.split())[:200]


def _topology_mesh(topology: str, mesh_text: str) -> Mesh:
    from jax.experimental import topologies

    options: dict[str, Any] = {}
    if topology.startswith("v4"):
        options["chip_config_name"] = "megacore"
    if set(topology.split(":")[1].split("x")) == {"1"}:
        options["chips_per_host_bounds"] = (1, 1, 1)
    try:
        devices = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **options
        ).devices
    except Exception as error:  # the plugin raises nothing narrower
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"--aot={topology}: no such topology ({reason})") from error
    sizes = axis_sizes(mesh_text, len(devices))
    if math.prod(sizes) != len(devices):
        raise UsageError(
            f"--mesh={mesh_text}: {math.prod(sizes)} devices, --aot={topology} has {len(devices)}"
        )
    # Not `jax.make_mesh`, which rejects some shapes of topologies.
    return Mesh(np.array(devices).reshape(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _lower_gradient_step(config: Config, decoder: DecoderConfig, mesh: Mesh) -> Any:
    networks = memory.networks_of(config, decoder)
    base = _placed(abstract_parameters(decoder, jnp.dtype(config.model.dtype)), mesh)
    state = _placed(memory.abstract_state(networks, base, config), mesh)
    make_batch = functools.partial(_abstract_batch, config)
    run = AbstractRun(
        networks, base, state, make_batch, lambda tree: _whole(tree, mesh), config, mesh
    )
    return config.algorithm.lower_step(run)


def _abstract_batch(config: Config, b: int) -> Batch:
    """Shapes of a batch of `b` transitions with the longest prompts and actions."""
    p, j = config.model.max_prompt_length, config.sampling.max_new_tokens

    def array(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    return Batch(
        prompt_tokens_bp=array(jnp.int32, b, p),
        prompt_mask_bp=array(jnp.bool_, b, p),
        action_tokens_bj=array(jnp.int32, b, j),
        action_mask_bj=array(jnp.bool_, b, j),
        log_probs_bj=array(jnp.float32, b, j),
        reward_b=array(jnp.float32, b),
        continues_b=array(jnp.float32, b),
        next_prompt_tokens_bp=array(jnp.int32, b, p),
        next_prompt_mask_bp=array(jnp.bool_, b, p),
    )


def _generation_weights(decoder: DecoderConfig, dtype: Any, mesh: Mesh) -> Any:
    """Shapes and shardings of the weights that generation reads."""
    base = _placed(abstract_parameters(decoder, dtype), mesh)
    unstack = jax.jit(functools.partial(decode.unstack, config=decoder, dtype=dtype))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(unstack, base),
        unstack.lower(base).compile().output_shardings,
    )


def _lower_generation(config: Config, decoder: DecoderConfig, mesh: Mesh) -> Any:
    weights = _generation_weights(decoder, jnp.dtype(config.model.dtype), mesh)
    # Stop tokens and the padding token do not influence memory; the table of ends does by its size,
    # and the largest serves every task.
    sampler = Sampler(
        decoder,
        [2],
        0,
        config.sampling,
        next_state_sv=state_table("fence", None, decoder.vocab_size),
        attention=config.model.attention,
    )
    reference = weights if config.samples_with_reference else None
    if config.finetune.tilt_learning_rate > 0:
        tilt = _whole(jax.ShapeDtypeStruct((NUM_TILTS,), jnp.float32), mesh)
        weights = {**weights, TILT: tilt}

    def generate(weights: Any, reference: Any, tokens_bp: Any, mask_bp: Any, keys_b: Any) -> Any:
        return sampler.generate(weights, tokens_bp, mask_bp, keys_b, reference_weights=reference)

    b, p = config.run.num_envs, config.model.max_prompt_length
    keys_b = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), b))
    prompts = (
        jax.ShapeDtypeStruct((b, p), jnp.int32),
        jax.ShapeDtypeStruct((b, p), jnp.bool_),
        keys_b,
    )
    return jax.jit(generate).lower(weights, reference, *_whole(prompts, mesh))


def _placed(tree: Any, mesh: Mesh) -> Any:
    """Shapes with the shardings of the partition table."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        shardings(tree, mesh),
    )


def _whole(tree: Any, mesh: Mesh) -> Any:
    """Shapes of arrays from the host, which lie whole on every device."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, P())
        ),
        tree,
    )


if __name__ == "__main__":
    _main()
