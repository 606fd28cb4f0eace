"""Tables in memory: as published (`RawTable`), and ready for scoring (`Dataset`)."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable

import numpy as np

from env.base import UsageError


@dataclasses.dataclass(frozen=True, eq=False)
class Column:
    """One column of a table.

    Attributes:
      name: name as published.
      values: float64 [n], NaN where missing; for a nominal column positions in `categories`.
      categories: values of a nominal column in declared order; None for a numeric column.
    """

    name: str
    values: np.ndarray
    categories: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class RawTable:
    """A published table: one column or more, all of equal length, in published order."""

    columns: tuple[Column, ...]

    @property
    def num_rows(self) -> int:
        """Number of rows, incomplete ones included."""
        return len(self.columns[0].values)

    def column(self, name: str) -> Column:
        """Returns the column of that name; a missing one raises `UsageError`."""
        for column in self.columns:
            if column.name == name:
                return column
        names = ", ".join(column.name for column in self.columns)
        raise UsageError(f"there is no column {name!r}; the columns are: {names}")

    def without(self, name: str) -> "RawTable":
        """Returns the table without a column; a missing one raises `UsageError`."""
        dropped = self.column(name)
        return RawTable(tuple(column for column in self.columns if column is not dropped))

    def take(self, rows: np.ndarray | slice) -> "RawTable":
        """Returns the table with the given rows in the given order."""
        return self.map_values(lambda values: values[rows])

    def complete(self) -> "RawTable":
        """Returns the table without the rows in which a value is missing."""
        missing = np.zeros(self.num_rows, np.bool_)
        for column in self.columns:
            missing |= np.isnan(column.values)
        return self.take(~missing)

    def map_values(self, function: Callable[[np.ndarray], np.ndarray]) -> "RawTable":
        """Returns the table with `function` applied to the values of each column."""
        return RawTable(
            tuple(dataclasses.replace(c, values=function(c.values)) for c in self.columns)
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Features and class codes of a table; the order of the rows decides the splits.

    Attributes:
      name: short name, for logs.
      description: words that fill `"Classification with a {description} Prediction Dataset"`.
      features: float64 [n, f], finite.
      labels: int64 [n], class codes 0..K-1.
      feature_names: names of the f features.
      class_names: names of the K classes.
    """

    name: str
    description: str
    features: np.ndarray
    labels: np.ndarray
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number K of classes."""
        return int(self.labels.max()) + 1

    @functools.cached_property
    def checksum(self) -> str:
        """SHA-256 of shape, features and labels; the same for every byte order of machines."""
        digest = hashlib.sha256(np.array(self.features.shape, "<i8").tobytes())
        digest.update(np.ascontiguousarray(self.features, "<f8").tobytes())
        digest.update(np.ascontiguousarray(self.labels, "<i8").tobytes())
        return digest.hexdigest()
