"""The best program of a run, as its files and checkpoints keep it."""

import dataclasses
import functools
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from env.base import UsageError
from env.tables.script_text import script_text
from env.tasks.answers import PROGRAM_BEGINS, PROGRAM_ENDS
from etpo_jax.runs import files


@dataclasses.dataclass(frozen=True)
class Best:
    """The best program of a run so far.

    Attributes:
      reward: r of Eq. 10, the mean of the split scores.
      split_scores: score on each split.
      env_step: environment steps of the run up to and including its execution.
      dataset: name of the task.
      seed: seed of the run.
      action: the text that the policy wrote.
      program: a complete program that contains the action.
    """

    reward: float
    split_scores: tuple[float, ...]
    env_step: int
    dataset: str
    seed: int
    action: str
    program: str

    def to_json(self) -> dict[str, Any]:
        """Converts to JSON values, for `best.json` and checkpoints."""
        return files.to_json(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Best":
        """Inverse of `to_json`."""
        return cls(**{**values, "split_scores": tuple(values["split_scores"])})

    def code(self, *, is_script: bool = False) -> str:
        """The program below a comment with its score and its origin, a file to keep and to use.

        Args:
          is_script: whether the file is to be a script that reads the table of the run, scores the
            program and predicts with it; it needs the run's `preparation.json`.
        """
        by_split = " ".join(f"{score:.4f}" for score in self.split_scores)
        header = (
            "Best program of an etpo_jax run.",
            f"score {self.reward:.6f}" + (f", by split: {by_split}" if by_split else ""),
            f"data set {self.dataset}, environment step {self.env_step}, seed {self.seed}",
        )
        comment = "".join(f"# {' '.join(line.split())}\n" for line in header)
        text = self._script() if is_script else f"\n{self.program.rstrip()}\n"
        return comment + text

    def _script(self) -> str:
        script = _filled(_template(), PROGRAM_BEGINS, PROGRAM_ENDS, self.program)
        scores = " ".join(f"{score:.9f}," for score in self.split_scores)
        return script.replace("\nRUN_SCORES = ()\n", f"\nRUN_SCORES = ({scores})\n", 1)


def write_preparation(path: Path, preparation: Mapping[str, Any]) -> None:
    """Writes what turns `best_code.py` into a script: how the table of a run is read.

    Args:
      path: the file.
      preparation: that of an `env.datasets.Dataset`, with its `checksum` and the `metric`.

    Raises:
      UsageError: the file is there with another checksum, so that rewards before and after a
        resume would not be of the same rows.
    """
    stored = files.read_json(path) if path.exists() else preparation
    # A run that an earlier commit began has stored no checksum.
    if stored.get("checksum", preparation["checksum"]) != preparation["checksum"]:
        raise UsageError(
            f"the table {preparation['file'].get('path', '')} has changed since the run in "
            f"{path.parent} began: put the old one back, or --overwrite starts the run anew"
        )
    files.write_json(path, preparation)


READING_BEGINS = "# How a table is read " + 78 * "-"
READING_ENDS = "# End of how a table is read " + 71 * "-"


@functools.cache
def _template() -> str:
    """Returns the script around any program; what it shares with the run is one text."""
    script = (resources.files("etpo_jax.runs") / "best_script.py").read_text("utf-8")
    return _filled(script, READING_BEGINS, READING_ENDS, script_text())


def _filled(script: str, begins: str, ends: str, text: str) -> str:
    """Returns a script with `text` in place of what stands between two of its lines."""
    before, rest = script.split(f"\n{begins}\n", 1)
    _, after = rest.split(f"\n{ends}\n", 1)
    return f"{before}\n{begins}\n\n{text.strip()}\n\n\n{ends}\n{after}"
