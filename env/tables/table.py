"""Tables in memory: as published (`RawTable`), and ready for scoring (`Dataset`)."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from env.base import UsageError

if TYPE_CHECKING:
    import pandas


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
    """Features and target of a table; the order of the rows decides the splits.

    Attributes:
      name: short name, for logs.
      description: words that fill `"Classification with a {description} Prediction Dataset"`.
      features: float64 [n, f], finite; the array form, which is always there.
      labels: int64 [n], class codes 0..K-1; for regression float64 [n], finite.
      feature_names: names of the f features.
      class_names: names of the K classes; empty for regression.
      frame: the same n rows with the table's own columns and types; None in the array form. Numbers
        are float64, or int64 where all are whole and none is missing; booleans bool; dates
        datetime64[ns]; texts and categories objects of str, None where missing.
      holdout: rows that no reward ever sees, prepared with what was learnt from the rows of this
        table; None if no rows are held out.
      preparation: JSON values that turn the file into these arrays, see `env.tables.prepared`.
      stratified: whether both halves of each split keep the shares of the classes.
    """

    name: str
    description: str
    features: np.ndarray
    labels: np.ndarray
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...] = ()
    frame: "pandas.DataFrame | None" = None
    holdout: "Dataset | None" = None
    preparation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    stratified: bool = False

    @property
    def is_regression(self) -> bool:
        """True for a numeric target, False for classes."""
        return self.labels.dtype.kind == "f"

    @property
    def num_classes(self) -> int:
        """Number K of classes; 0 for regression."""
        if self.is_regression:
            return 0
        return len(self.class_names) or int(self.labels.max()) + 1

    @functools.cached_property
    def checksum(self) -> str:
        """SHA-256 of shape, features, labels, frame and kind of splits.

        It is the same for every byte order of machines, and for a table in the array form with
        plain splits it is that of its features and labels alone.
        """
        digest = hashlib.sha256(np.array(self.features.shape, "<i8").tobytes())
        digest.update(np.ascontiguousarray(self.features, "<f8").tobytes())
        digest.update(
            np.ascontiguousarray(self.labels, "<f8" if self.is_regression else "<i8").tobytes()
        )
        if self.is_regression:
            digest.update(b"regression")
        if self.stratified:
            digest.update(b"stratified")
        if self.frame is not None:
            _update_with_frame(digest, self.frame)
        return digest.hexdigest()


def _update_with_frame(digest: Any, frame: "pandas.DataFrame") -> None:
    for name, column in frame.items():
        digest.update(json.dumps([str(name), str(column.dtype)]).encode())
        if column.dtype == object:
            digest.update(json.dumps(column.tolist()).encode())
        else:
            values = column.to_numpy()
            digest.update(values.astype(values.dtype.newbyteorder("<")).tobytes())
