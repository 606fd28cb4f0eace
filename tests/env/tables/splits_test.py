import numpy as np
import pytest
from sklearn.model_selection import train_test_split

from env.base import UsageError
from env.tables import splits


@pytest.mark.parametrize("num_rows", [2, 3, 95, 125, 2000])
@pytest.mark.parametrize("seed", range(splits.NUM_SPLITS))
def test_halves_are_those_of_scikit_learn(num_rows, seed):
    expected = train_test_split(np.arange(num_rows), test_size=0.5, random_state=seed, shuffle=True)
    for half, rows in zip(splits.split_rows(num_rows, seed), expected, strict=True):
        np.testing.assert_array_equal(half, rows)


def test_a_class_that_one_half_lacks_is_named():
    labels = np.array([0, 1] * 20 + [2])
    train, _ = splits.split_rows(len(labels), 0)
    half = "validation" if 40 in train else "training"
    with pytest.raises(
        UsageError, match=f"class 'rare' .* too few rows: 0 in the {half} half of split 0"
    ):
        splits.check_class_counts(
            labels, num_splits=5, min_rows=1, class_names=("often", "also", "rare")
        )
    with pytest.raises(UsageError, match="class '2'"):
        splits.check_class_counts(labels, num_splits=5, min_rows=1)


def test_enough_rows_of_each_class_pass():
    splits.check_class_counts(np.array([0, 1] * 20), num_splits=5, min_rows=2)


def test_stratified_halves_hold_equally_many_rows_of_each_class():
    strata = np.array([0] * 51 + [1] * 6 + [2] * 20)
    for seed in range(5):
        training, validation = splits.split_rows(len(strata), seed, strata)
        assert sorted([*training, *validation]) == list(range(len(strata)))
        assert len(training) == len(strata) // 2
        counts = [np.bincount(strata[rows], minlength=3) for rows in (training, validation)]
        assert np.abs(counts[0] - counts[1]).max() <= 1
    assert list(splits.split_rows(77, 0, strata)[0]) != list(splits.split_rows(77, 1, strata)[0])


def test_stratified_halves_serve_a_class_of_four_rows():
    strata = np.array([0] * 60 + [1] * 4)
    with pytest.raises(UsageError, match="too few rows"):
        splits.check_class_counts(strata, num_splits=5, min_rows=2)
    splits.check_class_counts(strata, num_splits=5, min_rows=2, stratified=True)
