"""The fourteen tables of the paper: source, target, classes, shape and checksum.

The entries are in `registry.toml`. Shapes are those of prepared tables; Table 1 of the paper prints
others in places, for reasons given in docs/tasks.md.
"""

import dataclasses
import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal

from env.base import UsageError


@dataclasses.dataclass(frozen=True)
class Entry:
    """One table of the paper.

    Attributes:
      name: value of `--dataset`.
      description: fills `"Classification with a {description} Prediction Dataset"` in the prompt.
      source: "rule" (generated, equal to the table on OpenML), "openml" or "kaggle".
      source_id: OpenML data set id, or Kaggle data set or competition.
      target: column to predict.
      classes: values of the target; the position of a value is its class code.
      raw_files: names of the published file that `--data_dir` accepts, relative to it, best first.
      raw_rows: rows of the published file, on which the random stream of preparation depends.
      shape: rows and features of the prepared table.
      paper_shape: rows and features as printed in Table 1.
      checksum: `Dataset.checksum` of the prepared table; None if no trusted copy was available.
    """

    name: str
    description: str
    source: Literal["rule", "openml", "kaggle"]
    source_id: str
    target: str
    classes: tuple[str, ...]
    raw_files: tuple[str, ...]
    raw_rows: int
    shape: tuple[int, int]
    paper_shape: tuple[int, int]
    checksum: str | None = None

    @property
    def origin(self) -> str:
        """Name of the source and identifier of the table there."""
        return f"{'Kaggle' if self.source == 'kaggle' else 'OpenML'} {self.source_id}"


def _read() -> dict[str, Entry]:
    entries = {}
    text = Path(__file__).with_name("registry.toml").read_text("utf-8")
    for name, values in tomllib.loads(text).items():
        fields: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        entries[name] = Entry(name, **fields)
    return entries


REGISTRY = _read()
"""The tables by name, in the order of the paper's Table 1."""


def find(name: str, said_by: str = "") -> Entry:
    """Returns the entry of a name; for others raises `UsageError`, which starts with `said_by`."""
    if name in REGISTRY:
        return REGISTRY[name]
    close = difflib.get_close_matches(name, REGISTRY, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {' '.join(REGISTRY)}"
    raise UsageError(
        f"{said_by}unknown data set {name!r}; {hint} (or the path of a table, with --target=COLUMN)"
    )
