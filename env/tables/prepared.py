"""Turns a raw table into the values that programs get, as a preparation says.

A preparation is the JSON object of `preparation.json`. A run and the script of its best program use
this one module, whose text is a part of that script, so that they cannot disagree.

| key | value |
|---|---|
| `file` | how the file is read (`env.tables.table_files`), or the table itself as `csv` |
| `target`, `reading` | name of the target, and how its texts are read |
| `task`, `classes` | "classification" or "regression"; names of the classes in the order of codes |
| `merged` | rare `classes` that count as the class `into` |
| `columns` | all others: `name`; `as` number, category, text, date, boolean or dropped; details |
| `rows` | `max` number of rows with a target that are used, null for all |
| `holdout`, `splits` | `share` and `seed` of the rows held out; `num` of splits, `stratified` |
| `form` | "array" or "frame" |
| `notes` | what is doubtful, or good to know, about the table |
"""

import re

import numpy as np
import pandas as pd

from env.tables.halves import draw_halves
from env.tables.table_files import read, text_of

__all__ = [
    "convert",
    "features",
    "holdout_rows",
    "known_rows",
    "labels",
    "read",
    "split_rows",
    "unread_cells",
    "visible_rows",
]

# Formats of numbers are named by their decimal mark: "." with commas between thousands, or "," with
# points between them; spaces and apostrophes may stand there in both.
_NUMBERS = {
    ".": re.compile(
        r"[+-]?(?:(?:[1-9]\d{0,2}(?:,\d{2,3})*,\d{3}|\d+)(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
    ),
    ",": re.compile(r"[+-]?(?:(?:[1-9]\d{0,2}(?:\.\d{3})+|\d+)(?:,\d*)?|,\d+)(?:[eE][+-]?\d+)?"),
}
PLAIN_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_SIGNS = re.compile(r"[%$€£¥₹]|^(?:USD|EUR|GBP|CHF)\b|\b(?:USD|EUR|GBP|CHF)$")
# Spaces in a telephone number are none between thousands.
_GROUPED = re.compile(r"(?<![\d+])[1-9]\d{0,2}(?:[ \u00a0\u2009\u202f\u2019']\d{3})+(?!\d)")


def number(text, decimal="."):
    """Returns the number that a text spells, NaN if it spells none.

    Signs of currencies and percent are left out, and brackets around a number make it negative.
    """
    if decimal != "." or not PLAIN_NUMBER.fullmatch(text):
        if text.startswith("(") and text.endswith(")"):
            text = "-" + text[1:-1]
        text = _SIGNS.sub("", text.replace("\u2212", "-")).strip()
        text = _GROUPED.sub(lambda match: re.sub(r"\D", "", match[0]), text)
        text = re.sub(r"^([+-])\s+", r"\1", text)
        if not _NUMBERS[decimal].fullmatch(text):
            return np.nan
        text = text.replace(",", "") if decimal == "." else text.replace(".", "").replace(",", ".")
    value = float(text)
    return value if abs(value) < np.inf else np.nan


def dates(texts, layout):
    """Returns datetime64[ns] of texts, NaT where they do not follow `layout` or lie out of reach.

    Args:
      texts: texts, None where missing.
      layout: "ISO8601", or a format of `datetime.strptime`.
    """
    texts = pd.Series(texts, dtype=object)
    parsed = pd.to_datetime(texts, format=layout, errors="coerce", utc=True).dt.tz_localize(None)
    is_in_reach = parsed.dt.year.between(1678, 2261)
    return parsed.where(is_in_reach).astype("datetime64[ns]")


def cells(column, raw):
    """Returns the texts of a column without white space around them, None where missing."""
    missing = set(column["missing"])
    texts = (t.strip() if isinstance(t, str) else "" for t in raw[column["name"]].tolist())
    return [None if text in missing else text for text in texts]


def convert(preparation, raw):
    """Returns the table in the frame form, which has the columns' own names and types.

    Raises:
      ValueError: naming columns that the raw table lacks.
    """
    columns = [column for column in preparation["columns"] if column["as"] != "dropped"]
    lacking = [column["name"] for column in columns if column["name"] not in raw.columns]
    if lacking:
        raise ValueError(f"the table lacks the columns {', '.join(map(repr, lacking))}")
    values = {column["name"]: _converted(column, cells(column, raw)) for column in columns}
    return pd.DataFrame(values, index=range(len(raw)))


def _converted(column, texts):
    if column["as"] == "date":
        return dates(texts, column["layout"])
    if column["as"] == "boolean":
        return np.array([(text or column["common"]).lower() == "true" for text in texts], np.bool_)
    if column["as"] != "number":
        return pd.Series(texts, dtype=object)
    decimal = column["decimal"]
    read = [np.nan if text is None else number(text, decimal) for text in texts]
    values = np.array(read, np.float64)
    is_whole = column["whole"] and (np.abs(values) < 2**53).all() and (values % 1 == 0).all()
    return values.astype(np.int64) if is_whole else values


def features(preparation, raw):
    """Returns what programs get of a raw table: a frame, or float64 [n, f] in the array form."""
    frame = convert(preparation, raw)
    return frame if preparation["form"] == "frame" else as_array(preparation, frame)


def as_array(preparation, frame):
    """Returns the float64 [n, f] array form of a frame.

    A missing number or date becomes the column's median, dates are days or seconds since 1970, and
    other values their position in the column's list of categories, with a missing or unknown one
    at the end.
    """
    columns = [column for column in preparation["columns"] if column["as"] != "dropped"]
    return np.stack([coded(column, frame[column["name"]]) for column in columns], axis=1)


def coded(column, values):
    """Returns the float64 [n] codes of a column in the array form."""
    if column["as"] in ("category", "text"):
        codes = {text: float(code) for code, text in enumerate(column["categories"])}
        return np.array([codes.get(text, float(len(codes))) for text in values], np.float64)
    if column["as"] == "date":
        return dates_as_numbers(values, column["unit"]).fillna(column["fill"]).to_numpy()
    if column["as"] == "number":
        values = values.astype(np.float64).fillna(column["fill"])
    return values.to_numpy(np.float64)


def unread_cells(preparation, raw):
    """Returns a line about each column of a table whose cells are not of the form that it had in
    the run: they count as missing, or as false."""
    lines, frame = [], convert(preparation, raw)
    for column in preparation["columns"]:
        if column["as"] in ("number", "date"):
            is_read = frame[column["name"]].notna().tolist()
        elif column["as"] == "boolean":
            is_read = [(t or "true").lower() in ("true", "false") for t in cells(column, raw)]
        elif column["as"] == "category" and preparation["form"] == "array":
            is_read = frame[column["name"]].isin(column["categories"]).tolist()
        else:
            continue
        odd = [t for t, good in zip(cells(column, raw), is_read, strict=True) if t and not good]
        if odd:
            lines.append(
                f"column {column['name']!r}: {len(odd)} of {len(raw)} cells are not as in the run, "
                f"such as {odd[0][:40]!r}: they count as {_counted_as(column)}"
            )
    return lines


def _counted_as(column):
    return "false" if column["as"] == "boolean" else "missing"


def dates_as_numbers(values, unit):
    """Returns days or seconds since 1970 of datetime64[ns] values, NaN for NaT."""
    return (values - pd.Timestamp(0)) / pd.Timedelta(1, unit)


def labels(preparation, raw):
    """Returns class codes, -1 where unknown; for regression numbers, NaN where unknown."""
    target = preparation["target"]
    if target not in raw.columns:
        raise ValueError(f"the table lacks the target {target!r}")
    reading = {**preparation["reading"], "name": target}
    texts = cells(reading, raw)
    if preparation["task"] == "regression":
        return _converted({**reading, "whole": False}, texts)
    codes = {name: code for code, name in enumerate(preparation["classes"])}
    for name in preparation.get("merged", {}).get("classes", ()):
        codes[name] = codes[preparation["merged"]["into"]]
    known = {text: codes.get(class_name(reading, text), -1) for text in set(texts)}
    return np.array([known[text] for text in texts], np.int64)


def class_name(reading, text):
    """Returns the name of the class that a text means: "7" for "7.0" among numbers, exact for any
    length."""
    if text is None or reading["as"] != "number":
        return text
    if re.fullmatch(r"[+-]?\d+", text):
        return str(int(text))
    value = number(text, reading["decimal"])
    return text_of(value) if value == value else text


def known_rows(preparation, raw):
    """Returns the positions of all rows that have a target, also of those beyond a limit."""
    return _known_rows(preparation, labels(preparation, raw))


def _known_rows(preparation, values):
    is_regression = preparation["task"] == "regression"
    return np.flatnonzero(np.isfinite(values) if is_regression else values >= 0)


def visible_rows(preparation, raw):
    """Returns the positions of the rows that programs are trained and scored on, in file order."""
    return _rows(preparation, raw)[0]


def holdout_rows(preparation, raw):
    """Returns the positions of the rows that no reward sees, in file order."""
    return _rows(preparation, raw)[1]


def _rows(preparation, raw):
    values = labels(preparation, raw)
    rows = _known_rows(preparation, values)
    limit = preparation["rows"]["max"]
    if limit is not None and len(rows) > limit:
        rows = np.sort(rows[np.random.RandomState(0).permutation(len(rows))[:limit]])
    share, seed = preparation["holdout"]["share"], preparation["holdout"]["seed"]
    is_held_out = np.zeros(len(rows), np.bool_)
    order = np.random.RandomState(seed).permutation(len(rows))
    strata = np.zeros(len(rows)) if preparation["task"] == "regression" else values[rows]
    for stratum in np.unique(strata) if share else ():
        members = order[strata[order] == stratum]
        # Every class that has rows to spare is in the holdout.
        count = max(round(share * len(members)), int(len(members) > 4))
        is_held_out[members[:count]] = True
    return rows[~is_held_out], rows[is_held_out]


def split_rows(preparation, labels, seed):
    """Returns the positions of the training and the validation half of split `seed`."""
    strata = labels if preparation["splits"]["stratified"] else None
    return draw_halves(len(labels), seed, strata)
