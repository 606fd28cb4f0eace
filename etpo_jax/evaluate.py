"""Reward statistics of a run's policy, or of a model folder, without learning.

  python -m etpo_jax.evaluate --run_dir=runs/tiny --num_samples=256
  python -m etpo_jax.evaluate --model=models/tiny --dataset=tic_tac_toe

Settings of the run hold unless a flag gives another.
"""

import collections
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags

from env import command_line
from env.base import UsageError
from etpo_jax import build, json_files, run_directory
from etpo_jax import config as config_lib
from etpo_jax.checkpoint import committed_steps, read_state
from etpo_jax.config import Config
from etpo_jax.learner import make_learner
from etpo_jax.mesh import build_mesh
from etpo_jax.networks import Networks
from etpo_jax.rollout import Episodes, Prompts
from etpo_jax.run_log import error_kind
from etpo_jax.train_state import Role
from models.errors import ModelError

config_lib.define_flags(sections=config_lib.EVALUATION_SECTIONS)
flags.adopt_module_key_flags(config_lib)
_RUN_DIR = flags.DEFINE_string("run_dir", None, "Run whose policy is evaluated; else --model is.")
_CHECKPOINT = flags.DEFINE_integer("checkpoint", None, "Update of the run; the newest by default.")
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 256, "Programs to execute.", lower_bound=1)
_NUM_ENVS = flags.DEFINE_integer("num_envs", 64, "Episodes side by side.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of sampling.", lower_bound=0)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object.")


def main() -> int:
    config, run_path = _resolve()
    build.use_compilation_cache(config.model.compilation_cache_dir)
    mesh = build_mesh(config.model.mesh)
    with jax.set_mesh(mesh), build.open_task(config) as (task, _):
        language = build.load_language(config, mesh)
        trunk: Role = {}
        title = config.model.model
        if run_path is not None:
            update = _checkpoint(run_path)
            trunk = _restore_policy(config, run_path, update, language, mesh)
            title = f"{run_path} after update {update}"
        actor = build.make_actor(config, language, mesh)
        weights = actor.weights(language.base, trunk)
        reference_weights = (
            actor.weights(language.base, {}) if config.sampling.support_threshold > 0 else None
        )
        prompts = Prompts(task, language.tokenizer, config.model.max_prompt_length)
        episodes = Episodes(task, prompts, _NUM_ENVS.value, _SEED.value)
        key = jax.random.key(_SEED.value)
        rows: list[dict[str, Any]] = []
        while (remaining := _NUM_SAMPLES.value - len(rows)) > 0:
            actions = actor.act(
                weights,
                episodes.encode(),
                jax.random.fold_in(key, len(rows)),
                reference_weights=reference_weights,
            )
            steps = episodes.start(actions.texts[:remaining]).result()
            rows += episodes.finish(actions, steps)[1]
        episodes.close()
    statistics = summarize(rows)
    if _JSON.value:
        print(json.dumps({"policy": title, "dataset": config.task.dataset, **statistics}, indent=2))
    else:
        print(f"{title} on {config.task.dataset}, temperature {config.sampling.temperature:g}\n")
        print(render(statistics))
    return 0


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Statistics of executed actions (rows of `episodes.jsonl`).

    `first_*` are of answers to the first prompt, `reflective_*` of answers to an error; the
    standard error is that of the mean reward.
    """

    def part(name: str, chosen: Sequence[dict[str, Any]]) -> dict[str, Any]:
        rewards = [row["reward"] for row in chosen]
        return {
            f"{name}programs": len(chosen),
            f"{name}reward_mean": float(np.mean(rewards)) if rewards else None,
            f"{name}runnable_rate": float(np.mean([not row["error"] for row in chosen]))
            if rewards
            else None,
        }

    rewards = np.array([row["reward"] for row in rows])
    kinds = collections.Counter(error_kind(row["error"]) for row in rows if row["error"])
    return {
        **part("", rows),
        "reward_standard_error": float(rewards.std() / np.sqrt(len(rewards))),
        "reward_best": float(rewards.max()),
        "distinct_programs": len({row["action"] for row in rows}),
        **part("first_", [row for row in rows if row["t"] == 0]),
        **part("reflective_", [row for row in rows if row["t"] > 0]),
        "errors": dict(kinds.most_common()),
    }


def render(statistics: dict[str, Any]) -> str:
    """The statistics as a table for the screen."""

    def number(value: float | None, style: str) -> str:
        return "-" if value is None else format(value, style)

    lines = [f"{'':22}{'programs':>9}{'mean reward':>13}{'runnable':>10}"]
    for label, name in (
        ("all", ""),
        ("first answers", "first_"),
        ("after an error", "reflective_"),
    ):
        lines.append(
            f"{label:22}{statistics[f'{name}programs']:>9}"
            f"{number(statistics[f'{name}reward_mean'], '.3f'):>13}"
            f"{number(statistics[f'{name}runnable_rate'], '.0%'):>10}"
        )
    lines += [
        "",
        f"standard error of the mean reward  {statistics['reward_standard_error']:.3f}",
        f"best reward                        {statistics['reward_best']:.4f}",
        f"distinct programs                  {statistics['distinct_programs']}",
    ]
    if statistics["errors"]:
        lines.append("errors")
        lines += [f"  {count:5}  {kind}" for kind, count in statistics["errors"].items()]
    return "\n".join(lines)


def _resolve() -> tuple[Config, Path | None]:
    """The run's configuration under the flags that were given, or that of the flags alone."""
    if _RUN_DIR.value is None:
        if _CHECKPOINT.value is not None:
            raise UsageError(f"--checkpoint={_CHECKPOINT.value}: needs --run_dir")
        return config_lib.from_flags(), None
    run_path = Path(_RUN_DIR.value).expanduser()
    if not run_directory.is_run_directory(run_path):
        raise UsageError(f"--run_dir={run_path}: is no run directory")
    stored = json_files.read(run_path / run_directory.CONFIG)
    return config_lib.from_flags(defaults=stored), run_path


def _checkpoint(run_path: Path) -> int:
    steps = committed_steps(run_path / run_directory.CHECKPOINTS)
    if not steps:
        raise UsageError(f"--run_dir={run_path}: has no checkpoint yet")
    wanted = steps[-1] if _CHECKPOINT.value is None else _CHECKPOINT.value
    if wanted not in steps:
        present = ", ".join(map(str, steps))
        raise UsageError(f"--checkpoint={wanted}: the run has those of updates {present}")
    return wanted


def _restore_policy(
    config: Config, run_path: Path, update: int, language: build.Language, mesh: jax.sharding.Mesh
) -> Role:
    networks = Networks.of(language.model, config)
    learner = make_learner(networks, language.base, config, mesh)
    folder = run_path / run_directory.CHECKPOINTS / str(update)
    learner.state = read_state(folder, learner.state)
    return learner.policy_trunk()


if __name__ == "__main__":
    command_line.run(main, errors=(ModelError,))
