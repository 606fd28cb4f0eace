"""Readers of the CSV and ARFF files in which the paper's tables are published.

They read as the paper's loaders did, so that the arrays are the same; `env.tables.table_files` and
`env.tables.profile` read the tables of users. A column whose values are all numbers is numeric. Any
other column is nominal; its categories are those that an ARFF file declares, in that order, or else
the values that occur, sorted. Empty cells and `MISSING_TEXTS` are missing values.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from env.base import UsageError
from env.tables.table import Column, RawTable

MAX_FILE_BYTES = 256 * 2**20
"""Limit of the size of a file; cells take about ten times as much memory as Python objects."""

MISSING_TEXTS = frozenset(
    ("", "?", "#N/A", "#NA", "-nan", "-NaN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a")
) | {"nan", "null"}

# float() would accept "0001_01" as a number.
_NUMBER = re.compile(
    r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:inf|Inf|infinity|Infinity)"
)


def read_table(path: str | Path) -> RawTable:
    """Reads the table in a `.csv`, `.tsv` or `.arff` file.

    Raises:
      UsageError: naming the file and what is wrong with it.
    """
    path = Path(path).expanduser()
    readers = {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".arff": _read_arff,
    }
    if path.suffix.lower() not in readers:
        raise UsageError(f"{path}: a published table must be a .csv, .tsv or .arff file")
    if not path.is_file():
        raise UsageError(f"{path}: there is no such file")
    size = path.stat().st_size
    if size > MAX_FILE_BYTES:
        raise UsageError(
            f"{path}: {size / 2**20:.0f} MiB is more than the {MAX_FILE_BYTES / 2**20:.0f} MiB "
            "that are read: cut the table down first"
        )
    try:
        table = readers[path.suffix.lower()](path)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    if not table.columns or not table.num_rows:
        raise UsageError(f"{path}: there are no rows")
    _check_names([column.name for column in table.columns], path)
    return table


def _check_names(names: Sequence[str], path: Path) -> None:
    seen: set[str] = set()
    for position, name in enumerate(names, start=1):
        if not name:
            raise UsageError(f"{path}: column {position} has no name")
        if name in seen:
            raise UsageError(f"{path}: two columns are named {name!r}")
        seen.add(name)


def _read_csv(path: Path) -> RawTable:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
        file.seek(0)
        rows = _csv_rows(csv.reader(file, delimiter=_delimiter(header), strict=True))
        try:
            names = next(rows, [])
            cells = list(zip(*rows, strict=True))
        except csv.Error as error:
            raise UsageError(f"not a CSV file ({error})") from None
    # A file without rows still has names, which are checked.
    cells = cells or [()] * len(names)
    return RawTable(
        tuple(_text_column(name.strip(), column) for name, column in zip(names, cells, strict=True))
    )


def _delimiter(header: str) -> str:
    return max(",;\t", key=header.count)


def _csv_rows(reader: Any) -> Iterator[list[str]]:
    width = None
    for row in reader:
        if not row:
            continue
        width = width or len(row)
        if len(row) != width:
            raise UsageError(
                f"line {reader.line_num} has {len(row)} cells and the header has {width}"
            )
        yield row


def _text_column(name: str, cells: Sequence[str]) -> Column:
    cells = [cell.strip() for cell in cells]
    present = [cell for cell in cells if cell not in MISSING_TEXTS]
    if all(_NUMBER.fullmatch(cell) for cell in present):
        values = [np.nan if cell in MISSING_TEXTS else float(cell) for cell in cells]
        return Column(name, np.array(values, np.float64))
    return _nominal_column(name, [None if cell in MISSING_TEXTS else cell for cell in cells])


def _nominal_column(
    name: str, values: Sequence[str | None], categories: Sequence[str] | None = None
) -> Column:
    if categories is None:
        categories = sorted({value for value in values if value is not None})
    codes = {category: float(code) for code, category in enumerate(categories)}
    coded = [np.nan if value is None else codes[value] for value in values]
    return Column(name, np.array(coded, np.float64), tuple(categories))


def _read_arff(path: Path) -> RawTable:
    import arff  # deferred: most runs read no file

    with path.open(encoding="utf-8-sig") as file:
        try:
            content = arff.load(file)
        except arff.ArffException as error:
            raise UsageError(f"not an ARFF file that can be read ({error})") from None
    attributes = content["attributes"]
    cells = list(zip(*content["data"], strict=True)) or [()] * len(attributes)
    return RawTable(
        tuple(
            _arff_column(name, kind, column)
            for (name, kind), column in zip(attributes, cells, strict=True)
        )
    )


def _arff_column(name: str, kind: str | list[str], cells: Sequence[Any]) -> Column:
    if isinstance(kind, list):
        return _nominal_column(name, cells, kind)
    if kind.upper() == "STRING":
        return _text_column(name, ["" if cell is None else cell for cell in cells])
    return Column(name, np.array([np.nan if c is None else c for c in cells], np.float64))
