"""Files of every kind that people keep tables in become frames of texts, or are refused."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile

import numpy as np
import pandas as pd
import pytest

from env.base import UsageError
from env.tables import prepared, table_files, target, user_table

PLAIN = b"name,n,y\nAnna,1,a\nJos\xc3\xa9,2,b\n"
TEXTS = {"name": ["Anna", "José"], "n": ["1", "2"], "y": ["a", "b"]}


def read(tmp_path, name, content):
    """Reads a file of that content; returns what was found out and the raw table as lists."""
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    file, raw = user_table.read_file(path)
    texts = raw.astype(object).where(raw.notna(), None)
    return file, {column: texts[column].tolist() for column in texts}


def zipped(**members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, data in members.items():
            # With a date of 1980, because ids of tests must not change.
            archive.writestr(zipfile.ZipInfo(name), data)
    return packed.getvalue()


def archived(data):
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        member = tarfile.TarInfo("t.csv")
        member.size = len(data)
        archive.addfile(member, io.BytesIO(data))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", PLAIN),
        ("t.csv", PLAIN.replace(b"\n", b"\r\n")),
        ("t.txt", PLAIN.replace(b",", b"\t")),
        ("t.tsv", PLAIN.replace(b",", b"\t")),
        ("t.dat", PLAIN.replace(b",", b"|")),
        ("t.csv", PLAIN.replace(b",", b";")),
        ("t.csv", b"sep=;\r\n" + PLAIN.replace(b",", b";")),
        ("t.csv", b"\xef\xbb\xbf" + PLAIN),
        ("t.csv", PLAIN.decode().encode("utf-16")),
        ("t.csv", PLAIN.decode().encode("utf-16-le")),
        ("t.csv", PLAIN.decode().encode("cp1252")),
        ("t.csv", PLAIN.replace(b",", b", ")),
        ("t.csv", b'"name","n","y"\n"Anna","1","a"\n"Jos\xc3\xa9","2","b"\n\n'),
        ("t.csv", b"# exported\n# by hand\n" + PLAIN),
        ("t.csv", b"# exported\n" + PLAIN),
        ("t.csv", b"Customers of 2024\nby hand\n" + PLAIN),
        ("t.csv", PLAIN.replace(b"\n", b"\r")),
        ("t.dat", PLAIN.replace(b",", b"   ")),
        ("t.csv.gz", gzip.compress(PLAIN, mtime=0)),
        ("t.csv.bz2", bz2.compress(PLAIN)),
        ("t.csv.xz", lzma.compress(PLAIN)),
        ("t.zip", zipped(**{"in/t.csv": PLAIN, "__MACOSX/._t.csv": b"x"})),
        ("t", PLAIN),
        ("t.jsonl", "\n".join(json.dumps(r) for r in pd.DataFrame(TEXTS).to_dict("records"))),
        (
            "t.jsonl.gz",
            gzip.compress(pd.DataFrame(TEXTS).to_json(orient="records").encode(), mtime=0),
        ),
        ("t.json", pd.DataFrame(TEXTS).to_json()),
        ("t.json", pd.DataFrame(TEXTS).to_json(orient="split")),
        ("t.json", pd.DataFrame(TEXTS).to_json(orient="index")),
        ("t.json", pd.DataFrame(TEXTS).to_json(indent=2)),
        (
            "t.arff",
            "@RELATION r\n@ATTRIBUTE name STRING\n@attribute n INTEGER\n@attribute y {b, a}\n"
            "@DATA\nAnna,1,a\nJosé,2,b\n",
        ),
    ],
)
def test_the_same_table_in_many_kinds_of_files(tmp_path, name, content):
    assert read(tmp_path, name, content)[1] == TEXTS


def test_an_encoding_that_is_guessed_is_said(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(PLAIN.decode().encode("cp1252"))
    file, raw = user_table.read_file(path)
    assert user_table.read_columns(file, raw)[1][0] == "the file is not UTF-8; it is read as cp1252"


def test_excel_sheets_with_a_title_numbers_dates_and_another_sheet(tmp_path):
    path = tmp_path / "t.xlsx"
    frame = pd.DataFrame(
        {
            "name": ["Anna", None, "Zoë"],
            "n": [1, 2, 3],
            "half": [0.5, np.nan, 2.0],
            "when": pd.to_datetime(["2024-01-02", "2024-03-04", None]),
            "flag": [True, False, True],
        }
    )
    with pd.ExcelWriter(path) as writer:
        frame.to_excel(writer, sheet_name="Data", index=False, startrow=2)
        writer.sheets["Data"].cell(1, 1, "Customers of 2024")
        frame.to_excel(writer, sheet_name="Copy")
        writer.book.create_sheet("Empty")
    file, raw = user_table.read_file(path)
    assert (file["sheet"], file["other_sheets"]) == ("Data", ["Copy"])
    rows = raw.astype(object).where(raw.notna(), None)
    assert rows.values.tolist() == [
        ["Anna", "1", "0.5", "2024-01-02T00:00:00", "True"],
        [None, "2", None, "2024-03-04T00:00:00", "False"],
        ["Zoë", "3", "2", None, "True"],
    ]


def test_a_sheet_of_remarks_and_empty_columns_are_passed_over(tmp_path):
    path = tmp_path / "t.xlsx"
    with pd.ExcelWriter(path) as writer:
        pd.DataFrame({"remarks": ["by hand"]}).to_excel(writer, sheet_name="Read me", index=False)
        table = pd.DataFrame({"a": [1, 2], "y": ["p", "q"]})
        table.to_excel(writer, sheet_name="Data", index=False, startcol=2)
    file, raw = user_table.read_file(path)
    assert (file["sheet"], file["other_sheets"]) == ("Data", ["Read me"])
    assert raw.attrs["repeated"] == []
    assert raw["y"].tolist() == ["p", "q"]
    with pytest.raises(UsageError, match="a table is read, and not Read me; the columns are"):
        target.find_target(raw, "z")


def test_what_stands_above_the_names_is_skipped_and_said(tmp_path):
    for title, table in (
        ("Customers of 2024\n", PLAIN.decode()),
        ("Two\ncolumns\n\n", "a;y\n1;p\n2;q\n"),
    ):
        path = tmp_path / "t.csv"
        path.write_text(title + table, encoding="utf-8")
        file, raw = user_table.read_file(path)
        assert file["title"] == " ".join(title.split())
        assert "above the names of the columns is" in user_table.read_columns(file, raw)[1][0]
    file, texts = read(tmp_path, "t.csv", "text\none, two\nthree, four\n")
    assert (list(texts), file["title"]) == (["text"], "")


def test_parquet_kinds_of_columns(tmp_path):
    import pyarrow.parquet

    columns = {
        "i": pyarrow.array([2**60 + 1, None, 3]),
        "f": pyarrow.array([0.5, 2.0, float("nan")]),
        "b": pyarrow.array([True, False, None]),
        "s": pyarrow.array(["v", None, ""]),
        "d": pyarrow.array(["q", "p", None]).dictionary_encode(),
        "t": pyarrow.array([0, None, 86_400], pyarrow.timestamp("s")),
        "day": pyarrow.array([0, None, 1], pyarrow.date32()),
        "null": pyarrow.nulls(3),
        "list": pyarrow.array([[1, 2], None, []]),
        "bytes": pyarrow.array([b"x", None, b"\xff"]),
        "money": pyarrow.array(["1.50", None, "2.00"]).cast(pyarrow.decimal128(5, 2)),
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "t.parquet")
    _, raw = user_table.read_file(tmp_path / "t.parquet")
    texts = raw.astype(object).where(raw.notna(), None)
    assert {name: texts[name].tolist() for name in texts} == {
        "i": [str(2**60 + 1), None, "3"],
        "f": ["0.5", "2", None],
        "b": ["True", "False", None],
        "s": ["v", None, None],
        "d": ["q", "p", None],
        "t": ["1970-01-01 00:00:00.000", None, "1970-01-02 00:00:00.000"],
        "day": ["1970-01-01", None, "1970-01-02"],
        "null": [None, None, None],
        "list": ["[1, 2]", None, "[]"],
        "bytes": ["b'x'", None, "b'\\xff'"],
        "money": ["1.50", None, "2.00"],
    }
    assert raw.attrs["categories"] == {"d": ["q", "p"]}


def test_an_index_that_pandas_stored_in_parquet_is_left_out(tmp_path):
    frame = pd.DataFrame({"a": [1, 2, 3], "y": [0, 1, 0]}, index=pd.Index([2, 0, 1], name="key"))
    frame.to_parquet(tmp_path / "t.parquet")
    _, raw = user_table.read_file(tmp_path / "t.parquet")
    assert list(raw.columns) == ["a", "y"]
    assert raw.attrs["index"] == ["key"]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"a,a,b,a\n1,2,3,4\n", ["a", "a.1", "b", "a.2"]),
        (b",a,,\n0,1,,\n", ["Unnamed: 0", "a", "Unnamed: 2", "Unnamed: 3"]),
        (b'" a\nb",c\n1,2\n', ["a b", "c"]),
        (b'"Height, cm";"Weight, kg"\n1;2\n', ["Height, cm", "Weight, kg"]),
        (b"a;b;c\n" + b"0,5;1,5;2,5\n" * 9, ["a", "b", "c"]),
        (b"a b c\n" + b"0,5 1,5 2,5\n" * 9, ["a", "b", "c"]),
        (b"a,b\n" + b"1,x;y;z\n" * 9, ["a", "b"]),
        (b"a,b,\n1,2,\n3,4,\n", ["a", "b", "Unnamed: 2"]),
        (b"a,b\n1,2,\n3,4,\n", ["a", "b"]),
        (b'"a","b"\n"r1",1,2\n"r2",3,4\n', ["Unnamed: 0", "a", "b"]),  # write.table of R
    ],
)
def test_names_are_unique_and_complete(tmp_path, content, names):
    assert list(read(tmp_path, "t.csv", content)[1]) == names


def test_quoted_cells_may_hold_separators_quotes_and_lines(tmp_path):
    content = b'a;b\n"x;1";"say ""hi"""\n"two\nlines";plain\n'
    assert read(tmp_path, "t.csv", content)[1] == {
        "a": ["x;1", "two\nlines"],
        "b": ['say "hi"', "plain"],
    }


def test_a_few_short_rows_count_as_incomplete(tmp_path):
    (tmp_path / "t.csv").write_text("a,b,c\n" + "1,2,3\n" * 40 + "1,2\n")
    file, raw = user_table.read_file(tmp_path / "t.csv")
    assert raw["c"].tolist()[-1] == ""
    assert "1 rows have fewer cells than the header" in user_table.read_columns(file, raw)[1][0]


def test_a_single_column_may_hold_commas(tmp_path):
    assert read(tmp_path, "t.csv", "a\n1,5\n2,5\n")[1] == {"a": ["1,5", "2,5"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "the file is empty"),
        ("t.csv", b" \n\n", "the file is empty"),
        ("t.csv", b"a,b\n", "there are no rows"),
        ("t.csv", b"a,b\n1,2\n3\n", "1 of 2 rows have too few cells: line 3 has 1"),
        ("t.csv", b"a,b\n1,2\n3,4,5\n", "line 3 has 3 cells and the header has 2: quote"),
        ("t.csv", b"a,b\n" + b"1,2,\n" * 300 + b"3,4,5\n", "line 302 has 3 cells"),
        ("t.csv", b'a,b\n1,"x\n2,3\n' * 3, "a quote opens in row"),
        ("t.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "neither text, Parquet nor Excel"),
        ("t.csv", b"\x89PNG\r\n\x1a\n\1\2\3,x\4\5\n" * 9, "neither text, Parquet nor Excel"),
        ("t.csv", b"%PDF-1.4\n%%EOF\n", "a PDF: save its table as .csv"),
        (
            "t.tar.gz",
            gzip.compress(archived(PLAIN), mtime=0),
            "a tar archive: unpack the file to read",
        ),
        ("t.csv", b"<!DOCTYPE html>\n<html></html>", "a web page: download the table itself"),
        ("t.csv", b"version https://git-lfs.github.com/spec/v1\noid", "a pointer to a file in Git"),
        ("t.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(99), "save it as .xlsx or .csv"),
        ("t.parquet", b"PAR1hello", "cannot be read as parquet"),
        ("t.csv.gz", gzip.compress(PLAIN, mtime=0)[:20], "cannot be unpacked"),
        ("t.zip", zipped(a="1", b="2"), "holds 2 files (a, b): unpack the one to read"),
        ("t.zip", zipped(**{"t.csv": PLAIN})[:60], "t.zip: "),
        ("t.xlsx", zipped(**{"xl/workbook.xml": "<x/>"}), "t.xlsx: "),
        ("t.jsonl", b'{"a": 1}\n{"a": \n', "cannot be read as json"),
        ("t.jsonl", b'{"a": 1}\n[1, 2]\n', "each row must be an object of names and values"),
        ("t.jsonl", b"[1, 2]\n[3, 4]\n", "each row must be an object of names and values"),
        ("t.jsonl", b'{"a": 1}\n{"a": \n', "line 2: "),
        ("t.json", b"3", "each row must be an object"),
        ("t.json", b'{"n": 2, "rows": [{"a": 1}, {"a": 2}]}', "neither rows nor columns"),
        ("t.csv", b"5.1,3.5,Iris\n4.9,3.0,Iris\n", "the first row holds values (5.1, 3.5, Iris)"),
        ("t.csv", b",,,y\n1,2,3,4\n", "3 of 4 columns have no name"),
        ("t.arff", b"@relation r\n@attribute a {x}\n@data\ny\n", "cannot be read as arff"),
    ],
)
def test_broken_files_are_refused_in_one_line_that_names_them(tmp_path, name, content, message):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, name, content)
    assert message in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(table_files, "MAX_FILE_BYTES", 1 << 20)
    bomb = gzip.compress(b"a,b\n" + b"1,2\n" * (1 << 19))
    with pytest.raises(UsageError, match="more than the 1 MiB that are read"):
        read(tmp_path, "t.csv.gz", bomb)


def test_another_file_is_read_by_its_own_form(tmp_path):
    read(tmp_path, "train.csv", PLAIN)
    (tmp_path / "new.csv").write_bytes(PLAIN.replace(b",", b";"))
    preparation = {"file": table_files.describe_file(tmp_path / "train.csv")}
    raw = prepared.read(preparation, tmp_path / "new.csv")
    assert {name: list(raw[name]) for name in raw} == TEXTS
