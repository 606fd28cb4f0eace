"""Training and validation halves of a table: the paper's 5 repetitions (section 5.1)."""

from collections.abc import Iterator

import numpy as np

from env.base import UsageError
from env.tables.halves import draw_halves

NUM_SPLITS = 5


def split_rows(
    num_rows: int, seed: int, strata: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the row positions of both halves of split `seed`, see `halves.draw_halves`."""
    return draw_halves(num_rows, seed, strata)


def _halves(
    num_rows: int, num_splits: int, strata: np.ndarray | None
) -> Iterator[tuple[int, str, np.ndarray]]:
    for seed in range(num_splits):
        training, validation = split_rows(num_rows, seed, strata)
        yield seed, "training", training
        yield seed, "validation", validation


def check_class_counts(
    labels_n: np.ndarray,
    *,
    num_splits: int,
    min_rows: int,
    class_names: tuple[str, ...] = (),
    stratified: bool = False,
) -> None:
    """Refuses labels if a half holds fewer than `min_rows` rows of a class.

    If a class is missing in one half, every program fails on that split.

    Args:
      labels_n: class codes 0..K-1.
      num_splits: number of splits that a reward averages.
      min_rows: rows of every class that each half needs.
      class_names: names of the codes, for the message.
      stratified: whether the halves keep the shares of the classes.

    Raises:
      UsageError: naming split, half and class.
    """
    num_classes = int(labels_n.max()) + 1
    for seed, half, rows in _halves(len(labels_n), num_splits, labels_n if stratified else None):
        counts = np.bincount(labels_n[rows], minlength=num_classes)
        rare = int(counts.argmin())
        if counts[rare] < min_rows:
            name = class_names[rare] if class_names else str(rare)
            raise UsageError(
                f"class {name!r} of the target has too few rows: {counts[rare]} in the {half} half "
                f"of split {seed}, at least {min_rows} are needed"
            )
