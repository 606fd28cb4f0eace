"""A grammar over scikit-learn programs: which classes and settings they have, and how often.

Shares were chosen so that most programs run and score in the middle of the field, and so that the
compositions that score best on the small tables are rare, each of their parts being common: what a
learner should discover step by step must not be what it samples at first.
"""

import dataclasses
import random
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from models.stand_in.programs import MODULES, Call, Fit, Form, Program, Value, names_in

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Argument:
    """An argument, the share of calls that have it, and the weights of its values."""

    name: str
    share: float
    values: Mapping[str, float]
    # The earlier argument, and its value, without which this one is not drawn.
    given: tuple[str, str] | None = None


class _Drawn(NamedTuple):
    """A class with the weight at which programs use it, and its arguments in the order of draws."""

    weight: float
    arguments: tuple[_Argument, ...]


def _drawn(weight: float, *arguments: _Argument) -> _Drawn:
    return _Drawn(weight, arguments)


def _even(texts: str) -> dict[str, float]:
    return dict.fromkeys(texts.split(), 1.0)


_SEED = _Argument("random_state", 0.25, {"0": 2, "42": 3, "1": 0.5})
_BALANCED = _Argument("class_weight", 0.12, {"'balanced'": 1})
_DEPTH = _Argument("max_depth", 0.5, _even("2 3 4 5 6 8 10 None"))
_LEAF = _Argument("min_samples_leaf", 0.2, _even("1 2 3 4 5 10"))
_FEATURES = _Argument("max_features", 0.15, {"'sqrt'": 2, "'log2'": 1, "None": 1, "0.5": 0.5})
_CRITERION = _Argument("criterion", 0.2, {"'gini'": 1, "'entropy'": 1.5})
_TREES = _Argument("n_estimators", 0.97, {"5": 1, "10": 4, "15": 1, "20": 3, "30": 2, "50": 1.5})
_BOOSTS = _Argument("n_estimators", 0.97, {"5": 1, "10": 4, "15": 1, "20": 3, "30": 1})
_RATE = _Argument("learning_rate", 0.45, _even("0.01 0.05 0.1 0.2 0.5 1.0"))

_ESTIMATORS: Mapping[str, _Drawn] = {
    "LogisticRegression": _drawn(
        12,
        _Argument(
            "C",
            0.55,
            {"0.001": 1, "0.01": 2, "0.05": 1, "0.1": 3, "0.5": 2, "1.0": 4, "2.0": 1.5}
            | {"5.0": 1, "10": 1.5, "100": 0.3},
        ),
        _Argument("solver", 0.2, {"'lbfgs'": 2, "'newton-cg'": 1, "'saga'": 1}),
        _Argument("max_iter", 0.4, _even("100 200 500 1000")),
        _BALANCED,
        _SEED,
    ),
    "SVC": _drawn(
        10,
        _Argument("C", 0.55, {"0.1": 2, "0.5": 1, "1.0": 3, "2.0": 1, "5.0": 1, "10": 2}),
        _Argument("kernel", 0.5, {"'rbf'": 4, "'linear'": 1, "'poly'": 1, "'sigmoid'": 1}),
        _Argument("degree", 0.6, _even("2 3"), given=("kernel", "'poly'")),
        _Argument("gamma", 0.25, _even("'scale' 'auto' 0.01 0.1 1.0")),
        _BALANCED,
        _Argument("probability", 1, {"True": 1}),
        _SEED,
    ),
    "KNeighborsClassifier": _drawn(
        11,
        _Argument("n_neighbors", 0.85, _even("1 2 3 4 5 7 9 11 15 20")),
        _Argument("weights", 0.3, {"'uniform'": 1, "'distance'": 1.5}),
        _Argument("p", 0.15, _even("1 2")),
        _Argument("metric", 0.1, _even("'manhattan' 'euclidean' 'chebyshev'")),
    ),
    "DecisionTreeClassifier": _drawn(
        13,
        _CRITERION,
        _DEPTH,
        _Argument("min_samples_split", 0.15, _even("2 4 5 10")),
        _LEAF,
        _BALANCED,
        _SEED,
    ),
    "RandomForestClassifier": _drawn(10, _TREES, _CRITERION, _DEPTH, _LEAF, _FEATURES, _SEED),
    "ExtraTreesClassifier": _drawn(5, _TREES, _CRITERION, _DEPTH, _LEAF, _SEED),
    "ExtraTreeClassifier": _drawn(2, _CRITERION, _DEPTH, _LEAF, _SEED),
    "GradientBoostingClassifier": _drawn(
        4.5,
        _BOOSTS,
        _RATE,
        _Argument("max_depth", 0.35, _even("1 2 3 4")),
        _Argument("subsample", 0.15, _even("0.5 0.8")),
        _SEED,
    ),
    "HistGradientBoostingClassifier": _drawn(
        1.5,
        _Argument("max_iter", 0.97, _even("5 10 20")),
        _RATE,
        _Argument("min_samples_leaf", 0.4, _even("3 5 10")),
    ),
    "AdaBoostClassifier": _drawn(4, _BOOSTS, _RATE, _SEED),
    "GaussianNB": _drawn(
        8, _Argument("var_smoothing", 0.4, _even("1e-9 1e-8 1e-6 1e-4 1e-3 0.01 0.1"))
    ),
    "BernoulliNB": _drawn(
        3,
        _Argument("alpha", 0.5, _even("0.01 0.1 0.5 1.0 2.0")),
        _Argument("binarize", 0.25, _even("0.0 0.5 1.0 2.0")),
    ),
    "MultinomialNB": _drawn(1.5, _Argument("alpha", 0.6, _even("0.01 0.1 0.5 1.0"))),
    "ComplementNB": _drawn(1, _Argument("alpha", 0.6, _even("0.01 0.1 0.5 1.0"))),
    "LinearDiscriminantAnalysis": _drawn(
        4,
        _Argument("solver", 0.5, {"'svd'": 1, "'lsqr'": 1.5}),
        _Argument("shrinkage", 0.7, _even("'auto' 0.1 0.5"), given=("solver", "'lsqr'")),
    ),
    "SGDClassifier": _drawn(
        3,
        _Argument("loss", 1, {"'log_loss'": 2, "'modified_huber'": 1}),
        _Argument("alpha", 0.4, _even("0.0001 0.001 0.01 0.1")),
        _Argument("max_iter", 0.35, _even("100 200 500 1000")),
        _SEED,
    ),
    "NearestCentroid": _drawn(2, _Argument("shrink_threshold", 0.3, _even("0.1 0.2 0.5"))),
    "DummyClassifier": _drawn(1.2, _Argument("strategy", 0.6, _even("'prior' 'most_frequent'"))),
    "MLPClassifier": _drawn(
        4.5,
        _Argument(
            "hidden_layer_sizes",
            0.95,
            {"(4,)": 1, "(5,)": 1, "(8,)": 2, "(10,)": 2, "(16,)": 1.5, "(20,)": 1, "(32,)": 1}
            | {"(8, 8)": 0.6, "(16, 16)": 0.4},
        ),
        _Argument("activation", 0.3, _even("'relu' 'tanh' 'logistic'")),
        _Argument("solver", 0.35, {"'adam'": 5, "'sgd'": 3, "'lbfgs'": 1.3}),
        _Argument("alpha", 0.3, _even("0.0001 0.001 0.01 0.1 1.0")),
        _Argument("learning_rate_init", 0.3, {"0.001": 1, "0.005": 1, "0.01": 1.2, "0.05": 0.5}),
        _Argument("max_iter", 0.97, {"20": 0.7, "50": 2, "100": 3, "200": 1.2}),
        _SEED,
    ),
    "BaggingClassifier": _drawn(3, _Argument("n_estimators", 0.97, _even("5 10 15 20")), _SEED),
    "CalibratedClassifierCV": _drawn(1.2, _Argument("cv", 0.97, _even("2 3"))),
    "VotingClassifier": _drawn(2, _Argument("voting", 1, {"'soft'": 1})),
    "StackingClassifier": _drawn(0.5, _Argument("cv", 1, _even("2 3"))),
}

_SCALERS: Mapping[str, _Drawn] = {
    "StandardScaler": _drawn(30, _Argument("with_mean", 0.04, _even("True False"))),
    "MinMaxScaler": _drawn(18, _Argument("feature_range", 0.08, {"(0, 1)": 1, "(-1, 1)": 1})),
    "RobustScaler": _drawn(8),
    "MaxAbsScaler": _drawn(5),
    "Normalizer": _drawn(3.5, _Argument("norm", 0.3, _even("'l1' 'l2' 'max'"))),
    "PowerTransformer": _drawn(3),
    "QuantileTransformer": _drawn(3, _Argument("n_quantiles", 0.97, _even("5 10 20"))),
    "PCA": _drawn(
        7,
        _Argument("n_components", 0.9, _even("2 3 0.9 0.95")),
        _Argument("whiten", 0.1, _even("True")),
    ),
    "SelectKBest": _drawn(4, _Argument("k", 0.97, _even("2 3 4 'all'"))),
    "VarianceThreshold": _drawn(2, _Argument("threshold", 0.2, _even("0.0 0.01"))),
    "PolynomialFeatures": _drawn(
        5,
        _Argument("degree", 0.7, {"2": 6, "3": 0.7}),
        _Argument("interaction_only", 0.2, {"True": 1}),
        _Argument("include_bias", 0.2, {"False": 1}),
    ),
    "SplineTransformer": _drawn(2, _Argument("n_knots", 0.7, _even("3 4 5"))),
    "KBinsDiscretizer": _drawn(
        3,
        _Argument("n_bins", 0.9, _even("2 3 4 5")),
        _Argument("encode", 0.6, {"'ordinal'": 2, "'onehot-dense'": 1}),
    ),
    "OneHotEncoder": _drawn(
        2,
        _Argument("handle_unknown", 1, {"'ignore'": 1}),
        _Argument("sparse_output", 0.4, {"False": 1}),
    ),
}

# Estimators inside votes, stacks and bags, with the labels that people give them.
_MEMBERS: Mapping[str, str] = {
    "LogisticRegression": "lr",
    "GaussianNB": "nb",
    "KNeighborsClassifier": "knn",
    "DecisionTreeClassifier": "dt",
    "LinearDiscriminantAnalysis": "lda",
}

_FORMS: Mapping[Form, float] = {"plain": 48, "make_pipeline": 30, "Pipeline": 17, "by_hand": 5}
_SECOND_SCALER_SHARE = 0.18

_DENSE_ONLY = frozenset(
    _even(
        "GaussianNB HistGradientBoostingClassifier KBinsDiscretizer LinearDiscriminantAnalysis "
        "MinMaxScaler PCA PowerTransformer QuantileTransformer RobustScaler SplineTransformer "
        "StandardScaler"
    )
)
_MAKES_NEGATIVE = frozenset(
    {"StandardScaler", "RobustScaler", "PCA", "PowerTransformer", "QuantileTransformer"}
)
_NON_NEGATIVE_ONLY = frozenset({"MultinomialNB", "ComplementNB"})


def pick(rng: random.Random, weights: Mapping[T, float]) -> T:
    """One key, with probability proportional to its weight."""
    return rng.choices(list(weights), list(weights.values()))[0]


def sample_program(rng: random.Random) -> Program:
    """A program that runs on every one of the paper's tables."""
    while True:
        form = pick(rng, _FORMS)
        transformers = () if form == "plain" else _sample_transformers(rng, form)
        estimator = _sample_estimator(rng)
        if runs_together((*transformers, estimator)):
            break
    fit: Fit = "chained" if rng.random() < 0.2 else "statement"
    return Program(
        transformers=transformers,
        estimator=estimator,
        form=form,
        fit=fit,
        imports=_imports(rng, form, transformers, estimator),
    )


def runs_together(steps: tuple[Call, ...]) -> bool:
    """Tells whether every step can take the data that the steps before it make."""
    for position, step in enumerate(steps):
        later = {name for call in steps[position + 1 :] for name in names_in(call)}
        if is_sparse_maker(step) and later & _DENSE_ONLY:
            return False
        is_negative = step.name in _MAKES_NEGATIVE or step.get("feature_range") == "(-1, 1)"
        if is_negative and later & _NON_NEGATIVE_ONLY:
            return False
    return True


def is_sparse_maker(step: Call) -> bool:
    """Tells whether the output of a transformer is a sparse matrix."""
    if step.name == "OneHotEncoder":
        return step.get("sparse_output") is None
    return step.name == "KBinsDiscretizer" and step.get("encode") is None


def sample_estimator_named(rng: random.Random, name: str) -> Call:
    """A call of an estimator with settings drawn from the grammar."""
    arguments = _sample_arguments(rng, _ESTIMATORS[name].arguments)
    if name == "BaggingClassifier" and rng.random() < 0.6:
        label = "estimator" if rng.random() < 0.5 else ""
        return Call(name, ((label, _sample_member(rng)), *arguments))
    if name == "CalibratedClassifierCV":
        base = Call("LinearSVC") if rng.random() < 0.6 else _sample_member(rng)
        return Call(name, (("", base), *arguments))
    if name in ("VotingClassifier", "StackingClassifier"):
        chosen = rng.sample(list(_MEMBERS), 3 if rng.random() < 0.3 else 2)
        members = tuple((_MEMBERS[member], Call(member)) for member in chosen)
        return Call(name, (("", members), *arguments))
    return Call(name, arguments)


def _sample_member(rng: random.Random) -> Call:
    name = rng.choice(list(_MEMBERS))
    arguments = _sample_arguments(rng, _ESTIMATORS[name].arguments)
    return Call(name, arguments[:1] if rng.random() < 0.4 else ())


def _sample_estimator(rng: random.Random) -> Call:
    name = pick(rng, {name: entry.weight for name, entry in _ESTIMATORS.items()})
    return sample_estimator_named(rng, name)


def _sample_transformers(rng: random.Random, form: Form) -> tuple[Call, ...]:
    weights = {name: entry.weight for name, entry in _SCALERS.items()}
    if form == "by_hand":
        # A transformer that changes the number of columns would fail on the raw validation rows.
        keeps_columns = ("StandardScaler", "MinMaxScaler", "RobustScaler", "MaxAbsScaler")
        weights = {name: weights[name] for name in keeps_columns}
    names = [pick(rng, weights)]
    if form != "by_hand" and rng.random() < _SECOND_SCALER_SHARE:
        del weights[names[0]]
        names.append(pick(rng, weights))
    return tuple(Call(name, _sample_arguments(rng, _SCALERS[name].arguments)) for name in names)


def _sample_arguments(
    rng: random.Random, arguments: tuple[_Argument, ...]
) -> tuple[tuple[str, Value], ...]:
    drawn: dict[str, Value] = {}
    for argument in arguments:
        is_allowed = argument.given is None or drawn.get(argument.given[0]) == argument.given[1]
        if is_allowed and rng.random() < argument.share:
            drawn[argument.name] = pick(rng, argument.values)
    return tuple(drawn.items())


def _imports(
    rng: random.Random, form: Form, transformers: tuple[Call, ...], estimator: Call
) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Import statements, one for each module, in the order of first use."""
    names = [name for call in (*transformers, estimator) for name in names_in(call)]
    if form in ("make_pipeline", "Pipeline"):
        names.insert(0 if rng.random() < 0.5 else len(names), form)
    by_module: dict[str, list[str]] = {}
    for name in names:
        known = by_module.setdefault(MODULES[name], [])
        if name not in known:
            known.append(name)
    return tuple((module, tuple(known)) for module, known in by_module.items())
