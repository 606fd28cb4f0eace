"""Aggregates over data sets and seeds that few runs can bear (Agarwal et al. 2021, rliable).

Scores of a method are one array per data set, of one number per seed: `list[Float["n"]]`. Arrays
may differ in length where cells are missing. A mean of three runs is never reported.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Float

Scores = Sequence[Float[np.ndarray, "n"]]
"""One array of seeds per data set."""

CONFIDENCE = 0.95
NUM_RESAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A figure with its bootstrap interval at `CONFIDENCE`."""

    value: float
    low: float
    high: float


def interquartile_mean(scores: Float[np.ndarray, "n"]) -> float:
    """The mean of the middle half: robust to outliers, steadier than the median.

    A quarter of the weight is cut from each end; where that is no whole number of scores, the
    scores at the edges count in part. Of one or two scores it is the mean.

    Raises:
      ValueError: for no scores.
    """
    count = len(scores)
    if not count:
        raise ValueError("the interquartile mean of nothing")
    # Score i of the sorted ones covers [i, i + 1]; what of it lies within the middle half.
    edges = np.arange(count)
    overlap = np.minimum(edges + 1, 0.75 * count) - np.maximum(edges, 0.25 * count)
    weights = np.maximum(overlap, 0.0)
    return float(np.sort(scores) @ weights / weights.sum())


def aggregate(scores: Scores) -> float:
    """The interquartile mean over all runs of all data sets."""
    return interquartile_mean(np.concatenate(scores))


def bootstrap(
    statistic: Callable[..., float],
    *methods: Scores,
    seed: int = 0,
    num_resamples: int = NUM_RESAMPLES,
) -> Estimate:
    """A statistic with its stratified percentile bootstrap interval.

    Runs are drawn with replacement within each data set, so that every data set keeps its weight.

    Args:
      statistic: takes as many scores as there are `methods`.
      methods: scores; each is drawn from on its own.
      seed: of the draws.
      num_resamples: of the whole grid.
    """
    rng = np.random.default_rng(seed)
    draws = [
        [runs[rng.integers(len(runs), size=(num_resamples, len(runs)))] for runs in scores]
        for scores in methods
    ]
    found = [
        statistic(*([runs[resample] for runs in scores] for scores in draws))
        for resample in range(num_resamples)
    ]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(found, [tail, 1 - tail])
    return Estimate(statistic(*methods), float(low), float(high))


def probability_of_improvement(ours: Scores, theirs: Scores) -> float:
    """How likely a run of ours beats one of theirs on a data set drawn at random; ties are half.

    The mean over data sets of the Mann-Whitney statistic of all pairs of runs.

    Raises:
      ValueError: if the methods were not run on the same data sets.
    """
    if len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} and {len(theirs)} data sets cannot be compared")
    shares = []
    for one, other in zip(ours, theirs, strict=True):
        wins = np.asarray(one)[:, None] - np.asarray(other)[None, :]
        shares.append(np.mean((wins > 0) + 0.5 * (wins == 0)))
    return float(np.mean(shares))


def paired_difference(
    ours: Scores, theirs: Scores, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Estimate:
    """Interquartile mean of ours less theirs, run by run with the same seed, and its interval.

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
    """Rank of each method by its interquartile mean on a data set (1 is best), then their mean.

    Ties share the mean of their ranks.

    Raises:
      ValueError: if the methods were not run on the same data sets.
    """
    if len({len(scores) for scores in methods.values()}) > 1:
        raise ValueError("methods with different data sets cannot be ranked")
    columns = [[interquartile_mean(runs) for runs in scores] for scores in methods.values()]
    values = np.array(columns)
    ranks = np.zeros(values.shape)
    for one, other in itertools.product(range(len(values)), repeat=2):
        if one != other:
            ranks[one] += (values[other] > values[one]) + 0.5 * (values[other] == values[one])
    return dict(zip(methods, (1 + ranks).mean(axis=1).tolist(), strict=True))
