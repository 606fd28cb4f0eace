"""Runs of the training program whose figures studies compare."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from env.base import UsageError
from etpo_jax.reproduction import grid
from etpo_jax.runs import directory, files

MEASURES = (
    "reward_first_fifth",
    "reward_last_fifth",
    "runnable_last_fifth",
    "reward_best",
    "entropy",
    "kl_to_reference",
    "distinct_programs",
    "wall_s",
)
"""What `run` returns."""


def run(path: Path, arguments: Sequence[str], num_env_steps: int) -> dict[str, float]:
    """Trains into a run directory, or goes on with it, and measures the run.

    Args:
      path: the run directory; the program's output is beside it.
      arguments: of `etpo_jax.train`.
      num_env_steps: when the run ends; one that has ended is only measured.

    Raises:
      UsageError: if the program fails.
    """
    if grid.is_finished(path, num_env_steps):
        return measure(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "etpo_jax.train", *arguments, f"--run_dir={path}"]
    command.append(f"--num_env_steps={num_env_steps}")
    log_path = path.parent / f"{path.name}.log"
    with open(log_path, "w") as log:
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        raise UsageError(f"{path}: exit code {code}, see {log_path}")
    return measure(path)


def measure(path: Path) -> dict[str, float]:
    """The figures of one run; entropy, KL and distinct programs are means over its last fifth."""
    metrics = list(files.read_rows(path / directory.METRICS))
    episodes = list(files.read_rows(path / directory.EPISODES))
    rewards = np.array([row["reward"] for row in episodes])
    fifth = max(1, len(rewards) // 5)
    last = metrics[-max(1, len(metrics) // 5) :]
    return {
        "reward_first_fifth": float(rewards[:fifth].mean()),
        "reward_last_fifth": float(rewards[-fifth:].mean()),
        "runnable_last_fifth": float(np.mean([not row["error"] for row in episodes[-fifth:]])),
        "reward_best": float(metrics[-1]["reward_best"]),
        "entropy": float(np.mean([row["entropy"] for row in last])),
        "kl_to_reference": float(np.mean([row["kl_to_reference"] for row in last])),
        "distinct_programs": float(np.mean([row["distinct_programs"] for row in last])),
        "wall_s": sum(row["generate_s"] + row["execute_s"] + row["update_s"] for row in metrics),
    }
