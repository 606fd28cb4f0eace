import numpy as np
import pytest

from etpo_jax.reproduction import statistics


def runs(*rows):
    return [np.array(row, float) for row in rows]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([4.0], 4.0),
        ([1.0, 3.0], 2.0),
        # A quarter of three scores is 0.75 of the lowest: weights 0.25, 1, 0.25.
        ([9.0, 0.0, 3.0], (0.25 * 0 + 3 + 0.25 * 9) / 1.5),
        ([1.0, 2.0, 4.0, 100.0], 3.0),
        # Five: weights 0, 0.75, 1, 0.75, 0.
        ([-50.0, 1.0, 2.0, 5.0, 70.0], (0.75 * 1 + 2 + 0.75 * 5) / 2.5),
        (list(range(8)), 3.5),
    ],
)
def test_interquartile_mean_by_hand(scores, expected):
    assert statistics.interquartile_mean(np.array(scores)) == pytest.approx(expected)


def test_interquartile_mean_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no scores"):
        statistics.interquartile_mean(np.array([]))


def test_one_outlier_in_five_does_not_move_it():
    calm = statistics.interquartile_mean(np.array([0.8, 0.81, 0.82, 0.83, 0.84]))
    wild = statistics.interquartile_mean(np.array([0.8, 0.81, 0.82, 0.83, 1e6]))
    assert calm == wild


def test_bootstrap_is_stratified():
    # No run varies within its data set, so no draw within data sets can vary.
    scores = runs([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])
    found = statistics.bootstrap(statistics.aggregate, scores, num_resamples=50)
    assert found == statistics.Estimate(0.5, 0.5, 0.5)


def test_bootstrap_interval_covers_what_it_should():
    """95 % intervals of a mean of 30 normal scores hold the truth about 95 % of the time."""
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        scores = [rng.normal(size=30)]
        found = statistics.bootstrap(
            lambda s: np.mean(s[0], axis=-1), scores, seed=trial, num_resamples=200
        )
        assert found.low <= found.value <= found.high
        hits += found.low <= 0.0 <= found.high
    assert 180 <= hits <= 199


def test_bootstrap_is_the_same_for_the_same_seed():
    scores = runs([0.1, 0.5, 0.7], [0.3, 0.2])
    one, other = (
        statistics.bootstrap(statistics.aggregate, scores, seed=3, num_resamples=20) for _ in "ab"
    )
    assert one == other
    assert one.low < one.value < one.high


def test_probability_of_improvement_by_hand():
    ours, theirs = runs([1.0, 3.0], [5.0]), runs([2.0, 3.0], [5.0, 6.0])
    # First: 1 beats none; 3 beats 2 and ties 3: 1.5 of 4. Second: a tie and a loss: 0.5 of 2.
    expected = (1.5 / 4 + 0.25) / 2
    assert statistics.probability_of_improvement(ours, theirs) == pytest.approx(expected)
    reverse = statistics.probability_of_improvement(theirs, ours)
    assert reverse == pytest.approx(1 - expected)
    with pytest.raises(ValueError, match="2 and 1 data sets"):
        statistics.probability_of_improvement(ours, theirs[:1])


def test_paired_difference_sees_what_seeds_share():
    # Seeds differ wildly, ours is better by 0.1 on every one of them.
    theirs = runs([0.0, 5.0, -7.0, 2.0])
    ours = [theirs[0] + 0.1]
    found = statistics.paired_difference(ours, theirs, num_resamples=100)
    assert found.low == pytest.approx(0.1)
    assert found.high == pytest.approx(0.1)
    with pytest.raises(ValueError, match="do not pair up"):
        statistics.paired_difference(ours, runs([0.0]))


def test_mean_ranks_by_hand():
    found = statistics.mean_ranks(
        {
            "a": runs([3.0], [1.0]),
            "b": runs([2.0], [1.0]),
            "c": runs([1.0], [5.0]),
        }
    )
    # Second data set: c is first, a and b share 2 and 3.
    assert found == {"a": 1.75, "b": 2.25, "c": 2.0}
    with pytest.raises(ValueError, match="ranked"):
        statistics.mean_ranks({"a": runs([1.0]), "b": runs([1.0], [2.0])})
