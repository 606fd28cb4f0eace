"""The trusted half of Eq. 10: the data of each split, and the score of predictions for it."""

import dataclasses
import functools
import json
from collections.abc import Callable
from typing import Protocol

import numpy as np

from env.execution.metrics import DEFAULT_METRIC, Metric
from env.execution.program import BUILD_MODEL
from env.execution.roc_auc import RocAuc
from env.sandbox import wire
from env.tables.splits import check_class_counts, split_rows


class LabelledTable(Protocol):
    """The part of `env.datasets.Dataset` that scoring needs."""

    @property
    def features(self) -> np.ndarray: ...

    @property
    def labels(self) -> np.ndarray: ...


class PredictionError(ValueError):
    """The predictions of a program cannot be scored; the text is fit for the next prompt."""


@dataclasses.dataclass(frozen=True)
class Split:
    """One 50/50 split of a table, in C-contiguous arrays.

    Attributes:
      x_train: float64 `[rows, features]`; the program sees it.
      y_train: int64 `[rows]`; the program sees it.
      x_validation: float64 `[validation rows, features]`; the program sees it after the fit.
      y_validation: int64 `[validation rows]`; never leaves the trusted side.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_validation: np.ndarray
    y_validation: np.ndarray


class Scorer:
    """The splits of a table and the score of predictions for them.

    Args:
      table: features `[n, f]` float64 and labels `[n]` int64, codes 0..K-1.
      num_splits: at least 1; split i is drawn with seed i.
      metric: score of predictions; None is the ROC AUC.
      function: name of the function that programs define.

    Raises:
      UsageError: when a half of a split lacks a class, so that no program could be scored.
    """

    def __init__(
        self,
        table: LabelledTable,
        num_splits: int,
        metric: Metric | None = None,
        function: str = BUILD_MODEL.function,
    ):
        features = np.ascontiguousarray(table.features, np.float64)
        labels = np.ascontiguousarray(table.labels, np.int64)
        check_class_counts(labels, num_splits=num_splits, min_rows=1)
        self.num_classes = int(labels.max()) + 1
        rows = [split_rows(len(labels), seed) for seed in range(num_splits)]
        self.splits = tuple(
            Split(features[train], labels[train], features[validation], labels[validation])
            for train, validation in rows
        )
        self._scores: list[Callable[[np.ndarray], float]] = []
        for split in self.splits:
            if metric is None or metric.name == DEFAULT_METRIC:
                self._scores.append(RocAuc(split.y_validation))
            else:
                self._scores.append(functools.partial(metric, split.y_validation))
        self._headers = [self._header(split, function) for split in range(num_splits)]

    @property
    def max_prediction_bytes(self) -> int:
        """Size of the predictions for a validation half; all halves are equally large."""
        return max(8 * len(split.y_validation) * self.num_classes for split in self.splits)

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
            "train_rows": len(split.x_train),
            "validation_rows": len(split.x_validation),
            "columns": split.x_train.shape[1],
            "classes": self.num_classes,
        }
        return json.dumps(header).encode()

    def score(self, split: int, data: bytes) -> float:
        """Returns the score of the predictions for one split.

        Args:
          split: index of the split.
          data: float64 `[validation rows, classes]`, row-major, as received from a program.

        Raises:
          PredictionError: when such predictions have no score.
        """
        shape = (len(self.splits[split].y_validation), self.num_classes)
        if len(data) != 8 * shape[0] * shape[1]:
            raise PredictionError(f"predict_proba returned {len(data)} bytes, not {shape} numbers")
        scores = np.frombuffer(data, np.float64).reshape(shape)
        if not np.isfinite(scores).all():
            raise PredictionError("predict_proba returned NaN or infinity")
        try:
            return self._scores[split](scores)
        except ValueError as error:  # also a MetricError
            raise PredictionError(str(error)) from None


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).data.cast("B")
