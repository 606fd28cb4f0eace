"""The two tables that a rule generates, row for row as OpenML publishes them."""

import numpy as np

from env.tables.raw_table import Column, RawTable

_LINES = (
    *((0, 1, 2), (3, 4, 5), (6, 7, 8)),
    *((0, 3, 6), (1, 4, 7), (2, 5, 8)),
    *((0, 4, 8), (2, 4, 6)),
)
_SQUARES = tuple(
    f"{row}-{column}-square"
    for row in ("top", "middle", "bottom")
    for column in ("left", "middle", "right")
)


def balance_scale() -> RawTable:
    """OpenML 11: every weight and distance on both arms from 1 to 5, and the side that sinks.

    The last attribute varies fastest.
    """
    arms = np.indices((5, 5, 5, 5), np.int64).reshape(4, -1) + 1
    names = ("left-weight", "left-distance", "right-weight", "right-distance")
    left, right = arms[0] * arms[1], arms[2] * arms[3]
    return RawTable(
        (
            *(Column(name, arm.astype(np.float64)) for name, arm in zip(names, arms, strict=True)),
            Column("class", (1 + np.sign(right - left)).astype(np.float64), ("L", "B", "R")),
        )
    )


def tic_tac_toe() -> RawTable:
    """OpenML 50: every board that ends a game in which x moves first, and whether x has won.

    Wins, then losses, then draws, each in lexicographic order of x < o < b.
    """
    boards = np.indices((3,) * 9, np.int8).reshape(9, -1).T  # 0 is x, 1 is o, 2 is blank
    x_lines, o_lines = (
        (boards[:, np.array(_LINES)] == player).all(axis=2).any(axis=1) for player in (0, 1)
    )
    lead = (boards == 0).sum(axis=1) - (boards == 1).sum(axis=1)
    wins = boards[x_lines & ~o_lines & (lead == 1)]
    losses = boards[o_lines & ~x_lines & (lead == 0)]
    draws = boards[~x_lines & ~o_lines & (lead == 1) & (boards != 2).all(axis=1)]
    rows = np.concatenate((wins, losses, draws))
    positive = np.arange(len(rows)) < len(wins)
    return RawTable(
        (
            *(
                Column(name, (2 - column).astype(np.float64), ("b", "o", "x"))
                for name, column in zip(_SQUARES, rows.T, strict=True)
            ),
            Column("Class", positive.astype(np.float64), ("negative", "positive")),
        )
    )
