"""The profile of a table as lines of text: how each column is read, and what is noteworthy."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

HEADER = ("column", "read as", "missing", "distinct", "examples", "remarks")
"""Header of `column_rows`."""

_MAX_CLASSES = 12


def profile_lines(preparation: Mapping[str, Any], *, max_columns: int = 60) -> list[str]:
    """Returns the profile of a user's table in lines; none for a table of the paper.

    Args:
      preparation: see `env.tables.prepared`; one without a target has columns alone.
      max_columns: number of columns, and of notes, that are shown of a wide table.
    """
    rows = column_rows(preparation)
    if not rows:
        return []
    lines = about_lines(preparation) + _aligned([HEADER, *rows[:max_columns]])
    if len(rows) > max_columns:
        lines.append(f"... and {len(rows) - max_columns} more columns")
    notes = preparation["notes"]
    lines += [f"note: {note}" for note in notes[:max_columns]]
    if len(notes) > max_columns:
        lines.append(f"... and {len(notes) - max_columns} more notes")
    return lines


def about_lines(preparation: Mapping[str, Any]) -> list[str]:
    """Returns lines about the file, the target and the rows of a user's table."""
    lines = [_file_line(preparation["file"], _columns(preparation), preparation.get("profile"))]
    return lines + (_target_lines(preparation) if "target" in preparation else [])


def column_rows(preparation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Returns a row of texts for each column of a user's table; none for a table of the paper."""
    return [
        (
            column["name"],
            column["as"],
            str(column["profile"]["missing"]),
            str(column["profile"]["distinct"]),
            " | ".join(column["profile"]["examples"]),
            "; ".join(column["profile"]["warnings"]),
        )
        for column in _columns(preparation)
    ]


def _columns(preparation: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [column for column in preparation.get("columns", ()) if "profile" in column]


def _file_line(
    file: Mapping[str, Any], columns: Sequence[Any], profile: Mapping[str, Any] | None
) -> str:
    details = [file["kind"]]
    if "separator" in file:
        details.append(f"separator {file['separator']!r}")
    details += [file[key] for key in ("encoding", "sheet") if key in file]
    rows = f"{profile['rows']} rows, " if profile else ""
    name = os.path.basename(file["path"])
    return f"{name}: {', '.join(details)}; {rows}{len(columns)} columns beside the target"


def _target_lines(preparation: Mapping[str, Any]) -> list[str]:
    profile = preparation["profile"]
    counts = [f"{_shown(name, 40)} ({count})" for name, count in profile["classes"].items()]
    if len(counts) > _MAX_CLASSES:
        counts = [*counts[:_MAX_CLASSES], f"and {len(counts) - _MAX_CLASSES} more"]
    kind = f"{len(profile['classes'])} classes: {', '.join(counts)}" if counts else "a quantity"
    return [
        f"target {preparation['target']}: {kind}",
        f"rows: {profile['visible']} for rewards, {profile['holdout']} held out",
    ]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    rows = [[_shown(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _shown(cell: str, max_chars: int = 100) -> str:
    text = "".join(character if character.isprintable() else " " for character in cell)
    return text if len(text) <= max_chars else text[: max_chars - 3] + "..."
