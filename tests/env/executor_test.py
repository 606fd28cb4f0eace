"""The executor as its callers see it: rewards, errors, order, limits."""

import concurrent.futures
import dataclasses
import math
import re
import threading
import time
import warnings

import numpy as np
import pytest
import threadpoolctl
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.utils import all_estimators

from env.base import UsageError
from env.execution import metrics
from env.executor import (
    CodeExecutor,
    ExecutionResult,
    ExecutorError,
    Limits,
    ProgramTemplate,
)
from env.tasks import prompts

LOGISTIC = """\
from sklearn.linear_model import LogisticRegression
    model = LogisticRegression().fit(x_train, y_train)"""


@dataclasses.dataclass(frozen=True, eq=False)
class Table:
    features: np.ndarray
    labels: np.ndarray


def _table(num_rows: int = 120, num_classes: int = 3, seed: int = 0) -> Table:
    rng = np.random.default_rng(seed)
    labels = np.arange(num_rows) % num_classes
    return Table(rng.normal(size=(num_rows, 4)) + labels[:, None], labels)


TABLE = _table()
OPTIONS = {"num_workers": 2, "timeout_s": 20.0, "memory_bytes": 2**30}


@pytest.fixture(scope="module")
def executor():
    with CodeExecutor(TABLE, **OPTIONS) as executor:
        yield executor


@pytest.fixture(scope="module")
def quick_executor():
    """One split, little memory, little processor time and much of any other."""
    options = {"num_workers": 2, "timeout_s": 60.0, "memory_bytes": 2**28, "num_splits": 1}
    options["limits"] = Limits(cpu_s=2)
    with CodeExecutor(TABLE, **options, libraries=["absl.flags"]) as executor:
        yield executor


def published_reward(body: str, table: Table, num_splits: int = 5) -> float:
    """The mean ROC AUC of the paper's procedure, in this process and on one thread."""
    scores = []
    with warnings.catch_warnings(), threadpoolctl.threadpool_limits(1):
        warnings.simplefilter("ignore")
        for split in range(num_splits):
            x_train, x_test, y_train, y_test = train_test_split(
                table.features, table.labels, test_size=0.5, random_state=split, shuffle=True
            )
            np.random.seed(split)
            namespace: dict = {}
            exec(prompts.program(body), namespace)
            p = namespace["build_model"](x_train, y_train).predict_proba(x_test)
            two = {"y_score": p[:, 1]}
            more = {"y_score": p, "multi_class": "ovo"}
            scores.append(roc_auc_score(y_test, **(two if p.shape[1] == 2 else more)))
    return float(np.mean(scores))


def _body(code: str) -> str:
    return code.strip().replace("\n", "\n    ")


# Ordinary programs that a wall, a missing module or a missing thread could break.
ORDINARY = {
    "logistic": LOGISTIC,
    "forest": _body("""
from sklearn.ensemble import RandomForestClassifier
model = RandomForestClassifier(n_estimators=5, n_jobs=-1, random_state=0, verbose=2)
model.fit(x_train, y_train)"""),
    "forest_without_a_seed": _body("""
from sklearn.ensemble import ExtraTreesClassifier
model = ExtraTreesClassifier(n_estimators=5).fit(x_train, y_train)"""),
    "network": _body("""
from sklearn.neural_network import MLPClassifier
model = MLPClassifier((8,), max_iter=5, random_state=1, verbose=True).fit(x_train, y_train)"""),
    "search": _body("""
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.neighbors import KNeighborsClassifier
model = GridSearchCV(
    make_pipeline(StandardScaler(), KNeighborsClassifier()),
    {'kneighborsclassifier__n_neighbors': [3, 7]}, n_jobs=-1, cv=3, verbose=3)
model.fit(x_train, y_train)"""),
    "experimental_search": _body("""
from sklearn.experimental import enable_halving_search_cv
from sklearn.model_selection import HalvingRandomSearchCV
from sklearn.tree import DecisionTreeClassifier
from scipy.stats import randint
model = HalvingRandomSearchCV(DecisionTreeClassifier(random_state=0),
    {'max_depth': randint(1, 5)}, random_state=0).fit(x_train, y_train)"""),
    "imputer": _body("""
from sklearn.experimental import enable_iterative_imputer
from sklearn.impute import IterativeImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline
model = Pipeline([('i', IterativeImputer(random_state=0)), ('m', LogisticRegression())])
model.fit(x_train, y_train)"""),
    "ensemble": _body("""
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier
from sklearn.ensemble import StackingClassifier, VotingClassifier
from sklearn.naive_bayes import GaussianNB
model = VotingClassifier([
    ('a', GradientBoostingClassifier(n_estimators=3, random_state=0)),
    ('b', HistGradientBoostingClassifier(max_iter=3, random_state=0)),
    ('c', StackingClassifier([('d', GaussianNB())], cv=2)),
], voting='soft', n_jobs=2).fit(x_train, y_train)"""),
    "data_frame": _body("""
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, MinMaxScaler
frame = lambda x: pd.DataFrame(x, columns=list('abcd'))
model = make_pipeline(
    FunctionTransformer(frame),
    ColumnTransformer([('s', MinMaxScaler(), ['a', 'b'])], remainder='passthrough'),
    LogisticRegression()).fit(x_train, y_train)"""),
    "cannot_be_pickled": _body("""
import threading
from sklearn.naive_bayes import GaussianNB
class Model(GaussianNB):
    lock = threading.Lock()
    def predict_proba(self, x):
        with self.lock:
            yield_ = (row for row in super().predict_proba(x))
            return np.array(list(yield_))
model = Model().fit(x_train, y_train)"""),
    "threads": _body("""
from concurrent.futures import ThreadPoolExecutor
from joblib import Parallel, delayed, parallel_backend
from sklearn.tree import DecisionTreeClassifier
def fit(depth):
    return DecisionTreeClassifier(max_depth=depth, random_state=0).fit(x_train, y_train)
with ThreadPoolExecutor(4) as pool:
    models = list(pool.map(fit, [1, 2, 3]))
with parallel_backend('threading', n_jobs=2):
    models += Parallel(n_jobs=-1)(delayed(fit)(depth) for depth in [4, 5])
class Mean:
    def predict_proba(self, x):
        return np.mean([model.predict_proba(x) for model in models], axis=0)
model = Mean()"""),
    "chatter": _body("""
import logging, sys, warnings
from sklearn.linear_model import LogisticRegression
warnings.warn('careful')
logging.warning('careful')
print('x' * 10**6, file=sys.stderr)
print('x' * 10**6, flush=True)
model = LogisticRegression(max_iter=1, verbose=1).fit(x_train, y_train)"""),
    "probabilities_of_a_support_vector_machine": _body("""
from sklearn.calibration import CalibratedClassifierCV
from sklearn.svm import SVC
model = CalibratedClassifierCV(SVC(), ensemble=False).fit(x_train, y_train)"""),
    "scipy": _body("""
from scipy.optimize import minimize
from scipy.special import softmax
def loss(w):
    p = softmax(x_train @ w.reshape(4, 3), axis=1)
    return -np.log(p[np.arange(len(y_train)), y_train]).mean()
w = minimize(loss, np.zeros(12), options={'maxiter': 3}).x
class Model:
    def predict_proba(self, x):
        return softmax(x @ w.reshape(4, 3), axis=1)
model = Model()"""),
    "single_precision": _body("""
from sklearn.neural_network import MLPClassifier
class Model(MLPClassifier):
    def predict_proba(self, x):
        return super().predict_proba(x).astype('f4')
model = Model((4,), max_iter=3, random_state=0).fit(x_train, y_train)"""),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_scores_as_published(executor, name):
    body = ORDINARY[name]
    (result,) = executor.run([body])
    assert result.error == ""
    # In here other processes would be started for it.
    assert result.reward == published_reward(body.replace("n_jobs=-1", "n_jobs=None"), TABLE)
    assert len(result.split_scores) == 5
    assert result.reward == np.mean(result.split_scores)
    assert 0 < result.wall_s < OPTIONS["timeout_s"]


def test_two_classes_and_many_rows_score_as_published():
    table = _table(num_classes=2, num_rows=60_001)  # 1 MB each way, more than a socket holds
    with CodeExecutor(table, **OPTIONS, num_splits=2) as executor:
        (result,) = executor.run([LOGISTIC])
    assert result.reward == published_reward(LOGISTIC, table, num_splits=2)


def test_all_classifiers_of_scikit_learn_work(quick_executor):
    # In a cell there are no files: a module that is imported late would be missing.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        classifiers = {
            name: kind.__module__.partition("._")[0]
            for name, kind in all_estimators(type_filter="classifier")
            if not getattr(kind, "__abstractmethods__", None)
        }
    bodies = [
        f"from {module} import {name}\n    model = {name}().fit(abs(x_train), y_train)"
        for name, module in classifiers.items()
    ]
    errors = dict(zip(classifiers, [r.error for r in quick_executor.run(bodies)], strict=True))
    # Some want arguments, other data, or have no probabilities; none wants a file.
    assert not {
        name: error
        for name, error in errors.items()
        if re.match("(Module|Import|Permission|OS|FileNotFound|System|Memory|Timeout)", error)
    }
    assert sum(not error for error in errors.values()) > 20


def test_results_keep_the_order(executor):
    bodies = [f"raise ValueError({i})" if i % 3 else LOGISTIC for i in range(30)]
    results = executor.run(bodies)
    for i, result in enumerate(results):
        if i % 3:
            assert result == ExecutionResult(-1.0, (), f"ValueError: {i}", result.wall_s)
        else:
            assert result.error == ""


def test_no_bodies_no_results(executor):
    assert executor.run([]) == []


def test_many_threads_may_call(executor):
    def run(i: int) -> str:
        return executor.run([f"raise ValueError({i})"])[0].error

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(run, range(40))) == [f"ValueError: {i}" for i in range(40)]


def test_same_body_same_reward_under_load(executor):
    unseeded = _body("""
import random
from sklearn.ensemble import RandomForestClassifier
rng = np.random.default_rng()
noise = rng.normal(size=x_train.shape) + random.random() + np.random.random()
model = RandomForestClassifier(n_estimators=3).fit(x_train + noise, y_train)""")
    (alone,) = executor.run([unseeded])
    assert alone.error == ""
    crowd = executor.run([unseeded, "for _ in range(10**7): pass"] + [unseeded, LOGISTIC] * 2)
    assert {r.split_scores for r in crowd[::2]} == {alone.split_scores}
    with CodeExecutor(TABLE, **{**OPTIONS, "num_workers": 9}) as other:
        assert other.run([unseeded])[0].split_scores == alone.split_scores


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("", "NameError: name 'model' is not defined"),
        ("model = 3", "AttributeError: 'int' object has no attribute 'predict_proba'"),
        ("this is no python", "SyntaxError: invalid syntax"),
        ("if True:\nmodel = 1", "IndentationError: expected an indented block"),
        ("import xgboost", "ModuleNotFoundError: No module named 'xgboost'"),
        ("import jax", "ModuleNotFoundError: No module named 'jax'"),
        ("import sklearn.nothing", "ModuleNotFoundError: No module named 'sklearn.nothing'"),
        ("raise ValueError", "ValueError"),
        ("raise ValueError('a\\n b')", "ValueError: a b"),
        ("model = x_train @ y_train[:3]", "ValueError: matmul"),
        ("x = np.ones(1 << 40)", "MemoryError: Unable to allocate"),
        ("\udcff", "UnicodeEncodeError: 'utf-8' codec can't encode"),
        ("#" * 2_000_000, "ValueError: the program is longer than 1048576 bytes"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_failures(executor, body, error):
    (result,) = executor.run([body])
    assert result.reward == -1
    assert result.split_scores == ()
    assert result.error.startswith(error)


def test_failure_on_a_later_split_keeps_the_scores_before_it(executor):
    # Only split 2 and those after it have this first row.
    body = LOGISTIC + "\n    global calls\n    split = int(np.random.get_state()[1][0])"
    body += "\n    if split >= 2: raise KeyError(split)"
    (result,) = executor.run([body])
    assert result.error == "KeyError: 2"
    assert result.reward == -1
    (whole,) = executor.run([LOGISTIC])
    assert result.split_scores == whole.split_scores[:2]


def test_what_is_printed_is_dropped(executor):
    body = """import contextlib, io, os, sys
    print("a", file=sys.__stderr__)
    sys.stdout.buffer.write(b"b")
    os.write(sys.stdout.fileno(), b"c")
    with contextlib.redirect_stdout(io.StringIO()) as kept:
        print("d" * 2**25)
    assert len(kept.getvalue()) == 2**25 + 1
    sys.stdout = io.TextIOWrapper(sys.stdout.detach(), "ascii")
    sys.stderr.close()
    """
    (result,) = executor.run([body + LOGISTIC])
    assert result.error == ""


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            "import time; time.sleep(100)",
            "TimeoutError: the program took longer than 1.5 s on one split",
        ),
        ("while True: pass", "TimeoutError: the program"),
        ("x = 7 ** 10 ** 9", "TimeoutError: the program"),
    ],
    ids=["sleep", "loop", "loop_in_c"],
)
def test_time_is_limited(body, error, strict_executor):
    start = time.monotonic()
    (result,) = strict_executor.run([body])
    assert time.monotonic() - start < 20  # and not 100
    assert result.error.startswith(error)
    assert result.reward == -1


@pytest.fixture(scope="module")
def strict_executor():
    with CodeExecutor(TABLE, num_workers=2, timeout_s=1.5, memory_bytes=2**28) as executor:
        executor.run(["model = 1"])  # the first one waits for the libraries
        yield executor


def test_processor_time_is_limited_before_wall_time(quick_executor):
    (result,) = quick_executor.run(["while True: pass"])
    assert (
        result.error
        == "TimeoutError: the program used more than 2 s of processor time on one split"
    )


def test_memory_is_limited(quick_executor):
    (result,) = quick_executor.run(["x = [bytearray(2**20) for _ in range(2**12)]"])
    assert result.error.startswith("MemoryError")
    assert result.reward == -1


def test_memory_just_below_the_limit_is_there(quick_executor):
    large = "x = np.ones(int(0.8 * 2**28) // 8); x[0] = x.sum()\n    " + LOGISTIC
    below, above = quick_executor.run([large, large.replace("0.8", "1.1")])
    assert below.error == ""
    assert above.error.startswith("MemoryError: Unable to allocate")


def test_other_metrics():
    options = {**OPTIONS, "num_splits": 2, "metric": metrics.find("accuracy")}
    with CodeExecutor(TABLE, **options) as executor:
        (result,) = executor.run([LOGISTIC])
    correct = [round(score * 60) / 60 for score in result.split_scores]
    assert result.split_scores == tuple(correct)


def test_more_libraries_can_be_offered(executor, quick_executor):
    body = "import absl.flags\n    " + LOGISTIC
    assert quick_executor.run([body])[0].error == ""
    assert executor.run([body])[0].error == "ModuleNotFoundError: No module named 'absl'"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_workers": 0}, "num_workers is 0 and must be at least 1"),
        ({"num_splits": 0}, "num_splits is 0 and must be at least 1"),
        ({"timeout_s": 0.0}, r"timeout_s is 0.0 and must be above 0"),
        ({"timeout_s": math.nan}, "timeout_s is nan and must be above 0"),
        ({"memory_bytes": 1}, "memory_bytes is 1 and must be at least 16777216"),
        ({"limits": {"cpu_s": 0}}, "cpu_s is 0 and must be at least 1"),
        ({"limits": {"max_threads": -1}}, "max_threads is -1 and must be at least 0"),
        ({"limits": {"max_output_bytes": -1}}, "max_output_bytes is -1 and must be at least 0"),
        ({"isolation": "none"}, "isolation is 'none' and must be one of auto"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_settings_are_named(change, message):
    limits = change.pop("limits", {})
    with pytest.raises((ValueError, UsageError), match=message):
        CodeExecutor(TABLE, **{**OPTIONS, "limits": Limits(**limits), **change})


def test_a_template_decides_what_a_body_stands_in_and_what_is_called():
    template = ProgramTemplate(
        before="from sklearn.dummy import DummyClassifier as D\nfit = lambda x, y: (",
        after=").fit(x, y)\n",
        function="fit",
    )
    with CodeExecutor(TABLE, **OPTIONS, template=template) as executor:
        constant, broken = executor.run(["D()", "None"])
    assert (constant.reward, constant.error) == (0.5, "")
    assert broken.error == "AttributeError: 'NoneType' object has no attribute 'fit'"


def test_a_table_that_cannot_be_scored_is_refused():
    labels = np.zeros(20, np.int64)
    labels[0] = 1
    with pytest.raises(UsageError, match="class '1'"):
        CodeExecutor(Table(np.zeros((20, 1)), labels), **OPTIONS)


def test_closing_ends_waiting_calls():
    executor = CodeExecutor(TABLE, **OPTIONS)
    errors = []

    def run() -> None:
        try:
            executor.run(["import time; time.sleep(100)"] * 5)
        except ExecutorError as error:
            errors.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.5)
    executor.close()
    thread.join(5)
    assert errors == ["the executor is closed"]
    with pytest.raises(ExecutorError, match="is closed"):
        executor.run([LOGISTIC])
    executor.close()


def test_queue_is_bounded(executor, monkeypatch):
    unfinished, most = set(), 0
    submit = executor._scheduler.submit

    def count(execution) -> None:
        nonlocal most
        unfinished.add(execution)
        execution.future.add_done_callback(lambda _: unfinished.discard(execution))
        most = max(most, len(unfinished))
        submit(execution)

    monkeypatch.setattr(executor, "_capacity", threading.Semaphore(3))
    monkeypatch.setattr(executor._scheduler, "submit", count)
    results = executor.run(["raise ValueError"] * 20)
    assert [result.error for result in results] == ["ValueError"] * 20
    # The room of one that has just ended is free before it has been counted off.
    assert 3 <= most <= 4
