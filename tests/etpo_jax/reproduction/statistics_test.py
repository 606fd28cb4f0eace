import numpy as np
import pytest
from scipy import stats

from etpo_jax.reproduction import statistics


def runs(*rows):
    """One row per data set; rows that end early lack the last seeds."""
    width = max(map(len, rows))
    return np.array([[*row, *[np.nan] * (width - len(row))] for row in rows], float)


def test_on_one_data_set_it_is_the_t_interval():
    scores = np.array([0.1, 0.5, 0.7, 0.2])
    found = statistics.mean(scores[None])
    expected = stats.ttest_1samp(scores, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert found.value == pytest.approx(scores.mean())


def test_with_every_seed_on_every_data_set_it_is_the_t_interval_of_the_seeds_means():
    scores = np.random.default_rng(0).normal(size=(3, 5))
    found = statistics.mean(scores)
    expected = stats.ttest_1samp(scores.mean(axis=0), 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected))


def test_data_sets_that_share_no_seed_are_welch_and_have_the_same_weight():
    # The mean of two data sets is half the difference of one and the other with its sign turned.
    a, b = np.array([0.1, 0.5, 0.7, 0.2]), np.array([3.0, 9.0])
    welch = stats.ttest_ind(a, -b, equal_var=False).confidence_interval(0.95)
    nothing = np.full(4, np.nan)
    found = statistics.mean(np.array([[*a, *nothing[:2]], [*nothing, *b]]))
    assert found.value == pytest.approx((0.375 + 6.0) / 2)
    assert (2 * found.low, 2 * found.high) == pytest.approx(tuple(welch))


def test_one_run_and_seeds_that_agree_have_no_interval():
    for scores in (runs([0.4]), runs([0.4, 0.6], [0.5]), runs([0.5, 0.5], [0.7, 0.7])):
        found = statistics.mean(scores)
        assert found.text() == f"{found.value:.3f}"
        assert found.value == pytest.approx(np.mean(np.nanmean(scores, axis=1)))
    with pytest.raises(ValueError, match="no scores"):
        statistics.mean(np.empty((0, 0)))
    with pytest.raises(ValueError, match="no scores"):
        statistics.mean(runs([0.1, 0.2], []))


def test_leading_axes_are_computed_side_by_side():
    scores = np.random.default_rng(0).normal(size=(7, 2, 5))
    scores[:, 1, 3:] = np.nan
    scores[6] = 1.0
    found = statistics.mean(scores)
    for row in range(6):
        one = statistics.mean(scores[row])
        assert (found.value[row], found.low[row]) == pytest.approx((one.value, one.low))
    assert (found.value[6], np.isnan(found.low[6])) == (1.0, True)


def covers(found, truth):
    return np.mean((found.low <= truth) & (truth <= found.high))


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
@pytest.mark.parametrize("skew", [1, -1])
@pytest.mark.parametrize("share", [0.0, 0.35, 1.0])
def test_intervals_of_differences_cover_what_they_say(num_seeds, skew, share):
    """500 experiments of two methods on six data sets; errors are skewed and differ in size.

    That share of the variance is common to the runs of one seed on all data sets.
    """
    rng = np.random.default_rng(1)
    scale_d = np.linspace(0.03, 0.1, 6)[:, None]
    effect_d = rng.normal(0.01, 0.05, size=(6, 1))

    def errors():
        common = rng.normal(size=(500, 1, num_seeds))
        own = rng.exponential(size=(500, 6, num_seeds)) - 1
        return np.sqrt(share) * common + np.sqrt(1 - share) * skew * own

    difficulty = rng.normal(size=(500, 6, num_seeds))
    ours = 0.7 + effect_d + scale_d * (difficulty + errors())
    theirs = 0.7 + scale_d * (difficulty + 0.4 * errors())
    found = statistics.mean(ours - theirs)
    assert 0.93 <= covers(found, np.mean(effect_d)) <= 0.97
    # What both methods share does not widen the interval of the difference.
    alone = statistics.mean(ours)
    assert np.median(found.high - found.low) < np.median(alone.high - alone.low)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_intervals_cover_what_they_say_where_runs_are_missing(share):
    rng = np.random.default_rng(3)
    common = rng.normal(size=(2000, 1, 8))
    scores = np.sqrt(share) * common + np.sqrt(1 - share) * rng.normal(size=(2000, 4, 8))
    scores[:, 0, 5:] = scores[:, 1, :2] = scores[:, 2, ::2] = np.nan
    assert 0.93 <= covers(statistics.mean(scores), 0.0) <= 0.97


def test_dependence_is_that_of_the_data_sets():
    rng = np.random.default_rng(4)
    own, common = rng.normal(size=(1000, 6, 60)), rng.normal(size=(1000, 1, 60))
    assert np.mean(statistics.dependence(own)) == pytest.approx(1, abs=0.05)
    # The variance of a sum of six, of which a third is in common: 1 + 5 / 3.
    mixed = np.sqrt(2 / 3) * own + np.sqrt(1 / 3) * common
    assert np.mean(statistics.dependence(mixed)) == pytest.approx(1 + 5 / 3, abs=0.05)
    assert statistics.dependence(own[0, :1].repeat(6, axis=0)) == pytest.approx(6)
    assert np.isnan(statistics.dependence(np.ones((2, 3))))
    assert np.isnan(statistics.dependence(runs([0.1, 0.2], [0.3])))


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_skewed_errors_cost_coverage_on_one_data_set(num_seeds):
    errors = np.random.default_rng(2).exponential(size=(500, 1, num_seeds)) - 1
    assert 0.86 <= covers(statistics.mean(errors), 0.0) <= 0.93


def test_trimmed_mean_leaves_out_the_outer_quarters():
    assert statistics.trimmed_mean(runs([1.0, 2.0], [4.0, 100.0])) == 3.0
    assert statistics.trimmed_mean(runs([1.0, 3.0])) == 2.0


def test_mean_ranks_by_hand():
    found = statistics.mean_ranks(
        {
            "a": runs([3.0, 1.0], [1.0, 2.0]),
            "b": runs([2.0, 2.0], [1.0, 3.0]),
            "c": runs([1.0, 3.0], [5.0, 1.0]),
        }
    )
    # First data set: a is first, then last. Second: a and b share 2 and 3, then b is first.
    assert {name: float(rank.value) for name, rank in found.items()} == {
        "a": (1 + 3 + 2.5 + 2) / 4,
        "b": (2 + 2 + 2.5 + 1) / 4,
        "c": (3 + 1 + 1 + 3) / 4,
    }
    assert found["a"].low < found["a"].value < found["a"].high
    with pytest.raises(ValueError, match="ranked"):
        statistics.mean_ranks({"a": runs([1.0, 2.0]), "b": runs([1.0])})
    with pytest.raises(ValueError, match="ranked"):
        statistics.mean_ranks({"a": runs([1.0, 2.0], [1.0]), "b": runs([1.0, 2.0], [1.0, 2.0])})
