"""A run on Weights & Biases, or in its offline folder where WANDB_MODE=offline."""

import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from etpo_jax.runs import directory
from etpo_jax.runs.tracked_run import SAMPLE_COLUMNS, BestProgram, TrackedRun, numbers_of

# Seconds that W&B may take at the end to send what it has; the rest stays on the disk for
# `wandb sync`.
_FINISH_S = 60.0


class WandbRun:
    """A run of the project `etpo_jax`, or of that in WANDB_PROJECT.

    W&B's own variables say where the service is and who logs in.
    """

    def __init__(self, run: TrackedRun, say: Callable[[str], None]) -> None:
        """Starts the run, or goes on under its id; `say` gets the line that names its place.

        Raises:
          RuntimeError: nobody is logged in.
          Exception: whatever W&B raises.
        """
        import wandb

        mode = wandb.setup().settings.mode
        if mode == "online" and not wandb.login(prompt=False):
            raise RuntimeError(
                "nobody is logged in: `wandb login` does it, and WANDB_MODE=offline needs no login"
            )
        self._wandb = wandb
        known = run.stored_id("wandb")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "etpo_jax"),
            dir=run.folder,
            id=known or uuid.uuid4().hex[:12],
            resume="allow",
            name=run.path.name,
            notes=run.title,
            config={**run.settings, "versions": dict(run.facts)},
            allow_val_change=True,
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, finish_timeout=_FINISH_S
            ),
        )
        run.store_id("wandb", self._run.id)
        if self._run.offline:
            # The service does not say what it has: earlier processes have written their part.
            self.next_update = run.update + 1 if known else 1
            say(f"wandb: offline; `wandb sync {self._run.settings.sync_dir}` sends the run")
        else:
            # W&B's steps are updates; it drops those that it has already.
            self.next_update = max(self._run.step, 1)
            say(f"wandb: {self._run.url}")

    def write(self, row: Mapping[str, Any], samples: Sequence[Sequence[Any]]) -> None:
        """Logs the numbers of a row at step `update`, and samples as a table."""
        values: dict[str, Any] = dict(numbers_of(row))
        if samples:
            values["samples"] = self._wandb.Table(
                columns=list(SAMPLE_COLUMNS), data=[list(sample) for sample in samples]
            )
        self._run.log(values, step=row["update"])

    def write_best(self, best: BestProgram, update: int) -> None:
        """Logs the best program as a new version of an artifact of the run."""
        artifact = self._wandb.Artifact(
            f"best_program-{self._run.id}", type="program", metadata=best.facts
        )
        with artifact.new_file(directory.BEST_CODE, encoding="utf-8") as file:
            file.write(best.code)
        self._run.log_artifact(artifact, aliases=["latest", f"update-{update}"])

    def write_scores(self, numbers: Mapping[str, float], update: int) -> None:
        """Puts the final scores into the summary of the run."""
        del update
        self._run.summary.update(dict(numbers))

    def close(self, *, is_finished: bool) -> None:
        """Sends what is left; a run that is not finished may be resumed all the same."""
        self._run.summary["is_finished"] = is_finished
        self._run.finish()
