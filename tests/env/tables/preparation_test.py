"""The sub-sampling of the ten OpenML tables, and the preparation of the four from Kaggle."""

import csv

import numpy as np
import pytest

from env.base import UsageError
from env.tables import preparation, readers, registry
from env.tables.table import Column, RawTable

OPENML = [entry for entry in registry.REGISTRY.values() if entry.source != "kaggle"]


@pytest.mark.parametrize("name", registry.REGISTRY)
def test_prepared_tables_are_the_published_ones_to_the_last_bit(name, prepared_dir, raw_dir):
    entry = registry.find(name)
    path = next(raw_dir / file for file in entry.raw_files if (raw_dir / file).is_file())
    features, labels, names = preparation.prepare(entry, readers.read_table(path))
    with open(prepared_dir / f"{name}.csv", newline="") as file:
        header, *rows = csv.reader(file)
    expected = np.array([[float(cell) for cell in row] for row in rows])
    assert [*names, entry.target] == header
    np.testing.assert_array_equal(features, expected[:, :-1])
    np.testing.assert_array_equal(labels, expected[:, -1])
    assert (features.dtype, labels.dtype) == (np.float64, np.int64)
    assert features.shape == entry.shape


def published_rows():
    """The sub-sampling as it was done: all ten tables at once, one global generator."""
    order = sorted(OPENML, key=lambda entry: int(entry.source_id))
    tables = {}
    for entry in order:
        np.random.seed(13)
        tables[entry.name] = np.random.permutation(entry.raw_rows)[:10000]
    for entry in order:
        rows = tables[entry.name]
        share = {"balance_scale": 0.2, "breast_w": 0.1, "tic_tac_toe": 0.1}.get(entry.name, 1)
        rows = rows[np.random.permutation(len(rows))][: int(share * min(len(rows), 2000))]
        shuffled = np.random.RandomState(0).permutation(len(rows))
        num_test = int(np.ceil(0.25 * len(rows)))
        tables[entry.name] = rows[np.concatenate([shuffled[num_test:], shuffled[:num_test]])]
    return tables


def test_one_table_alone_gets_the_rows_it_would_get_among_all_ten():
    state = np.random.get_state()
    expected = published_rows()
    np.random.set_state(state)
    for entry in OPENML:
        rows = preparation.openml_rows(entry.name, entry.raw_rows)
        np.testing.assert_array_equal(rows, expected[entry.name])


def kaggle_table(**columns):
    def column(name, cells):
        if any(isinstance(cell, str) for cell in cells):
            names = sorted({cell for cell in cells if cell is not None})
            codes = [np.nan if cell is None else names.index(cell) for cell in cells]
            return Column(name, np.array(codes, float), tuple(names))
        return Column(name, np.array([np.nan if c is None else c for c in cells], float))

    return RawTable(tuple(column(name, cells) for name, cells in columns.items()))


def test_ranked_kaggle_tables_drop_incomplete_rows_first():
    entry = registry.find("spaceship_titanic")
    features, labels, names = preparation.prepare(
        entry,
        kaggle_table(
            PassengerId=[1.0, 2.0, 3.0, 4.0],
            Home=["Mars", "Earth", "Europa", "Mars"],
            Age=[30.0, 2.5, None, 2.5],
            Transported=["False", "True", "True", "False"],
        ),
    )
    assert names == ("Home", "Age")
    # Europa left with its incomplete row, so that Mars has rank 1.
    assert features.tolist() == [[1, 1], [0, 0], [1, 0]]
    assert labels.tolist() == [0, 1, 0]


def test_other_kaggle_tables_keep_their_values():
    entry = registry.find("pharyngitis")
    table = kaggle_table(number=[1.0, 2.0], age_y=[7.5, None], radt=[1.0, 0.0], pain=[1.0, 1.0])
    features, labels, names = preparation.prepare(entry, table)
    assert (names, features.tolist(), labels.tolist()) == (("age_y", "pain"), [[7.5, 1.0]], [1])


def test_other_classes_than_the_published_are_refused():
    entry = registry.find("breast_w")
    table = RawTable((Column("Class", np.zeros(699), ("malignant", "benign")),))
    with pytest.raises(UsageError, match="malignant, benign and should be benign, malignant"):
        preparation.prepare(entry, table)


def test_a_missing_target_is_named():
    table = RawTable((Column("klass", np.zeros(699)),))
    with pytest.raises(UsageError, match="no column 'Class'; the columns are: klass"):
        preparation.prepare(registry.find("breast_w"), table)
