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
      name: as published.
      values: float64 [n]; positions in `categories` where there are any, NaN where missing.
      categories: the values of a nominal column, in their declared order, else None.
    """

    name: str
    values: np.ndarray
    categories: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class RawTable:
    """At least one column, all of equal length, in published order."""

    columns: tuple[Column, ...]

    @property
    def num_rows(self) -> int:
        """Rows, incomplete ones included."""
        return len(self.columns[0].values)

    def column(self, name: str) -> Column:
        """The column of that name; a missing one raises `UsageError`."""
        for column in self.columns:
            if column.name == name:
                return column
        names = ", ".join(column.name for column in self.columns)
        raise UsageError(f"there is no column {name!r}; the columns are: {names}")

    def without(self, name: str) -> "RawTable":
        """The other columns; a missing one raises `UsageError`."""
        dropped = self.column(name)
        return RawTable(tuple(column for column in self.columns if column is not dropped))

    def take(self, rows: np.ndarray | slice) -> "RawTable":
        """These rows in this order."""
        return self.map_values(lambda values: values[rows])

    def complete(self) -> "RawTable":
        """The rows in which nothing is missing."""
        missing = np.zeros(self.num_rows, np.bool_)
        for column in self.columns:
            missing |= np.isnan(column.values)
        return self.take(~missing)

    def map_values(self, function: Callable[[np.ndarray], np.ndarray]) -> "RawTable":
        """The table with `function` applied to the values of each column."""
        return RawTable(
            tuple(dataclasses.replace(c, values=function(c.values)) for c in self.columns)
        )


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
