"""The best program of a run, as its files and checkpoints keep it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from etpo_jax.runs import files


@dataclasses.dataclass(frozen=True)
class Best:
    """The best program of a run so far.

    Attributes:
      reward: r of Eq. 10, the mean of the split scores.
      split_scores: ROC AUC on each split.
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
        """The program below a comment with its score and its origin.

        Args:
          is_script: whether the program is scored on a table whose preparation is stored.
        """
        by_split = " ".join(f"{score:.4f}" for score in self.split_scores)
        header = (
            "Best program of an etpo_jax run.",
            f"score {self.reward:.6f}" + (f", by split: {by_split}" if by_split else ""),
            f"data set {self.dataset}, environment step {self.env_step}, seed {self.seed}",
        )
        comment = "".join(f"# {' '.join(line.split())}\n" for line in header)
        return f"{comment}\n{self.program.rstrip()}\n"
