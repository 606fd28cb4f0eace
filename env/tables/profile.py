"""Decides how each column of a raw table is read, and says what is doubtful about that.

A reading is one entry of `columns` in a preparation (`env.tables.prepared`), with a `profile` of
the column: missing cells, distinct values, examples and warnings. Doubts are lines of their own,
since `--strict_data` refuses a table that has any. Nothing here looks at the target of a row.
"""

import dataclasses
import itertools
import math
import re
from collections import Counter
from typing import Any

import pandas as pd

from env.tables import prepared

MISSING_WORDS = frozenset(
    ("", "?", "na", "n/a", "#n/a", "#na", "nan", "-nan", "<na>", "null", "nat")
)
"""Words that stand for a missing value in any column of features, in lower case."""
MISSING_NUMBERS = frozenset(
    (
        *("none", "-", "--", "---", ".", "..", "nil", "n.a.", "n.d.", "k.a.", "tba", "tbd"),
        *("unknown", "missing", "undefined", "not available", "not applicable"),
        *("#div/0!", "#value!", "#ref!", "#null!", "#num!", "#name?"),
    )
)
"""Further words that stand for a missing value among numbers or dates."""
_INFINITE = frozenset(("inf", "-inf", "+inf", "infinity", "-infinity", "+infinity"))

_MOSTLY = 0.95
"""Share of the cells of a column that must follow a format; the others then count as missing."""
_MANY = 50
_NUM_EXAMPLES = 3
_EXAMPLE_CHARS = 24

_INDEX_NAMES = re.compile(r"Unnamed: 0(\.\d+)*|__index_level_\d+__|\.\.\.1|")
_DISTINCT_INDEX_NAMES = re.compile(
    r"(?i)index|idx|#|n[or]\.?|s\.? ?no\.?|level_\d+|row[ _.]?(id|no|nr|num|numbers?|names?)?|X"
)
_ID_NAMES = re.compile(r"(?i:(.*[^a-zA-Z])?(id|uuid|guid))|.*[a-z](Id|ID)")

_LOOKS_LIKE_DATE = re.compile(
    r"\d{1,4}[-/. ][\w.]{1,9}[-/. ,]+\d{2,4}(\b|T).*|[A-Za-z]{3,9}\.? \d{1,2},? \d{4}.*"
)
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?")
_NEVER = re.compile(r"(9\d{3}|0\d{3})-\d{2}-\d{2}([T ].*)?|00?[./]00?[./]0000")
_DAYS = (
    *("%d.%m.%Y", "%m/%d/%Y", "%d/%m/%Y", "%Y/%m/%d", "%d-%m-%Y", "%m-%d-%Y", "%Y.%m.%d"),
    *("%d %b %Y", "%d-%b-%Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y"),
    *("%d.%m.%y", "%m/%d/%y", "%d/%m/%y", "%d-%m-%y", "%d-%b-%y"),
)
_TIMES = ("", " %H:%M", " %H:%M:%S", " %H:%M:%S.%f", " %I:%M %p", " %I:%M:%S %p")
_LAYOUTS = tuple(day + time for time, day in itertools.product(_TIMES, _DAYS))


@dataclasses.dataclass
class Reading:
    """How a column is read.

    Attributes:
      entry: the column's entry in a preparation.
      doubts: what is doubtful, one line each.
      warnings: what is good to know and stands in the profile.
    """

    entry: dict[str, Any]
    doubts: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)


def read_column(
    name: str, cells: pd.Series, *, separator: str = ",", declared: list[str] | None = None
) -> Reading:
    """Decides how a column of features is read.

    Args:
      name: name of the column.
      cells: its texts, in the order of the rows.
      separator: what separates the cells of the file; behind a semicolon, a comma is more likely a
        decimal mark.
      declared: categories that the file declares, in order.
    """
    texts = [cell.strip() if isinstance(cell, str) else "" for cell in cells.tolist()]
    counts = Counter(texts)
    words = {text for text in counts if text.lower() in MISSING_WORDS}
    present = Counter({text: n for text, n in counts.items() if text not in words})
    reading = (
        _empty(name, present)
        or _row_numbers(name, present, len(texts))
        or _boolean(name, present, len(texts))
        or (None if declared else read_numbers(name, present, separator))
        or _dates(name, present, separator)
        or _category(name, counts, present, declared)
    )
    entry = reading.entry
    entry.setdefault("missing", [])
    entry["missing"] = sorted({"", *entry["missing"], *(words - set(entry.pop("kept", ())))})
    absent = sum(counts[text] for text in entry["missing"])
    distinct = len(set(counts) - set(entry["missing"]))
    if entry["as"] == "number" and absent:
        entry["whole"] = False
    if distinct == 1 and not absent and entry["as"] != "dropped":
        entry["as"] = "dropped"
        reading.warnings.append("constant: dropped")
    if entry["as"] == "number" and _rises_by_one(texts):
        reading.warnings.append("rises by one from row to row")
        reading.doubts.append(
            f"column {name!r} rises by one from row to row: drop it if it only numbers the rows"
        )
    examples = itertools.islice(
        dict.fromkeys(t for t in texts if t not in entry["missing"]), _NUM_EXAMPLES
    )
    entry["profile"] = {
        "missing": absent,
        "distinct": distinct,
        "examples": [_shortened(text) for text in examples],
        "warnings": reading.warnings,
    }
    return reading


def _shortened(text: str) -> str:
    plain = " ".join(text.split())
    return plain if len(plain) <= _EXAMPLE_CHARS else plain[: _EXAMPLE_CHARS - 3] + "..."


def _dropped(name: str, why: str) -> Reading:
    return Reading(
        {"name": name, "as": "dropped"}, [f"column {name!r} {why}: dropped"], [f"{why}: dropped"]
    )


def _empty(name: str, present: Counter[str]) -> Reading | None:
    return None if present else _dropped(name, "is empty")


def _row_numbers(name: str, present: Counter[str], num_rows: int) -> Reading | None:
    """A column that names or numbers the rows: in a sorted table it would tell the class."""
    is_distinct = len(present) == num_rows
    is_whole = all(re.fullmatch(r"[+-]?\d+(\.0*)?", text) for text in present)
    if _INDEX_NAMES.fullmatch(name) and (is_whole or is_distinct):
        return _dropped(name, "is an index of the rows")
    if _DISTINCT_INDEX_NAMES.fullmatch(name) and is_whole and is_distinct:
        return _dropped(name, "numbers the rows")
    is_code = is_whole or not any(" " in text or "." in text for text in present)
    if _ID_NAMES.fullmatch(name) and is_distinct and is_code:
        return _dropped(name, "is id-like, with another value in every row")
    is_numbered = is_distinct and num_rows > 20 and list(present) == sorted(present)
    if is_numbered and all(re.fullmatch(r"[A-Za-z]+[-_]?\d+", text) for text in present):
        return _dropped(name, "numbers the rows by codes")
    return None


def _rises_by_one(texts: list[str]) -> bool:
    if not all(re.fullmatch(r"\d{1,15}", text) for text in texts):
        return False
    numbers = [int(text) for text in texts]
    return numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def _boolean(name: str, present: Counter[str], num_rows: int) -> Reading | None:
    lowered = Counter[str]()
    for text, count in present.items():
        lowered[text.lower()] += count
    # Booleans of pandas have no missing value.
    if set(lowered) != {"true", "false"} or lowered.total() != num_rows:
        return None
    common = "true" if lowered["true"] >= lowered["false"] else "false"
    return Reading({"name": name, "as": "boolean", "common": common})


def read_numbers(name: str, present: Counter[str], separator: str) -> Reading | None:
    """Reads a column as numbers if nearly all of its cells are numbers.

    Args:
      name: name of the column.
      present: texts that are no words for a missing value, and how often each occurs.
      separator: as for `read_column`.

    Returns: None for a column that is no numbers, such as one of codes with leading zeros, or of
      identifiers that are too long for a number.
    """
    if any(re.fullmatch(r"0\d+", text) or _is_too_long(text) for text in present):
        return None
    total = present.total()
    plain = {t for t in present if prepared.PLAIN_NUMBER.fullmatch(t) and _is_number(t, ".")}
    read = {".": plain, ",": set[str]()}
    if len(plain) < len(present) or separator == ";":
        read = {mark: {t for t in present if _is_number(t, mark)} for mark in (".", ",")}
    points, commas = (sum(present[text] for text in read[mark]) for mark in (".", ","))
    entry: dict[str, Any] = {"name": name, "as": "number", "decimal": "."}
    reading = Reading(entry)
    is_plain = len(plain) == len(read["."])
    if commas > points:
        entry["decimal"] = ","
        reading.warnings.append("decimal comma")
    elif not is_plain and commas == points and any("," in text for text in read["."]):
        entry["decimal"] = "," if separator == ";" else "."
        _say_how_commas_are_read(reading, name, read["."])
    elif is_plain and separator == ";" and _all_look_grouped(read["."]):
        example = next(iter(read["."]))
        reading.doubts.append(
            f"column {name!r}: {example!r} is read as {prepared.number(example):g}; the point may "
            "stand between thousands"
        )
    numbers = read[entry["decimal"]]
    rest = {text: count for text, count in present.items() if text not in numbers}
    words = {t for t in rest if t.lower() in MISSING_NUMBERS or t.lower() in _INFINITE}
    bad = {text: count for text, count in rest.items() if text not in words}
    num_read = sum(present[text] for text in numbers)
    if num_read < 0.5 * total or sum(bad.values()) > (1 - _MOSTLY) * total:
        return None
    _say_signs(reading, name, numbers)
    infinite = [text for text in words if text.lower() in _INFINITE]
    if infinite:
        count = sum(rest[text] for text in infinite)
        reading.doubts.append(f"column {name!r}: {count} infinite values count as missing")
    _say_unread(reading, name, bad, "numbers")
    entry["missing"] = list(rest)
    values = [prepared.number(text, entry["decimal"]) for text in numbers]
    entry["whole"] = not rest and all(v % 1 == 0 and abs(v) < 2**53 for v in values)
    return reading


def _is_number(text: str, decimal: str) -> bool:
    return not math.isnan(prepared.number(text, decimal))


def _is_too_long(text: str) -> bool:
    """True for a whole number that a float64 does not hold, such as an identifier of 19 digits."""
    return re.fullmatch(r"[+-]?\d{16,}", text) is not None and int(float(text)) != int(text)


def _say_how_commas_are_read(reading: Reading, name: str, numbers: set[str]) -> None:
    example = min(text for text in numbers if "," in text)
    value = prepared.number(example, reading.entry["decimal"])
    other = "between thousands" if reading.entry["decimal"] == "," else "a decimal mark"
    reading.doubts.append(
        f"column {name!r}: {example!r} is read as {value:g}; the comma may be {other}"
    )
    reading.warnings.append(
        "decimal comma" if reading.entry["decimal"] == "," else "commas between thousands"
    )


def _all_look_grouped(texts: set[str]) -> bool:
    return bool(texts) and all(re.fullmatch(r"[+-]?\d{1,3}\.\d{3}", text) for text in texts)


def _say_signs(reading: Reading, name: str, numbers: set[str]) -> None:
    signs = {match for text in numbers for match in re.findall(r"[%$€£¥₹]|[A-Z]{3}", text)}
    if not signs:
        return
    reading.warnings.append(f"{' '.join(sorted(signs))} left out")
    bare = sum(not re.search(r"[%$€£¥₹]|[A-Z]{3}", text) for text in numbers)
    if len(signs) > 1 or ("%" in signs and bare):
        shown = " and ".join([*sorted(signs), *(["no sign"] if bare else [])])
        reading.doubts.append(f"column {name!r}: numbers with {shown} are mixed and read alike")


def _say_unread(reading: Reading, name: str, bad: dict[str, int], kind: str) -> None:
    if bad:
        reading.doubts.append(
            f"column {name!r}: {sum(bad.values())} cells that are no {kind}, such as "
            f"{_shortened(next(iter(bad)))!r}, count as missing"
        )


def _dates(name: str, present: Counter[str], separator: str) -> Reading | None:
    words = {text for text in present if text.lower() in MISSING_NUMBERS or _NEVER.fullmatch(text)}
    texts = [text for text in present if text not in words]
    sample = texts[:: max(1, len(texts) // 200)]
    if (
        sum(bool(_LOOKS_LIKE_DATE.fullmatch(t)) for t in sample) < _MOSTLY * len(sample)
        or not texts
    ):
        return None
    layouts = [
        layout
        for layout in ("ISO8601", *_LAYOUTS)
        if layout != "ISO8601" or sum(bool(_ISO.fullmatch(t)) for t in sample) >= len(sample) / 2
        if prepared.dates(sample, layout).notna().mean() >= _MOSTLY
    ]
    if not layouts:
        return None
    unread = {
        layout: list(itertools.compress(texts, prepared.dates(texts, layout).isna()))
        for layout in layouts
    }
    fewest = min(len(bad) for bad in unread.values())
    layouts = [layout for layout in layouts if len(unread[layout]) == fewest]
    if separator == ";":  # where commas are decimal marks, days come first
        layouts.sort(key=lambda layout: layout.startswith("%m"))
    bad = {text: present[text] for text in unread[layouts[0]]}
    if sum(bad.values()) > (1 - _MOSTLY) * present.total():
        return None
    reading = Reading({"name": name, "as": "date", "layout": layouts[0]})
    reading.entry["missing"] = [*words, *bad]
    reading.warnings.append("date")
    never = [text for text in words if _NEVER.fullmatch(text)]
    _say_unread(reading, name, {text: present[text] for text in never}, "dates of any use")
    _say_unread(reading, name, bad, "dates")
    if len(layouts) > 1:
        first = prepared.dates(texts, layouts[0])
        if not first.equals(prepared.dates(texts, layouts[1])):
            reading.doubts.append(
                f"column {name!r}: {texts[0]!r} is read as {first[0]:%d %B %Y}; day and month "
                "could be the other way round"
            )
    return reading


def _category(
    name: str, counts: Counter[str], present: Counter[str], declared: list[str] | None
) -> Reading:
    reading = Reading({"name": name, "as": "category"})
    kept = [text for text in counts if text.lower() in MISSING_WORDS - {""}]
    is_code = all(re.fullmatch(r"[A-Z]{2}", text) for text in present)
    kept = [text for text in kept if text in (declared or ()) or (is_code and text == "NA")]
    reading.entry["kept"] = kept
    for text in kept:
        reading.doubts.append(f"column {name!r}: {text!r} is read as a value, not as missing")
    if declared:
        reading.entry["declared"] = declared
        return reading
    num_distinct, total = len(present), present.total()
    words = sum(len(text.split()) * count for text, count in present.items()) / total
    length = sum(len(text) * count for text, count in present.items()) / total
    if num_distinct > max(20, total / 2) and (words >= 4 or length >= 40):
        reading.entry["as"] = "text"
        reading.warnings.append("free text")
    elif num_distinct > 20 and num_distinct > 0.95 * total:
        reading.warnings.append("id-like: nearly every row has a value of its own")
    elif num_distinct > _MANY:
        reading.warnings.append(f"{num_distinct} categories")
    if any(re.fullmatch(r"0\d+", text) for text in present):
        reading.warnings.append("leading zeros: read as codes")
    if any(_is_too_long(text) for text in present):
        reading.warnings.append("numbers of too many digits: read as codes")
    return reading
