"""Frames arrive as they were sent, and nothing but values is sent."""

import numpy as np
import pandas as pd
import pytest

from env.sandbox import frames

TEXTS = ["é", None, "", "two\nlines \0", "日本", "\ud800", "a" * 1000, None]


def _frame() -> pd.DataFrame:
    dates = np.array(["2020-02-29", "NaT", "1900-01-01T12:00:00.5", "NaT"] * 2, "datetime64[ns]")
    return pd.DataFrame(
        {
            "number": [1.5, np.nan, np.inf, -0.0, 1e-320, 0.1, 2.0, 3.0],
            "whole": np.array([2**62, -1, 0, 1, 2, 3, 4, 5]),
            "is_so": np.arange(8) % 3 == 0,
            "when": dates,
            "named 'as' \"it\"\n likes": pd.Series(TEXTS, dtype=object),
            "empty": pd.Series([None] * 8, dtype=object),
        }
    )


def _send(frame: pd.DataFrame, rows: np.ndarray) -> bytes:
    return frames.encode(frame, rows, [kind for _, kind in frames.columns(frame)])


def test_rows_arrive_as_they_are():
    frame, rows = _frame(), np.array([3, 0, 7, 1, 2, 4, 5])
    got = frames.decode(_send(frame, rows), frames.columns(frame))
    pd.testing.assert_frame_equal(got, frame.take(rows).reset_index(drop=True))
    assert [str(dtype) for dtype in got.dtypes] == [
        *("float64", "int64", "bool", "datetime64[ns]", "object", "object")
    ]
    assert got.iloc[3, 4] is None
    got.iloc[0, 0] = 7.0  # can be written to


def test_a_frame_may_have_no_rows_and_equal_names():
    frame = pd.DataFrame([[1.0, 2]], columns=["x", "x"])
    got = frames.decode(_send(frame, np.arange(0)), frames.columns(frame))
    assert got.shape == (0, 2)
    assert list(got.columns) == ["x", "x"]


def test_nothing_but_the_values_is_sent():
    frame, rows = _frame(), np.array([5, 2, 3])
    sent = _send(frame, rows)
    other = frame.iloc[::-1].copy()
    other.index = pd.Index([f"label {i % 2}" for i in range(8)], name="label")
    other.attrs["labels"] = [0, 1] * 4
    other["is_so"] = np.asfortranarray(np.repeat(other[["is_so"]].to_numpy(), 3, axis=1))[:, 1]
    other["when"] = other["when"].astype("datetime64[us]")
    # The same texts, some of them one object.
    shared: dict[str, str] = {}
    texts = [text and shared.setdefault(text, "".join(text)) for text in TEXTS]
    other[other.columns[4]] = pd.Series(texts[::-1], index=other.index, dtype=object)
    assert _send(other, 7 - rows) == sent
    # Rows that are not sent have no part in it.
    changed = frame.copy()
    changed.iloc[[0, 1, 4, 6, 7], 0] = 99.0
    changed.iloc[[0, 1, 4, 6, 7], 4] = "other"
    assert _send(changed, rows) == sent


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pd.Categorical(["a", "b"]), "column 'x' has the type category"),
        (pd.array(["a", None], dtype="string"), "column 'x' has the type string"),
        (pd.array([1, None], dtype="Int64"), "column 'x' has the type Int64"),
        (pd.Series(["a", 1], dtype=object), "column 'x' holds values that are neither text nor"),
        (pd.Series(["a", np.nan], dtype=object), "column 'x' holds values that are neither"),
        (np.array([1j, 2]), "column 'x' has the type complex128"),
    ],
    ids=lambda value: "" if isinstance(value, str) else str(value.dtype),
)
def test_other_types_are_refused(values, message):
    with pytest.raises(TypeError, match=message):
        frames.columns(pd.DataFrame({"x": values}))
