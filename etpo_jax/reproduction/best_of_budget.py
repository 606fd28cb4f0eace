"""The best reward that a budget of programs finds, with its interval from one run."""

import numpy as np
from jaxtyping import Float

from etpo_jax.reproduction.statistics import CONFIDENCE, Estimate


def best_of(rewards_n: Float[np.ndarray, "n"], budget: int) -> Estimate:
    """Expected best of `budget` programs whose rewards are distributed as these.

    That is the bootstrap, computed exactly: with replacement, the best of k draws is at most the
    i-th smallest of n rewards with probability (i / n)^k. The ends of the interval are quantiles of
    the best reward itself, how lucky one budget is, and not an uncertainty of its mean. No reward
    beyond the largest of the n is possible, so that n should be a multiple of the budget.

    Args:
      rewards_n: rewards of independent programs.
      budget: number k of programs, at least 1.

    Raises:
      ValueError: no rewards, or no budget.
    """
    if not len(rewards_n) or budget < 1:
        raise ValueError(f"{len(rewards_n)} rewards, budget {budget}: must be at least 1 each")
    ordered_n = np.sort(rewards_n)
    below_n = (np.arange(len(ordered_n) + 1) / len(ordered_n)) ** budget
    mean = np.asarray(ordered_n @ np.diff(below_n))
    tail = (1 - CONFIDENCE) / 2
    low, high = ordered_n[np.searchsorted(below_n[1:], (tail, 1 - tail))]
    return Estimate(mean, low, high)


def probability_of_better(rewards_n: Float[np.ndarray, "n"], budget: int, reward: float) -> float:
    """Probability that the best of `budget` programs with such rewards exceeds a given reward."""
    return float(1 - np.mean(rewards_n <= reward) ** budget)
