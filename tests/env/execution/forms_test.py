"""Data frames, numeric targets and the holdout, from programs to rewards."""

import dataclasses
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import mean_absolute_error
from sklearn.model_selection import train_test_split

from env.execution import metrics
from env.execution.program import BUILD_MODEL, FRAME_MODEL
from env.execution.scoring import ScoredTable
from env.executor import CodeExecutor
from env.tables.table import Dataset

OPTIONS = {"num_workers": 2, "timeout_s": 20.0, "memory_bytes": 2**30}


def _rows(num_rows: int, seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """A frame with a column of every kind, and a number that depends on all of them."""
    rng = np.random.default_rng(seed)
    days = rng.integers(0, 2000, num_rows)
    color = pd.Series(rng.choice(["red", "gr\u00fcn", None], num_rows), dtype=object)
    frame = pd.DataFrame(
        {
            "size": np.where(rng.random(num_rows) < 0.1, np.nan, rng.normal(size=num_rows)),
            "count": rng.integers(0, 9, num_rows),
            "is_new": rng.random(num_rows) < 0.5,
            "bought on": np.datetime64("2020-01-01", "ns") + days * np.timedelta64(1, "D"),
            "color": color,
        }
    )
    number = frame["size"].fillna(0) + frame["count"] / 4 + frame["is_new"] + days / 1000
    number += 2 * (color == "red") + 0.3 * rng.normal(size=num_rows)
    return frame, number.to_numpy()


def _table(*, is_regression: bool, with_frame: bool = True) -> Dataset:
    parts = []
    for num_rows, seed in ((200, 0), (60, 1)):
        frame, number = _rows(num_rows, seed)
        features = frame[["count", "is_new"]].to_numpy(np.float64)
        labels = number if is_regression else (number > 3).astype(np.int64)
        part = Dataset("mine", "Mine", features, labels, ("count", "is_new"))
        parts.append(dataclasses.replace(part, frame=frame if with_frame else None))
    return dataclasses.replace(parts[0], holdout=parts[1])


def _body(code: str) -> str:
    return code.strip().replace("\n", "\n    ")


def _predicting(code: str, before: str = "") -> str:
    model = f"class Model:\n    def predict(self, x):\n        return {code}\nmodel = Model()"
    return _body(f"{before}\n{model}")


def _pipeline(model: str) -> str:
    return _body(f"""
from sklearn.compose import make_column_transformer
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder
def days(frame):
    return frame.apply(lambda column: (column - pd.Timestamp('2020-01-01')).dt.days)
encode = make_column_transformer(
    (SimpleImputer(), x_train.select_dtypes('number').columns),
    ('passthrough', ['is_new']),
    (FunctionTransformer(days), ['bought on']),
    (OneHotEncoder(handle_unknown='ignore'), x_train.select_dtypes('object').columns))
model = make_pipeline(encode, {model}).fit(x_train, y_train)""")


def _published(table: Dataset, body: str, score) -> list[float]:
    scores = []
    for seed in range(5):
        x_train, x_test, y_train, y_test = train_test_split(
            table.frame, table.labels, test_size=0.5, random_state=seed
        )
        namespace: dict = {}
        exec(FRAME_MODEL.source(body), namespace)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = namespace["build_model"](x_train.reset_index(drop=True), y_train)
        scores.append(score(y_test, model.predict(x_test)))
    return scores


def test_a_frame_and_a_number_score_as_in_one_process():
    table, body = _table(is_regression=True), _pipeline("Ridge()")
    with CodeExecutor(table, **OPTIONS, metric=metrics.find("mae")) as executor:
        (result,) = executor.run([body])

    def score(truth: np.ndarray, guesses: np.ndarray) -> float:
        constant = np.full(len(truth), np.median(truth))
        return 1 - mean_absolute_error(truth, guesses) / mean_absolute_error(truth, constant)

    assert result.error == ""
    assert result.interval is None
    assert result.split_scores == pytest.approx(_published(table, body, score))
    assert result.reward > 0.5


def test_a_frame_and_classes():
    table, body = _table(is_regression=False), _pipeline("LogisticRegression(max_iter=1000)")
    with CodeExecutor(table, **OPTIONS, metric=metrics.find("accuracy")) as executor:
        (result,) = executor.run([body])
    assert result.error == ""
    hits = _published(table, body, lambda truth, guesses: np.mean(truth == guesses))
    assert result.split_scores == pytest.approx(hits)


@pytest.mark.parametrize("is_regression", [True, False])
def test_the_holdout_has_one_score_and_an_interval(is_regression):
    table = _table(is_regression=is_regression)
    model = "Ridge()" if is_regression else "LogisticRegression(max_iter=1000)"
    with CodeExecutor(table, **OPTIONS, holdout=True) as executor:
        result, broken = executor.run([_pipeline(model), "model = 1"])
    low, high = result.interval
    assert result.split_scores == (result.reward,)
    assert low < result.reward < high
    assert (broken.reward, broken.interval) == (-1, None)
    namespace: dict = {}
    exec(FRAME_MODEL.source(_pipeline(model)), namespace)
    fitted = namespace["build_model"](table.frame, table.labels)
    held = table.holdout
    if is_regression:
        score = metrics.find("r2")(held.labels, fitted.predict(held.frame))
    else:
        score = metrics.find("roc_auc")(held.labels, fitted.predict_proba(held.frame))
    assert result.reward == pytest.approx(score)


def test_arrays_have_numbers_as_targets_too():
    table = _table(is_regression=True, with_frame=False)
    body = _body("""
from sklearn.linear_model import LinearRegression
assert type(x_train) is np.ndarray and y_train.dtype == np.float64
model = LinearRegression().fit(x_train, y_train)""")
    with CodeExecutor(table, **OPTIONS) as executor:
        (result,) = executor.run([body])
    assert result.error == ""
    assert 0 < result.reward < 1


@pytest.fixture(scope="module")
def regression_executor():
    with CodeExecutor(_table(is_regression=True), **OPTIONS) as executor:
        yield executor


HOSTILE = {
    "np.full(len(x), np.nan)": "ValueError: predict returned NaN or infinity",
    "np.full(len(x), -np.inf)": "ValueError: predict returned NaN or infinity",
    "np.where(np.arange(len(x)) == 7, np.inf, 0)": "ValueError: predict returned NaN or infinity",
    "np.zeros((len(x), 1))": "ValueError: predict returned an array of shape (100, 1)",
    "np.zeros(len(x) - 1)": "ValueError: predict returned an array of shape (99,), expected (10",
    "np.zeros(len(x) + 1)": "ValueError: predict returned an array of shape (101,)",
    "0.0": "ValueError: predict returned an array of shape (), expected (100,)",
    "None": "TypeError: predict returned values of type object, not numbers",
    "['1'] * len(x)": "TypeError: predict returned values of type <U1, not numbers",
    "np.zeros(len(x), complex)": "TypeError: predict returned values of type complex128",
    "np.zeros(len(x), object)": "TypeError: predict returned values of type object, not numbers",
    "np.zeros(len(x), 'M8[s]')": "TypeError: predict returned values of type datetime64[s]",
    "np.zeros(10**7)": "ValueError: predict returned an array of shape (10000000,)",
    "1 / 0": "ZeroDivisionError: division by zero",
}


def test_hostile_predictions_fail_as_one_line(regression_executor):
    bodies = [_predicting(code) for code in HOSTILE]
    results = regression_executor.run([*bodies, "model = 3"])
    for result, error in zip(results, HOSTILE.values(), strict=False):
        assert result.reward == -1
        assert result.error.startswith(error)
    assert results[-1].error == "AttributeError: 'int' object has no attribute 'predict'"


LIES = {
    # Whatever else an array claims to be, its numbers are what is scored.
    "masked": "np.ma.masked_all(len(x))",
    "matrix_row": "np.asmatrix(np.zeros(len(x))).A1",
    "series": "pd.Series(np.zeros(len(x)), index=range(len(x), 0, -1))",
    "list": "[0] * len(x)",
    "truth_values": "np.zeros(len(x), bool)",
    "huge": "np.where(np.arange(len(x)) % 2, 1e308, -1e308)",
    "long_double": "np.zeros(len(x), np.longdouble)",
    "strided": "np.zeros(2 * len(x))[::-2]",
    "read_only": "np.broadcast_to(0.0, len(x))",
    "subclass": "Liar.__new__(Liar, len(x))",
}
_LIAR = """
class Liar(np.ndarray):
    shape = property(lambda self: (1,))
    dtype = property(lambda self: 1 / 0)
    def __eq__(self, other): raise SystemExit
    def __array__(self, *a, **k): return np.zeros(10**3)
    def __array_finalize__(self, other): pass
    def __array_ufunc__(self, *a, **k): raise SystemExit
    def tobytes(self): return b'x'
    def __del__(self): raise SystemExit
"""


def test_lies_about_predictions_are_worth_no_more_than_their_numbers(regression_executor):
    bodies = [_predicting(code, _LIAR) for code in LIES.values()]
    for name, result in zip(LIES, regression_executor.run(bodies), strict=True):
        assert result.reward < 0.1, name
        assert result.error == "" or result.reward == -1, name


def test_tables_without_the_new_parts_are_as_before():
    table = ScoredTable.of(_table(is_regression=False, with_frame=False))
    assert (table.frame, table.is_regression, table.stratified) == (None, False, False)
    assert table.features.dtype == np.float64
    with CodeExecutor(table, **OPTIONS, num_splits=1) as executor:
        assert executor._template is BUILD_MODEL
