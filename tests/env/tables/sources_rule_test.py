"""The two generated tables against what OpenML says about them."""

import numpy as np
import pytest

from env.tables import readers, sources


def by_name(table):
    return {column.name: column for column in table.columns}


def test_balance_scale_holds_every_arm_once_and_the_side_that_sinks():
    columns = by_name(sources.balance_scale())
    label = columns["class"]
    assert [int((label.values == code).sum()) for code in range(3)] == [288, 49, 288]
    assert label.categories == ("L", "B", "R")
    arms = np.stack([c.values for c in columns.values() if c is not label], axis=1)
    assert arms[0].tolist() == [1, 1, 1, 1]
    assert arms[1].tolist() == [1, 1, 1, 2]
    assert arms[-1].tolist() == [5, 5, 5, 5]
    assert len(np.unique(arms, axis=0)) == 625
    assert label.values[1] == 2.0  # 1 * 1 < 1 * 2: the right side sinks


def test_tic_tac_toe_holds_every_final_board():
    columns = by_name(sources.tic_tac_toe())
    label = columns.pop("Class").values
    boards = np.stack([c.values for c in columns.values()], axis=1)
    assert len(np.unique(boards, axis=0)) == 958
    assert int(label.sum()) == 626
    assert label[:626].all()
    blank, o, x = 0, 1, 2
    assert boards[0].tolist() == [x, x, x, x, o, o, x, o, o]
    assert boards[626].tolist() == [x, x, o, x, x, o, o, blank, o]
    assert (boards[-16:] != blank).all()  # the draws fill the board


@pytest.mark.parametrize(
    ("make", "file"),
    [
        (sources.balance_scale, "balance-scale.arff"),
        (sources.tic_tac_toe, "tic-tac-toe.arff"),
    ],
)
def test_equal_to_the_published_files(make, file, raw_dir):
    made, published = make(), readers.read_table(raw_dir / file)
    assert made.num_rows == published.num_rows
    for ours, theirs in zip(made.columns, published.columns, strict=True):
        assert (ours.name, ours.categories) == (theirs.name, theirs.categories)
        np.testing.assert_array_equal(ours.values, theirs.values)
