"""Baselines run in the executor and alone, in both forms of a table, and find what is there."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import r2_score, roc_auc_score

from env.execution import baselines
from env.execution.program import BUILD_MODEL
from env.executor import CodeExecutor

NUM_ROWS = 200


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    features: np.ndarray
    labels: np.ndarray


def _build(body):
    namespace = {}
    exec(BUILD_MODEL.source(body), namespace)
    return namespace["build_model"]


def _frame(rng):
    """Every kind of column of the frame form, each with gaps where its type has a missing value."""
    size = rng.normal(size=NUM_ROWS)
    town = rng.choice(["Rome", "Oslo", "Bern"], NUM_ROWS).astype(object)
    signal = size + 2 * (town == "Oslo")
    day = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, NUM_ROWS), "D")
    frame = pd.DataFrame(
        {
            "size": np.where(np.arange(NUM_ROWS) % 9, size, np.nan),
            "empty": np.full(NUM_ROWS, np.nan),
            "count": rng.integers(0, 5, NUM_ROWS),
            "member": rng.random(NUM_ROWS) < 0.5,
            "since": pd.Series(day).where(np.arange(NUM_ROWS) % 7 != 0),
            "town": np.where(np.arange(NUM_ROWS) % 11, town, None),
            "note": np.array([f"row {i} has a note" for i in range(NUM_ROWS)], object),
        }
    )
    return frame, signal


def test_baselines_are_scored_by_the_executor_as_every_program_is():
    rng = np.random.default_rng(0)
    labels = np.arange(NUM_ROWS) % 3
    table = Table(rng.normal(size=(NUM_ROWS, 4)) + labels[:, None], labels)
    bodies = baselines.bodies(has_frame=False, is_regression=False)
    assert list(bodies) == ["logistic regression", "random forest", "gradient boosting"]
    with CodeExecutor(table, num_workers=2, timeout_s=60.0) as executor:
        results = executor.run(list(bodies.values()))
    for result in results:
        assert result.error == ""
        assert len(result.split_scores) == 5
        assert result.reward > 0.8


@pytest.mark.parametrize("name", baselines.bodies(has_frame=True, is_regression=False))
def test_classifiers_of_the_frame_form_take_every_kind_of_column(name):
    frame, signal = _frame(np.random.default_rng(1))
    labels = (signal > np.median(signal)).astype(int)
    half = NUM_ROWS // 2
    build = _build(baselines.bodies(has_frame=True, is_regression=False)[name])
    model = build(frame[:half], labels[:half])
    new = frame[half:].reset_index(drop=True)
    new.loc[0, "town"] = "a town that no row before it had"
    assert roc_auc_score(labels[half:], model.predict_proba(new)[:, 1]) > 0.8


@pytest.mark.parametrize("has_frame", [False, True])
def test_regressors_predict_a_quantity(has_frame):
    frame, signal = _frame(np.random.default_rng(2))
    x = frame if has_frame else np.stack([signal, signal**2], axis=1)
    half = NUM_ROWS // 2
    bodies = baselines.bodies(has_frame=has_frame, is_regression=True)
    assert list(bodies) == ["ridge regression", "random forest", "gradient boosting"]
    for body in bodies.values():
        model = _build(body)(x[:half], signal[:half])
        assert r2_score(signal[half:], model.predict(x[half:])) > 0.5


def test_columns_of_a_single_kind_are_enough():
    labels = np.arange(40) % 2
    for column in (labels.astype(float), np.where(labels, "a", "b").astype(object), labels == 1):
        for body in baselines.bodies(has_frame=True, is_regression=False).values():
            model = _build(body)(pd.DataFrame({"only": column}), labels)
            assert model.predict_proba(pd.DataFrame({"only": column})).shape == (40, 2)
