"""Makes the arrays or the frame of a table from its preparation."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from env.tables import prepared
from env.tables.table import Dataset


def assemble(
    name: str, description: str, preparation: Mapping[str, Any], raw: pd.DataFrame
) -> Dataset:
    """Returns the table that a preparation makes of a raw one, its holdout included.

    Args:
      name: short name, for logs.
      description: words for the prompt.
      preparation: see `env.tables.prepared`.
      raw: table of texts that `prepared.read` returned.
    """
    labels = prepared.labels(preparation, raw)
    array_form = {**preparation, "form": "array"}

    def part(rows: np.ndarray, holdout: Dataset | None = None) -> Dataset:
        taken = raw.iloc[rows]
        columns = [c["name"] for c in preparation["columns"] if c["as"] != "dropped"]
        is_frame = preparation["form"] == "frame"
        return Dataset(
            name,
            description,
            prepared.features(array_form, taken),
            labels[rows],
            tuple(columns),
            tuple(preparation["classes"]),
            frame=prepared.convert(preparation, taken) if is_frame else None,
            holdout=holdout,
            preparation=preparation,
            stratified=preparation["splits"]["stratified"],
        )

    held_out = prepared.holdout_rows(preparation, raw)
    return part(prepared.visible_rows(preparation, raw), part(held_out) if len(held_out) else None)
