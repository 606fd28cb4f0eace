"""What a validation half pays for predicted probabilities: Eq. 10's ROC AUC, and other choices.

Every built-in metric is better when larger and lies within [-1, 1], so that no program that runs is
worth less than one that fails.
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
    """Predictions have no score under a metric; the text is meant for the author of the program."""


@dataclasses.dataclass(frozen=True)
class Metric:
    """A score of predictions.

    Attributes:
      name: as given to `--metric`.
      function: takes labels, int64 [n] codes 0..K-1, and probabilities, float64 [n, K], finite;
        returns the score.
      version: changes when a scorer of the user's changes; "" for built-in metrics.
    """

    name: str
    function: Callable[[np.ndarray, np.ndarray], float]
    version: str = ""

    def __call__(self, labels_n: np.ndarray, probabilities_nk: np.ndarray) -> float:
        """The score.

        Raises:
          MetricError: when these predictions have none, whatever a scorer of the user's raised.
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
    """A built-in metric, or a scorer of the user's as `module:function`.

    The module is imported from the current folder or the Python path, into this process.

    Raises:
      UsageError: for a name that is neither, or a scorer that cannot be imported.
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
    """exp(-log loss): the geometric mean of the probability given to the true class."""
    if (probabilities_nk < 0).any() or not np.allclose(probabilities_nk.sum(axis=1), 1, atol=1e-6):
        raise MetricError("predict_proba returned rows that are no probabilities with the sum 1")
    given = probabilities_nk[np.arange(len(labels_n)), labels_n]
    return float(np.exp(np.mean(np.log(np.maximum(given, np.finfo(np.float64).tiny)))))


def _average_precision(labels_n: np.ndarray, probabilities_nk: np.ndarray) -> float:
    """Area under precision over recall; above two classes the mean of one against the rest."""
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
