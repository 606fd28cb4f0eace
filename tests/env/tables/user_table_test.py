"""A user's tables: their rows, classes, holdout and values, or a refusal with a reason."""

import json

import numpy as np
import pytest

from env.base import UsageError
from env.tables import prepared, table_files
from env.tables.user_table import load_user_table

NUM_ROWS = 40


def write(tmp_path, columns, name="t.csv"):
    """Writes a CSV file of columns of texts."""
    rows = zip(*columns.values(), strict=True)
    lines = [",".join(map(str, row)) for row in rows]
    (tmp_path / name).write_text("\n".join([",".join(columns), *lines]) + "\n")
    return tmp_path / name


def load(tmp_path, columns, **options):
    options = {"max_rows": 2000, "num_splits": 5, **options}
    return load_user_table(write(tmp_path, columns), "A", options.pop("target", "y"), **options)


def two_classes(num_rows=NUM_ROWS):
    return ["no" if i % 2 else "yes" for i in range(num_rows)]


def test_the_array_form_fills_numbers_and_codes_categories(tmp_path):
    number = [str(i * i) for i in range(NUM_ROWS)]
    number[0] = number[5] = ""
    category = ["vu"[i % 2] for i in range(NUM_ROWS)]
    category[3] = ""
    empty = [""] * NUM_ROWS
    dataset = load(
        tmp_path,
        {"n": number, "c": category, "empty": empty, "same": ["k"] * NUM_ROWS, "y": two_classes()},
        holdout=0,
    )
    assert dataset.feature_names == ("n", "c")
    assert dataset.class_names == ("no", "yes")
    median = np.median([int(text) for text in number if text])
    assert dataset.features[[0, 5, 6], 0].tolist() == [median, median, 36]
    assert dataset.features[[0, 1, 3], 1].tolist() == [1, 0, 2]
    assert (dataset.features.dtype, dataset.labels.dtype) == (np.float64, np.int64)
    assert dataset.holdout is dataset.frame is None
    assert dataset.preparation["notes"] == ["column 'empty' is empty: dropped"]


def test_a_file_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(table_files, "_content", refuse)
    with pytest.raises(UsageError, match=r"t\.csv: cannot be read: Permission denied"):
        load(tmp_path, {"n": range(NUM_ROWS), "y": two_classes()})


def test_the_frame_form_has_names_and_types(tmp_path):
    when = [f"2024-01-{1 + i % 28:02}" for i in range(NUM_ROWS)]
    columns = {
        "whole": [i * i for i in range(NUM_ROWS)],
        "half": ["" if i == 7 else i / 2 for i in range(NUM_ROWS)],
        "flag": [str(i % 3 == 0) for i in range(NUM_ROWS)],
        "when": when,
        "city": ["" if i == 9 else "ab"[i % 2] for i in range(NUM_ROWS)],
        "y": two_classes(),
    }
    dataset = load(tmp_path, columns, table_form="frame", holdout=0.25)
    types = {name: str(kind) for name, kind in dataset.frame.dtypes.items()}
    assert types == {
        "whole": "int64",
        "half": "float64",
        "flag": "bool",
        "when": "datetime64[ns]",
        "city": "object",
    }
    assert set(map(type, dataset.frame["city"])) <= {str, type(None)}
    assert list(dataset.frame.index) == list(range(30))
    assert dataset.frame.attrs == {}
    assert list(dataset.frame["whole"]) + list(dataset.holdout.frame["whole"]) != columns["whole"]
    assert sorted([*dataset.frame["whole"], *dataset.holdout.frame["whole"]]) == columns["whole"]
    assert dataset.features.shape == (30, 5)


def test_what_is_learnt_comes_from_the_rows_not_held_out(tmp_path):
    columns = {
        "n": [i if i % 7 else "" for i in range(100)],
        "c": [f"c{i % 50:02}" for i in range(100)],
        "y": two_classes(100),
    }
    dataset = load(tmp_path, columns, holdout=0.5)
    raw = prepared.read(dataset.preparation)
    visible = prepared.visible_rows(dataset.preparation, raw)
    number, category = dataset.preparation["columns"]
    assert number["fill"] == np.median([i for i in visible if i % 7])
    assert category["categories"] == sorted({f"c{i % 50:02}" for i in visible})
    assert dataset.holdout.features[:, 1].max() == len(category["categories"])  # never seen


@pytest.mark.parametrize("form", ["array", "frame"])
def test_a_preparation_from_disk_gives_the_very_values_of_the_run(tmp_path, form):
    columns = {
        "n": [f"{i / 7:.3f}" if i % 5 else "?" for i in range(90)],
        "c": [f"c{i % 11}" for i in range(90)],
        "y": ["abc"[i % 3] if i % 13 else "" for i in range(90)],
    }
    dataset = load(tmp_path, columns, table_form=form, max_rows=60)
    preparation = json.loads(json.dumps(dataset.preparation))
    raw = prepared.read(preparation)
    for part, rows in (
        (dataset, prepared.visible_rows(preparation, raw)),
        (dataset.holdout, prepared.holdout_rows(preparation, raw)),
    ):
        values = prepared.features(preparation, raw.iloc[rows])
        if form == "frame":
            assert values.equals(part.frame)
        else:
            np.testing.assert_array_equal(values, part.features)
        np.testing.assert_array_equal(prepared.labels(preparation, raw)[rows], part.labels)


def test_cells_of_another_form_than_in_the_run_are_named(tmp_path):
    columns = {
        "half": [f'"{i},5"' for i in range(NUM_ROWS)],
        "flag": [str(i % 3 == 0) for i in range(NUM_ROWS)],
        "when": [f"{1 + i % 28}.01.2024" for i in range(NUM_ROWS)],
        "city": ["ab"[i % 2] for i in range(NUM_ROWS)],
        "y": two_classes(),
    }
    preparation = load(tmp_path, columns).preparation
    assert prepared.unread_cells(preparation, prepared.read(preparation)) == []
    new = {"half": ["0.428", ""], "flag": ["yes", "true"], "when": ["2024-01-02"] * 2}
    raw = prepared.read(preparation, write(tmp_path, {**new, "city": ["c", "a"]}, "new.csv"))
    said = "cells are not as in the run, such as"
    lines = [
        f"column 'half': 1 of 2 {said} '0.428': they count as missing",
        f"column 'flag': 1 of 2 {said} 'yes': they count as false",
        f"column 'when': 2 of 2 {said} '2024-01-02': they count as missing",
        f"column 'city': 1 of 2 {said} 'c': they count as missing",
    ]
    assert prepared.unread_cells(preparation, raw) == lines
    assert prepared.unread_cells({**preparation, "form": "frame"}, raw) == lines[:3]


def test_rows_without_target_are_dropped_and_numeric_classes_are_sorted(tmp_path):
    target = ["10" if i % 2 else "-7" for i in range(NUM_ROWS)]
    target[2] = "NA"
    dataset = load(tmp_path, {"n": [i**3 for i in range(NUM_ROWS)], "y": target}, holdout=0)
    assert dataset.class_names == ("-7", "10")
    assert dataset.labels[:3].tolist() == [0, 1, 1]
    assert dataset.preparation["notes"] == ["1 of 40 rows have no target and are dropped"]


def test_classes_keep_their_signs(tmp_path):
    classes = ["10%" if i % 2 else "5%" for i in range(NUM_ROWS)]
    dataset = load(tmp_path, {"a": [i * i for i in range(NUM_ROWS)], "y": classes})
    assert dataset.class_names == ("10%", "5%")


def test_rows_that_repeat_are_said(tmp_path):
    columns = {"a": [i * i for i in range(NUM_ROWS)], "y": two_classes()}
    doubled = {name: texts * 2 for name, texts in columns.items()}
    notes = load(tmp_path, doubled).preparation["notes"]
    assert any(note.startswith("40 of 80 rows repeat another row") for note in notes)


def test_rows_are_capped_by_a_fixed_choice_in_order(tmp_path):
    columns = {"n": [i * i for i in range(100)], "y": two_classes(100)}
    dataset = load(tmp_path, columns, max_rows=50, holdout=0)
    kept = dataset.features[:, 0]
    assert len(kept) == 50
    assert (np.diff(kept) > 0).all()
    assert kept[-1] > 50**2  # not simply the head
    assert dataset.preparation["notes"] == [
        "50 of 100 rows are used, a fixed random choice (--max_rows)"
    ]
    assert dataset.checksum == load(tmp_path, columns, max_rows=50, holdout=0).checksum


def test_the_holdout_has_every_class(tmp_path):
    target = ["rare" if i % 8 == 0 else "ab"[i % 2] for i in range(160)]
    dataset = load(tmp_path, {"n": [i * i for i in range(160)], "y": target})
    assert len(dataset.holdout.labels) == 32
    assert np.bincount(dataset.holdout.labels).tolist() == [12, 16, 4]


def rare_target():
    """Classes of 36, 36, 3, 3 and 2 rows."""
    return ["a"] * 36 + ["b"] * 36 + ["c"] * 3 + ["d"] * 3 + ["e"] * 2


def test_rare_classes_are_refused_merged_or_dropped(tmp_path):
    columns = {"n": [i * i for i in range(80)], "y": rare_target()}
    with pytest.raises(UsageError, match=r"too few rows.*--rare_classes=merge or drop"):
        load(tmp_path, columns, holdout=0)
    dropped = load(tmp_path, columns, holdout=0, rare_classes="drop")
    assert dropped.class_names == ("a", "b")
    assert len(dropped.labels) == 72
    assert dropped.preparation["notes"][-1] == (
        "3 rare classes are dropped with their rows: 'e', 'c', 'd'"
    )
    merged = load(tmp_path, columns, holdout=0, rare_classes="merge+stratify")
    assert merged.class_names == ("a", "b", "other")
    assert np.bincount(merged.labels).tolist() == [36, 36, 8]
    assert merged.stratified
    assert merged.checksum != dropped.checksum


def test_stratified_splits_serve_a_class_that_plain_ones_do_not(tmp_path):
    columns = {"n": [i * i for i in range(84)], "y": ["a"] * 40 + ["b"] * 40 + ["c"] * 4}
    with pytest.raises(UsageError, match=r"\+stratify splits them evenly"):
        load(tmp_path, columns, holdout=0)
    assert load(tmp_path, columns, holdout=0, rare_classes="stratify").num_classes == 3


def test_regression_takes_numbers(tmp_path):
    target = [f"{i / 3:.4f}" if i % 9 else "n/a" for i in range(NUM_ROWS)]
    dataset = load(tmp_path, {"n": [i * i for i in range(NUM_ROWS)], "y": target}, regression=True)
    assert dataset.is_regression
    assert dataset.labels.dtype == np.float64
    assert (dataset.num_classes, dataset.class_names) == (0, ())
    assert len(dataset.labels) + len(dataset.holdout.labels) == 35
    assert dataset.labels[0] in [float(text) for text in target if text != "n/a"]


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ([0] * NUM_ROWS, {}, "a single class, '0'"),
        ([i / 7 for i in range(NUM_ROWS)], {}, "a quantity, for which --metric=r2, rmse or mae"),
        (list(range(NUM_ROWS)), {}, "40 distinct numbers, more than the 20"),
        ([""] * NUM_ROWS, {}, "the target 'y' is empty"),
        ([1] + [0] * 39, {}, "class '1' of the target has too few rows"),
        (two_classes(), {"regression": True}, "holds texts such as 'yes': --metric=r2"),
        ([3] * NUM_ROWS, {"regression": True}, "1 distinct numbers: too few for a regression"),
        ([1.5] * 40, {"regression": True, "rare_classes": "drop"}, "a regression has no classes"),
        (two_classes(), {"target": "z"}, "there is no column 'z'; the columns are: n, m, y"),
        (two_classes(), {"target": "Y"}, "no column 'Y'; did you mean 'y'?"),
        (two_classes(), {"target": None}, "--target is missing; the columns are: n, m, y"),
        (two_classes(), {"strict": True}, "--strict_data refuses what is doubtful: column 'm'"),
    ],
)
def test_bad_targets_are_refused(tmp_path, target, options, message):
    columns = {"n": [i * i for i in range(NUM_ROWS)], "m": [""] * NUM_ROWS, "y": target}
    with pytest.raises(UsageError) as caught:
        load(tmp_path, columns, **options)
    assert message in str(caught.value)


def test_a_table_of_a_target_alone_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no column with values beside the target 'y'"):
        load(tmp_path, {"m": [""] * NUM_ROWS, "y": two_classes()})
