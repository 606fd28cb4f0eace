"""Prepares a user's table: columns of any kind become features and class codes.

The rules are deterministic and simple, since generated programs work on the result:
- Rows without a target are dropped. If there are more than `max_rows`, a fixed random choice is
  kept, in order.
- The target's classes are its values that occur, in declared or sorted order.
- A nominal feature becomes the position of its value in declared or sorted order; a missing value
  counts as one more, last category.
- A missing number becomes the median of its column; a column with no value at all is dropped.
"""

import numpy as np

from env.base import UsageError
from env.tables import splits
from env.tables.table import Column, RawTable

MIN_CLASS_ROWS = 2
"""Rows of each class that each half needs: with one, no program can be told from chance."""
MAX_NUMERIC_CLASSES = 20
"""Limit of the classes of a numeric target; more distinct values are a quantity."""


def prepare_user_table(
    table: RawTable, target: str, *, max_rows: int, num_splits: int
) -> tuple[np.ndarray, np.ndarray, tuple[str, ...], tuple[str, ...]]:
    """Returns the arrays of a table and the names of its features and classes.

    Args:
      table: table as read from the file.
      target: column to predict.
      max_rows: largest number of rows that are kept.
      num_splits: number of splits for which the classes are counted.

    Returns: float64 [n, f], int64 [n], f names, K names.

    Raises:
      UsageError: when no classification can be scored on the table.
    """
    table = _with_target(table, target)
    table = table.take(_kept_rows(table.num_rows, max_rows))
    labels_n, class_names = _labels(table.column(target))
    splits.check_class_counts(
        labels_n, num_splits=num_splits, min_rows=MIN_CLASS_ROWS, class_names=class_names
    )
    features = [c for c in table.without(target).columns if not np.isnan(c.values).all()]
    if not features:
        raise UsageError(f"there is no column with values beside the target {target!r}")
    return (
        np.stack([_filled(column) for column in features], axis=1),
        labels_n,
        tuple(column.name for column in features),
        class_names,
    )


def _with_target(table: RawTable, target: str) -> RawTable:
    values = table.column(target).values
    if np.isnan(values).all():
        raise UsageError(f"the target {target!r} is empty")
    return table.take(~np.isnan(values))


def _kept_rows(num_rows: int, max_rows: int) -> np.ndarray:
    if num_rows <= max_rows:
        return np.arange(num_rows)
    return np.sort(np.random.RandomState(0).permutation(num_rows)[:max_rows])


def _labels(column: Column) -> tuple[np.ndarray, tuple[str, ...]]:
    values, labels_n = np.unique(column.values, return_inverse=True)
    if column.categories is not None:
        names = tuple(column.categories[int(value)] for value in values)
    else:
        _check_numeric_target(column.name, values)
        names = tuple(f"{value:g}" for value in values)
    if len(names) < 2:
        raise UsageError(
            f"the target {column.name!r} has a single class, {names[0]!r}: nothing to tell apart"
        )
    return labels_n.astype(np.int64), names


def _check_numeric_target(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise UsageError(f"the target {name!r} holds infinite values")
    fraction = values[values != np.floor(values)]
    if len(fraction):
        raise UsageError(
            f"the target {name!r} holds numbers such as {fraction[0]:g}: a quantity (regression), "
            "where classes are needed"
        )
    if len(values) > MAX_NUMERIC_CLASSES:
        raise UsageError(
            f"the target {name!r} holds {len(values)} distinct numbers: a quantity (regression), "
            f"where at most {MAX_NUMERIC_CLASSES} classes are taken"
        )


def _filled(column: Column) -> np.ndarray:
    missing = np.isnan(column.values)
    if column.categories is not None:
        return np.where(missing, float(len(column.categories)), column.values)
    if np.isinf(column.values).any():
        raise UsageError(f"the column {column.name!r} holds infinite values")
    if not missing.any():
        return column.values
    return np.where(missing, np.median(column.values[~missing]), column.values)
