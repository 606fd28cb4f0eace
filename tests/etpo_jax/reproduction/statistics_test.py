import numpy as np
import pytest
from scipy import stats

from etpo_jax.reproduction import statistics


def runs(*rows):
    return [np.array(row, float) for row in rows]


def test_on_one_data_set_it_is_the_t_interval():
    scores = np.array([0.1, 0.5, 0.7, 0.2])
    found = statistics.mean([scores])
    expected = stats.ttest_1samp(scores, 0.0).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert found.value == pytest.approx(scores.mean())


def test_two_data_sets_are_welch_and_have_the_same_weight():
    # The mean of two data sets is half the difference of one and the other with its sign turned.
    a, b = runs([0.1, 0.5, 0.7, 0.2], [3.0, 9.0])
    welch = stats.ttest_ind(a, -b, equal_var=False).confidence_interval(0.95)
    found = statistics.mean([a, b])
    assert found.value == pytest.approx((0.375 + 6.0) / 2)
    assert (2 * found.low, 2 * found.high) == pytest.approx(tuple(welch))


def test_one_run_and_runs_that_agree_have_no_interval():
    for scores in (runs([0.4]), runs([0.4, 0.6], [0.5]), runs([0.5, 0.5], [0.5, 0.5])):
        found = statistics.mean(scores)
        assert found.text() == f"{found.value:.3f}"
        assert found.value == pytest.approx(np.mean([row.mean() for row in scores]))
    with pytest.raises(ValueError, match="no scores"):
        statistics.mean([])
    with pytest.raises(ValueError, match="no scores"):
        statistics.mean(runs([0.1, 0.2], []))


def test_leading_axes_are_computed_side_by_side():
    rng = np.random.default_rng(0)
    scores = [rng.normal(size=(7, 3)), rng.normal(size=(7, 5))]
    found = statistics.mean(scores)
    for row in range(7):
        one = statistics.mean([part[row] for part in scores])
        assert (found.value[row], found.low[row]) == pytest.approx((one.value, one.low))


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
@pytest.mark.parametrize("skew", [1, -1])
def test_intervals_of_paired_differences_cover_what_they_say(num_seeds, skew):
    """500 experiments of two methods on six data sets; errors are skewed and differ in size."""
    rng = np.random.default_rng(1)
    ours, theirs, truth = [], [], []
    for scale in np.linspace(0.03, 0.1, 6):
        shared = rng.normal(size=(500, num_seeds))
        errors = rng.exponential(size=(2, 500, num_seeds)) - 1
        effect = rng.normal(0.01, 0.05)
        truth.append(effect)
        ours.append(0.7 + effect + scale * (shared + skew * errors[0]))
        theirs.append(0.7 + scale * (shared + 0.4 * skew * errors[1]))
    found = statistics.paired_difference(ours, theirs)
    coverage = np.mean((found.low <= np.mean(truth)) & (np.mean(truth) <= found.high))
    assert 0.93 <= coverage <= 0.97
    # What seeds share does not widen the interval of the difference.
    assert np.median(found.high - found.low) < np.median(
        (alone := statistics.mean(ours)).high - alone.low
    )


@pytest.mark.parametrize("num_seeds", [3, 5, 10])
def test_skewed_errors_cost_coverage_on_one_data_set(num_seeds):
    errors = np.random.default_rng(2).exponential(size=(500, num_seeds)) - 1
    found = statistics.mean([errors])
    assert 0.86 <= np.mean((found.low <= 0) & (found.high >= 0)) <= 0.93


def test_paired_difference_sees_what_seeds_share():
    theirs = runs([0.0, 5.0, -7.0, 2.0])
    found = statistics.paired_difference([theirs[0] + [0.1, 0.1, 0.1, 0.2]], theirs)
    assert found.value == pytest.approx(0.125)
    assert found.low > 0
    with pytest.raises(ValueError, match="do not pair up"):
        statistics.paired_difference(theirs, runs([0.0]))


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
        statistics.mean_ranks({"a": runs([1.0]), "b": runs([1.0], [2.0])})
