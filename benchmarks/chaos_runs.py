"""Training runs for faults to hit: how they are started, followed and compared."""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import psutil
from orbax.checkpoint import v1 as ocp

from etpo_jax.runs import checkpoint, directory, files
from tests.etpo_jax.runs import events

NUM_UPDATES = 12
NUM_ENVS = 4
SETTINGS = (
    f"--num_env_steps={NUM_UPDATES * NUM_ENVS}",
    f"--num_envs={NUM_ENVS}",
    "--minibatch_size=4",
    "--gradient_steps_per_update=2",
    "--replay_size=12",
    "--max_prompt_length=128",
    "--max_new_tokens=24",
    "--executor=local:workers=1",
    "--checkpoint_every=1",
)
# Programs that run for milliseconds need no optimised code, which takes longer to compile.
_XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
# Columns that clock and disk decide.
_OF_THE_MACHINE = frozenset(
    {"generate_s", "execute_s", "update_s", "tokens_per_s", "wall_s", "cached"}
    | {"reward_cache_hit_rate"}
)
_END_S = 600.0  # in which a run ends that nothing disturbs any more
_ORPHANS_S = 10.0
_POLL_S = 0.002


@dataclasses.dataclass
class Host:
    """One process of a run, with all that it starts.

    Attributes:
      process: the trainer.
      output, errors: files that get what it prints.
      family: processes below it, as far as they have been seen.
    """

    process: subprocess.Popen[bytes]
    output: Path
    errors: Path
    family: set[psutil.Process] = dataclasses.field(default_factory=set)

    def below(self) -> list[psutil.Process]:
        """The processes that it has started and that still run."""
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.process.pid).children(recursive=True)
            self.family |= set(found)
            return found
        return []

    def wait(self) -> int:
        """Waits for its end, by force after a time; returns its exit code."""
        try:
            return self.process.wait(_END_S)
        except subprocess.TimeoutExpired:
            kill_all([self])
            self.process.wait()
            return 124

    def orphans(self) -> list[psutil.Process]:
        """Processes that outlive it although it has ended."""
        _, alive = psutil.wait_procs(self.family, timeout=_ORPHANS_S)
        return [each for each in alive if _runs(each)]


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start(
    run_path: Path, logs: Path, flags: Sequence[str], *, num_hosts: int, cache: Path
) -> list[Host]:
    """Starts or resumes a run, as one process or as several hosts that find each other.

    Args:
      run_path: the run directory.
      logs: existing folder for what the processes print.
      flags: settings of the run.
      num_hosts: number of processes.
      cache: folder of compiled programs.
    """
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": _XLA_FLAGS} | os.environ
    environment["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    command = [sys.executable, "-m", "etpo_jax.train", f"--run_dir={run_path}", *flags]
    place = f"127.0.0.1:{_free_port()},{num_hosts}"
    hosts = []
    for index in range(num_hosts):
        output, errors = (logs / f"host{index}.{name}" for name in ("out", "err"))
        with open(output, "wb") as out, open(errors, "wb") as err:
            process = subprocess.Popen(
                [*command, f"--hosts={place},{index}"] if num_hosts > 1 else command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        hosts.append(Host(process, output, errors))
    return hosts


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill_all(hosts: Sequence[Host]) -> None:
    """SIGKILL to trainers and everything below them, the children first."""
    for host in hosts:
        for process in reversed(host.below()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        host.process.kill()


def num_logged(run_path: Path) -> int:
    """Number of updates that `metrics.jsonl` holds."""
    return sum(1 for _ in files.read_rows(run_path / directory.METRICS))


def num_kept(run_path: Path) -> int:
    """Number of updates in the newest committed checkpoint; 0 without one."""
    return max(checkpoint.committed_steps(run_path / directory.CHECKPOINTS), default=0)


def await_instant(hosts: Sequence[Host], run_path: Path, updates: int, delay_s: float) -> bool:
    """Waits until the log has so many updates, and then for a time; False if the run ended."""
    deadline = time.monotonic() + _END_S
    while num_logged(run_path) < updates:
        if any(host.process.poll() is not None for host in hosts) or time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    time.sleep(delay_s)
    for host in hosts:
        host.below()
    return all(host.process.poll() is None for host in hosts)


def differences(run_path: Path, reference: Path, *, is_whole: bool) -> list[str]:
    """Names the files and parts of a run that differ from those of the uninterrupted run.

    Args:
      run_path, reference: the run directories.
      is_whole: the run has ended; else its logs are compared as far as they go.
    """
    found = []
    for name in (directory.METRICS, directory.EPISODES):
        mine, others = _rows(run_path / name), _rows(reference / name)
        expected = others if is_whole else others[: len(mine)]
        if mine != expected:
            pairs = zip(mine, expected, strict=False)
            place = next((n for n, (a, b) in enumerate(pairs) if a != b), len(expected))
            found.append(f"{name} differs from row {place + 1} on")
    if not is_whole:
        return found
    for name in (directory.BEST, directory.BEST_CODE, directory.TOP_PROGRAMS):
        if _contents(run_path / name) != _contents(reference / name):
            found.append(f"{name} differs")
    if not _are_equal(_arrays(run_path), _arrays(reference)):
        found.append("the last checkpoint differs")
    steps = [(step, name) for step, name, _ in events.scalars(run_path)]
    if sorted(steps) != sorted({(step, name) for step, name, _ in events.scalars(reference)}):
        found.append("TensorBoard's events differ")
    return found


def _rows(path: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in _OF_THE_MACHINE}
        for row in files.read_rows(path)
    ]


def _contents(path: Path) -> dict[str, bytes]:
    inner = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {file.name: file.read_bytes() for file in inner if file.is_file()}


def _arrays(run_path: Path) -> Any:
    """State and replay of the newest checkpoint, whatever devices have saved it."""
    path = (run_path / directory.CHECKPOINTS / str(num_kept(run_path))).absolute()
    stored: Any = ocp.checkpointables_metadata(path).metadata
    shapes = {
        name: jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), stored[name])
        for name in ("state", "replay")
    }
    return ocp.load_checkpointables(path, shapes)


def _are_equal(tree: Any, other: Any) -> bool:
    """True for the same arrays bit by bit."""
    mine, others = jax.tree.leaves(tree), jax.tree.leaves(other)
    return len(mine) == len(others) and all(
        a.dtype == b.dtype and a.tobytes() == b.tobytes()
        for a, b in zip(map(np.asarray, mine), map(np.asarray, others), strict=True)
    )
