"""A table as published: named columns of numbers or categories, missing values allowed."""

import dataclasses
from collections.abc import Callable

import numpy as np

from env.base import UsageError


class SourceError(Exception):
    """A published table cannot be had from its source; the text is the reason."""


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
