"""Trains a language agent by ETPO (Algorithm 1) or runs a baseline.

  python -m etpo_jax.train --flagfile=launch/tiny.flags --run_dir=runs/tiny

The same command again resumes the run from its last checkpoint.
"""

import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags

from env import command_line
from env.base import Task, UsageError
from etpo_jax import build, plan
from etpo_jax import config as config_lib
from etpo_jax.acting import external
from etpo_jax.acting.rollout import Actor, Prompts, TokenPrompts
from etpo_jax.algorithms.etpo import NonFiniteError
from etpo_jax.algorithms.learner import Learner, make_learner
from etpo_jax.algorithms.networks import Networks
from etpo_jax.config import Config
from etpo_jax.devices import hosts
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.loop import Loop
from etpo_jax.runs import fingerprint, progress, report
from etpo_jax.runs.checkpoint import Checkpoints
from etpo_jax.runs.directory import FollowedRun, RunDirectory
from etpo_jax.runs.stopping import StopSignals
from etpo_jax.runs.trackers import TensorBoard
from models.errors import ModelError
from models.tokenizer import Tokenizer

config_lib.define_flags(sections=(*config_lib.SECTIONS, config_lib.HostsConfig))
flags.adopt_module_key_flags(config_lib)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Give up the run in --run_dir; start anew.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would run and stop.")


def main() -> int:
    config = config_lib.from_flags()
    if _DRY_RUN.value:
        print(plan.describe(config))
        return 0
    if not config.run.run_dir:
        raise UsageError("--run_dir is missing: name the folder that keeps the run")
    run_dir = config.run.run_dir
    with StopSignals() as stop:
        hosts.initialize(config_lib.hosts_from_flags())
        build.use_compilation_cache(config.model.compilation_cache_dir)
        mesh = build_mesh(config.model.mesh)
        with (
            jax.set_mesh(mesh),
            hosts.first_then_all(
                lambda: RunDirectory.open(
                    run_dir,
                    config.to_dict(),
                    may_differ=config_lib.MAY_DIFFER,
                    overwrite=_OVERWRITE.value,
                    defaults=Config().to_dict(),
                ),
                lambda: FollowedRun(Path(run_dir).expanduser()),
            ) as run,
        ):
            return _run(config, run, mesh, stop)


def _run(config: Config, run: RunDirectory, mesh: jax.sharding.Mesh, stop: StopSignals) -> int:
    finished = run.finished
    if finished is not None and finished["env_step"] >= config.run.num_env_steps:
        if hosts.is_first():
            summary = progress.summary(run.path)
            print(f"This run is finished; --overwrite starts it anew.\n\n{summary}")
        return 0
    # The executor starts its processes first: they get ready while the model is loaded.
    with (
        build.open_task(config) as (task, isolation),
        Checkpoints(run.checkpoints_path, config.run.checkpoints_to_keep) as checkpoints,
    ):
        run.record(isolation=isolation, devices=[str(device) for device in mesh.devices.flat])
        loop = Loop(config, run, checkpoints, task, *_agent(config, run, task, mesh))
        loop.resume()
        try:
            _train(config, run, loop, stop)
            if loop.env_step and config.run.inspect_actions:
                run.write_tokens(loop.inspect(config.run.inspect_actions))
        except NonFiniteError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            loop.close()
    status = 128 + stop.received if stop.received else 0
    if not hosts.is_first():
        return status
    if loop.env_step >= config.run.num_env_steps:
        run.mark_finished({"env_step": loop.env_step, "update": loop.counters.update})
    if loop.env_step:
        report.write_curve(run.path)
        report.write_report(run.path)
    print(f"\n{progress.summary(run.path)}")
    return status


def _agent(
    config: Config, run: RunDirectory, task: Task, mesh: jax.sharding.Mesh
) -> tuple[Tokenizer | None, Prompts, Actor, Learner]:
    """Who acts and learns: a model on our devices, or one behind an endpoint."""
    if config.endpoint.endpoint:
        if hosts.count() > 1:
            raise UsageError("--endpoint: plays on a single host")
        model = external.make_endpoint(config, task)
        return None, external.TextPrompts(task), model, model
    fingerprint.check(run.path, config.model.model)
    language = build.load_language(config, mesh)
    if hosts.is_first():
        fingerprint.note(run.path, config.model.model)
    prompts = TokenPrompts(task, language.tokenizer, config.model.max_prompt_length)
    learner = make_learner(Networks.of(language.model, config), language.base, config, mesh)
    return language.tokenizer, prompts, build.make_actor(config, language, mesh), learner


def _train(config: Config, run: RunDirectory, loop: Loop, stop: StopSignals) -> None:
    start, total = loop.env_step, config.run.num_env_steps
    if not hosts.is_first():
        loop.run(stop.is_stopped, lambda row: None)
        return
    if start:
        print(f"Resuming {run.path} at environment step {start} of {total}.")
    with (
        TensorBoard(run.path) as events,
        progress.Progress(total, env_step=start) as bar,
    ):

        def on_update(row: dict[str, Any]) -> None:
            events.write(row)
            bar.update(row)

        loop.run(stop.is_stopped, on_update)


if __name__ == "__main__":
    command_line.run(main, errors=(ModelError,))
