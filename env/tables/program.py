"""etpo datasets [list] | describe PATH | fetch NAME...|all | table

Lists the tables that programs can be scored on, says how a table of your own is read, puts the
paper's tables into the cache, or prints Table 1 of the paper beside ours in Markdown.
"""

import itertools
import sys
from pathlib import Path

from absl import flags

from env import command_line
from env.base import UsageError
from env.tables import cache, loading, registry
from env.tables.loading import cache_folder, fetch
from env.tables.sources import has_kaggle_credentials

_CACHE_DIR = flags.DEFINE_string(
    "cache_dir",
    None,
    f"Folder of prepared tables; default: ${cache.ENVIRONMENT_VARIABLE} or the user's "
    "cache folder.",
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Folder with published raw files, used in place of a download."
)
_STRICT = flags.DEFINE_bool(
    "strict_data",
    None,
    "Refuse what is doubtful about a table; --nostrict_data caches tables of the paper even if "
    "their rows are not the paper's.",
)
_TARGET = flags.DEFINE_string("target", None, "Column that is to be predicted (describe).")
_MAX_ROWS = flags.DEFINE_integer(
    "max_rows", loading.MAX_ROWS, "Rows kept of a table (describe).", lower_bound=loading.MIN_ROWS
)
_HOLDOUT = flags.DEFINE_float(
    "holdout",
    loading.HOLDOUT,
    "Share of the rows that no reward sees (describe).",
    lower_bound=0,
    upper_bound=loading.MAX_HOLDOUT,
)
_RARE_CLASSES = flags.DEFINE_enum(
    "rare_classes",
    "refuse",
    loading.RARE_CLASSES,
    "What is done with classes of too few rows (describe).",
)


def run() -> None:
    """Runs the command that the arguments before the first flag name, and exits."""
    words = list(itertools.takewhile(lambda word: not word.startswith("-"), sys.argv[1:]))
    del sys.argv[1 : 1 + len(words)]

    def main() -> int:
        return _run_command(words)

    command_line.run(main)


def _run_command(words: list[str]) -> int:
    command, names = (words[0], words[1:]) if words else ("list", [])
    if command == "list" and not names:
        print("\n".join(_listing()))
        return 0
    if command == "table" and not names:
        print("\n".join(table_1()))
        return 0
    if command == "describe" and len(names) == 1:
        return _describe(names[0])
    if command == "fetch" and names:
        return _fetch(names)
    raise UsageError(
        f"{' '.join(words)!r}: say list, describe PATH, table, fetch NAME... or fetch all"
    )


def _describe(name: str) -> int:
    from env.tables import listing, user_table

    path = loading.path_of(name)
    if path is None:
        raise UsageError(f"describe {name}: name the file of a table of your own")
    loading.check_file(path, f"describe {name}")
    try:
        preparation = user_table.describe(
            path,
            _TARGET.value,
            max_rows=_MAX_ROWS.value,
            holdout=_HOLDOUT.value,
            rare_classes=_RARE_CLASSES.value,
            strict=_STRICT.value,
        )
    except UsageError as error:
        raise loading.naming(error, path, name) from None
    print("\n".join(listing.profile_lines(preparation)))
    return 0


def table_1() -> list[str]:
    """Returns Table 1 of the paper beside the prepared tables, in lines of Markdown."""
    lines = [
        "| name | source | target | published rows | rows x features x classes | Table 1 | |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in registry.REGISTRY.values():
        shape = f"{entry.shape[0]} x {entry.shape[1]} x {len(entry.classes)}"
        paper = f"{entry.paper_shape[0]} x {entry.paper_shape[1]} x {len(entry.classes)}"
        lines.append(
            f"| `{entry.name}` | {entry.origin} | {entry.target} | {entry.raw_rows} | {shape} | "
            f"{paper} | {_difference(entry)} |"
        )
    return lines


def _difference(entry: registry.Entry) -> str:
    if entry.paper_shape[0] > entry.shape[0]:
        return f"{entry.paper_shape[0] - entry.shape[0]} incomplete rows dropped after counting"
    if entry.paper_shape[1] > entry.shape[1]:
        return "Table 1 counts the target as a feature"
    return "" if entry.checksum else "size only: no trusted copy of the rows"


def _listing() -> list[str]:
    folder = cache_folder(_CACHE_DIR.value)
    rows = [("name", "rows x features x classes", "source", "state")]
    for entry in registry.REGISTRY.values():
        shape = f"{entry.shape[0]} x {entry.shape[1]} x {len(entry.classes)}"
        rows.append((entry.name, shape, entry.origin, _state(entry, folder)))
    widths = [*(max(len(row[i]) for row in rows) for i in range(3)), 0]
    lines = ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)) for row in rows]
    return [
        *lines,
        "",
        f"cache: {folder}",
        "a table of your own: --dataset=PATH --target=COLUMN (etpo datasets describe PATH)",
    ]


def _state(entry: registry.Entry, folder: Path) -> str:
    if entry.source == "rule":
        return "embedded"
    if (cached := cache.load(folder, entry.name)) is not None:
        if entry.checksum is None:
            return "cached, unverified"
        return "cached" if cached.checksum == entry.checksum else "cached, not the paper's rows"
    if entry.source == "openml":
        return "needs the network, or --data_dir"
    if has_kaggle_credentials():
        return "needs a download"
    return "needs Kaggle credentials, or --data_dir"


def _fetch(names: list[str]) -> int:
    from tqdm import tqdm

    if names == ["all"]:
        names = list(registry.REGISTRY)
    for name in names:
        registry.find(name)
    failures = []
    with tqdm(names, unit="table", file=sys.stderr, disable=None) as progress:
        for name in progress:
            progress.set_postfix_str(name)
            try:
                outcome = fetch(
                    name,
                    data_dir=_DATA_DIR.value,
                    cache_dir=_CACHE_DIR.value,
                    strict=_STRICT.value,
                )
            except UsageError as error:
                failures.append(name)
                progress.write(f"error: {error}", file=sys.stderr)
            else:
                progress.write(f"{name}: {outcome}")
    if failures:
        raise UsageError(
            f"{len(failures)} of {len(names)} tables are missing: {' '.join(failures)}"
        )
    return 0
