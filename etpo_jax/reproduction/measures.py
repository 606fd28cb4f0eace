"""Measures of finished runs, read from their directories for tables and figures."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from env.base import UsageError
from etpo_jax.reproduction.grid import Cell
from etpo_jax.reproduction.statistics import Scores
from etpo_jax.runs import directory, files
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
      measures: values by name: means of reward and KL over each fifth of the run
        (`reward_fifth_1`, `kl_fifth_5`), `reward_best`, `steps_to_0.7` (environment steps until
        the mean reward of the last 48 reaches it), `seconds` without the start, and over the last
        fifth `runnable`, `entropy` and `repeated`; `distinct_programs` is of the last 64.
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
    "reward_fifth_5": "mean reward, last fifth",
    "runnable": "programs that run, last fifth",
    "distinct_programs": "distinct programs of the last 64",
    "repeated": "programs that an earlier step had executed, last fifth",
    "entropy": "entropy, nats per action",
    "kl_fifth_5": "KL to the reference, nats per action",
}
"""Name of a measure to its title; `Run.measures` has further ones."""

THRESHOLD = 0.7
_WINDOW = 48

Results = Mapping[str, Mapping[str, Sequence[Run]]]
"""Algorithm to data set to finished runs, by seed."""


def read(cell: Cell, path: Path) -> Run:
    """Reads the run directory of a finished cell.

    Raises:
      UsageError: the folder holds no run, or a run too short to be measured.
    """
    log = RunLog.read(path)
    reward_t = log.episodes.reward_t
    if len(reward_t) < 5:
        raise UsageError(f"{path}: a run of {log.env_steps} environment steps cannot be measured")
    # The last count of distinct programs covers the last 64 programs by itself.
    last = slice(-max(1, len(log.metrics) // 5), None)
    size_u = np.diff(log.column("env_step"), prepend=0).astype(int)
    phases = [log.column(name) for name in ("generate_s", "execute_s", "update_s")]
    return Run(
        cell=cell,
        path=path,
        reward_t=reward_t,
        best=log.best,
        measures={
            **_fifths("reward", reward_t),
            **_fifths("kl", np.repeat(log.column("kl_to_reference"), size_u)),
            "reward_best": float(reward_t.max()),
            f"steps_to_{THRESHOLD}": steps_to(reward_t, THRESHOLD),
            "runnable": float(np.mean(log.column("runnable_rate")[last])),
            "distinct_programs": float(log.column("distinct_programs")[-1]),
            "repeated": _repeated(path),
            "entropy": float(np.mean(log.column("entropy")[last])),
            "seconds": float(np.nansum(phases)),
        },
    )


def row(run: Run) -> dict[str, Any]:
    """Data set, seed, commit and measures of a run, for a row of `runs.csv`."""
    return {
        **{"dataset": run.cell.dataset, "seed": run.cell.seed},
        "commit": files.read_json(run.path / directory.VERSIONS).get("git_commit"),
        **{name: float(f"{value:.5g}") for name, value in run.measures.items()},
    }


def steps_to(reward_t: Float[np.ndarray, "t"], threshold: float) -> float:
    """Environment steps until the mean reward of the last 48 reaches a threshold; NaN if never."""
    if len(reward_t) < _WINDOW:
        return float("nan")
    mean_t = np.convolve(reward_t, np.full(_WINDOW, 1 / _WINDOW), "valid")
    reached = np.flatnonzero(mean_t >= threshold)
    return float(reached[0] + _WINDOW) if len(reached) else float("nan")


def _fifths(name: str, values: Float[np.ndarray, "t"]) -> dict[str, float]:
    """Mean of each fifth of the values."""
    parts = np.array_split(values, 5)
    return {f"{name}_fifth_{k}": float(np.mean(part)) for k, part in enumerate(parts, 1)}


def _repeated(path: Path) -> float:
    """Share of the last fifth of the actions whose text was executed before in the run."""
    actions = pd.Series([line["action"] for line in files.read_rows(path / directory.EPISODES)])
    return float(np.mean(np.array_split(actions.duplicated().to_numpy(), 5)[-1]))


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


def values(runs: Iterable[Run], value: Callable[[Run], float]) -> pd.Series:
    """A value of each run of one algorithm, by data set and seed."""
    return pd.Series({(run.cell.dataset, run.cell.seed): value(run) for run in runs}, dtype=float)


def scores_of(values: pd.Series) -> Scores:
    """Values by data set and seed, two levels of the index, in the form that `statistics` takes."""
    return values.unstack().to_numpy(float) if len(values) else np.empty((0, 0))


def scores(
    by_dataset: Mapping[str, Sequence[Run]], measure: str, datasets: Sequence[str]
) -> Scores:
    """One measure of an algorithm on these data sets."""
    runs = (run for name in datasets for run in by_dataset[name])
    return scores_of(values(runs, lambda run: run.measures[measure]))


def differences(results: Results, names: tuple[str, str], measure: str) -> Scores:
    """One measure of the first algorithm less that of the second, where both have a run."""
    ours, theirs = (
        values(itertools.chain(*results[name].values()), lambda run: run.measures[measure])
        for name in names
    )
    return scores_of((ours - theirs).dropna())
