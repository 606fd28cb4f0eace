"""The area under the curve is scikit-learn's, to the last bit."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from env.execution.roc_auc import RocAuc


def _published(labels: np.ndarray, scores: np.ndarray) -> float:
    if scores.shape[1] == 2:
        return roc_auc_score(labels, scores[:, 1])
    return roc_auc_score(labels, scores, multi_class="ovo")


@pytest.mark.parametrize("num_classes", [2, 3, 5])
@pytest.mark.parametrize("num_levels", [1, 2, 7, None])
def test_equals_scikit_learn_exactly(num_classes: int, num_levels: int | None) -> None:
    rng = np.random.default_rng(num_classes)
    for _ in range(20):
        num_rows = int(rng.integers(2 * num_classes, 200))
        labels = np.concatenate(
            [np.arange(num_classes), rng.integers(num_classes, size=num_rows - num_classes)]
        )
        scores = rng.random((num_rows, num_classes))
        if num_levels is not None:  # ties: whole groups of rows share a score
            scores = np.floor(scores * num_levels) + 1
        scores /= scores.sum(axis=1, keepdims=True)
        assert RocAuc(labels)(scores) == _published(labels, scores)


def test_hand_worked_case() -> None:
    # Of the four pairs (positive, negative) three are in order and one is not.
    scores = np.array([0.1, 0.4, 0.35, 0.8])
    assert RocAuc(np.array([0, 0, 1, 1]))(np.stack([1 - scores, scores], axis=1)) == 0.75


def test_two_classes_need_no_probabilities() -> None:
    labels = np.array([0, 1, 0, 1])
    scores = np.array([[0.0, -1e308], [0.0, 1e308], [0.0, -3.0], [0.0, -2.0]])
    assert RocAuc(labels)(scores) == _published(labels, scores)


@pytest.mark.parametrize("value", [(1 + 2e-5) / 3, 2 / 3, 1e307, 1e308])
def test_refuses_what_does_not_sum_up_to_one(value: float) -> None:
    scores = np.full((6, 3), value)  # the sums of the largest overflow
    with pytest.raises(ValueError, match="sum up to 1"):
        RocAuc(np.array([0, 1, 2, 0, 1, 2]))(scores)
