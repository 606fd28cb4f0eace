"""Metrics that score predictions: the ROC AUC of Eq. 10, others of classes, and of numbers.

Built-in metrics lie within [-1, 1], larger is better: no program that runs gets less than one that
fails.
"""

import dataclasses
import hashlib
import inspect
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from env.base import UsageError
from env.execution.roc_auc import RocAuc
from env.plugins import load_object

DEFAULT_METRIC = "roc_auc"
"""Metric of a target that has classes."""

REGRESSION_METRICS = ("r2", "rmse", "mae")
"""Metrics of a target that is a number; the first one is the default."""


class MetricError(ValueError):
    """Predictions have no score under a metric; the text is fit for the next prompt."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A function that scores predictions.

    Attributes:
      name: value of `--metric`.
      function: takes labels, int64 [n] codes 0..K-1, and probabilities, float64 [n, K]; where the
        target is a number, labels and predictions, both float64 [n]. Predictions are finite.
        Returns the score.
      version: hash of the source of a user's function; "" for built-in metrics.
    """

    name: str
    function: Callable[[np.ndarray, np.ndarray], float]
    version: str = ""

    def __call__(self, labels_n: np.ndarray, predictions: np.ndarray) -> float:
        """Returns the score.

        Raises:
          MetricError: when the function raises, or its result is not finite.
        """
        try:
            score = float(self.function(labels_n, predictions))
        except MetricError:
            raise
        except Exception as error:
            raise MetricError(f"{self.name} cannot score the predictions: {error}") from error
        if not math.isfinite(score):
            raise MetricError(f"{self.name} of the predictions is {score}")
        return score


def find(name: str) -> Metric:
    """Returns a built-in metric, or the user's function that `module:function` names.

    Raises:
      UsageError: for an unknown name, or a function that cannot be imported.
    """
    if name in _BUILT_IN:
        return Metric(name, _BUILT_IN[name])
    if ":" not in name:
        raise UsageError(
            f"--metric={name}: must be one of {', '.join(_BUILT_IN)}, or module:function"
        )
    function = load_object(name, flag="--metric")
    if not callable(function):
        raise UsageError(f"--metric={name}: is not a function")
    return Metric(name, function, _source_version(function, name))


def default(*, is_regression: bool) -> Metric:
    """Returns the metric that is used where none is named."""
    return find(REGRESSION_METRICS[0] if is_regression else DEFAULT_METRIC)


def check_target(metric: Metric, *, is_regression: bool) -> None:
    """Refuses a built-in metric that does not fit the kind of the target.

    Raises:
      UsageError: naming the metric and those that fit.
    """
    if metric.version or is_regression == (metric.name in REGRESSION_METRICS):
        return
    fitting = REGRESSION_METRICS if is_regression else METRICS
    kind = "is a number" if is_regression else "has classes"
    raise UsageError(
        f"--metric={metric.name}: the target {kind}; choose one of {', '.join(fitting)}"
    )


def _source_version(function: Callable, name: str) -> str:
    try:
        source = Path(inspect.getsourcefile(function) or "").read_bytes()
    except (TypeError, OSError):
        raise UsageError(f"--metric={name}: must be a function with Python source") from None
    return hashlib.sha256(source).hexdigest()


def _roc_auc(labels_n: np.ndarray, probabilities_nk: np.ndarray) -> float:
    return RocAuc(labels_n)(probabilities_nk)


def _accuracy(labels_n: np.ndarray, probabilities_nk: np.ndarray) -> float:
    return float(np.mean(probabilities_nk.argmax(axis=1) == labels_n))


def _log_loss(labels_n: np.ndarray, probabilities_nk: np.ndarray) -> float:
    """Returns exp(-log loss), the geometric mean of the probability of the true class."""
    if (probabilities_nk < 0).any() or not np.allclose(probabilities_nk.sum(axis=1), 1, atol=1e-6):
        raise MetricError("predict_proba returned rows that are no probabilities with the sum 1")
    given = probabilities_nk[np.arange(len(labels_n)), labels_n]
    return float(np.exp(np.mean(np.log(np.maximum(given, np.finfo(np.float64).tiny)))))


def _average_precision(labels_n: np.ndarray, probabilities_nk: np.ndarray) -> float:
    """Returns the area under precision over recall; above two classes the mean over classes."""
    from sklearn.metrics import average_precision_score

    num_classes = probabilities_nk.shape[1]
    if num_classes == 2:
        return average_precision_score(labels_n, probabilities_nk[:, 1])
    return average_precision_score(np.eye(num_classes)[labels_n], probabilities_nk)


def _r2(labels_n: np.ndarray, predictions_n: np.ndarray) -> float:
    """Returns the coefficient of determination; -1 stands for everything below it."""
    return 1.0 - _relative_error(np.square, np.mean, labels_n, predictions_n)


def _rmse(labels_n: np.ndarray, predictions_n: np.ndarray) -> float:
    """Returns 1 - RMSE / (RMSE of the mean of the scored rows); at least -1."""
    return 1.0 - math.sqrt(_relative_error(np.square, np.mean, labels_n, predictions_n, limit=4.0))


def _mae(labels_n: np.ndarray, predictions_n: np.ndarray) -> float:
    """Returns 1 - MAE / (MAE of the median of the scored rows); at least -1."""
    return 1.0 - _relative_error(np.abs, np.median, labels_n, predictions_n)


def _relative_error(
    loss: Callable[[np.ndarray], np.ndarray],
    centre: Callable[[np.ndarray], np.floating],
    labels_n: np.ndarray,
    predictions_n: np.ndarray,
    *,
    limit: float = 2.0,
) -> float:
    """Returns the loss of predictions over that of the best constant, at most `limit`."""
    # In units of the largest label nothing overflows but what is beyond the limit anyway.
    unit = float(np.abs(labels_n).max()) or 1.0
    labels_n = labels_n / unit
    if labels_n.min() == labels_n.max():
        raise MetricError("the target is the same in all rows that are scored")
    constant = float(loss(labels_n - centre(labels_n)).sum())
    with np.errstate(over="ignore"):
        error = float(loss(labels_n - predictions_n / unit).sum())
        return min(error / constant, limit)


_BUILT_IN: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    DEFAULT_METRIC: _roc_auc,
    "accuracy": _accuracy,
    "log_loss": _log_loss,
    "average_precision": _average_precision,
    "r2": _r2,
    "rmse": _rmse,
    "mae": _mae,
}
METRICS = tuple(name for name in _BUILT_IN if name not in REGRESSION_METRICS)
"""Names of the built-in metrics of a target that has classes."""
