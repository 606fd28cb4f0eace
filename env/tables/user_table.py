"""Loads a table of the user's own: how its file is read, its classes, rows and values.

The rules are deterministic, and all of them stand in the preparation that the table comes with:
- Rows without a target are dropped. If there are more than `max_rows`, a fixed random choice is
  kept, in order. A share of the rows kept is held out, of each class as evenly as possible.
- Categories, medians and units come from the rows that are not held out.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from env.base import UsageError
from env.tables import assembly, prepared, profile, splits, table_files, target
from env.tables.table import Dataset

MIN_CLASS_ROWS = 2
"""Rows of each class that each half needs: with one, no program can be told from chance."""
_MIN_QUANTITY_ROWS = 8
_MANY_REPEATED = 0.2

Preparation = dict[str, Any]


def load_user_table(
    path: str | Path,
    description: str,
    target_name: str | None,
    *,
    max_rows: int,
    num_splits: int,
    table_form: str = "array",
    holdout: float = 0.2,
    rare_classes: str = "refuse",
    strict: bool | None = None,
    regression: bool = False,
) -> Dataset:
    """Loads the table in a file.

    Args:
      path: the file.
      description: words for the prompt.
      target_name: column to predict.
      max_rows: largest number of rows that are used, those held out included.
      num_splits: number of splits for which the classes are counted.
      table_form, holdout, rare_classes, strict, regression: as for `loading.load_dataset`.

    Raises:
      UsageError: when the file cannot be read, no program could be scored on it, or `strict` is set
        and anything is doubtful.
    """
    if regression and rare_classes != "refuse":
        raise UsageError(f"--rare_classes={rare_classes}: a regression has no classes")
    file, raw = read_file(path)
    preparation, doubts = _read_table(file, raw, target_name, regression)
    rule, _, splitting = rare_classes.partition("+")
    preparation |= {
        "rows": {"max": max_rows},
        "holdout": {"share": holdout, "seed": 0},
        "form": table_form,
        "splits": {"num": num_splits, "stratified": "stratify" in (rule, splitting)},
        "notes": [],
    }
    if regression:
        _check_quantity(preparation, raw)
    else:
        preparation = _with_common_classes(preparation, raw, rule)
    doubts += _lost_rows(preparation, raw)
    if strict and doubts:
        more = f" (and {len(doubts) - 1} more)" if doubts[1:] else ""
        raise UsageError(f"--strict_data refuses what is doubtful: {doubts[0]}{more}")
    preparation["notes"] = [*doubts, *preparation["notes"]]
    _learn(preparation, raw)
    _count_rows(preparation, raw)
    return assembly.assemble(Path(path).stem, description, preparation, raw)


def _read_table(
    file: Mapping[str, Any], raw: pd.DataFrame, target_name: str | None, regression: bool
) -> tuple[Preparation, list[str]]:
    """Returns how columns and target are read, and what is doubtful."""
    name = target.find_target(raw, target_name)
    columns, doubts = read_columns(file, raw, without=name)
    if all(column["as"] == "dropped" for column in columns):
        raise UsageError(f"there is no column with values beside the target {name!r}")
    reading, classes, target_doubts = target.read_target(
        raw[name],
        name,
        regression=regression,
        separator=file.get("separator", ","),
        declared=raw.attrs.get("categories", {}).get(name),
    )
    preparation = {
        "format": 1,
        "file": file,
        "target": name,
        "reading": reading,
        "task": "regression" if regression else "classification",
        "classes": classes,
        "columns": columns,
    }
    return preparation, doubts + target_doubts


def describe(path: str | Path, target_name: str | None, **options: Any) -> Preparation:
    """Returns the preparation of the table in a file, for a listing; without a target its columns.

    Args: as for `load_user_table`; a numeric target of many values is taken as a quantity.
    """
    if target_name is None:
        file, raw = read_file(path)
        columns, doubts = read_columns(file, raw)
        notes = [*doubts, "name the column to predict with --target to see classes and rows"]
        return {"file": file, "columns": columns, "notes": notes}
    options = {"num_splits": splits.NUM_SPLITS, **options}
    try:
        dataset = load_user_table(path, "", target_name, **options)
    except target.QuantityError:
        dataset = load_user_table(path, "", target_name, **options, regression=True)
    return dict(dataset.preparation)


def read_file(path: str | Path) -> tuple[Preparation, pd.DataFrame]:
    """Returns how a file is read, and its raw table; what is wrong with it is a `UsageError`."""
    try:
        file = table_files.describe_file(os.path.abspath(path))
        raw = prepared.read({"file": file})
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(str(error)) from None
    _check_names(raw, path)
    return file, raw


def read_columns(
    file: Mapping[str, Any], raw: pd.DataFrame, without: str | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns how the columns are read, but for the target `without`, and what is doubtful."""
    doubts = _doubts_of_file(file, raw)
    columns = []
    for name in raw.columns:
        if name == without:
            continue
        reading = profile.read_column(
            name,
            raw[name],
            separator=file.get("separator", ","),
            declared=raw.attrs.get("categories", {}).get(name),
        )
        is_unnamed_and_empty = reading.entry["as"] == "dropped" and name.startswith("Unnamed: ")
        if is_unnamed_and_empty and not reading.entry["profile"]["distinct"]:
            continue  # separators at the ends of lines
        columns.append(reading.entry)
        doubts += reading.doubts
    return columns, doubts


def _check_names(raw: pd.DataFrame, path: str | Path) -> None:
    names = list(raw.columns)
    unnamed = [n for n in names if re.fullmatch(r"Unnamed: \d+", n) and any(raw[n].tolist())]
    if len(unnamed) > max(1, len(names) / 2):
        raise UsageError(
            f"{path}: {len(unnamed)} of {len(names)} columns have no name: the first row must hold "
            "the names of the columns"
        )
    numbers = [name for name in names if prepared.PLAIN_NUMBER.fullmatch(name)]
    if len(numbers) >= len(names) / 2 and any(not name.isdigit() for name in numbers):
        raise UsageError(
            f"{path}: the first row holds values ({', '.join(names[:4])}), not names: add a row "
            "with the names of the columns"
        )


def _doubts_of_file(file: Mapping[str, Any], raw: pd.DataFrame) -> list[str]:
    doubts = []
    if file.get("encoding") in ("cp1252", "latin-1", "utf-16-le", "utf-16-be"):
        doubts.append(f"the file is not UTF-8; it is read as {file['encoding']}")
    if file.get("other_sheets"):
        doubts.append(
            f"the sheet {file['sheet']!r} is read, and not {', '.join(file['other_sheets'])}"
        )
    if title := file.get("title"):
        doubts.append(f"what stands above the names of the columns is skipped: {title!r}")
    for name in raw.attrs.get("index", ()):
        doubts.append(f"column {name!r} is the index that pandas stored: dropped")
    if short := raw.attrs.get("short_rows"):
        doubts.append(f"{short} rows have fewer cells than the header: the last count as missing")
    doubts += [
        f"several columns are called {name!r}: they are numbered" for name in raw.attrs["repeated"]
    ]
    return doubts


def _with_common_classes(preparation: Preparation, raw: pd.DataFrame, rule: str) -> Preparation:
    """Returns the preparation with classes that all halves of all splits hold enough rows of.

    Raises:
      UsageError: when a class has too few rows and the rule is to refuse, or no two are left.
    """
    labels = prepared.labels(preparation, raw)
    counts = np.bincount(labels[labels >= 0])
    order = [preparation["classes"][code] for code in np.argsort(counts, kind="stable")]
    # Classes that cannot have a row or two in each half go at once, the others one by one.
    share = min(1.0, preparation["rows"]["max"] / counts.sum())
    num_rare, hopeless = 0, int((counts * share < 2).sum())
    chosen = preparation
    while problem := _class_problem(chosen, raw):
        if rule not in ("merge", "drop"):
            even = "" if preparation["splits"]["stratified"] else " (+stratify splits them evenly)"
            raise UsageError(f"{problem}; --rare_classes=merge or drop does without them{even}")
        num_rare = max(num_rare + 1, hopeless)
        chosen = _without(preparation, order[:num_rare], rule)
        if len(chosen["classes"]) < 2:
            raise UsageError(
                f"{problem}; no two classes of the target have enough rows: more rows are needed "
                "(of a longer file --max_rows keeps more)"
            )
    return chosen


def _class_problem(preparation: Preparation, raw: pd.DataFrame) -> str:
    """Returns what is wrong with the classes, "" if nothing is."""
    names = preparation["classes"]
    labels = prepared.labels(preparation, raw)[prepared.visible_rows(preparation, raw)]
    for name, count in zip(names, np.bincount(labels, minlength=len(names)), strict=True):
        if not count:
            return f"class {name!r} of the target has too few rows"
    try:
        splits.check_class_counts(
            labels,
            num_splits=preparation["splits"]["num"],
            min_rows=MIN_CLASS_ROWS,
            class_names=tuple(names),
            stratified=preparation["splits"]["stratified"],
        )
    except UsageError as error:
        return str(error)
    return ""


def _without(preparation: Preparation, rare: list[str], rule: str) -> Preparation:
    classes = [name for name in preparation["classes"] if name not in rare]
    shown = ", ".join(map(repr, rare[:5])) + (", ..." if rare[5:] else "")
    if rule == "drop":
        note = f"{len(rare)} rare classes are dropped with their rows: {shown}"
        return {**preparation, "classes": classes, "notes": [note]}
    into = "other" if "other" not in classes else "other classes"
    return {
        **preparation,
        "classes": [*classes, into],
        "merged": {"into": into, "classes": rare},
        "notes": [f"{len(rare)} rare classes are merged into {into!r}: {shown}"],
    }


def _check_quantity(preparation: Preparation, raw: pd.DataFrame) -> None:
    rows = prepared.visible_rows(preparation, raw)
    values = prepared.labels(preparation, raw)[rows]
    if len(rows) < _MIN_QUANTITY_ROWS or len(np.unique(values)) < 2:
        raise UsageError(
            f"the target {preparation['target']!r} has {len(rows)} rows and "
            f"{len(np.unique(values))} distinct numbers: too few for a regression"
        )


def _lost_rows(preparation: Preparation, raw: pd.DataFrame) -> list[str]:
    target_column = {**preparation["reading"], "name": preparation["target"]}
    lost = prepared.cells(target_column, raw).count(None)
    return [f"{lost} of {len(raw)} rows have no target and are dropped"] if lost else []


def _learn(preparation: Preparation, raw: pd.DataFrame) -> None:
    """Adds to the columns what the array form needs, learnt from the rows not held out."""
    visible = raw.iloc[prepared.visible_rows(preparation, raw)]
    frame = prepared.convert(preparation, visible)
    for column in preparation["columns"]:
        if column["as"] == "dropped":
            continue
        values = frame[column["name"]]
        if column["as"] in ("category", "text"):
            occurring = sorted(text for text in values.unique() if text is not None)
            column["categories"] = column.pop("declared", occurring)
        elif column["as"] == "date":
            present = values.dropna()
            column["unit"] = "D" if (present == present.dt.normalize()).all() else "s"
            column["fill"] = _median(prepared.dates_as_numbers(values, column["unit"]))
        elif column["as"] == "number":
            column["fill"] = _median(values)


def _median(values: pd.Series) -> float:
    return float(values.median()) if values.notna().any() else 0.0


def _count_rows(preparation: Preparation, raw: pd.DataFrame) -> None:
    labels = prepared.labels(preparation, raw)
    visible = prepared.visible_rows(preparation, raw)
    held_out = prepared.holdout_rows(preparation, raw)
    used = len(visible) + len(held_out)
    counts = np.bincount(labels[visible]) if preparation["classes"] else np.zeros(0)
    preparation["profile"] = {
        "rows": len(raw),
        "visible": len(visible),
        "holdout": len(held_out),
        "classes": {
            name: int(count) for name, count in zip(preparation["classes"], counts, strict=True)
        },
    }
    names = [c["name"] for c in preparation["columns"] if c["as"] != "dropped"]
    rows = raw.iloc[[*visible, *held_out]][[*names, preparation["target"]]]
    if (repeated := int(rows.duplicated().sum())) > _MANY_REPEATED * used:
        preparation["notes"].append(
            f"{repeated} of {used} rows repeat another row: scores on these say little about new "
            "rows"
        )
    if preparation["rows"]["max"] == used < len(raw):
        preparation["notes"].append(
            f"{used} of {len(raw)} rows are used, a fixed random choice (--max_rows)"
        )
