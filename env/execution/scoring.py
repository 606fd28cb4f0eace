"""The trusted half of Eq. 10: the data of each split, and the score of predictions for it."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator
from typing import Any, Protocol, Self

import numpy as np

from env.base import UsageError
from env.execution import metrics
from env.execution.metrics import DEFAULT_METRIC, Metric
from env.execution.program import BUILD_MODEL
from env.execution.roc_auc import RocAuc
from env.sandbox import frames, wire
from env.tables.splits import check_class_counts, split_rows

_NUM_RESAMPLES = 500
_INTERVAL = (0.025, 0.975)
"""Quantiles of the scores of resamples that bound an interval."""


class LabelledTable(Protocol):
    """The part of `env.datasets.Dataset` that scoring needs; see `ScoredTable` for the rest."""

    @property
    def features(self) -> np.ndarray: ...

    @property
    def labels(self) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True, eq=False)
class ScoredTable:
    """The parts of a table that scoring uses.

    Attributes:
      features: float64 `[n, f]`.
      labels: int64 `[n]` class codes 0..K-1, or float64 `[n]` where the target is a number.
      frame: the same rows as a pandas DataFrame, which programs get in place of the features.
      holdout: rows that no reward sees.
      stratified: whether both halves of a split have the same shares of the classes, or of small
        and large numbers.
    """

    features: np.ndarray
    labels: np.ndarray
    frame: Any = None
    holdout: "ScoredTable | None" = None
    stratified: bool = False

    @classmethod
    def of(cls, table: LabelledTable) -> Self:
        """Returns these parts of a table; a table that lacks the last three has their defaults."""
        labels = np.asarray(table.labels)
        holdout = getattr(table, "holdout", None)
        return cls(
            np.ascontiguousarray(table.features, np.float64),
            np.ascontiguousarray(labels, np.float64 if labels.dtype.kind == "f" else np.int64),
            getattr(table, "frame", None),
            None if holdout is None else cls.of(holdout),
            getattr(table, "stratified", False),
        )

    @property
    def is_regression(self) -> bool:
        """True for a numeric target, False for classes."""
        return self.labels.dtype.kind == "f"


class PredictionError(ValueError):
    """The predictions of a program cannot be scored; the text is fit for the next prompt."""


@dataclasses.dataclass(frozen=True)
class Split:
    """One 50/50 split of a table, or all of its rows and the holdout, in C-contiguous arrays.

    Attributes:
      x_train: float64 `[rows, features]`, or a frame as `env.sandbox.frames` encodes it; the
        program sees it.
      y_train: int64 `[rows]` codes, or float64 `[rows]` numbers; the program sees it.
      x_validation: the same of the validation rows; the program sees it after the fit.
      y_validation: never leaves the trusted side.
    """

    x_train: np.ndarray | bytes
    y_train: np.ndarray
    x_validation: np.ndarray | bytes
    y_validation: np.ndarray


class Scorer:
    """The splits of a table and the score of predictions for them.

    Args:
      table: the rows; see `ScoredTable`.
      num_splits: at least 1; split i is drawn with seed i.
      metric: score of predictions; None is the ROC AUC, or r2 where the target is a number.
      function: name of the function that programs define.
      holdout: whether there is a single split instead, which trains on all rows and scores the
        rows of `table.holdout`.

    Raises:
      UsageError: when a half of a split lacks a class, or has a single number as its target, so
        that no program could be scored; when the metric does not fit the target; when there are no
        holdout rows.
    """

    def __init__(
        self,
        table: LabelledTable,
        num_splits: int,
        metric: Metric | None = None,
        function: str = BUILD_MODEL.function,
        *,
        holdout: bool = False,
    ):
        table = ScoredTable.of(table)
        self._is_regression = table.is_regression
        metric = metric or metrics.default(is_regression=self._is_regression)
        metrics.check_target(metric, is_regression=self._is_regression)
        self.num_classes = 0 if self._is_regression else int(table.labels.max()) + 1
        self._columns: Any = table.features.shape[1]
        if table.frame is not None:
            self._columns = frames.columns(table.frame)
        self.splits = tuple(self._holdout(table) if holdout else self._halves(table, num_splits))
        self._metric = metric
        self._scores: list[Callable[[np.ndarray], float]] = [
            RocAuc(split.y_validation)
            if metric.name == DEFAULT_METRIC
            else functools.partial(metric, split.y_validation)
            for split in self.splits
        ]
        self._headers = [self._header(split, function) for split in range(len(self.splits))]

    def _halves(self, table: ScoredTable, num_splits: int) -> Iterator[Split]:
        labels = table.labels
        if not self._is_regression:
            check_class_counts(
                labels, num_splits=num_splits, min_rows=1, stratified=table.stratified
            )
        for seed in range(num_splits):
            strata = labels if table.stratified else None
            train, validation = split_rows(len(labels), seed, strata)
            if self._is_regression:
                _check_numbers(labels[validation], f"the validation half of split {seed}")
            yield Split(
                self._features(table, train),
                labels[train],
                self._features(table, validation),
                labels[validation],
            )

    def _holdout(self, table: ScoredTable) -> Iterator[Split]:
        held = table.holdout
        if held is None:
            raise UsageError("the table has no holdout rows, so there is no holdout score")
        if self._is_regression:
            _check_numbers(held.labels, "the holdout")
        elif len(np.unique(held.labels)) != self.num_classes:
            raise UsageError("the holdout lacks a class, so it has no score: hold out more rows")
        # In the order of a file that is sorted by the target, a row's place would tell its label.
        order = np.random.RandomState(0).permutation(len(held.labels))
        everything = np.arange(len(table.labels))
        yield Split(
            self._features(table, everything),
            table.labels,
            self._features(held, order),
            held.labels[order],
        )

    def _features(self, table: ScoredTable, rows: np.ndarray) -> np.ndarray | bytes:
        if table.frame is None:
            return table.features[rows]
        return frames.encode(table.frame, rows, [kind for _, kind in self._columns])

    @property
    def max_prediction_bytes(self) -> int:
        """Size of the largest predictions that a split can have."""
        return max(8 * len(split.y_validation) * max(1, self.num_classes) for split in self.splits)

    def job(self, split: int, source: bytes) -> list[memoryview]:
        """Returns the first frames for a cell: the program and the training half of one split."""
        data = self.splits[split]
        return [
            *wire.frame(wire.JOB, self._headers[split]),
            *wire.frame(wire.PROGRAM, source),
            *wire.frame(wire.TRAIN_X, _bytes(data.x_train)),
            *wire.frame(wire.TRAIN_Y, _bytes(data.y_train)),
        ]

    def validation_features(self, split: int) -> list[memoryview]:
        """Returns the frame for a cell that has fitted: the features of the validation half."""
        return wire.frame(wire.VALIDATION_X, _bytes(self.splits[split].x_validation))

    def _header(self, index: int, function: str) -> bytes:
        split = self.splits[index]
        header = {
            "split": index,
            "function": function,
            "train_rows": len(split.y_train),
            "validation_rows": len(split.y_validation),
            "columns": self._columns,
            "classes": self.num_classes,
        }
        return json.dumps(header).encode()

    def score(self, split: int, data: bytes) -> float:
        """Returns the score of the predictions for one split.

        Args:
          split: index of the split.
          data: float64 `[validation rows, classes]`, row-major, as received from a program, or
            `[validation rows]` where the target is a number.

        Raises:
          PredictionError: when such predictions have no score.
        """
        predictions = self._predictions(split, data)
        if not np.isfinite(predictions).all():
            raise PredictionError(f"{self._method} returned NaN or infinity")
        try:
            return self._scores[split](predictions)
        except ValueError as error:  # also a MetricError
            raise PredictionError(str(error)) from None

    @property
    def _method(self) -> str:
        return "predict" if self._is_regression else "predict_proba"

    def _predictions(self, split: int, data: bytes) -> np.ndarray:
        shape: tuple[int, ...] = (len(self.splits[split].y_validation),)
        if not self._is_regression:
            shape += (self.num_classes,)
        if len(data) != 8 * int(np.prod(shape)):
            raise PredictionError(f"{self._method} returned {len(data)} bytes, not {shape} numbers")
        return np.frombuffer(data, np.float64).reshape(shape)

    def interval(self, split: int, data: bytes) -> tuple[float, float] | None:
        """Returns a 95 % interval of the score of predictions, which `score` has accepted.

        It is that of the percentiles of a bootstrap over the validation rows, with a fixed seed. A
        resample has as many rows of each class as there are. None means that the metric, one of the
        user's own, cannot score a resample.
        """
        predictions, rng = self._predictions(split, data), np.random.RandomState(0)
        resample = self._resampled_numbers if self._is_regression else self._resampled_classes
        try:
            low, high = np.quantile(resample(split, predictions, rng), _INTERVAL)
        except ValueError:  # also a MetricError
            return None
        return float(low), float(high)

    def _resampled_classes(
        self, split: int, probabilities_nk: np.ndarray, rng: np.random.RandomState
    ) -> list[float]:
        labels_n = self.splits[split].y_validation
        # Rows change places with rows of their class, so that the labels stay as they are.
        members = [np.flatnonzero(labels_n == k) for k in range(self.num_classes)]
        rows_n = np.empty(len(labels_n), np.int64)
        scores = []
        for _ in range(_NUM_RESAMPLES):
            for rows in members:
                rows_n[rows] = rng.choice(rows, len(rows))
            scores.append(self._scores[split](probabilities_nk[rows_n]))
        return scores

    def _resampled_numbers(
        self, split: int, predictions_n: np.ndarray, rng: np.random.RandomState
    ) -> list[float]:
        labels_n = self.splits[split].y_validation
        scores: list[float] = []
        while len(scores) < _NUM_RESAMPLES:
            rows = rng.randint(len(labels_n), size=len(labels_n))
            if (labels_n[rows] != labels_n[rows[0]]).any():  # else there is nothing to explain
                scores.append(self._metric(labels_n[rows], predictions_n[rows]))
        return scores


def _check_numbers(labels_n: np.ndarray, where: str) -> None:
    """Refuses rows that no metric of numbers can score."""
    if not np.isfinite(labels_n).all():
        raise UsageError(f"the target holds NaN or infinity in {where}")
    if len(labels_n) == 0 or labels_n.min() == labels_n.max():
        raise UsageError(f"the target is the same in all rows of {where}, so it has no score")


def _bytes(features: np.ndarray | bytes) -> memoryview:
    if isinstance(features, bytes):
        return memoryview(features)
    return np.ascontiguousarray(features).reshape(-1).data.cast("B")
