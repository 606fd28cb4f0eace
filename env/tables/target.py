"""Decides how the target of a raw table is read, and which classes it has."""

import re
from collections import Counter
from difflib import get_close_matches
from typing import Any

import pandas as pd

from env.base import UsageError
from env.tables import prepared, profile

MAX_NUMERIC_CLASSES = 20
"""Limit of the classes of a numeric target; more distinct values are a quantity."""
_METRICS = "--metric=r2, rmse or mae"
_MAX_LISTED = 40


class QuantityError(UsageError):
    """The target is a quantity, where classes were expected."""


def find_target(raw: pd.DataFrame, target: str | None) -> str:
    """Returns the name of the target's column; raises `UsageError` if there is none."""
    names = list(raw.columns)
    listed = ", ".join(names[:_MAX_LISTED]) + (", ..." if len(names) > _MAX_LISTED else "")
    if target is None:
        raise UsageError(f"--target is missing; the columns are: {listed}")
    if target in names:
        return target
    plain = " ".join(target.split())
    if plain in names:
        return plain
    if target in raw.attrs.get("index", ()):
        raise UsageError(f"--target={target}: pandas stored this column as the index of the rows")
    near = get_close_matches(target.lower(), [name.lower() for name in names], n=1)
    hint = f"; did you mean {next(n for n in names if n.lower() == near[0])!r}?" if near else ""
    if not hint and len(names) == 1:
        hint = "; cells are to be separated by commas, semicolons, tabs, | or spaces"
    if sheets := raw.attrs.get("other_sheets"):
        hint += f"; the first sheet with a table is read, and not {', '.join(sheets)}"
    raise UsageError(f"there is no column {target!r}{hint}; the columns are: {listed}")


def read_target(
    cells: pd.Series, target: str, *, regression: bool, separator: str, declared: list[str] | None
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Returns how the target is read, its classes in the order of their codes, and doubts.

    Words such as "None" and "NA" are classes where the others are words; among numbers, words for a
    missing value are that.

    Args:
      cells: texts of the target's column.
      target: its name.
      regression: whether it is a quantity; there are no classes then.
      separator, declared: as for `profile.read_column`.

    Raises:
      UsageError: when the target is of the other kind.
    """
    texts = [cell.strip() if isinstance(cell, str) else "" for cell in cells.tolist()]
    counts = Counter(text for text in texts if text)
    if not counts:
        raise UsageError(f"the target {target!r} is empty")
    words = {text for text in counts if text.lower() in profile.MISSING_WORDS}
    others = Counter({text: count for text, count in counts.items() if text not in words})
    numbers = None if declared else profile.read_numbers(target, others, separator)
    if regression:
        return _read_quantity(target, counts, words, numbers)
    doubts: list[str] = []
    if numbers is None or set(numbers.entry["missing"]):
        # Words beside numbers are classes too, unless every word stands for a missing value.
        reading: dict[str, Any] = {"as": "category", "missing": [""]}
        found = {text: text for text in counts}
        doubts += [f"the target's value {word!r} is read as a class" for word in sorted(words)]
    else:
        reading = {"as": "number", "missing": ["", *sorted(words)]}
        reading["decimal"] = numbers.entry["decimal"]
        found = {text: str(prepared.class_name(reading, text)) for text in others}
        _check_numeric_classes(target, set(found.values()))
        if all(prepared.PLAIN_NUMBER.fullmatch(text) for text in others):
            doubts += numbers.doubts
        else:  # classes such as "10%" keep their signs
            reading = {"as": "category", "missing": reading["missing"]}
            found = {text: text for text in others}
    classes = _ordered(set(found.values()), reading["as"] == "number", declared)
    if len(classes) < 2:
        raise UsageError(
            f"the target {target!r} has a single class, {classes[0]!r}: nothing to tell apart"
        )
    folded = Counter(" ".join(name.lower().split()) for name in classes)
    doubts += [
        f"classes of the target differ in capitals or spaces alone: {name!r}"
        for name, count in folded.items()
        if count > 1
    ]
    return reading, classes, doubts


def _read_quantity(
    target: str, counts: Counter[str], words: set[str], numbers: profile.Reading | None
) -> tuple[dict[str, Any], list[str], list[str]]:
    if numbers is None:
        example = next(text for text in counts if text not in words or len(words) == len(counts))
        raise UsageError(
            f"the target {target!r} holds texts such as {example[:40]!r}: {_METRICS} need numbers; "
            "the other metrics are for classes"
        )
    missing = {"", *words, *numbers.entry["missing"]}
    reading = {"as": "number", "decimal": numbers.entry["decimal"], "missing": sorted(missing)}
    return reading, [], numbers.doubts


def _check_numeric_classes(target: str, names: set[str]) -> None:
    fractions = sorted(name for name in names if not re.fullmatch(r"-?\d+", name))
    if fractions:
        raise QuantityError(
            f"the target {target!r} holds numbers such as {fractions[0]}: a quantity, for which "
            f"{_METRICS} scores a regression"
        )
    if len(names) > MAX_NUMERIC_CLASSES:
        raise QuantityError(
            f"the target {target!r} holds {len(names)} distinct numbers, more than the "
            f"{MAX_NUMERIC_CLASSES} that are taken as classes: a quantity, for which {_METRICS} "
            "scores a regression"
        )


def _ordered(names: set[str], are_numbers: bool, declared: list[str] | None) -> list[str]:
    if are_numbers:
        return sorted(names, key=int)
    if declared:
        return [name for name in declared if name in names]
    return sorted(names)
