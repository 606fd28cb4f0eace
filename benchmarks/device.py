"""All that ten minutes on a device can tell: right values first, then speed, in order of value.

    python -m benchmarks.device                                # one GPU, CodeLlama-7B's shape
    python -m benchmarks.device --model=tiny                   # any machine, a CPU as well
    python -m benchmarks.device --stages=device,ceilings,gradient_step --minutes=6

Needs no weights, no network and no PyTorch. Every stage runs in a process of its own and within its
time; one of the large model that does not compile in time, or fails, is tried again with 8 layers,
and the table says so. Four files are written, which grow from stage to stage: OUTPUT.jsonl with
every measurement, OUTPUT.md with the table, OUTPUT.target.txtpb with the device's target for
compiling elsewhere (`etpo plan --aot=CUDA:FILE`), and OUTPUT.compiler.tar with optimised programs,
their memory and XLA's choice of algorithms. The exit code is 1 if a value is beyond its tolerance
or a stage failed.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from benchmarks import device_files, memory_share, records
from benchmarks.records import Records
from env import command_line
from env.base import UsageError

_FEWER_LAYERS = 8
_SHARE_OF_FIRST_TRY = 0.65
_GRACE_S = 3.0
_LAST_S = 10.0
"""Seconds kept for the table and the archive at the end."""
_POLL_S = 0.2
_VARIANT = "decoding loop as one CUDA graph"
_GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,CONDITIONAL,WHILE"


class Stage(NamedTuple):
    """One stage's share of the time, and how its process is started.

    Attributes:
      seconds: its time in a session of ten minutes; what earlier stages leave is shared out.
      can_shorten: True if it has the large model, and may be tried again with fewer layers.
      dumped: pattern of the programs whose compilation is kept; empty for none.
      variables: environment beside that of the session.
    """

    seconds: int
    can_shorten: bool = False
    dumped: str = ""
    variables: dict[str, str] = {}  # noqa: RUF012 - never changed


_HIGHEST = {"JAX_DEFAULT_MATMUL_PRECISION": "highest"}
STAGES = {
    "device": Stage(40, dumped="_target_probe"),
    "ceilings": Stage(30),
    "stand_in": Stage(60, variables=_HIGHEST),
    "attention": Stage(40),
    "generation": Stage(190, can_shorten=True, dumped="generat"),
    "variant": Stage(50, can_shorten=True),
    "gradient_step": Stage(150, can_shorten=True, dumped="gradient_step"),
    "training": Stage(40),
}
"""The stages of `benchmarks.device_stages` in order of value."""

_flags = flags.FlagValues()
_MINUTES = flags.DEFINE_float(
    "minutes", 10.0, "Minutes that the whole session takes at most.", 0.1, flag_values=_flags
)
_MODEL = flags.DEFINE_enum(
    "model",
    "codellama_7b",
    ["codellama_7b", "tiny"],
    "Shape of the measured model.",
    flag_values=_flags,
)
_STAGES = flags.DEFINE_list(
    "stages", list(STAGES), "Stages to run, in this order.", flag_values=_flags
)
_OUTPUT = flags.DEFINE_string(
    "output",
    None,
    "Beginning of the names of the files; default: benchmarks/results/DEVICE.",
    flag_values=_flags,
)


def main() -> int:
    """Runs the stages and returns the exit code."""
    for name in _STAGES.value:
        if name not in STAGES:
            raise UsageError(f"--stages={name}: must be out of {', '.join(STAGES)}")
    device = _device_name()
    if device == "cpu" and _MODEL.value != "tiny":
        raise UsageError(
            f"--model={_MODEL.value}: there is no GPU here; --model=tiny runs on a CPU"
        )
    output = Path(_OUTPUT.value or Path(__file__).parent / "results" / device)
    output.parent.mkdir(parents=True, exist_ok=True)
    jsonl = output.with_name(output.name + ".jsonl")
    jsonl.unlink(missing_ok=True)
    memory_share.use(shared=False)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    with tempfile.TemporaryDirectory() as work, _stopped_by_sigterm():
        session = Session(_MODEL.value, device != "cpu", jsonl, Path(work), 60 * _MINUTES.value)
        for index, name in enumerate(_STAGES.value):
            session.run(name, _STAGES.value[index:])
            _write_results(output, jsonl, Path(work))
    print(output.with_name(output.name + ".md").read_text())
    return 1 if any(row["is_ok"] is False for row in records.read(jsonl)) else 0


class Session:
    """The stages of one session, one after the other.

    Args:
      model: value of --model.
      is_gpu: True if flags for GPUs are compiled with.
      jsonl: file of measurements.
      work: folder that is removed at the end.
      seconds: time of all stages together.
      command: program of a stage.
    """

    def __init__(
        self,
        model: str,
        is_gpu: bool,
        jsonl: Path,
        work: Path,
        seconds: float,
        *,
        command: Sequence[str] = (sys.executable, "-m", "benchmarks.device_stages"),
    ):
        self._model = model
        self._is_gpu = is_gpu
        self._command = command
        self._jsonl = jsonl
        self._work = work
        self._end = time.monotonic() + seconds
        self._records = Records(jsonl)

    def run(self, name: str, ahead: Sequence[str]) -> None:
        """Runs a stage.

        Args:
          name: its name.
          ahead: names of this stage and those that follow, which share the time that is left.
        """
        stage = STAGES[name]
        left = self._end - time.monotonic() - _LAST_S
        limit = left * stage.seconds / sum(STAGES[other].seconds for other in ahead)
        if limit < 1:
            self._fail(name, "left out: no time was left")
            return
        can_shorten = stage.can_shorten and self._model != "tiny"
        end = time.monotonic() + limit
        first = time.monotonic() + limit * (_SHARE_OF_FIRST_TRY if can_shorten else 1)
        problem = self._try(name, 0, first, end)
        if problem and can_shorten:
            self._fail(name, f"{problem}; again with {_FEWER_LAYERS} layers")
            problem = self._try(name, _FEWER_LAYERS, end, end)
        if problem:
            self._fail(name, problem)

    def _fail(self, name: str, problem: str) -> None:
        print(f"{name}: {problem}", flush=True)
        self._records.add(stage=name, what=name, result=problem, beside="", is_ok=False)

    def _try(self, name: str, layers: int, first: float, end: float) -> str:
        """Runs a stage's process; returns what was wrong with it, empty if nothing was.

        Args:
          name: the stage.
          layers: layers of the model; 0 for all.
          first: time at which it is ended unless it has compiled its first program.
          end: time at which it is ended.
        """
        work = self._work / f"{name}_{layers}"
        (work / "dump").mkdir(parents=True)
        task = {"stage": name, "model": self._model, "layers": layers}
        task |= {"records": str(self._jsonl), "work": str(work)}
        known = len(records.read(self._jsonl)) if self._jsonl.exists() else 0
        started = time.monotonic()
        with open(work / "stderr", "w+") as errors:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stderr=errors,
                env=self._environment(name, work),
                cwd=Path(__file__).parents[1],
                text=True,
                start_new_session=True,
            )
            try:
                assert process.stdin is not None
                with process.stdin as stdin:
                    stdin.write(json.dumps(task))
                while process.poll() is None:
                    now = time.monotonic()
                    if now > end or (now > first and not self._has_compiled(known)):
                        done = "compiled" if now <= end else "finished"
                        return f"not {done} after {now - started:.0f} s"
                    time.sleep(_POLL_S)
            finally:
                _end(process)
            if process.returncode:
                errors.seek(0)
                last = (errors.read().strip().splitlines() or ["no output"])[-1]
                return f"exit code {process.returncode}: {last[:300]}"
        return ""

    def _has_compiled(self, known: int) -> bool:
        if not self._jsonl.exists():
            return False
        return any(row.get("compiled") for row in records.read(self._jsonl)[known:])

    def _environment(self, name: str, work: Path) -> dict[str, str]:
        stage = STAGES[name]
        variables = {
            **os.environ,
            **stage.variables,
            "JAX_COMPILATION_CACHE_DIR": str(self._work / "cache"),
        }
        options = [os.environ.get("XLA_FLAGS", "")]
        if stage.dumped:
            options += [f"--xla_dump_to={work / 'dump'}", "--xla_dump_hlo_as_text"]
            options.append(f"--xla_dump_hlo_module_re=.*{stage.dumped}.*")
        if stage.dumped and self._is_gpu:
            options.append(f"--xla_gpu_dump_autotune_results_to={work / 'dump'}/autotune.txtpb")
        if name == "variant" and self._is_gpu:
            options.append(f"--xla_gpu_enable_command_buffer={_GRAPHS}")
            variables["ETPO_VARIANT"] = _VARIANT
        variables["XLA_FLAGS"] = " ".join(filter(None, options))
        return variables


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a process and what it has started, first politely."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_GRACE_S)
            return


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """Turns SIGTERM into an exception, so that the stage's process is ended too."""

    def stop(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _device_name() -> str:
    """A short name of the first GPU, or cpu; JAX must not take its memory in this process."""
    if os.environ.get("JAX_PLATFORMS", "").startswith("cpu") or not shutil.which("nvidia-smi"):
        return "cpu"
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    names = done.stdout.split("\n") if done.returncode == 0 else []
    words = re.sub(r"[^a-z0-9]+", "_", names[0].lower()).strip("_") if names else ""
    return words.removeprefix("nvidia_") or "cpu"


def _write_results(output: Path, jsonl: Path, work: Path) -> None:
    """Writes the table and the archive of what there is so far."""
    archive = output.with_name(output.name + ".compiler.tar")
    packed, left_out = device_files.pack(work, archive)
    lines = [table(records.read(jsonl))]
    if packed:
        lines.append(f"\n{archive.name} holds {len(packed)} files of the compiler's output.")
    if left_out:
        lines.append(f"Left out, beyond 15 MB: {', '.join(left_out)}.")
    output.with_name(output.name + ".md").write_text("\n".join(lines) + "\n")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The measurements as a Markdown table."""
    lines = ["| stage | what | result | compared with | |", "|---|---|---|---|---|"]
    judged = {True: "ok", False: "**wrong**", None: ""}
    for row in rows:
        cells = (row["stage"], row["what"], row["result"], row["beside"], judged[row["is_ok"]])
        lines.append("| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    command_line.run(main, flag_values=_flags)
