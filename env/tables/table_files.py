"""Reads the files that people keep tables in: any kind becomes a frame of texts.

A raw table is a pandas frame of texts, "" or None where a cell is empty; how a text is read is
decided for each column (`env.tables.prepared`). The content of a file decides its kind: delimited
text, Parquet, Excel, JSON or ARFF, packed or not. Whatever is wrong with a file is a `ValueError`
that names it. The module stands alone, since its text is a part of the scripts that runs write; it
needs pandas, and pyarrow, openpyxl or liac-arff for files of their kinds.
"""

import bz2
import contextlib
import csv
import datetime
import gzip
import io
import itertools
import json
import lzma
import re
import warnings
import zipfile
from collections import Counter

import pandas as pd

MAX_FILE_BYTES = 512 * 2**20
_PACKERS: dict = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_FOREIGN = {
    b"\xd0\xcf\x11\xe0": "an old Excel file: save it as .xlsx or .csv",
    b"ARROW1": "a Feather file: save it as Parquet",
    b"%PDF-": "a PDF: save its table as .csv",
    b"version https://git-lfs": "a pointer to a file in Git LFS: fetch the file itself",
    b"<!doctype": "a web page: download the table itself",
    b"<html": "a web page: download the table itself",
    b"<table": "a web page: save its table as .csv",
    b"<?xml": "an XML file: save it as .csv",
}
_NO_TABLE = "not a table that can be read: the file is neither text, Parquet nor Excel"
_SEPARATORS = ",;\t| "
csv.field_size_limit(MAX_FILE_BYTES)  # free texts may be long
_SAMPLE_CHARS = 2**20
_MAX_SHORT_ROWS = 0.05
_EMBEDDED = {"separator": ",", "encoding": "utf-8", "skip": 0, "row_names": False}


def describe_file(path):
    """Returns how a file has to be read: its kind, encoding, separator or sheet, as JSON values.

    The content decides; the ending of the name matters for texts that could be anything.
    """
    data, name = _content(path)
    file = {"path": str(path), "kind": "csv"}
    if data.startswith(b"PAR1"):
        return {**file, "kind": "parquet"}
    if data.startswith(b"PK"):
        with _explained(path, "an Excel file"):
            return {**file, "kind": "xlsx", **_describe_sheets(data)}
    for magic, what in _FOREIGN.items():
        if data[:64].lower().startswith(magic.lower()):
            raise ValueError(f"{path}: {what}")
    if data[257:262] == b"ustar":
        raise ValueError(f"{path}: a tar archive: unpack the file to read")
    file["encoding"] = _encoding(data, path)
    head = data[: 4 * _SAMPLE_CHARS].decode(file["encoding"], errors="ignore")[:_SAMPLE_CHARS]
    if not head.strip():
        raise ValueError(f"{path}: there are no rows: the file is empty")
    if name.lower().endswith(".arff") or re.match(r"(?i)(\s*(%.*)?\n)*\s*@relation\b", head):
        return {**file, "kind": "arff"}
    if name.lower().endswith((".json", ".jsonl", ".ndjson")) or re.match(r"\s*\[?\s*\{", head):
        return {**file, "kind": "json"}
    return {**file, **_describe_csv(head, is_whole=len(data) < _SAMPLE_CHARS)}


def read(preparation, path=None):
    """Returns the raw table of a preparation, or of another file of the same form.

    Columns that pandas stored as the index of a Parquet file are left out. `attrs` of the result
    holds their names ("index"), and the declared "categories" of columns.
    """
    file = preparation["file"]
    if path is None and "csv" in file:
        return _read_csv(file["csv"].encode(), _EMBEDDED)
    if path is None:
        path = file["path"]
    else:
        file = describe_file(path)
    data, _ = _content(path)
    readers = {"parquet": _read_parquet, "xlsx": _read_xlsx, "json": _read_json, "arff": _read_arff}
    with _explained(path, file["kind"]):
        raw = readers.get(file["kind"], _read_csv)(data, file)
    names = Counter(name for name in raw.columns if isinstance(name, str))
    repeated = [name for name, count in names.items() if name and count > 1]
    raw.attrs["repeated"] = [*file.get("repeated", ()), *repeated]
    raw.columns = unique_names(raw.columns)
    raw.attrs["other_sheets"] = file.get("other_sheets", [])
    if not len(raw) or not len(raw.columns):
        raise ValueError(f"{path}: there are no rows")
    return raw


@contextlib.contextmanager
def _explained(path, what):
    try:
        yield
    except ImportError as error:
        raise ValueError(f"{path}: install the package {error.name} to read it") from None
    except Exception as error:  # of the many that libraries raise for a damaged file
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: cannot be read as {what} ({reason})") from error


def unique_names(names):
    """Returns names without white space around them, "Unnamed: 0" for none, repeated ones told
    apart by a number."""
    result, seen = [], set()
    for position, name in enumerate(names):
        plain = "" if name is None or name != name else " ".join(str(name).split())
        plain = plain or f"Unnamed: {position}"
        candidates = (f"{plain}.{number}" for number in itertools.count(1))
        result.append(plain if plain not in seen else next(c for c in candidates if c not in seen))
        seen.add(result[-1])
    return result


def _content(path):
    """Returns the bytes of a file, unpacked, and the name that the unpacked file has."""
    name = str(path)
    with open(path, "rb") as opened:
        data = _bounded(opened, path)
    try:
        for magic, unpack in _PACKERS.items():
            if data.startswith(magic):
                with unpack(io.BytesIO(data)) as opened:
                    data, name = _bounded(opened, path), name.rpartition(".")[0]
        if data.startswith(b"PK") and zipfile.is_zipfile(io.BytesIO(data)):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                if "xl/workbook.xml" not in archive.namelist():
                    name = _only_member(archive, path)
                    with archive.open(name) as opened:
                        data = _bounded(opened, path)
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, lzma.LZMAError) as error:
        raise ValueError(f"{path}: cannot be unpacked ({error})") from error
    return data, name


def _bounded(opened, path):
    data = opened.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise ValueError(
            f"{path}: more than the {MAX_FILE_BYTES >> 20} MiB that are read: cut the table down "
            "first"
        )
    return data


def _only_member(archive, path):
    names = [
        info.filename
        for info in archive.infolist()
        if not info.is_dir() and not re.search(r"(^|/)(\.|__MACOSX/)", info.filename)
    ]
    if len(names) != 1:
        listed = ", ".join(names[:5]) or "none"
        raise ValueError(f"{path}: holds {len(names)} files ({listed}): unpack the one to read")
    return names[0]


def _encoding(data, path):
    if data.startswith(b"\xef\xbb\xbf"):
        return "utf-8-sig"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    head = data[:4096]
    if b"\0" in head:
        for encoding, zeros in (("utf-16-le", head[1::2]), ("utf-16-be", head[::2])):
            if zeros.count(0) > 0.7 * len(zeros):
                return encoding
        raise ValueError(f"{path}: {_NO_TABLE}")
    if len(re.findall(rb"[\x01-\x08\x0e-\x1f]", head)) > 0.01 * len(head):
        raise ValueError(f"{path}: {_NO_TABLE}")
    for encoding in ("utf-8", "cp1252"):
        try:
            data.decode(encoding)
            return encoding
        except UnicodeDecodeError:
            continue
    return "latin-1"


def _describe_csv(head, is_whole):
    skip = 1 if re.match(r"sep=.\r?\n", head) else 0
    skip = skip or _count_comments(head.split("\n", 100))
    num_title = _count_title_lines(head.split("\n", skip)[skip], is_whole)
    *above, lines = head.split("\n", skip + num_title)
    skip, title = len(above), _shortened(above[skip:])
    found: list = [(-1.0, 0, ",", [])]
    for separator in _SEPARATORS:
        if not (rows := _sample(lines, separator, is_whole)):
            continue
        width = len(rows[0])
        fitting = sum(len(row) in (width, width + 1) for row in rows[1:])
        share = fitting / max(1, len(rows) - 1) if width > 1 else -0.5
        # Words are separated by spaces in most texts: every line must have as many.
        if separator != " " or (max(found)[0] < 0 and share == 1 and len(rows) > 2):
            found.append((round(share, 1), width, separator, rows))
    _, width, separator, rows = max(found, key=lambda candidate: candidate[:2])
    if width < 2:  # a single column, whose cells may hold decimal commas
        separator = next((mark for mark in _SEPARATORS if mark not in lines), ",")
        rows = rows[:1]
    longer = [row for row in rows[1:] if len(row) == width + 1]
    # R writes names of rows without a name in the header; others end each line by a separator.
    has_names = len(longer) == len(rows) - 1 > 0 and any(row[-1].strip() for row in longer)
    header = Counter(" ".join(name.split()) for name in rows[0]) if rows else {}
    return {
        "separator": separator,
        "skip": skip,
        "title": title,
        "row_names": has_names,
        "repeated": [name for name, count in header.items() if name and count > 1],
    }


def _count_comments(lines):
    """Returns the number of lines of comment before the header, which has more separators."""
    count = 0
    while count < len(lines) - 1 and lines[count].startswith("#"):
        count += 1
    return count if count > 1 or (count and not re.search(r"[,;\t|]", lines[0])) else 0


def _sample(text, separator, is_whole):
    """Returns the first rows of a text; none if it cannot be separated so."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    try:
        rows = [row for row in itertools.islice(reader, 200) if row]
    except csv.Error:
        return []
    return rows[:-1] if 2 < len(rows) < 200 and not is_whole else rows


def _count_title_lines(text, is_whole):
    """Returns the number of lines without cells above a header and rows of equally many cells.

    A column of texts may hold separators too, so that rows of two cells need an empty line above.
    """
    lines = text.split("\n", 6)
    for count, separator in itertools.product(range(1, len(lines) - 1), _SEPARATORS[:-1]):
        title, num_words = lines[:count], len(lines[count].split())
        # A header may be separated by other marks or spaces, and its rows hold decimal commas.
        if any(set(line) & set(",;\t|") or 1 < len(line.split()) == num_words for line in title):
            break
        rows = _sample("\n".join(lines[count:]), separator, is_whole)
        least = 3 if lines[count - 1].strip() else 2
        if len(rows) > 2 and all(len(row) == len(rows[0]) >= least for row in rows):
            return count
    return 0


def _shortened(texts):
    plain = " ".join(" ".join(texts).split())
    return plain if len(plain) <= 60 else plain[:57] + "..."


def _count_short_rows(data, file):
    """Returns the number of rows with fewer cells than the header.

    Many of these are refused, and so is a row with more cells, but for an empty one at the end.
    """
    text = io.TextIOWrapper(io.BytesIO(data), encoding=file["encoding"], newline="")
    for _ in range(file["skip"]):
        text.readline()
    reader = csv.reader(text, delimiter=file["separator"], skipinitialspace=True)
    header, num_rows, short = None, 0, []
    for row in reader:
        if len(row) < 2 and not "".join(row).strip():
            continue
        line = reader.line_num + file["skip"]
        if header is None:
            header = len(row) + file["row_names"]
            continue
        num_rows += 1
        if any(row[header:]) or len(row) > header + 1:
            raise ValueError(
                f"line {line} has {len(row)} cells and the header has {header}: quote cells that "
                f"hold the separator {file['separator']!r}"
            )
        if len(row) < header:
            short.append(f"line {line} has {len(row)} and the header has {header}")
    if len(short) > _MAX_SHORT_ROWS * num_rows:
        raise ValueError(f"{len(short)} of {num_rows} rows have too few cells: {short[0]}")
    return len(short)


def _read_csv(data, file):
    options = {
        "sep": file["separator"],
        "encoding": file["encoding"],
        "skiprows": file["skip"],
        "skipinitialspace": True,
        "dtype": str,
        "na_filter": False,
    }
    has_names = file["row_names"]
    num_short = _count_short_rows(data, file)
    try:
        # Without names of its own a first column is no index, whatever pandas thinks.
        with warnings.catch_warnings():
            # Lines that end by a separator have one cell more than the header, which is empty.
            warnings.simplefilter("ignore", pd.errors.ParserWarning)
            raw = pd.read_csv(io.BytesIO(data), index_col=0 if has_names else False, **options)
    except pd.errors.ParserError as error:
        if found := re.search(r"EOF inside string starting at row (\d+)", str(error)):
            raise ValueError(f"a quote opens in row {found[1]} and never closes") from error
        raise
    if has_names:
        raw.insert(0, "", raw.index.astype(str))
        raw = raw.reset_index(drop=True)
    raw.attrs["short_rows"] = num_short
    return raw


def _read_parquet(data, file):
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    stored = (table.schema.pandas_metadata or {}).get("index_columns", ())
    index = [name for name in stored if isinstance(name, str)]
    kept = [i for i, name in enumerate(table.column_names) if name not in index]
    raw = pd.DataFrame({i: _arrow_texts(table.column(i)) for i in kept}, dtype=object)
    raw.columns = unique_names(table.column_names[i] for i in kept)
    raw.attrs = {"index": index, "categories": {}}
    for name, i in zip(raw.columns, kept, strict=True):
        if pyarrow.types.is_dictionary(table.column(i).type) and len(table):
            declared = table.column(i).unify_dictionaries().chunk(0).dictionary.to_pylist()
            raw.attrs["categories"][name] = [text_of(value) for value in declared]
    return raw


def _arrow_texts(column):
    import pyarrow

    types, kind = pyarrow.types, column.type
    if types.is_dictionary(kind):
        return _arrow_texts(column.cast(kind.value_type))
    if types.is_duration(kind):
        return _arrow_texts(column.cast(pyarrow.int64()))
    if types.is_timestamp(kind) or types.is_date(kind) or types.is_time(kind):
        return column.cast(pyarrow.string()).to_pylist()
    return [text_of(value) for value in column.to_pylist()]


def _describe_sheets(data):
    with pd.ExcelFile(io.BytesIO(data), engine="openpyxl") as book:
        filled = [name for name in book.sheet_names if len(_cells_of_sheet(book, name, 50))]
        if not filled:
            raise ValueError("its sheets are empty")
        sheets = {name: _cells_of_sheet(book, name, 50) for name in filled}
    # A sheet of remarks has a single column.
    tables = [name for name in filled if (sheets[name] != "").any().sum() > 1]
    name = (tables or filled)[0]
    cells = sheets[name]
    # A title above the table fills fewer cells than its header.
    is_header = (cells != "").sum(axis=1) > cells.shape[1] / 2
    skip = int(is_header.argmax()) if len(cells) else 0
    above = cells.iloc[:skip].to_numpy().ravel()
    title = _shortened(str(value) for value in above if value != "")
    filled.remove(name)
    return {"sheet": name, "other_sheets": filled, "skip": skip, "title": title}


def _cells_of_sheet(book, name, num_rows=None):
    return pd.read_excel(book, name, header=None, dtype=object, na_filter=False, nrows=num_rows)


def _read_xlsx(data, file):
    with pd.ExcelFile(io.BytesIO(data), engine="openpyxl") as book:
        cells = _cells_of_sheet(book, file["sheet"])
    names = [text_of(value) for value in cells.iloc[file["skip"]]]
    cells = cells.iloc[file["skip"] + 1 :].reset_index(drop=True)
    raw = cells.map(text_of).astype(object)
    raw.columns = names
    return raw[raw.notna().any(axis=1)].reset_index(drop=True)


def _read_json(data, file):
    text = data.decode(file["encoding"])
    try:
        rows = json.loads(text)
    except json.JSONDecodeError:
        rows = [_json_line(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if isinstance(rows, dict):
        return _json_object(rows)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError("each row must be an object of names and values")
    return _json_texts(rows)


def _json_line(number, line):
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {number}: {error}") from error


def _json_object(table):
    """Returns the table in one object, in any orientation that pandas writes."""
    if isinstance(table.get("data"), list):  # "table" or "split"
        return _json_texts(table["data"], table.get("columns"))
    kinds = {type(value) for value in table.values()}
    if kinds == {dict} and all(key.isdigit() for key in table):
        columns = {name for row in table.values() for name in row}
        if not all(name.isdigit() for name in columns):  # "index"
            return _json_texts(list(table.values()))
    if kinds not in ({dict}, {list}):
        raise ValueError("it holds neither rows nor columns: save its rows as an array of objects")
    return _json_texts(table)


def _json_texts(rows, names=None):
    raw = pd.DataFrame(rows, columns=names, dtype=object).reset_index(drop=True)
    return raw.map(text_of).astype(object)


def _read_arff(data, file):
    import arff

    # The package cuts fractions off INTEGER columns and knows no dates.
    name = r"""(?im)^(\s*@attribute\s+(?:'[^'\n]*'|"[^"\n]*"|\S+)\s+)"""
    text = re.sub(name + r"integer\b", r"\1numeric", data.decode(file["encoding"]))
    text = re.sub(name + r"date\b.*$", r"\1string", text)
    content = arff.loads(text)
    names = unique_names(name for name, _ in content["attributes"])
    raw = pd.DataFrame(content["data"], columns=names, dtype=object).map(text_of).astype(object)
    declared = zip(names, content["attributes"], strict=True)
    raw.attrs["categories"] = {n: kind for n, (_, kind) in declared if isinstance(kind, list)}
    return raw


def text_of(value):
    """Returns the text of a cell that has a type, None for an empty one."""
    if value is None or value is pd.NaT or value == "" or value != value:
        return None
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return str(int(value))
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, dict | list):
        return json.dumps(value, default=str)
    return str(value)
