"""Curves of the paper's Figures 3, 4 and 10: means over runs against environment steps."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from etpo_jax.reproduction import measures, statistics
from etpo_jax.reproduction.measures import Results, Run

X_LABEL = "environment steps"
_NUM_POINTS = 25


@dataclasses.dataclass(frozen=True)
class Curves:
    """One curve with its band per algorithm, over the data sets that all algorithms have in common.

    Attributes:
      y_label: quantity on the y axis, with its unit.
      note: number of data sets and kind of aggregate.
      env_step_k: environment steps at the points of the curves.
      bands: algorithm to mean over runs, lower and upper end of its 95 % t interval.
      is_step: whether a value holds until something better is found.
    """

    y_label: str
    note: str
    env_step_k: Int[np.ndarray, "k"]
    bands: Mapping[str, Float[np.ndarray, "3 k"]]
    is_step: bool = False


def best_reward(results: Results) -> Curves:
    """Best reward up to environment step k (Figures 3 and 10)."""
    curves = _curves(results, "best reward so far", lambda run, k: run.best_until(k))
    return dataclasses.replace(curves, is_step=True)


def average_reward(results: Results) -> Curves:
    """Average reward of the actions just before environment step k (Figure 4)."""
    window = max(1, _num_env_steps(results) // 10)
    return _curves(
        results,
        f"mean reward of the last {window} actions",
        lambda run, k: float(run.reward_t[max(0, k - window) : k].mean()),
    )


def _curves(results: Results, y_label: str, value: Callable[[Run, int], float]) -> Curves:
    datasets = measures.common_datasets(results)
    total = _num_env_steps(results)
    points = np.unique(np.linspace(max(1, total // _NUM_POINTS), total, _NUM_POINTS).astype(int))
    count = f"{len(datasets)} data set" + "s" * (len(datasets) != 1)
    return Curves(
        y_label,
        f"{count}; mean, 95 % t interval over seeds; a failure counts -1",
        points,
        {name: _band(by, datasets, points, value) for name, by in results.items()},
    )


def _band(
    by_dataset: Mapping[str, Sequence[Run]],
    datasets: Sequence[str],
    points: Int[np.ndarray, "k"],
    value: Callable[[Run, int], float],
) -> Float[np.ndarray, "3 k"]:
    def scores_at(k: int) -> statistics.Scores:
        runs = (run for name in datasets for run in by_dataset[name])
        return measures.scores_of(measures.values(runs, lambda run: value(run, k)))

    found = statistics.mean(np.array([scores_at(int(k)) for k in points]))
    return np.array([found.value, found.low, found.high])


def _num_env_steps(results: Results) -> int:
    """Number of environment steps of the shortest run."""
    runs = (run for rows in results.values() for runs in rows.values() for run in runs)
    return min(len(run.reward_t) for run in runs)
