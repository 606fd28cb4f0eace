"""Estimates over few runs, with intervals of known coverage.

The scores of a method are one array per data set with one number per seed, `list[Float["*r n"]]`;
arrays may differ in length where runs are missing. Leading axes are computed side by side. The data
sets are those that were chosen, no sample of others: an interval says what other seeds on the same
data sets would show.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

Scores = Sequence[Float[np.ndarray, "*r n"]]
"""One array of seeds per data set."""

CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean with the ends of its interval at `CONFIDENCE`, NaN where there is no interval."""

    value: Float[np.ndarray, "*r"]
    low: Float[np.ndarray, "*r"]
    high: Float[np.ndarray, "*r"]

    def text(self, spec: str = ".3f") -> str:
        """The value, and the interval in brackets where there is one."""
        interval = f" [{self.low:{spec}}, {self.high:{spec}}]" if np.isfinite(self.low) else ""
        return f"{self.value:{spec}}{interval}"


def mean(scores: Scores) -> Estimate:
    """Mean over data sets of the mean over seeds, with its t interval.

    The variances of the data sets are estimated apart, and the degrees of freedom are those of
    Welch and Satterthwaite. There is no interval where a data set has a single run, nor where the
    runs of every data set agree exactly.

    Raises:
      ValueError: if there are no scores.
    """
    if not scores or not all(np.shape(runs)[-1] for runs in scores):
        raise ValueError("no scores have no mean")
    value = np.mean([np.mean(runs, axis=-1) for runs in scores], axis=0)
    counts = np.array([np.shape(runs)[-1] for runs in scores])
    if (counts < 2).any():
        return Estimate(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    variances = np.stack([np.var(r, axis=-1, ddof=1) / np.shape(r)[-1] for r in scores], axis=-1)
    total = variances.sum(axis=-1)
    total = np.where(total > 1e-24, total, np.nan)
    freedom = total**2 / (variances**2 / (counts - 1)).sum(axis=-1)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * np.sqrt(total) / len(scores)
    return Estimate(value, value - half, value + half)


def trimmed_mean(scores: Scores) -> float:
    """Mean of the middle half of all runs (`scipy.stats.trim_mean`), as rliable aggregates them."""
    return float(stats.trim_mean(np.concatenate(scores, axis=-1), 0.25, axis=None))


def paired_difference(ours: Scores, theirs: Scores) -> Estimate:
    """Mean of ours less theirs, run by run with the same data set and seed.

    Raises:
      ValueError: if the runs do not pair up.
    """
    shapes = [len(runs) for runs in ours], [len(runs) for runs in theirs]
    if shapes[0] != shapes[1]:
        raise ValueError(f"runs do not pair up: {shapes[0]} against {shapes[1]}")
    return mean([np.asarray(a) - np.asarray(b) for a, b in zip(ours, theirs, strict=True)])


def mean_ranks(methods: Mapping[str, Scores]) -> dict[str, Estimate]:
    """Mean rank of each method among the runs of the same data set and seed; rank 1 is best.

    Ties share the mean of their ranks.

    Raises:
      ValueError: if the methods were not run on the same data sets and seeds.
    """
    shapes = {tuple(len(runs) for runs in scores) for scores in methods.values()}
    if len(shapes) > 1:
        raise ValueError("methods with different data sets or seeds cannot be ranked")
    # A rounding error breaks no tie.
    ranks = [
        stats.rankdata(-np.round(runs, 12), axis=0)
        for runs in (np.stack(parts) for parts in zip(*methods.values(), strict=True))
    ]
    return {name: mean([rank[i] for rank in ranks]) for i, name in enumerate(methods)}
