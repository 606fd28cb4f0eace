"""Measures of finished runs, read from their directories for tables and figures."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from env.base import UsageError
from etpo_jax.reproduction.grid import Cell
from etpo_jax.reproduction.statistics import Scores
from etpo_jax.runs.directory import Best
from etpo_jax.runs.run_log import RunLog


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished cell.

    Attributes:
      cell: algorithm, data set and seed.
      path: the run directory.
      reward_t: reward of each executed action, -1 for a failed one.
      best: the best program; None if none ran.
      measures: value of each name in `MEASURES`.
    """

    cell: Cell
    path: Path
    reward_t: Float[np.ndarray, "t"]
    best: Best | None
    measures: Mapping[str, float]

    def best_until(self, env_steps: int) -> float:
        """Highest reward among the first `env_steps` actions, the paper's criterion."""
        return float(self.reward_t[:env_steps].max())


MEASURES = {
    "reward_best": "best reward",
    "reward_last_fifth": "mean reward, last fifth",
    "reward_first_fifth": "mean reward, first fifth",
    "runnable": "programs that run, last fifth",
    "distinct_programs": "distinct programs of the last 64",
    "entropy": "entropy, nats per action",
    "kl_to_reference": "KL to the reference, nats per action",
}
"""Name of a measure to its title; the last four are means over the last fifth of the run."""

Results = Mapping[str, Mapping[str, Sequence[Run]]]
"""Algorithm to data set to finished runs, by seed."""


def read(cell: Cell, path: Path) -> Run:
    """Reads the run directory of a finished cell.

    Raises:
      UsageError: the folder holds no run, or a run too short to be measured.
    """
    log = RunLog.read(path)
    fifths = log.episodes.fifths()
    if fifths is None:
        raise UsageError(f"{path}: a run of {log.env_steps} environment steps cannot be measured")
    # The last count of distinct programs covers the last 64 programs by itself.
    last = slice(-max(1, len(log.metrics) // 5), None)
    return Run(
        cell=cell,
        path=path,
        reward_t=log.episodes.reward_t,
        best=log.best,
        measures={
            "reward_best": float(log.episodes.reward_t.max()),
            "reward_last_fifth": fifths[1],
            "reward_first_fifth": fifths[0],
            "runnable": float(np.mean(log.column("runnable_rate")[last])),
            "distinct_programs": float(log.column("distinct_programs")[-1]),
            "entropy": float(np.mean(log.column("entropy")[last])),
            "kl_to_reference": float(np.mean(log.column("kl_to_reference")[last])),
        },
    )


def group(runs: Sequence[Run]) -> Results:
    """Groups runs by algorithm and data set; each list is ordered by seed."""
    found: dict[str, dict[str, list[Run]]] = {}
    for run in runs:
        found.setdefault(run.cell.algorithm, {}).setdefault(run.cell.dataset, []).append(run)
    for by_dataset in found.values():
        for members in by_dataset.values():
            members.sort(key=lambda run: run.cell.seed)
    return found


def common_datasets(results: Results) -> list[str]:
    """Data sets on which every algorithm has a run, so that aggregates can be compared."""
    names = dict.fromkeys(name for by_dataset in results.values() for name in by_dataset)
    return [n for n in names if all(n in by_dataset for by_dataset in results.values())]


def scores(by_dataset: Mapping[str, Sequence[Run]], measure: str, datasets: list[str]) -> Scores:
    """One measure of an algorithm on these data sets, in the form that `statistics` takes."""
    return [np.array([run.measures[measure] for run in by_dataset[name]]) for name in datasets]


def paired(ours: Results, names: tuple[str, str], measure: str) -> tuple[Scores, Scores]:
    """One measure of two algorithms on the cells that they have in common, in the same order."""
    one, other = (ours[name] for name in names)
    columns: tuple[list, list] = [], []
    for dataset in one:
        by_seed = {run.cell.seed: run for run in other.get(dataset, ())}
        pairs = [(run, by_seed[run.cell.seed]) for run in one[dataset] if run.cell.seed in by_seed]
        if pairs:
            for column, side in zip(columns, zip(*pairs, strict=True), strict=True):
                column.append(np.array([run.measures[measure] for run in side]))
    return columns
