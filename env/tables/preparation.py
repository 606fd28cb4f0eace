"""Prepares published tables as the paper did, which gives the same arrays bit for bit.

The ten OpenML tables were cut down with NumPy's legacy global generator. Each one, in the order of
`_OPENML_ORDER`, was permuted under a fresh seed 13 and cut to 10,000 rows; then, without reseeding,
all were permuted once more in the same order and cut to a share of at most 2,000 rows. The second
pass of a table depends on the draw for the last table of the first pass and on how many numbers the
tables before it drew: on row counts, never on contents. So one table can be prepared without the
other nine.
"""

import numpy as np

from env.base import UsageError
from env.tables.registry import REGISTRY, Entry
from env.tables.table import RawTable

_SEED = 13
_FIRST_CUT = 10_000
_SECOND_CUT = 2_000
_OPENML_ORDER = (
    "balance_scale",
    "breast_w",
    "cmc",
    "credit_g",
    "diabetes",
    "tic_tac_toe",
    "eucalyptus",
    "pc1",
    "airlines",
    "jungle_chess",
)
_SHARES = {"balance_scale": 0.2, "breast_w": 0.1, "tic_tac_toe": 0.1}

# Column that numbers the rows, of each Kaggle table; and the tables whose values become ranks.
_ROW_NUMBERS = {
    "pharyngitis": "number",
    "kidney_stone": "id",
    "health_insurance": "ID",
    "spaceship_titanic": "PassengerId",
}
_RANKED = ("health_insurance", "spaceship_titanic")


def openml_rows(name: str, num_rows: int) -> np.ndarray:
    """Returns the positions of the prepared rows in the published table, in order.

    Args:
      name: one of the ten OpenML tables.
      num_rows: rows of the table at hand; the other nine count as published.
    """
    first = np.random.RandomState(_SEED).permutation(num_rows)[:_FIRST_CUT]
    shared = np.random.RandomState(_SEED)
    shared.permutation(REGISTRY[_OPENML_ORDER[-1]].raw_rows)
    for earlier in _OPENML_ORDER[: _OPENML_ORDER.index(name)]:
        shared.permutation(min(REGISTRY[earlier].raw_rows, _FIRST_CUT))
    second = shared.permutation(len(first))
    second = second[: int(_SHARES.get(name, 1.0) * min(len(first), _SECOND_CUT))]
    # A 75/25 split under seed 0 was taken and put back together, the larger part first.
    split = np.random.RandomState(0).permutation(len(second))
    num_test = -(-len(second) // 4)
    return first[second[np.concatenate((split[num_test:], split[:num_test]))]]


def prepare(entry: Entry, table: RawTable) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Returns features, labels and feature names of one of the fourteen tables.

    Args:
      entry: registry entry of the table.
      table: published table; the first 2,000 complete rows suffice for the larger Kaggle tables.

    Returns: float64 [n, f], int64 [n] class codes, f names.

    Raises:
      UsageError: when columns or classes are not those of the published table.
    """
    categories = table.column(entry.target).categories
    if categories is not None and categories != entry.classes:
        raise UsageError(
            f"the classes of {entry.target!r} are {', '.join(categories)} and should be "
            f"{', '.join(entry.classes)}"
        )
    table = (
        _prepare_kaggle(entry.name, table)
        if entry.source == "kaggle"
        else _prepare_openml(entry.name, table)
    )
    features = table.without(entry.target).columns
    return (
        np.stack([column.values for column in features], axis=1),
        table.column(entry.target).values.astype(np.int64),
        tuple(column.name for column in features),
    )


def _prepare_openml(name: str, table: RawTable) -> RawTable:
    # The published procedure goes through float32: 0.627 becomes 0.6269999742507935.
    return (
        table.take(openml_rows(name, table.num_rows))
        .map_values(lambda values: values.astype(np.float32).astype(np.float64))
        .complete()
    )


def _prepare_kaggle(name: str, table: RawTable) -> RawTable:
    table = table.complete()
    if name not in _RANKED:
        return table.without(_ROW_NUMBERS[name])
    # Numbers are ranked like categories: the published loader label-encodes every column.
    return (
        table.take(slice(_SECOND_CUT))
        .without(_ROW_NUMBERS[name])
        .map_values(lambda values: np.unique(values, return_inverse=True)[1].astype(np.float64))
    )
