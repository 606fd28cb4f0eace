"""Ahead-of-time compilation of a run's programs for GPUs and TPUs that need not be there.

The CUDA plugin of JAX compiles for a described card and `libtpu` for a topology such as `v5e:4x4`,
on any host. Every program is compiled in a process of its own, which reads its task as JSON on
standard input and prints one JSON object, because these libraries can be loaded only once in a
process and not beside an accelerator in use.
"""

import dataclasses
import gzip
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from env.base import UsageError
from etpo_jax.config import Config
from etpo_jax.devices import compiled_figures, compiled_program, lowering, topologies
from etpo_jax.devices.compiled_figures import Figures
from models.config import DecoderConfig
from models.repository import config_folder

PROGRAMS = ("generation", "gradient_step")
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # Otherwise a second process dies on the lock of the first.
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    # Otherwise the library asks a metadata server which host this is.
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}
# Several times cheaper to compile for a TPU; memory is within 3 % of that of the usual level.
_TPU_LEVEL = {"JAX_OPTIMIZATION_LEVEL": "O0"}


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of one program, in bytes on each device.

    Attributes:
      program: one of `PROGRAMS`.
      arguments: bytes of the arguments.
      temporaries: bytes beside arguments and results.
      results: bytes of the results that do not take the place of a donated argument.
      compile_s: seconds of compilation on this host.
      host_bytes: memory of the compiling process at its peak.
      error: why there are no figures: the program does not fit, or took too long; else empty.
      figures: of generation, what the choice of one token executes; of a gradient step, all of it.
    """

    program: str
    arguments: int = 0
    temporaries: int = 0
    results: int = 0
    compile_s: float = 0.0
    host_bytes: int = 0
    error: str = ""
    figures: Figures = dataclasses.field(default_factory=Figures)

    @property
    def total(self) -> int:
        """Bytes of arguments, temporaries and results together."""
        return self.arguments + self.temporaries + self.results


def compile_for(
    config: Config,
    name: str,
    programs: Sequence[str],
    *,
    timeout_s: float | None = None,
    folder: Path | None = None,
) -> list[Compiled]:
    """Compiles programs of a run for devices such as "h200", "v5e:4x4" or "v5p:2x2x1".

    Args:
      config: settings of the run.
      name: devices, as `topologies.find` takes them.
      programs: some of `PROGRAMS`.
      timeout_s: seconds after which the compilation of a program is given up; None for no limit.
      folder: where the text of each program is kept as PROGRAM.hlo.gz; None to keep none.

    Raises:
      UsageError: the compiler is not installed, there are no such devices, or --mesh or
        --attention does not fit them.
    """
    is_gpu = bool(topologies.find(name).gpu)
    if config.model.attention == ("splash" if is_gpu else "cudnn"):
        kind = "TPUs" if is_gpu else "NVIDIA GPUs"
        raise UsageError(f"--aot={name}: --attention={config.model.attention} is for {kind}")
    task = {"config": config.to_dict(), "topology": name, "folder": folder and str(folder)}
    environment = {**({} if is_gpu else _TPU_LEVEL), **os.environ, **_ENVIRONMENT}
    return [_in_process({**task, "program": one}, environment, timeout_s) for one in programs]


def _in_process(
    task: dict[str, Any], environment: dict[str, str], timeout_s: float | None
) -> Compiled:
    try:
        done = subprocess.run(
            [sys.executable, "-m", "etpo_jax.devices.aot"],
            input=json.dumps(task),
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return Compiled(task["program"], error=f"not compiled within {timeout_s:g} seconds")
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise UsageError(f"--aot={task['topology']}: the compiler failed: {reason}")
    answer = json.loads(lines[-1])
    if "usage" in answer:
        raise UsageError(answer["usage"])
    return Compiled(**{**answer, "figures": Figures(**answer["figures"])})


# The child ----------------------------------------------------------------------------------------


def _main() -> None:
    task = json.load(sys.stdin)
    try:
        made = _compile(
            Config.from_dict(task["config"]), task["topology"], task["program"], task["folder"]
        )
        answer = dataclasses.asdict(made)
    except UsageError as error:
        answer = {"usage": str(error)}
    print(json.dumps(answer))


def _compile(config: Config, name: str, program: str, folder: str | None) -> Compiled:
    import resource

    mesh = topologies.find(name).mesh(config.model.mesh)
    decoder = DecoderConfig.from_folder(config_folder(config.model.model))
    with jax.set_mesh(mesh):
        lower = {
            "generation": lowering.lower_generation,
            "gradient_step": lowering.lower_gradient_step,
        }[program]
        lowered = lower(config, decoder, mesh)
        if lowered is None:
            raise UsageError(f"--aot: --algorithm={config.run.algorithm} defines no lower_step")
        start = time.perf_counter()
        try:
            compiled = lowered.compile()
        except jax.errors.JaxRuntimeError as error:
            text = str(error)
            if "RESOURCE_EXHAUSTED" not in text:
                raise
            return Compiled(program, error=f"does not fit: {_first_sentences(text)}")
    compile_s = time.perf_counter() - start
    analysis, text = compiled.memory_analysis(), compiled.as_text()
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with gzip.open(Path(folder) / f"{program}.hlo.gz", "wt") as file:
            file.write(text)
    return Compiled(
        program,
        arguments=analysis.argument_size_in_bytes,
        temporaries=analysis.temp_size_in_bytes,
        results=analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        compile_s=compile_s,
        host_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        figures=_figures(program, text, decoder.num_layers),
    )


def _figures(program: str, text: str, num_layers: int) -> Figures:
    parsed = compiled_program.parse(text)
    if program == "gradient_step" or not parsed.loops():
        return compiled_figures.figures(parsed, parsed.entry)
    loops = [
        compiled_figures.figures(parsed, loop.called("body"), num_layers)
        for loop in compiled_figures.decode_loops(parsed)
    ]
    # Of several loops the worst one is told.
    return max(loops, key=lambda one: (one.data_dependent_loops, one.largest_copy, one.kernels))


def _first_sentences(text: str) -> str:
    found = re.search(r"Used [\d.]+[KMGT] of [\d.]+[KMGT] hbm\. Exceeded[^.]*\.\d+[KMGT]", text)
    return found.group() if found else " ".join(text.split())[:200]


if __name__ == "__main__":
    _main()
