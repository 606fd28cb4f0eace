"""Aggregates over data sets and seeds for few runs (Agarwal et al. 2021, rliable).

The scores of a method are one array per data set with one number per seed, `list[Float["*r n"]]`;
arrays may differ in length where cells are missing. Leading axes hold resamples.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

Scores = Sequence[Float[np.ndarray, "*r n"]]
"""One array of seeds per data set."""

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A statistic with the ends of its bootstrap interval at `CONFIDENCE`."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: Float[np.ndarray, "*r n"]) -> Float[np.ndarray, "*r"]:
    """Mean of the middle half of the scores: robust to outliers, steadier than the median.

    A quarter of the weight is cut from each end; where that is no whole number of scores, the
    scores at the edges count in part. For one or two scores it is the mean.

    Raises:
      ValueError: if there are no scores.
    """
    scores = np.asarray(scores)
    if not scores.shape[-1]:
        raise ValueError("no scores have no interquartile mean")
    # Each score four times, so that a quarter of their number is whole; sorted, so that the order
    # of the seeds does not change the rounding.
    repeated = np.repeat(np.sort(scores, axis=-1), 4, axis=-1)
    return np.asarray(stats.trim_mean(repeated, 0.25, axis=-1))


def aggregate(scores: Scores) -> Float[np.ndarray, "*r"]:
    """Interquartile mean over all runs of all data sets."""
    return interquartile_mean(np.concatenate(scores, axis=-1))


def bootstrap(
    statistic: Callable[..., Float[np.ndarray, "*r"]],
    *methods: Scores,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Estimate:
    """Computes a statistic with its stratified percentile bootstrap interval.

    Runs are drawn with replacement within each data set, so that every data set keeps its weight.

    Args:
      statistic: function of as many scores as there are `methods`, with any leading axes.
      methods: scores; the runs of each are drawn independently.
      seed: seed of the draws.
      num_resamples: number of resamples of the whole grid.
    """
    rng = np.random.default_rng(seed)
    draws = [
        [runs[rng.integers(len(runs), size=(num_resamples, len(runs)))] for runs in scores]
        for scores in methods
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(statistic(*draws), [tail, 1 - tail])
    return Estimate(float(statistic(*methods)), float(low), float(high))


def probability_of_improvement(ours: Scores, theirs: Scores) -> Float[np.ndarray, "*r"]:
    """Probability that a run of ours beats one of theirs on a random data set; ties count half.

    It is the mean over data sets of the Mann-Whitney statistic of all pairs of runs.

    Raises:
      ValueError: if the methods were not run on the same data sets.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} data sets cannot be compared")
    shares = []
    for one, other in zip(ours, theirs, strict=True):
        wins = np.asarray(one)[..., :, None] - np.asarray(other)[..., None, :]
        shares.append(np.mean((wins > 0) + 0.5 * (wins == 0), axis=(-2, -1)))
    return np.mean(shares, axis=0)


def paired_difference(
    ours: Scores, theirs: Scores, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Estimate:
    """Estimates the interquartile mean of ours less theirs, run by run with the same seed.

    Pairs are drawn together, within each data set.

    Raises:
      ValueError: if the runs do not pair up.
    """
    shapes = [len(runs) for runs in ours], [len(runs) for runs in theirs]
    if shapes[0] != shapes[1]:
        raise ValueError(f"runs do not pair up: {shapes[0]} against {shapes[1]}")
    differences = [np.asarray(a) - np.asarray(b) for a, b in zip(ours, theirs, strict=True)]
    return bootstrap(aggregate, differences, seed=seed, num_resamples=num_resamples)


def mean_ranks(methods: Mapping[str, Scores]) -> dict[str, float]:
    """Mean over data sets of each method's rank by interquartile mean; rank 1 is best.

    Ties share the mean of their ranks.

    Raises:
      ValueError: if the methods were not run on the same data sets.
    """
    if len({len(scores) for scores in methods.values()}) > 1:
        raise ValueError("methods with different data sets cannot be ranked")
    means = [[interquartile_mean(runs) for runs in scores] for scores in methods.values()]
    ranks = stats.rankdata(-np.round(means, 12), axis=0)  # a rounding error breaks no tie
    return dict(zip(methods, ranks.mean(axis=1).tolist(), strict=True))
