"""Files that were once refused, altered without a word, or leaked the label.

Each is made here; the same kinds of files in a shared folder are tried too where it is present.
"""

import numpy as np
import pandas as pd
import pytest

from env.datasets import load_dataset
from tests.env.conftest import SHARED_DATA

NUM_ROWS = 60
CASES = SHARED_DATA.parent / "cases" / "tables"


def rows(*columns):
    return "".join(",".join(map(str, row)) + "\n" for row in zip(*columns, strict=True))


def numbers():
    return np.random.default_rng(0).permutation(NUM_ROWS).tolist()


def parity():
    return [i % 2 for i in range(NUM_ROWS)]


def shuffled_index(folder):
    frame = pd.DataFrame(
        {"noise": np.random.default_rng(1).random(200), "y": np.arange(200) // 100}
    )
    frame.sample(frac=1, random_state=0).to_parquet(folder / "shuffled_index.parquet")


def allnone(folder):
    frame = pd.DataFrame({"a": numbers(), "y": parity(), "z": [None] * NUM_ROWS})
    frame.to_parquet(folder / "allnone.parquet")


def write_all(folder):
    shuffled_index(folder)
    allnone(folder)
    decimals = [f"{number},5" for number in numbers()]
    classes = [("Insomnia", "Apnea", "None")[i % 3] for i in range(NUM_ROWS)]
    files = {
        "none_class.csv": "a,b,y\n" + rows(numbers(), parity(), classes),
        "deccomma.csv": ("a;y\n" + rows(decimals, parity())).replace(",5,", ",5;"),
        "thousands.csv": "a,y\n" + rows([f'"1,{n:03}"' for n in numbers()], parity()),
        "german.csv": '"Height, cm";"Weight, kg";"y"\n'
        + rows(numbers(), parity(), parity()).replace(",", ";"),
        "million.csv": "a,y\n" + rows(numbers(), [1_000_001 + y for y in parity()]),
        "integer_fraction.arff": "@relation r\n@attribute a integer\n@attribute b integer\n"
        "@attribute y {no,yes}\n@data\n"
        + rows([n + 0.5 for n in numbers()], numbers(), [("no", "yes")[y] for y in parity()]),
    }
    for name, text in files.items():
        (folder / name).write_text(text)


@pytest.fixture(params=["made", "shared"])
def folder(request, tmp_path):
    if request.param == "made":
        write_all(tmp_path)
        return tmp_path
    if not CASES.is_dir():
        pytest.skip("the shared cases are not on this machine")
    return CASES


def all_rows(dataset):
    return np.concatenate([dataset.features, dataset.holdout.features])


def test_a_stored_index_is_no_feature(folder):
    for form in ("array", "frame"):
        dataset = load_dataset(str(folder / "shuffled_index.parquet"), target="y", table_form=form)
        assert dataset.feature_names == ("noise",)


def test_none_is_a_class(folder):
    dataset = load_dataset(str(folder / "none_class.csv"), target="y")
    assert dataset.class_names == ("Apnea", "Insomnia", "None")
    num_rows = len((folder / "none_class.csv").read_text().splitlines()) - 1
    assert len(all_rows(dataset)) == num_rows
    assert set(dataset.labels) == set(dataset.holdout.labels) == {0, 1, 2}


def test_numbers_with_commas_are_numbers(folder):
    decimal = load_dataset(str(folder / "deccomma.csv"), target="y")
    assert {value % 1 for value in all_rows(decimal)[:, 0]} == {0.5}
    thousands = load_dataset(str(folder / "thousands.csv"), target="y")
    assert (all_rows(thousands) >= 1000).all()
    assert any("column 'a': '1,0" in note for note in thousands.preparation["notes"])


def test_quoted_names_may_hold_commas(folder):
    dataset = load_dataset(str(folder / "german.csv"), target="y")
    assert dataset.feature_names == ("Height, cm", "Weight, kg")


def test_an_empty_column_is_dropped_and_named(folder):
    dataset = load_dataset(str(folder / "allnone.parquet"), target="y")
    assert dataset.feature_names == ("a",)
    assert "column 'z' is empty: dropped" in dataset.preparation["notes"]


def test_fractions_of_an_integer_column_stay(folder):
    dataset = load_dataset(str(folder / "integer_fraction.arff"), target="y")
    assert {value % 1 for value in all_rows(dataset)[:, 0]} == {0.5}
    assert dataset.class_names == ("no", "yes")


def test_large_labels_are_exact(folder):
    dataset = load_dataset(str(folder / "million.csv"), target="y")
    assert dataset.class_names == ("1000001", "1000002")


@pytest.mark.parametrize(
    ("target", "classes", "num_rows"),
    [
        (["NA", "EU", "AS"], ("AS", "EU", "NA"), 60),
        (["0", "1", "NA"], ("0", "1"), 40),
        (["0", "1", "None"], ("0", "1", "None"), 60),
        (["1.0", "2", "1"], ("1", "2"), 60),
        (["01", "02", "1"], ("01", "02", "1"), 60),
        (["yes", "no", ""], ("no", "yes"), 40),
        ([2**60, 2**60 + 1, 2**60 + 2], tuple(str(2**60 + i) for i in range(3)), 60),
        (["10", "9", "-1"], ("-1", "9", "10"), 60),
        (["é", "東", "😀"], ("é", "東", "😀"), 60),
    ],
)
def test_classes_are_what_the_file_says(tmp_path, target, classes, num_rows):
    path = tmp_path / "t.csv"
    path.write_text("a,y\n" + rows(numbers(), target * (NUM_ROWS // 3)))
    dataset = load_dataset(str(path), target="y")
    assert dataset.class_names == classes
    assert len(all_rows(dataset)) == num_rows
    if num_rows < NUM_ROWS:
        assert "20 of 60 rows have no target and are dropped" in dataset.preparation["notes"]


def test_capitals_alone_do_not_make_classes_unsaid(tmp_path):
    (tmp_path / "t.csv").write_text("a,y\n" + rows(numbers(), ["Yes", "yes", "no"] * 20))
    notes = load_dataset(str(tmp_path / "t.csv"), target="y").preparation["notes"]
    assert notes == ["classes of the target differ in capitals or spaces alone: 'yes'"]
