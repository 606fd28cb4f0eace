"""Area under the ROC curve, as scikit-learn's `roc_auc_score` computes it, bit for bit.

Scoring happens in the trainer's process, five times per execution. scikit-learn spends milliseconds
per call on checking its arguments, and a second and 100 MB on its import. The tests compare results
with those of scikit-learn.
"""

import itertools

import numpy as np


class RocAuc:
    """The area under the ROC curve of predictions for fixed labels.

    With two classes the curve is that of class 1. With more, the result is the mean over all pairs
    of classes and both directions (Hand and Till 2001), scikit-learn's `multi_class="ovo"`.

    Args:
      labels_n: int64 class codes 0..K-1, each of them present, K at least 2.
    """

    def __init__(self, labels_n: np.ndarray):
        self.num_classes = int(labels_n.max()) + 1
        # Each pair of classes has two curves: rows, column of scores, 1.0 where a row is positive.
        self._pairs: list[list[tuple[np.ndarray, int, np.ndarray]]] = []
        for pair in itertools.combinations(range(self.num_classes), 2):
            rows = np.flatnonzero(np.isin(labels_n, pair))
            positives = pair if self.num_classes > 2 else (1,)
            self._pairs.append(
                [(rows, k, (labels_n[rows] == k).astype(np.float64)) for k in positives]
            )

    def __call__(self, scores_nk: np.ndarray) -> float:
        """Returns the area, between 0 and 1.

        Args:
          scores_nk: finite float64 [n, K].

        Raises:
          ValueError: when there are more than two classes and a row does not sum up to 1.
        """
        with np.errstate(over="ignore"):
            sums_n = scores_nk.sum(axis=1)
        # Equals np.allclose(1, sums_n), at a fifth of its cost.
        is_close_n = np.isfinite(sums_n) & (np.abs(1 - sums_n) <= 1e-8 + 1e-5 * np.abs(sums_n))
        if self.num_classes > 2 and not is_close_n.all():
            raise ValueError(
                "Target scores need to be probabilities for multiclass roc_auc, i.e. they should "
                "sum up to 1.0 over classes"
            )
        areas = [
            [_area(is_positive, scores_nk[rows, k]) for rows, k, is_positive in curves]
            for curves in self._pairs
        ]
        return float(np.mean([sum(pair) / len(pair) for pair in areas]))


def _area(is_positive_n: np.ndarray, score_n: np.ndarray) -> float:
    order = np.argsort(-score_n, kind="stable")
    score_n = score_n[order]
    # The last row of each group of equal scores: a threshold cannot fall into a group.
    last = np.append(np.flatnonzero(score_n[1:] != score_n[:-1]), len(score_n) - 1)
    true_positives = np.cumsum(is_positive_n[order])[last]
    false_positives = 1 + last - true_positives
    if len(last) > 2:
        # Points in line with their neighbours add nothing but rounding.
        is_corner = (np.diff(true_positives, 2) != 0) | (np.diff(false_positives, 2) != 0)
        kept = np.concatenate([[True], is_corner, [True]])
        true_positives, false_positives = true_positives[kept], false_positives[kept]
    tpr = np.concatenate([[0.0], true_positives]) / true_positives[-1]
    fpr = np.concatenate([[0.0], false_positives]) / false_positives[-1]
    return float((np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2.0).sum())
