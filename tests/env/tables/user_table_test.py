"""A user's tables become arrays, or are refused with a reason."""

import numpy as np
import pytest

from env.base import UsageError
from env.tables.table import Column, RawTable
from env.tables.user_table import prepare_user_table

NUM_ROWS = 24
LABELS = np.arange(NUM_ROWS) % 2


def prepare(*columns, target="y", max_rows=2000):
    return prepare_user_table(RawTable(columns), target, max_rows=max_rows, num_splits=5)


def numbers(name, values=None):
    return Column(name, np.arange(NUM_ROWS, dtype=float) if values is None else np.array(values))


def test_missing_values_and_categories():
    number = np.arange(NUM_ROWS, dtype=float)
    number[[0, 5]] = np.nan
    category = LABELS.astype(float)
    category[3] = np.nan
    features, labels, names, classes = prepare(
        numbers("n", number),
        Column("c", category, ("u", "v")),
        numbers("empty", np.full(NUM_ROWS, np.nan)),
        Column("y", LABELS * 2.0, ("no", "never", "yes")),
    )
    assert names == ("n", "c")
    median = np.median(np.delete(np.arange(NUM_ROWS), [0, 5]))
    assert features[[0, 5, 6], 0].tolist() == [median, median, 6]
    assert features[[0, 1, 3], 1].tolist() == [0, 1, 2]
    assert labels.tolist() == LABELS.tolist()
    assert classes == ("no", "yes")
    assert (features.dtype, labels.dtype) == (np.float64, np.int64)


def test_rows_without_target_are_dropped_and_numeric_classes_are_sorted():
    target = np.where(LABELS == 0, 7.0, -1.0)
    target[2] = np.nan
    features, labels, _, classes = prepare(numbers("n"), numbers("y", target))
    assert classes == ("-1", "7")
    assert len(features) == NUM_ROWS - 1
    assert labels[:3].tolist() == [1, 0, 0]


def test_rows_are_capped_by_a_fixed_choice_in_order():
    columns = numbers("n"), Column("y", LABELS.astype(float), ("a", "b"))
    first = prepare(*columns, max_rows=20)[0][:, 0]
    assert len(first) == 20
    assert (np.diff(first) > 0).all()
    assert first[-1] > 20  # not simply the head
    np.testing.assert_array_equal(first, prepare(*columns, max_rows=20)[0][:, 0])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (np.zeros(NUM_ROWS), "a single class, '0'"),
        (np.arange(NUM_ROWS) / 7, "a quantity (regression)"),
        (np.arange(NUM_ROWS, dtype=float), "24 distinct numbers"),
        (np.full(NUM_ROWS, np.nan), "the target 'y' is empty"),
        (np.where(LABELS == 0, 0, np.inf), "infinite values"),
        (np.eye(1, NUM_ROWS)[0], "class '1' of the target has too few rows: 1 in"),
    ],
)
def test_bad_targets_are_refused(target, message):
    with pytest.raises(UsageError) as caught:
        prepare(numbers("n"), numbers("y", target))
    assert message in str(caught.value)


def test_two_rows_of_a_class_in_each_half_are_needed():
    target = np.zeros(NUM_ROWS)
    target[:5] = 1
    with pytest.raises(UsageError, match="at least 2 are needed"):
        prepare(numbers("n"), numbers("y", target))


def test_infinite_features_and_no_features_are_refused():
    target = Column("y", LABELS.astype(float), ("a", "b"))
    with pytest.raises(UsageError, match="'n' holds infinite values"):
        prepare(numbers("n", [np.inf, *range(NUM_ROWS - 1)]), target)
    with pytest.raises(UsageError, match="no column with values beside the target"):
        prepare(target)


def test_an_unknown_target_is_refused_with_the_columns():
    with pytest.raises(UsageError, match="no column 'z'; the columns are: n, y"):
        prepare(numbers("n"), numbers("y", LABELS.astype(float)), target="z")
