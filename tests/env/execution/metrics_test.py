"""Metrics by hand-worked cases, and scorers of the user's."""

import numpy as np
import pytest
from sklearn.metrics import r2_score

from env.base import UsageError
from env.execution import metrics

LABELS = np.array([0, 1, 2, 2])
PROBABILITIES = np.array([[0.5, 0.3, 0.2], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6], [0.6, 0.2, 0.2]])
BINARY = np.array([0, 0, 1, 1])
BINARY_PROBABILITIES = np.array([[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]])


def test_roc_auc():
    # Of the four pairs of a negative and a positive row, three are in order.
    assert metrics.find("roc_auc")(BINARY, BINARY_PROBABILITIES) == pytest.approx(0.75)
    # One class against another: 0-1 and 1-2 are in order; of 0-2 half and all, by either column.
    assert metrics.find("roc_auc")(LABELS, PROBABILITIES) == pytest.approx((1 + 1 + 0.625) / 3)


def test_accuracy():
    assert metrics.find("accuracy")(LABELS, PROBABILITIES) == 0.75


def test_log_loss_is_the_geometric_mean_probability_of_the_truth():
    expected = (0.5 * 0.8 * 0.6 * 0.2) ** 0.25
    assert metrics.find("log_loss")(LABELS, PROBABILITIES) == pytest.approx(expected)
    certain = np.eye(3)[LABELS]
    assert metrics.find("log_loss")(LABELS, certain) == 1
    assert 0 <= metrics.find("log_loss")(LABELS, np.eye(3)[(LABELS + 1) % 3]) < 1e-300
    with pytest.raises(metrics.MetricError, match="no probabilities"):
        metrics.find("log_loss")(LABELS, PROBABILITIES * 2)


def test_average_precision():
    # Ranked by probability: right, wrong, right: the mean of 1/1 and 2/3.
    assert metrics.find("average_precision")(BINARY, BINARY_PROBABILITIES) == pytest.approx(5 / 6)
    perfect = np.eye(3)[LABELS]
    assert metrics.find("average_precision")(LABELS, perfect) == pytest.approx(1)
    # Class 0 is found second, class 1 first, class 2 first and in the tie of the second and third.
    expected = (1 / 2 + 1 + (1 / 2 + 1 / 2 * 2 / 3)) / 3
    assert metrics.find("average_precision")(LABELS, PROBABILITIES) == pytest.approx(expected)


@pytest.mark.parametrize("name", metrics.METRICS)
def test_better_predictions_are_worth_more_and_all_are_worth_more_than_failing(name):
    metric = metrics.find(name)
    perfect, wrong = np.eye(3)[LABELS], np.eye(3)[(LABELS + 1) % 3]
    assert metric(LABELS, perfect) == pytest.approx(1)
    assert -1 < metric(LABELS, wrong) < metric(LABELS, PROBABILITIES) < 1


PRICES = np.array([1.0, 2.0, 3.0, 10.0])


def test_metrics_of_numbers_compare_with_the_best_constant():
    guesses = np.array([1.0, 2.0, 5.0, 9.0])
    # Squares: 4 + 1 against 9 + 4 + 1 + 36 around the mean; errors: 2 + 1 against 10 (median 2.5).
    assert metrics.find("r2")(PRICES, guesses) == pytest.approx(1 - 5 / 50)
    assert metrics.find("rmse")(PRICES, guesses) == pytest.approx(1 - np.sqrt(5 / 50))
    assert metrics.find("mae")(PRICES, guesses) == pytest.approx(1 - 3 / 10)


def test_r2_is_that_of_scikit_learn():
    rng = np.random.default_rng(0)
    labels, guesses = rng.normal(size=50), rng.normal(size=50) / 3
    assert metrics.find("r2")(labels, guesses) == pytest.approx(r2_score(labels, guesses))


@pytest.mark.parametrize("name", metrics.REGRESSION_METRICS)
@pytest.mark.parametrize("unit", [1e-300, 1.0, 1e300])
def test_no_prediction_of_numbers_is_worth_less_than_failing(name, unit):
    metric, labels = metrics.find(name), PRICES * unit
    assert metric(labels, labels) == 1
    constant = np.median(labels) if name == "mae" else labels.mean()
    assert metric(labels, np.full(4, constant)) == pytest.approx(0, abs=1e-9)
    largest = np.finfo(np.float64).max
    for far in (PRICES * unit * 50, np.full(4, largest), np.array([largest, -largest] * 2)):
        assert metric(labels, far) == -1
    with pytest.raises(metrics.MetricError, match="the same in all rows"):
        metric(np.full(4, 0.1), labels)


def test_a_metric_must_fit_the_target():
    metrics.check_target(metrics.default(is_regression=True), is_regression=True)
    metrics.check_target(metrics.default(is_regression=False), is_regression=False)
    with pytest.raises(UsageError, match=r"--metric=mae: the target has classes; .* of roc_auc, "):
        metrics.check_target(metrics.find("mae"), is_regression=False)
    with pytest.raises(UsageError, match=r"--metric=accuracy: .* a number; .* r2, rmse, mae"):
        metrics.check_target(metrics.find("accuracy"), is_regression=True)


@pytest.fixture
def user_module(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["."])
    (tmp_path / "my_scorer.py").write_text(
        "import numpy as np\n"
        "def hits(labels, probabilities):\n"
        "    return int((probabilities.argmax(axis=1) == labels).sum())\n"
        "def broken(labels, probabilities):\n"
        "    raise KeyError('no weight')\n"
        "def undefined(labels, probabilities):\n"
        "    return float('nan')\n"
        "number = 3\n"
    )
    (tmp_path / "bad_scorer.py").write_text("def hits(:\n")
    return tmp_path


def test_a_scorer_of_the_users(user_module):
    metric = metrics.find("my_scorer:hits")
    assert metric(LABELS, PROBABILITIES) == 3.0
    assert metric.name == "my_scorer:hits"
    assert len(metric.version) == 64
    assert metrics.find("roc_auc").version == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [("broken", "cannot score the predictions: 'no weight'"), ("undefined", "is nan")],
)
def test_what_a_scorer_cannot_score_is_a_metric_error(user_module, name, message):
    with pytest.raises(metrics.MetricError, match=message):
        metrics.find(f"my_scorer:{name}")(LABELS, PROBABILITIES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "auc",
            "must be one of roc_auc, accuracy, log_loss, average_precision, r2, rmse, mae, or",
        ),
        ("my_scorer:", "must have the form"),
        ("my_scorer:none", "has no attribute 'none'"),
        ("my_scorer:number", "is not a function"),
        ("no_such_module:f", "No module named 'no_such_module'"),
        ("bad_scorer:hits", "invalid syntax"),
        ("math:sqrt", "must be a function with Python source"),
    ],
)
def test_unknown_metrics_are_refused(user_module, name, message):
    with pytest.raises(UsageError) as caught:
        metrics.find(name)
    assert message in str(caught.value)
    assert f"--metric={name}" in str(caught.value)
