"""A table ready for scoring."""

import dataclasses
import functools
import hashlib

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Features and class codes; the order of the rows decides the splits.

    Attributes:
      name: short, for logs.
      description: fills `"Classification with a {description} Prediction Dataset"`.
      features: float64 [n, f], finite.
      labels: int64 [n], class codes 0..K-1.
      feature_names: f names.
      class_names: K names.
    """

    name: str
    description: str
    features: np.ndarray
    labels: np.ndarray
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...] = ()

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
