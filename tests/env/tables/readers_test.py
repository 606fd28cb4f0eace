"""Published CSV and ARFF files, good and bad."""

import numpy as np
import pytest

from env.base import UsageError
from env.tables import readers


def read(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return readers.read_table(path)


def as_dict(table):
    return {c.name: (c.values.tolist(), c.categories) for c in table.columns}


def test_csv_types_are_inferred(tmp_path):
    table = read(
        tmp_path,
        "t.csv",
        'n,text,mixed, id ,neg\r\n1,"b, c",3,0001_01,-1e-3\r\n'
        "\r\n2.5,a,x,2,.5\r\n3., b ,7,3,+2\r\n",
    )
    assert as_dict(table) == {
        "n": ([1.0, 2.5, 3.0], None),
        "text": ([2.0, 0.0, 1.0], ("a", "b", "b, c")),
        "mixed": ([0.0, 2.0, 1.0], ("3", "7", "x")),
        "id": ([0.0, 1.0, 2.0], ("0001_01", "2", "3")),
        "neg": ([-1e-3, 0.5, 2.0], None),
    }


def test_csv_missing_values(tmp_path):
    table = read(tmp_path, "t.csv", "n,text,none\n1,a,\nNA,,nan\n?,null,NULL\n")
    np.testing.assert_array_equal(table.columns[0].values, [1, np.nan, np.nan])
    np.testing.assert_array_equal(table.columns[1].values, [0, np.nan, np.nan])
    assert table.columns[1].categories == ("a",)
    assert np.isnan(table.columns[2].values).all()


@pytest.mark.parametrize(("name", "text"), [("t.csv", "a;b\n1,5;x\n"), ("t.tsv", "a\tb\n1,5\tx\n")])
def test_other_delimiters_and_a_byte_order_mark(tmp_path, name, text):
    table = read(tmp_path, name, b"\xef\xbb\xbf" + text.encode())
    assert [(c.name, c.categories) for c in table.columns] == [("a", ("1,5",)), ("b", ("x",))]


def test_arff_keeps_declared_categories(tmp_path):
    table = read(
        tmp_path,
        "t.arff",
        "% comment\n@relation r\n@attribute 'a b' real\n@attribute c {z, 'y y', x}\n"
        "@attribute s string\n@data\n1.5,'y y',hello\n?,?,?\n3,z,'w'\n",
    )
    assert [c.name for c in table.columns] == ["a b", "c", "s"]
    np.testing.assert_array_equal(table.columns[0].values, [1.5, np.nan, 3])
    np.testing.assert_array_equal(table.columns[1].values, [1, np.nan, 0])
    assert table.columns[1].categories == ("z", "y y", "x")
    assert table.columns[2].categories == ("hello", "w")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "a\n1\n", "must be a .csv, .tsv or .arff file"),
        ("t.csv", "", "there are no rows"),
        ("t.csv", "a,b\n", "there are no rows"),
        ("t.csv", "a,b\n1,2\n3\n", "line 3 has 1 cells and the header has 2"),
        ("t.csv", "a,a\n1,2\n", "two columns are named 'a'"),
        ("t.csv", "a,\n1,2\n", "column 2 has no name"),
        ("t.csv", b"a,b\n1,\xff\xfe\n", "not UTF-8 text"),
        ("t.csv", 'a,b\n1,"x"y\n', "not a CSV file"),
        ("t.arff", "@relation r\n@attribute a {x}\n@data\ny\n", "not an ARFF file"),
        ("t.arff", "hello\n", "not an ARFF file"),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, name, content, message):
    with pytest.raises(UsageError) as caught:
        read(tmp_path, name, content)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match="there is no such file"):
        readers.read_table(tmp_path / "none.csv")


def test_a_huge_file_is_refused_unread(tmp_path):
    with open(tmp_path / "huge.csv", "wb") as file:
        file.truncate(10 * 2**30)  # sparse: takes no room
    with pytest.raises(UsageError, match="10240 MiB is more than the 256 MiB"):
        readers.read_table(tmp_path / "huge.csv")
