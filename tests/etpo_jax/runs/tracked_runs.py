"""Run directories with a few updates, and what trackers made of them."""

import json
from pathlib import Path
from typing import Any

from etpo_jax.config import Config
from etpo_jax.runs import directory, files
from etpo_jax.runs.tracked_run import TrackedRun

SETTINGS = {"num_envs": 2, "num_env_steps": 8, "dataset": "toy", "seed": 3, "trackers": "none"}


def metrics(update: int) -> dict[str, Any]:
    return {"env_step": 2 * update, "update": update, "reward_mean": update / 8, "note": None}


def episodes(update: int) -> list[dict[str, Any]]:
    return [
        {
            "env_step": env_step,
            "reward": -1.0 if env_step % 2 else env_step / 8,
            "error": "ValueError: a | b\nof two lines \ud800" if env_step % 2 else "",
            "action": f"return {env_step}",
            "prompt": "def f():\n    <FILL_ME>\n",
        }
        for env_step in (2 * update - 1, 2 * update)
    ]


def begin(path: Path, updates: int = 0, **settings: Any) -> TrackedRun:
    """A run directory whose logs are cut back to its first `updates` updates."""
    config = Config.from_dict({**SETTINGS, **settings})
    path.mkdir(exist_ok=True)
    files.write_json(path / directory.VERSIONS, {"git_commit": "c0ffee", "python": "3.11"})
    for name in (directory.METRICS, directory.EPISODES):
        (path / name).unlink(missing_ok=True)
    for update in range(1, updates + 1):
        append(path, update)
    return TrackedRun.read(path, config, updates)


def append(path: Path, update: int) -> None:
    """Writes the logs of an update, as the loop does before trackers get it."""
    files.append_rows(path / directory.EPISODES, episodes(update))
    files.append_rows(path / directory.METRICS, [metrics(update)])
    (path / directory.BEST_CODE).write_text(f"# update {update}\n")
    (path / directory.BEST).write_text(json.dumps({"reward": update / 4, "env_step": 2 * update}))
