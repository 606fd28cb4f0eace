"""The tables that programs are scored on: the paper's fourteen, by name."""

import dataclasses
import functools
import hashlib

import numpy as np

from env import preparation, registry, rule_tables, splits
from env.base import UsageError

_RULES = {
    "balance_scale": rule_tables.balance_scale,
    "tic_tac_toe": rule_tables.tic_tac_toe,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A table ready for scoring; the order of its rows decides the splits.

    Attributes:
      name: as given to `--dataset`.
      description: fills `"Classification with a {description} Prediction Dataset"`.
      features: float64 [n, f], finite.
      labels: int64 [n], class codes 0..K-1.
      feature_names: f names.
    """

    name: str
    description: str
    features: np.ndarray
    labels: np.ndarray
    feature_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.labels.max()) + 1

    @functools.cached_property
    def checksum(self) -> str:
        """SHA-256 of shape, features and labels, whatever the machine's byte order."""
        digest = hashlib.sha256(np.array(self.features.shape, "<i8").tobytes())
        digest.update(np.ascontiguousarray(self.features, "<f8").tobytes())
        digest.update(np.ascontiguousarray(self.labels, "<i8").tobytes())
        return digest.hexdigest()


def load_dataset(
    name: str,
    *,
    data_dir: str | None = None,
    target: str | None = None,
    description: str | None = None,
) -> Dataset:
    """The table of that name.

    Raises:
      UsageError: naming the table and what is wrong with it.
    """
    entry = registry.find(name)
    if entry.name not in _RULES:
        raise UsageError(f"{name}: only {' '.join(_RULES)} are embedded")
    features, labels, names = preparation.prepare(entry, _RULES[name]())
    splits.check_class_counts(
        labels, num_splits=splits.NUM_SPLITS, min_rows=1, class_names=entry.classes
    )
    return Dataset(name, description or entry.description, features, labels, names)
