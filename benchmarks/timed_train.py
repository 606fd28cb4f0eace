"""`python -m etpo_jax.train` with a clock on its phases; `benchmarks.train_step` runs it.

Takes the flags of `etpo_jax.train` and appends one JSON object to `--timeline` for every call that
belongs to a phase, every compilation, and the start of every update. Two things differ from
training: a gradient step is waited for before the next thing begins, and so is the writing of a
checkpoint, so that processor time is counted where it belongs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import flags

from benchmarks.timeline import (
    CHECKPOINT,
    EXECUTE,
    GENERATE,
    LOGS,
    UPDATE,
    WRITE_CHECKPOINT,
    Timeline,
)
from env import command_line
from env.base import UsageError
from env.tasks.code_task import CodeTask
from etpo_jax import train
from etpo_jax.acting.rollout import SamplingActor
from etpo_jax.algorithms.learner import Etpo
from etpo_jax.runs.checkpoint import Checkpoints
from etpo_jax.runs.directory import RunDirectory
from etpo_jax.runs.progress import Progress
from etpo_jax.runs.trackers import TensorBoard
from models.errors import ModelError

_TIMELINE = flags.DEFINE_string("timeline", None, "File that takes the measurements.")


def main() -> int:
    if not _TIMELINE.value:
        raise UsageError("--timeline is missing: name the file that takes the measurements")
    if not Path("/proc/self/stat").exists():
        raise UsageError("processor time of programs is read from /proc, which is not here")
    with open(_TIMELINE.value, "w") as file:
        timeline = Timeline(file)
        jax.monitoring.register_event_duration_secs_listener(timeline.on_duration)
        _install(timeline)
        return train.main()


def _install(timeline: Timeline) -> None:
    """Puts the clock on the public methods that `etpo_jax.loop` and `etpo_jax.train` call."""
    learn, save, weights = Etpo.learn, Checkpoints.save, SamplingActor.weights

    def learn_and_wait(*args: Any) -> Any:
        return jax.block_until_ready(learn(*args))

    write = timeline.timed(WRITE_CHECKPOINT, Checkpoints.wait)
    start_to_save = timeline.timed(CHECKPOINT, save)

    def save_and_wait(checkpoints: Checkpoints, *args: Any) -> None:
        start_to_save(checkpoints, *args)
        write(checkpoints)

    timed_weights = timeline.timed(GENERATE, weights)

    def begin_and_make_weights(*args: Any) -> Any:
        timeline.begin()  # an update begins by laying out the policy for generation
        return timed_weights(*args)

    replacements: tuple[tuple[type, str, Callable[..., Any]], ...] = (
        (SamplingActor, "weights", begin_and_make_weights),
        (SamplingActor, "act", timeline.timed(GENERATE, SamplingActor.act)),
        (CodeTask, "step", timeline.timed(EXECUTE, CodeTask.step)),
        (Etpo, "learn", timeline.timed(UPDATE, learn_and_wait)),
        (Checkpoints, "save", save_and_wait),
        (RunDirectory, "append_episodes", timeline.timed(LOGS, RunDirectory.append_episodes)),
        (RunDirectory, "append_metrics", timeline.timed(LOGS, RunDirectory.append_metrics)),
        (TensorBoard, "write", timeline.timed(LOGS, TensorBoard.write)),
        (Progress, "update", timeline.timed(LOGS, Progress.update)),
    )
    for owner, name, replacement in replacements:
        setattr(owner, name, replacement)


if __name__ == "__main__":
    command_line.run(main, errors=(ModelError,))
