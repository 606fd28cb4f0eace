"""Metrics that score predicted probabilities: the ROC AUC of Eq. 10, and others.

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


class MetricError(ValueError):
    """Predictions have no score under a metric; the text is fit for the next prompt."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A function that scores predictions.

    Attributes:
      name: value of `--metric`.
      function: takes labels, int64 [n] codes 0..K-1, and probabilities, float64 [n, K], finite;
        returns the score.
      version: hash of the source of a user's function; "" for built-in metrics.
    """

    name: str
    function: Callable[[np.ndarray, np.ndarray], float]
    version: str = ""

    def __call__(self, labels_n: np.ndarray, probabilities_nk: np.ndarray) -> float:
        """Returns the score.

        Raises:
          MetricError: when the function raises, or its result is not finite.
        """
        try:
            score = float(self.function(labels_n, probabilities_nk))
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


_BUILT_IN: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    DEFAULT_METRIC: _roc_auc,
    "accuracy": _accuracy,
    "log_loss": _log_loss,
    "average_precision": _average_precision,
}
METRICS = tuple(_BUILT_IN)
"""Names of the built-in metrics."""
