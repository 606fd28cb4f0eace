"""Splits and scores are the published ones, and what cannot be scored is named."""

import dataclasses

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from env.execution import metrics
from env.execution.scoring import PredictionError, Scorer


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    features: np.ndarray
    labels: np.ndarray


LABELS = np.arange(41) % 3
TABLE = Table(np.random.default_rng(0).normal(size=(41, 2)), LABELS)
SCORER = Scorer(TABLE, 3)


@pytest.mark.parametrize("split", range(3))
def test_splits_are_the_published_ones(split):
    published = train_test_split(
        TABLE.features, TABLE.labels, test_size=0.5, random_state=split, shuffle=True
    )
    ours = SCORER.splits[split]
    arrays = (ours.x_train, ours.x_validation, ours.y_train, ours.y_validation)
    for mine, theirs in zip(arrays, published, strict=True):
        assert mine.dtype == theirs.dtype
        assert mine.flags.c_contiguous
        np.testing.assert_array_equal(mine, theirs)


def test_a_program_is_sent_no_validation_labels():
    split = SCORER.splits[1]
    sent = b"".join([*SCORER.job(1, b"the source"), *SCORER.validation_features(1)])
    assert b"the source" in sent
    assert split.x_train.tobytes() in sent
    assert split.y_train.tobytes() in sent
    assert split.x_validation.tobytes() in sent
    for width in (np.int64, np.int32, np.int8, np.float64):
        assert split.y_validation.astype(width).tobytes() not in sent


def _probabilities() -> np.ndarray:
    p = np.random.default_rng(1).random((21, 3))
    return p / p.sum(axis=1, keepdims=True)


def test_scores_are_the_published_ones():
    p = _probabilities()
    expected = roc_auc_score(SCORER.splits[2].y_validation, p, multi_class="ovo")
    assert SCORER.score(2, p.tobytes()) == expected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_must_be_finite(value):
    p = _probabilities()
    p[3, 1] = value
    with pytest.raises(PredictionError, match="NaN or infinity"):
        SCORER.score(0, p.tobytes())


@pytest.mark.parametrize("length", [0, 8, 21 * 3 * 8 - 1, 21 * 3 * 8 + 8])
def test_the_size_must_be_right(length):
    with pytest.raises(PredictionError, match=rf"{length} bytes, not \(21, 3\) numbers"):
        SCORER.score(0, bytes(length))
    assert SCORER.max_prediction_bytes == 21 * 3 * 8


def test_rows_must_be_probabilities():
    with pytest.raises(PredictionError, match="sum up to 1"):
        SCORER.score(0, (2 * _probabilities()).tobytes())


def test_other_metrics():
    scorer = Scorer(TABLE, 3, metrics.find("log_loss"))
    p = _probabilities()
    given = p[np.arange(21), scorer.splits[0].y_validation]
    assert scorer.score(0, p.tobytes()) == pytest.approx(np.exp(np.log(given).mean()))
    with pytest.raises(PredictionError, match="no probabilities"):
        scorer.score(0, (-p).tobytes())
