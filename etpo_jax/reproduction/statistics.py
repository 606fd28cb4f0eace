"""Estimates over few runs, with intervals of known coverage.

The scores of a method are one array with a row per data set and a column per seed, NaN where there
is no run. Leading axes are computed side by side. The data sets are those that were chosen, no
sample of others: an interval says what other seeds on the same data sets would show.

Two methods are compared by the mean of their differences, run by run. Runs of one seed draw the
same random numbers on every data set and start from one model, so that they are not independent
(`dependence`): the unit of an interval is the seed.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

Scores = Float[np.ndarray, "*r d n"]
"""Data sets and seeds, after any leading axes."""

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
    """Mean over data sets of the mean over seeds, with its t interval over seeds.

    Where every seed has run on every data set, it is the t interval of the seeds' means. In general
    the variance is that of clusters with the correction of small samples (CR2), one cluster a seed,
    and the degrees of freedom are those of Bell and McCaffrey (2002, Survey Methodology 28) for
    scores that are independent with a variance of their own in each data set. Data sets that share
    no seed are those of Welch and Satterthwaite. There is no interval where a data set has a single
    run, nor where all seeds agree exactly.

    Raises:
      ValueError: if there are no scores, or none of some data set.
    """
    is_known = np.isfinite(scores)
    count_d = is_known.sum(axis=-1)
    if not count_d.size or not count_d.all():
        raise ValueError("no scores have no mean")
    mean_d = np.where(is_known, scores, 0.0).sum(axis=-1) / count_d
    value = mean_d.mean(axis=-1)
    if (count_d < 2).any():
        return Estimate(value, np.full_like(value, np.nan), np.full_like(value, np.nan))
    error_dn = _errors(scores)
    variance = np.square(error_dn.sum(axis=-2)).sum(axis=-1)
    variance = np.where(variance > 1e-24, variance, np.nan)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, _freedom(error_dn, is_known)) * np.sqrt(variance)
    return Estimate(value, value - half, value + half)


def dependence(scores: Scores) -> Float[np.ndarray, "*r"]:
    """Variance of the mean of the scores, divided by what it would be with independent runs.

    It is about 1 where runs of one seed on several data sets are independent, and the number of
    data sets where they are the same. NaN where a data set has a single run or all seeds agree.
    """
    if (np.isfinite(scores).sum(axis=-1) < 2).any():
        return np.full(scores.shape[:-2], np.nan)
    error_dn = _errors(scores)
    alone = np.square(error_dn).sum(axis=(-2, -1))
    return np.square(error_dn.sum(axis=-2)).sum(axis=-1) / np.where(alone > 0, alone, np.nan)


def _errors(scores: Scores) -> Float[np.ndarray, "*r d n"]:
    """Share of each run in the error of the mean over data sets of the mean over seeds.

    They are scaled so that the sum of squares of a data set is an unbiased estimate of the variance
    that it brings to the mean; 0 where there is no run.
    """
    is_known = np.isfinite(scores)
    count_d1 = is_known.sum(axis=-1, keepdims=True)
    known = np.where(is_known, scores, 0.0)
    centred = np.where(is_known, known - known.sum(axis=-1, keepdims=True) / count_d1, 0.0)
    return centred / (np.sqrt(count_d1 * (count_d1 - 1.0)) * scores.shape[-2])


def _freedom(
    error_dn: Float[np.ndarray, "*r d n"], is_known: Bool[np.ndarray, "*r d n"]
) -> Float[np.ndarray, "*r"]:
    """Degrees of freedom of the variance in `mean`.

    The sum of squares of normal numbers with covariance S is about a multiple of a chi-squared
    variable with tr(S)^2 / tr(S S) degrees of freedom (Satterthwaite). S is the covariance of the
    seeds' errors, were the data sets independent.
    """
    count_d = is_known.sum(axis=-1)
    variance_d = np.square(error_dn).sum(axis=-1) / (count_d - 1)
    both_dnm = is_known[..., :, None] & is_known[..., None, :]
    centring_dnm = both_dnm * (np.eye(is_known.shape[-1]) - 1 / count_d[..., None, None])
    covariance_nm = (variance_d[..., None, None] * centring_dnm).sum(axis=-3)
    trace = np.trace(covariance_nm, axis1=-2, axis2=-1)
    squares = np.square(covariance_nm).sum(axis=(-2, -1))
    return trace**2 / np.where(squares > 0, squares, np.nan)


def trimmed_mean(scores: Scores) -> float:
    """Mean of the middle half of all runs (`scipy.stats.trim_mean`), as rliable aggregates them."""
    return float(stats.trim_mean(scores[np.isfinite(scores)], 0.25))


def mean_ranks(methods: Mapping[str, Scores]) -> dict[str, Estimate]:
    """Mean rank of each method among the runs of the same data set and seed; rank 1 is best.

    Ties share the mean of their ranks.

    Raises:
      ValueError: if the methods were not run on the same data sets and seeds.
    """
    known = [np.isfinite(scores) for scores in methods.values()]
    if not all(np.array_equal(known[0], other) for other in known):
        raise ValueError("methods with different data sets or seeds cannot be ranked")
    # A rounding error breaks no tie.
    runs = np.round(np.stack(list(methods.values())), 12)
    ranks = np.where(known[0], stats.rankdata(-runs, axis=0), np.nan)
    return {name: mean(rank) for name, rank in zip(methods, ranks, strict=True)}
