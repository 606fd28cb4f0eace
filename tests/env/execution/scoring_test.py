"""Splits and scores are the published ones, and what cannot be scored is named."""

import dataclasses
import pickle

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.model_selection import train_test_split

from env.base import UsageError
from env.execution import metrics
from env.execution.scoring import PredictionError, ScoredTable, Scorer
from env.sandbox import frames
from env.tables.splits import split_rows


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


def _regression(**changes) -> ScoredTable:
    rng = np.random.default_rng(3)
    return ScoredTable(rng.normal(size=(40, 2)), rng.normal(size=40), **changes)


def test_numbers_are_scored_by_r2_unless_told_otherwise():
    table = _regression()
    scorer = Scorer(table, 2)
    labels = scorer.splits[1].y_validation
    guesses = labels + np.random.default_rng(4).normal(size=20)
    assert scorer.splits[0].y_train.dtype == np.float64
    assert scorer.max_prediction_bytes == 160
    assert scorer.score(1, guesses.tobytes()) == pytest.approx(r2_score(labels, guesses))
    with pytest.raises(PredictionError, match=r"predict returned 8 bytes, not \(20,\) numbers"):
        scorer.score(1, bytes(8))
    guesses[0] = np.nan
    with pytest.raises(PredictionError, match="predict returned NaN or infinity"):
        scorer.score(1, guesses.tobytes())


def test_a_metric_must_fit_and_a_target_must_vary():
    with pytest.raises(UsageError, match="--metric=accuracy: the target is a number"):
        Scorer(_regression(), 2, metrics.find("accuracy"))
    with pytest.raises(UsageError, match="--metric=mae: the target has classes"):
        Scorer(TABLE, 2, metrics.find("mae"))
    constant = dataclasses.replace(_regression(), labels=np.full(40, 0.1))
    with pytest.raises(UsageError, match="the same in all rows of the validation half of split 0"):
        Scorer(constant, 2)


def test_stratified_halves_keep_the_shares():
    labels = np.repeat([0, 1, 2], [31, 6, 3])
    table = ScoredTable(np.zeros((40, 1)), labels, stratified=True)
    for split in Scorer(table, 20).splits:
        counts = [np.bincount(half) for half in (split.y_train, split.y_validation)]
        assert np.abs(counts[0] - counts[1]).max() <= 1
        # In an order that says nothing about the class.
        assert (np.diff(split.y_validation) < 0).any()


def test_stratified_halves_of_numbers_have_neighbours():
    table = _regression(stratified=True)
    for split in Scorer(table, 5).splits:
        pairs = np.sort(split.y_validation), np.sort(split.y_train)
        np.testing.assert_array_equal(np.stack(pairs, 1).reshape(-1), np.sort(table.labels))
        assert (np.diff(split.y_validation) < 0).any()


def _held(num_rows: int = 12) -> ScoredTable:
    return ScoredTable(np.arange(2.0 * num_rows).reshape(num_rows, 2), np.arange(num_rows) % 3)


def test_the_holdout_is_one_split_of_all_rows():
    held = _held()
    scorer = Scorer(dataclasses.replace(ScoredTable.of(TABLE), holdout=held), 5, holdout=True)
    (split,) = scorer.splits
    np.testing.assert_array_equal(split.x_train, TABLE.features)
    np.testing.assert_array_equal(split.y_train, TABLE.labels)
    # The rows of a file may be sorted by class: here their order is another one.
    order = split.x_validation[:, 0].astype(int) // 2
    assert sorted(order) == list(range(12))
    assert list(order) != list(range(12))
    np.testing.assert_array_equal(split.y_validation, held.labels[order])


def test_a_holdout_that_cannot_be_scored_is_refused():
    with pytest.raises(UsageError, match="no holdout rows"):
        Scorer(TABLE, 5, holdout=True)
    table = ScoredTable.of(TABLE)
    with pytest.raises(UsageError, match="the holdout lacks a class"):
        Scorer(dataclasses.replace(table, holdout=_held(2)), 5, holdout=True)
    numbers = _regression(holdout=dataclasses.replace(_held(), labels=np.ones(12)))
    with pytest.raises(UsageError, match="the same in all rows of the holdout"):
        Scorer(numbers, 5, holdout=True)


def test_an_interval_is_that_of_a_bootstrap_within_classes():
    rng = np.random.default_rng(5)
    labels = np.repeat([0, 1], [150, 50])
    held = ScoredTable(np.zeros((200, 1)), labels)
    table = ScoredTable(np.zeros((4, 1)), np.array([0, 1, 0, 1]), holdout=held)
    scorer = Scorer(table, 5, holdout=True)
    truth = scorer.splits[0].y_validation
    scores = truth + rng.normal(size=200)
    data = np.stack([1 - scores, scores], axis=1).tobytes()
    low, high = scorer.interval(0, data)
    assert scorer.interval(0, data) == (low, high)
    assert low < scorer.score(0, data) < high
    # The standard error of an area by the formula of Hanley and McNeil (1982).
    area = roc_auc_score(truth, scores)
    q1, q2 = area / (2 - area), 2 * area**2 / (1 + area)
    variance = area * (1 - area) + 49 * (q1 - area**2) + 149 * (q2 - area**2)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(variance / (150 * 50)), rel=0.2)


def test_an_interval_of_numbers_holds_the_score():
    held = dataclasses.replace(_held(30), labels=np.linspace(0, 1, 30))
    scorer = Scorer(_regression(holdout=held), 5, metrics.find("mae"), holdout=True)
    guesses = scorer.splits[0].y_validation + 0.1 * np.random.default_rng(6).normal(size=30)
    low, high = scorer.interval(0, guesses.tobytes())
    assert 0.5 < low < scorer.score(0, guesses.tobytes()) < high < 1


@pytest.mark.parametrize("labels", [np.arange(12) % 3, np.linspace(0, 1, 12)])
def test_a_metric_that_cannot_score_a_resample_costs_the_interval_alone(labels):
    calls = []

    def score(truth, guesses):
        calls.append(guesses)
        return 1 / (10 - len(calls))

    table = dataclasses.replace(_held(12), labels=labels)
    table = dataclasses.replace(table, holdout=table)
    scorer = Scorer(table, 5, metrics.Metric("mine:score", score, "0"), holdout=True)
    data = bytes(scorer.max_prediction_bytes)
    assert scorer.score(0, data) == 1 / 9
    assert scorer.interval(0, data) is None
    assert len(calls) == 10


def _frame(labels: np.ndarray, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    text = pd.Series(rng.choice(["a", "b\u00e9", None], len(labels)), dtype=object)
    return pd.DataFrame({"number": rng.normal(size=len(labels)), "text": text})


def _sent(table: ScoredTable, *, holdout: bool = False) -> list[bytes]:
    scorer = Scorer(table, 3, holdout=holdout)
    splits = range(len(scorer.splits))
    jobs = [b"".join(scorer.job(i, b"the source")) for i in splits]
    return jobs + [b"".join(scorer.validation_features(i)) for i in splits]


def test_what_is_sent_of_a_frame_depends_on_nothing_that_is_hidden():
    labels = np.arange(40) % 2
    held = ScoredTable(np.zeros((9, 1)), np.arange(9) % 2, _frame(np.arange(9), seed=1))
    table = ScoredTable(np.zeros((40, 1)), labels, _frame(labels), holdout=held)
    sent = _sent(table)
    # Index, attributes and the array form of the same rows.
    dressed = table.frame.copy()
    dressed.index = pd.Index(labels, name="label")
    dressed.attrs["labels"] = labels
    assert _sent(dataclasses.replace(table, frame=dressed)) == sent
    assert _sent(dataclasses.replace(table, features=labels[:, None] + 0.0)) == sent
    # The holdout has no part in what the splits send.
    other = ScoredTable(np.ones((5, 1)), np.arange(5) % 2, _frame(np.arange(5), seed=2))
    assert _sent(dataclasses.replace(table, holdout=other)) == sent
    assert _sent(dataclasses.replace(table, holdout=None)) == sent
    # Labels of rows that are validated: two of them change places.
    rows = split_rows(40, 0)[1]
    swapped = labels.copy()
    zero, one = (rows[labels[rows] == k][0] for k in (0, 1))
    swapped[[zero, one]] = 1, 0
    changed = _sent(dataclasses.replace(table, labels=swapped))
    assert (changed[0], changed[3:]) == (sent[0], sent[3:])
    # Labels of the holdout.
    at_the_end = _sent(table, holdout=True)
    flipped = dataclasses.replace(held, labels=1 - held.labels)
    assert _sent(dataclasses.replace(table, holdout=flipped), holdout=True) == at_the_end


def test_a_frame_is_sent_in_place_of_the_features():
    labels = np.arange(40) % 2
    frame = _frame(labels)
    scorer = Scorer(ScoredTable(np.full((40, 1), 7.0), labels, frame), 1)
    columns = [["number", "float64"], ["text", "text"]]
    for rows, payload in zip(
        split_rows(40, 0), (scorer.splits[0].x_train, scorer.splits[0].x_validation), strict=True
    ):
        expected = frame.iloc[rows].reset_index(drop=True)
        pd.testing.assert_frame_equal(frames.decode(payload, columns), expected)


def test_a_table_survives_the_way_to_the_nodes_of_a_cluster():
    labels = np.arange(40) % 2
    held = ScoredTable(np.zeros((9, 1)), np.arange(9) % 2, _frame(np.arange(9), seed=1))
    table = ScoredTable(np.zeros((40, 1)), labels, _frame(labels), held, stratified=True)
    arrived = pickle.loads(pickle.dumps(ScoredTable.of(table)))
    assert _sent(arrived) == _sent(table)
    assert _sent(arrived, holdout=True) == _sent(table, holdout=True)
