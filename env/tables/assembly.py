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
    is_frame = preparation["form"] == "frame"

    def part(rows: np.ndarray, holdout: Dataset | None = None) -> Dataset:
        frame = prepared.convert(preparation, raw.iloc[rows])
        return Dataset(
            name,
            description,
            prepared.as_array(preparation, frame),
            labels[rows],
            tuple(frame.columns),
            tuple(preparation["classes"]),
            frame=frame if is_frame else None,
            holdout=holdout,
            preparation=preparation,
            stratified=preparation["splits"]["stratified"],
        )

    held_out = prepared.holdout_rows(preparation, raw)
    return part(prepared.visible_rows(preparation, raw), part(held_out) if len(held_out) else None)
