"""The profile of a table as lines of text: how each column is read, and what is noteworthy."""

from collections.abc import Mapping, Sequence
from typing import Any

_MAX_COLUMNS = 60
_MAX_CLASSES = 12


def profile_lines(preparation: Mapping[str, Any]) -> list[str]:
    """Returns the profile of a user's table in lines; none for a table of the paper.

    Args:
      preparation: see `env.tables.prepared`; one without a target has columns alone.
    """
    columns = [column for column in preparation["columns"] if "profile" in column]
    if not columns:
        return []
    lines = [_file_line(preparation["file"], columns, preparation.get("profile"))]
    if "target" in preparation:
        lines += _target_lines(preparation)
    rows = [("column", "read as", "missing", "distinct", "examples", "remarks")]
    for column in columns[:_MAX_COLUMNS]:
        profile = column["profile"]
        remarks = "; ".join(profile["warnings"])
        rows.append(
            (
                column["name"],
                column["as"],
                str(profile["missing"]),
                str(profile["distinct"]),
                " | ".join(profile["examples"]),
                remarks,
            )
        )
    lines += _aligned(rows)
    if len(columns) > _MAX_COLUMNS:
        lines.append(f"... and {len(columns) - _MAX_COLUMNS} more columns")
    return lines + [f"note: {note}" for note in preparation["notes"]]


def _file_line(
    file: Mapping[str, Any], columns: Sequence[Any], profile: Mapping[str, Any] | None
) -> str:
    details = [file["kind"]]
    if "separator" in file:
        details.append(f"separator {file['separator']!r}")
    details += [file[key] for key in ("encoding", "sheet") if key in file]
    rows = f"{profile['rows']} rows, " if profile else ""
    return f"{file['path']}: {', '.join(details)}; {rows}{len(columns)} columns beside the target"


def _target_lines(preparation: Mapping[str, Any]) -> list[str]:
    profile = preparation["profile"]
    counts = [f"{name} ({count})" for name, count in profile["classes"].items()]
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


def _shown(cell: str) -> str:
    text = "".join(character if character.isprintable() else " " for character in cell)
    return text if len(text) <= 100 else text[:97] + "..."
