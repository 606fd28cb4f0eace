"""Programs that look for labels in data frames do no better than chance; see `attacks.py` too.

What is not stopped, and not tested: programs that look at the validation features after the fit.
"""

import numpy as np
import pandas as pd
import pytest

from env.execution.program import FRAME_MODEL
from env.execution.roc_auc import RocAuc
from env.executor import CodeExecutor
from env.sandbox import frames
from tests.env.frame_attacks import BREACHES, NUM_ROWS, ORDERS, noise

OPTIONS = {"num_workers": 2, "timeout_s": 60.0, "memory_bytes": 2**30}
KINDS = {
    "plain": {},
    "stratified": {"stratified": True},
    "numbers": {"is_regression": True},
}


@pytest.fixture(scope="module", params=KINDS)
def table(request):
    return noise(**KINDS[request.param])


@pytest.fixture(scope="module", params=["splits", "holdout"])
def results(request, table):
    with CodeExecutor(table, **OPTIONS, holdout=request.param == "holdout") as executor:
        bodies = {**ORDERS, **BREACHES}
        return dict(zip(bodies, executor.run(list(bodies.values())), strict=True))


@pytest.mark.parametrize("name", [*ORDERS, *BREACHES])
def test_nothing_but_values_reaches_a_program(results, table, name):
    result = results[name]
    assert result.error == ""
    if table.is_regression:
        assert result.reward < 0.1
    else:
        assert abs(result.reward - 0.5) < 0.1


def _scored_here(body: str, train: pd.DataFrame, labels: np.ndarray, held) -> float:
    namespace: dict = {}
    exec(FRAME_MODEL.source(body), namespace)
    model = namespace["build_model"](train, labels)
    return RocAuc(held.labels)(model.predict_proba(held.frame))


@pytest.mark.parametrize("name", ["position", "index", "lengths_of_texts", "missing_values"])
def test_the_orders_would_show_a_leak(name):
    # The frames of the trusted side, as they are before they are sent.
    table = noise()
    assert _scored_here(ORDERS[name], table.frame, table.labels, table.holdout) > 0.95


def test_the_memory_would_show_a_leak():
    # Here the rows of the holdout were seen before, with their labels.
    held = noise().holdout
    values = held.frame.reset_index(drop=True)
    assert _scored_here(ORDERS["memory"], values, held.labels, held) == 1


@pytest.mark.parametrize(
    "dress",
    [
        lambda frame: frame.set_index(frame["whole"]),
        lambda frame: frame.assign(few=frame["few"].astype("category")),
        lambda frame: frame[frame.columns[::-1]],
        lambda frame: frame.iloc[:300],
    ],
    ids=["index", "category", "columns", "view"],
)
def test_the_search_would_show_a_leak(dress):
    values = noise().frame.reset_index(drop=True)
    values.attrs = {}
    columns = frames.columns(values)
    sent = frames.encode(values, np.arange(NUM_ROWS), [kind for _, kind in columns])
    arrived = frames.decode(sent, columns)
    namespace: dict = {}
    exec(FRAME_MODEL.source(BREACHES["dress_of_training_rows"]), namespace)
    namespace["build_model"](arrived, np.arange(NUM_ROWS))
    with pytest.raises(RuntimeError, match="BREACH"):
        namespace["build_model"](dress(arrived), np.arange(NUM_ROWS))
