"""How a column is read, what counts as missing in it, and which doubts are said."""

import pandas as pd
import pytest

from env.tables import prepared
from env.tables.profile import read_column


def read(texts, name="c", repeat=1, **options):
    """Reads a column of texts; returns the reading and the values in the frame form."""
    texts = [str(text) for text in texts] * repeat
    reading = read_column(name, pd.Series(texts, dtype=object), **options)
    entry = reading.entry
    if entry["as"] == "dropped":
        return reading, None
    preparation = {"columns": [entry]}
    return reading, list(prepared.convert(preparation, pd.DataFrame({name: texts}))[name])


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        (["1", "2.5", "-3", "+.5", "1e3"], [1, 2.5, -3, 0.5, 1000]),
        (["1,5", "2,25", "10"], [1.5, 2.25, 10]),
        (["1.234,5", "12", "1.000.000"], [1234.5, 12, 1_000_000]),
        (["1,234.5", "12", "1,000,000"], [1234.5, 12, 1_000_000]),
        (["1 234,5", "12", "1\u00a0000\u202f000,25"], [1234.5, 12, 1_000_000.25]),
        (["1'234.5", "12", "-1’000’000"], [1234.5, 12, -1_000_000]),
        (["12,34,567", "3,00,000.5"], [1_234_567, 300_000.5]),
        (["12%", "3.5 %", "100%"], [12, 3.5, 100]),
        (["$1,200.50", "$3", "-$4.5"], [1200.5, 3, -4.5]),
        (["1.200,50 €", "3 €", "\u22124,5 €"], [1200.5, 3, -4.5]),
        (["EUR 5", "EUR 7.5"], [5, 7.5]),
        (["(1.5)", "2", "(3)"], [-1.5, 2, -3]),
    ],
)
def test_formats_of_numbers(texts, values):
    reading, read_values = read(texts)
    assert reading.entry["as"] == "number"
    assert read_values == values
    assert not reading.doubts


@pytest.mark.parametrize(
    ("texts", "separator", "values"),
    [
        (["1,001", "2,002", "3"], ",", [1001, 2002, 3]),
        (["1,001", "2,002", "3"], ";", [1.001, 2.002, 3]),
        (["1.001", "2.002"], ";", [1.001, 2.002]),
        (["5%", "0.05", "7"], ",", [5, 0.05, 7]),
        (["$5", "€7"], ",", [5, 7]),
    ],
)
def test_a_doubtful_number_is_said(texts, separator, values):
    reading, read_values = read(texts, separator=separator)
    assert read_values == values
    assert len(reading.doubts) == 1
    assert reading.doubts[0].startswith("column 'c'")


def test_odd_cells_among_numbers_count_as_missing_and_are_said():
    reading, values = read([*map(str, range(0, 120, 3)), "<5"])
    assert reading.doubts == [
        "column 'c': 1 cells that are no numbers, such as '<5', count as missing"
    ]
    assert pd.isna(values[-1])
    assert read([*map(str, range(0, 30, 3)), "<5"])[0].entry["as"] == "category"


@pytest.mark.parametrize("word", ["", "NA", "n/a", "?", "NULL", "-", "unknown", "None", "#DIV/0!"])
def test_words_for_missing_among_numbers(word):
    reading, values = read(["1.5", word, "2", "4"])
    assert reading.entry["as"] == "number"
    assert pd.isna(values[1])
    assert reading.entry["profile"]["missing"] == 1
    assert not reading.doubts


def test_infinite_numbers_count_as_missing_and_are_said():
    reading, values = read(["1.5", "inf", "2", "4", "-inf", "7"])
    assert pd.isna(values[1])
    assert reading.doubts == ["column 'c': 2 infinite values count as missing"]
    reading, values = read(["1e999", *map(str, range(0, 120, 3))])
    assert pd.isna(values[0])
    assert "such as '1e999', count as missing" in reading.doubts[0]


def test_telephone_numbers_are_no_numbers():
    assert read(["+49 382067 864433", "+49 30 123 456"])[0].entry["as"] == "category"
    assert read(["079 123 456", "012 345 678"])[0].entry["as"] == "category"
    assert read(["- 1 234", "€ 12 345 678", "1 000"])[1] == [-1234, 12_345_678, 1000]


def test_words_for_missing_never_cost_a_category():
    reading, values = read(["yes", "None", "no", "NA", ""], repeat=5)
    assert values[:5] == ["yes", "None", "no", None, None]
    continents, values = read(["EU", "NA", "AS", ""], repeat=5)
    assert values[:4] == ["EU", "NA", "AS", None]
    assert continents.doubts == ["column 'c': 'NA' is read as a value, not as missing"]
    declared, values = read(["low", "?", "high"], repeat=3, declared=["low", "high", "?"])
    assert values[:3] == ["low", "?", "high"]
    assert declared.entry["declared"] == ["low", "high", "?"]
    assert not reading.doubts


@pytest.mark.parametrize(
    ("texts", "dates"),
    [
        (["2024-02-29", "2023-01-05"], ["2024-02-29", "2023-01-05"]),
        (["2024-02-29T10:30:00Z", "2023-01-05 08:00"], ["2024-02-29 10:30", "2023-01-05 08:00"]),
        (["2024-02-29T10:30:00+02:00"] * 2 + ["2024-03-01"], ["2024-02-29 08:30"] * 2),
        (["29.02.2024", "5.1.2023"], ["2024-02-29", "2023-01-05"]),
        (["02/29/2024", "1/5/2023"], ["2024-02-29", "2023-01-05"]),
        (["29/02/2024", "5/1/2023"], ["2024-02-29", "2023-01-05"]),
        (["29/02/2024 17:45", "05/01/2023 08:00"], ["2024-02-29 17:45", "2023-01-05 08:00"]),
        (["Feb 29, 2024", "Jan 5, 2023"], ["2024-02-29", "2023-01-05"]),
        (["29-Feb-24", "05-Jan-23"], ["2024-02-29", "2023-01-05"]),
        (["2/29/2024 5:45 PM", "1/5/2023 8:00 AM"], ["2024-02-29 17:45", "2023-01-05 08:00"]),
    ],
)
def test_dates(texts, dates):
    reading, values = read(texts)
    assert reading.entry["as"] == "date"
    assert values[: len(dates)] == [pd.Timestamp(date) for date in dates]
    assert not reading.doubts


def test_days_that_could_be_months_are_said():
    reading, values = read(["3/4/2024", "5/6/2024"])
    assert values[0] == pd.Timestamp(2024, 3, 4)
    assert "read as 04 March 2024; day and month could be the other way round" in reading.doubts[0]
    assert read(["3/4/2024", "5/6/2024"], separator=";")[1][0] == pd.Timestamp(2024, 4, 3)


def test_dates_that_stand_for_never_count_as_missing_and_are_said():
    reading, values = read(["2024-02-29", "9999-12-31", "2023-01-05"])
    assert values[1] is pd.NaT
    assert "such as '9999-12-31', count as missing" in reading.doubts[0]


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("Unnamed: 0", ["7", "3", "5"]),
        ("Unnamed: 0", ["0", "1", "0"]),
        ("Unnamed: 0", ["Mazda", "Ford", "Fiat"]),
        ("__index_level_0__", ["7", "3", "5"]),
        ("index", ["7", "3", "5"]),
        ("#", ["1", "2", "3"]),
        ("S.No.", ["1", "2", "3"]),
        ("Nr.", ["7", "3", "5"]),
        ("case", [f"C{i:03}" for i in range(30)]),
        ("id", ["7", "3", "5"]),
        ("customer_id", ["a7", "a3", "a5"]),
        ("CustomerId", ["7", "3", "5"]),
        ("empty", ["", "NA", ""]),
    ],
)
def test_columns_that_are_dropped_are_named(name, texts):
    reading, _ = read(texts, name=name)
    assert reading.entry["as"] == "dropped"
    assert len(reading.doubts) == 1
    assert repr(name) in reading.doubts[0]


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("Unnamed: 0", ["red", "blue", "red"]),
        ("paid", ["7", "3", "5"]),
        ("index", ["7.5", "3.1", "5.2"]),
        ("id", ["7", "3", "7"]),
        ("case", [f"C{i % 7}{i:02}" for i in range(30)]),
        ("Unnamed: 5", ["7", "3", "5"]),
    ],
)
def test_columns_that_are_kept(name, texts):
    assert read(texts, name=name)[0].entry["as"] != "dropped"


def test_a_column_that_counts_the_rows_is_said():
    reading, values = read(range(5, 45))
    assert values == list(range(5, 45))
    assert "rises by one from row to row" in reading.doubts[0]


def test_kinds_of_texts():
    assert read(["007", "012", "999"])[0].warnings == ["leading zeros: read as codes"]
    assert read([2**60 + 1, 2**60 + 3])[0].entry["as"] == "category"
    assert read(["True", "FALSE", "true"])[1] == [True, False, True]
    assert read(["True", "", "False"])[1] == ["True", None, "False"]
    sentences = [f"this is sentence {i} of many" for i in range(30)]
    assert read(sentences)[0].entry["as"] == "text"
    assert read([f"k{i}" for i in range(30)])[0].warnings == [
        "id-like: nearly every row has a value of its own"
    ]
    assert read([f"k{i}" for i in range(60)] * 3)[0].warnings == ["60 categories"]
    assert read(["x"] * 9)[0].warnings == ["constant: dropped"]


def test_a_profile_counts_and_shows_examples():
    entry = read(["a\nb" * 20, "x", "", "x", "NA"])[0].entry
    assert entry["profile"] == {
        "missing": 2,
        "distinct": 2,
        "examples": ["a ba ba ba ba ba ba b...", "x"],
        "warnings": [],
    }


def test_new_cells_of_a_preparation_are_missing_or_unknown_values():
    entry = read(["1", "2", "2"])[0].entry
    new = pd.DataFrame({"c": ["3", "x", ""]})
    values = prepared.convert({"columns": [entry]}, new)["c"]
    assert values.dtype == float
    assert values.tolist()[0] == 3
    assert values.isna().tolist() == [False, True, True]
    with pytest.raises(ValueError, match="the table lacks the columns 'c'"):
        prepared.convert({"columns": [entry]}, pd.DataFrame({"d": ["3"]}))
