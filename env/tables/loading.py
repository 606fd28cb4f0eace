"""Loads tables by name: the fourteen of the paper, and any file of the user's.

A table of the paper is taken from `data_dir` if its raw file lies there, else made by rule, else
read from the cache, else downloaded, prepared and cached. The prepared arrays must have the
checksum of those that the paper scored on.
"""

import csv
import dataclasses
import io
import re
from pathlib import Path
from typing import Any, Literal

import numpy as np

from env.base import UsageError
from env.tables import cache, preparation, readers, registry, sources, splits
from env.tables.registry import Entry
from env.tables.table import Dataset, RawTable

MAX_ROWS = 2000
"""Default limit of the rows of a user's table, which is the paper's."""
MIN_ROWS = 8
"""Smallest limit of rows: two rows of two classes in two halves."""
HOLDOUT = 0.2
"""Default share of the rows of a user's table that no reward sees."""
MAX_HOLDOUT = 0.9
MAX_DESCRIPTION_CHARS = 200
RARE_CLASSES = (
    "refuse",
    "merge",
    "drop",
    "stratify",
    "refuse+stratify",
    "merge+stratify",
    "drop+stratify",
)
"""Values of `--rare_classes`; `stratify` alone means `refuse+stratify`."""

_FILE_PREFIXES = ("csv", "parquet", "arff", "xlsx", "json", "file")
_RULES = {
    "balance_scale": sources.balance_scale,
    "tic_tac_toe": sources.tic_tac_toe,
}


def load_dataset(
    name: str | Path,
    *,
    data_dir: str | Path | None = None,
    target: str | None = None,
    description: str | None = None,
    max_rows: int = MAX_ROWS,
    num_splits: int = splits.NUM_SPLITS,
    cache_dir: str | Path | None = None,
    table_form: Literal["array", "frame"] = "array",
    holdout: float | None = None,
    rare_classes: str = "refuse",
    strict: bool | None = None,
    regression: bool = False,
) -> Dataset:
    """Loads the table of that name.

    Args:
      name: name in the registry, or the path of a user's table; a prefix such as `csv:` may stand
        before it, and the content of the file decides how it is read.
      data_dir: folder with published raw files, see docs/tasks.md.
      target: column to predict; for a user's table only.
      description: words for the prompt; default: the registry's, or the name of the file.
      max_rows: number of rows that are kept of a user's table.
      num_splits: number of splits for which class counts are checked.
      cache_dir: folder of prepared tables; default: `cache.default_folder()`.
      table_form: "array", or "frame" for a table that keeps its own columns and types.
      holdout: share of the rows that no reward sees; default: 0.2 of a user's table, else 0.
      rare_classes: what is done with classes of too few rows, one of `RARE_CLASSES`.
      strict: True refuses what is doubtful; False also accepts changed rows of the paper's tables.
      regression: whether the target of a user's table is a quantity rather than a class.

    Raises:
      UsageError: naming the table and what is wrong with it.
    """
    name = str(name)
    _check_options(description, max_rows, holdout, rare_classes)
    path = path_of(name)
    if path is None:
        entry = registry.find(name, f"--dataset={name}: ")
        _check_options_of_paper(entry, target, regression, rare_classes)
        dataset = _load_published(entry, data_dir, cache_folder(cache_dir), strict)
        dataset = dataclasses.replace(dataset, description=description or dataset.description)
        stratified = rare_classes.endswith("stratify")
        return _with_preparation(entry, dataset, table_form, holdout or 0.0, num_splits, stratified)
    if data_dir is not None:
        raise UsageError(f"{name}: --data_dir is for the paper's tables; PATH says it all here")
    return _load_file(
        path,
        name,
        target,
        description,
        max_rows=max_rows,
        num_splits=num_splits,
        table_form=table_form,
        holdout=HOLDOUT if holdout is None else holdout,
        rare_classes=rare_classes,
        strict=strict,
        regression=regression,
    )


def _check_options(
    description: str | None, max_rows: int, holdout: float | None, rare_classes: str
) -> None:
    if description is not None:
        _check_description(description)
    if max_rows < MIN_ROWS:
        raise UsageError(
            f"--max_rows={max_rows}: must be at least {MIN_ROWS}, for two rows of each of two "
            "classes in both halves of a split"
        )
    if holdout is not None and not 0 <= holdout <= MAX_HOLDOUT:
        raise UsageError(f"--holdout={holdout:g}: must be from 0 to {MAX_HOLDOUT}")
    if rare_classes not in RARE_CLASSES:
        raise UsageError(f"--rare_classes={rare_classes}: must be one of {', '.join(RARE_CLASSES)}")


def _check_options_of_paper(
    entry: Entry, target: str | None, regression: bool, rare_classes: str
) -> None:
    name = entry.name
    if target is not None:
        raise UsageError(f"{name}: its target is {entry.target!r}; --target is for a file only")
    if regression:
        raise UsageError(f"{name}: its target is a class; the metrics of regression do not fit it")
    if rare_classes.startswith(("merge", "drop")):
        raise UsageError(f"{name}: --rare_classes={rare_classes} is for a table of your own")


def _with_preparation(
    entry: Entry, dataset: Dataset, table_form: str, holdout: float, num_splits: int, strata: bool
) -> Dataset:
    """Returns a table of the paper in the form asked for, and with it the rows as a text."""
    columns = [
        {
            "name": name,
            "as": "number",
            "missing": [""],
            "decimal": ".",
            "whole": bool((values % 1 == 0).all()),
            "fill": float(np.median(values)),
        }
        for name, values in zip(dataset.feature_names, dataset.features.T, strict=True)
    ]
    preparation = {
        "format": 1,
        "file": {"csv": _as_csv(entry, dataset)},
        "target": entry.target,
        "reading": {"as": "category", "missing": [""]},
        "task": "classification",
        "classes": list(dataset.class_names),
        "columns": columns,
        "rows": {"max": None},
        "holdout": {"share": holdout, "seed": 0},
        "form": table_form,
        "splits": {"num": num_splits, "stratified": strata},
        "notes": [],
    }
    if table_form == "array" and not holdout:
        dataset = dataclasses.replace(dataset, preparation=preparation, stratified=strata)
    else:
        from env.tables import assembly, prepared  # deferred: plain arrays do without pandas

        raw = prepared.read(preparation)
        dataset = assembly.assemble(entry.name, dataset.description, preparation, raw)
    try:
        splits.check_class_counts(
            dataset.labels,
            num_splits=num_splits,
            min_rows=1,
            class_names=dataset.class_names,
            stratified=strata,
        )
    except UsageError as error:
        raise UsageError(f"{entry.name}: {error}") from None
    return dataset


def _as_csv(entry: Entry, dataset: Dataset) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*dataset.feature_names, entry.target])
    for row, label in zip(dataset.features.tolist(), dataset.labels.tolist(), strict=True):
        numbers = (int(value) if value.is_integer() else value for value in row)
        writer.writerow([*numbers, dataset.class_names[label]])
    return text.getvalue()


def fetch(
    name: str,
    *,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    strict: bool | None = None,
) -> Literal["embedded", "cached", "fetched"]:
    """Puts a table of the paper into the cache, so that it can be loaded without its source.

    Args: as for `load_dataset`.

    Raises:
      UsageError: when the source fails or has other rows; the cache stays as it was.
    """
    entry, folder = registry.find(name), cache_folder(cache_dir)
    if entry.source == "rule":
        return "embedded"
    cached = cache.load(folder, name)
    if cached is not None and _mismatch(entry, cached) is None:
        return "cached"
    table = _read_raw(entry, data_dir)
    if table is None:
        _fetch_and_store(entry, folder, strict)
    else:
        _store(entry, table, folder, strict)
    return "fetched"


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Returns the folder of prepared tables: `cache_dir`, or the default."""
    return Path(cache_dir).expanduser() if cache_dir else cache.default_folder()


def _load_published(
    entry: Entry, data_dir: str | Path | None, folder: Path, strict: bool | None
) -> Dataset:
    if (table := _read_raw(entry, data_dir)) is not None:
        return _prepare(entry, table, strict)
    if entry.source == "rule":
        return _prepare(entry, _RULES[entry.name](), strict)
    if (cached := cache.load(folder, entry.name)) is not None:
        return _verified(entry, cached, strict)
    return _fetch_and_store(entry, folder, strict)


def _read_raw(entry: Entry, data_dir: str | Path | None) -> RawTable | None:
    """Reads the raw file in `data_dir`; returns None if there is none."""
    if data_dir is None:
        return None
    folder = Path(data_dir).expanduser()
    if not folder.is_dir():
        raise UsageError(f"--data_dir={data_dir}: there is no such folder")
    for name in entry.raw_files:
        if (folder / name).is_file():
            return readers.read_table(folder / name)
    return None


def _fetch_and_store(entry: Entry, folder: Path, strict: bool | None) -> Dataset:
    is_kaggle = entry.source == "kaggle"
    try:
        table = (sources.fetch_from_kaggle if is_kaggle else sources.fetch_from_openml)(entry)
    except sources.SourceError as error:
        condition = "with Kaggle credentials" if is_kaggle else "with a network"
        raise UsageError(
            f"{entry.name} is neither cached nor to be had from {entry.origin}: {error}; run "
            f"`etpo datasets fetch {entry.name}` {condition}, or put "
            f"{entry.raw_files[0]} into a folder and give it as --data_dir"
        ) from None
    return _store(entry, table, folder, strict)


def _store(entry: Entry, table: RawTable, folder: Path, strict: bool | None) -> Dataset:
    if entry.checksum is None and table.num_rows != entry.raw_rows and strict is not False:
        raise UsageError(
            f"{entry.name}: {table.num_rows} rows instead of the published {entry.raw_rows}, which "
            "no checksum can tell apart later; --nostrict_data caches them all the same"
        )
    dataset = _prepare(entry, table, strict)
    cache.store(folder, dataset)
    return dataset


def _prepare(entry: Entry, table: RawTable, strict: bool | None) -> Dataset:
    try:
        features, labels, feature_names = preparation.prepare(entry, table)
    except UsageError as error:
        raise UsageError(f"{entry.name}: {error}") from None
    if not len(labels) or not np.isfinite(features).all():
        raise UsageError(f"{entry.name}: no complete rows, or infinite values in them")
    dataset = Dataset(entry.name, entry.description, features, labels, feature_names, entry.classes)
    return _verified(entry, dataset, strict)


def _verified(entry: Entry, dataset: Dataset, strict: bool | None) -> Dataset:
    problem = _mismatch(entry, dataset)
    if problem and strict is not False:
        raise UsageError(f"{problem}; --nostrict_data takes them all the same")
    if entry.checksum is None and strict:
        raise UsageError(f"{entry.name}: --strict_data refuses rows that no checksum verifies")
    if problem or entry.checksum is None:
        from absl import logging

        logging.warning(
            "%s", problem or f"{entry.name}: no trusted checksum exists, the rows are unverified"
        )
    return dataset


def _mismatch(entry: Entry, dataset: Dataset) -> str | None:
    if entry.checksum in (None, dataset.checksum):
        return None
    return (
        f"{entry.name}: the rows are not those of the paper: checksum {dataset.checksum}, "
        f"expected {entry.checksum}"
    )


def path_of(name: str) -> Path | None:
    """Returns the path that a name of a table means, None for a table of the paper."""
    prefix, _, rest = name.partition(":")
    if rest and prefix in _FILE_PREFIXES:
        return Path(rest).expanduser()
    path = Path(name).expanduser()
    if name in registry.REGISTRY or not (path.exists() or path.suffix or len(path.parts) > 1):
        return None
    return path


def check_file(path: Path, said: str) -> None:
    """Refuses a path that names no file; the message starts with `said`."""
    if path.is_dir():
        raise UsageError(f"{said}: names a folder; name the file in it")
    if not path.is_file():
        raise UsageError(f"{said}: there is no such file")


def _load_file(
    path: Path, name: str, target: str | None, description: str | None, **options: Any
) -> Dataset:
    check_file(path, f"--dataset={name}")
    if description is None:
        words = [
            re.sub(r'["\\\\]', "", word) for word in re.split(r"[\s_.-]+", path.name.split(".")[0])
        ]
        description = " ".join(word[0].upper() + word[1:] for word in words if word)
        description = description[:MAX_DESCRIPTION_CHARS] or "User"
        _check_description(description)
    from env.tables.user_table import load_user_table  # deferred: most runs read no file

    try:
        return load_user_table(path, description, target, **options)
    except UsageError as error:
        raise naming(error, path, name) from None


def naming(error: UsageError, path: Path, name: str) -> UsageError:
    """Returns the error with the name of the table before it, if it does not hold the path."""
    said = str(error)
    return UsageError(said if str(path) in said else f"{name}: {said}")


def _check_description(description: str) -> None:
    # Every prompt holds the description in a docstring.
    if (
        not description.strip()
        or not description.isprintable()
        or len(description) > MAX_DESCRIPTION_CHARS
        or any(text in description for text in ('"""', "\\", "<FILL_ME>"))
    ):
        raise UsageError(
            f"--task_description={description[:80]!r} must be one line of 1 to "
            f"{MAX_DESCRIPTION_CHARS} printable characters without backslash, triple quotes or "
            "<FILL_ME>"
        )
