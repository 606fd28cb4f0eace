"""Mistakes that people and models make in such programs, each with a key for its error text.

A mistake changes a program that runs; the program itself is how to mend it. Two mistakes with the
same key raise the same error, so that a table of few hundred texts covers the whole corpus (see
`models.stand_in.errors`).
"""

import dataclasses
import random
import re
from collections.abc import Callable, Mapping

from models.stand_in import grammar as grammar
from models.stand_in.grammar import MODULES, Call, Program


@dataclasses.dataclass(frozen=True)
class Mistake:
    """A body that fails.

    Attributes:
      body: its text.
      key: what its error text depends on.
    """

    body: str
    key: str


def sample_mistake(rng: random.Random, program: Program) -> Mistake:
    """`program` with one mistake that is possible in it."""
    while True:
        mistake = _KINDS[grammar.pick(rng, _WEIGHTS)](rng, program)
        if mistake is not None:
            return mistake


_WRONG_NAMES: Mapping[str, tuple[str, ...]] = {
    "AdaBoostClassifier": ("AdaBoost", "AdaboostClassifier"),
    "BaggingClassifier": ("BaggedClassifier",),
    "DecisionTreeClassifier": ("DecisionTree", "DecisionTreeClassifer"),
    "ExtraTreesClassifier": ("ExtraTrees", "ExtraTreesClassifer"),
    "GaussianNB": ("NaiveBayes", "GaussianNaiveBayes"),
    "GradientBoostingClassifier": ("GradientBoosting", "GradientBoostClassifier"),
    "KNeighborsClassifier": ("KNNClassifier", "KNeighborClassifier", "KNN"),
    "LinearDiscriminantAnalysis": ("LDA",),
    "LogisticRegression": ("LogisticRegresion", "LogisticRegressionClassifier"),
    "MLPClassifier": ("MLP", "NeuralNetworkClassifier"),
    "MinMaxScaler": ("MinMax", "MinMaxScalar"),
    "Normalizer": ("Normaliser",),
    "PolynomialFeatures": ("Polynomial", "PolyFeatures"),
    "RandomForestClassifier": ("RandomForest", "RandomForestClassifer"),
    "RobustScaler": ("RobustScalar",),
    "SGDClassifier": ("SGD",),
    "SVC": ("SVM", "SVClassifier"),
    "StandardScaler": ("StandardScalar", "Scaler"),
}

_WRONG_MODULES: Mapping[str, tuple[str, ...]] = {
    "calibration": ("model_selection",),
    "decomposition": ("preprocessing", "pca"),
    "discriminant_analysis": ("lda", "linear_model"),
    "ensemble": ("tree", "forest", "ensembles"),
    "feature_selection": ("preprocessing",),
    "linear_model": ("linear_models", "logistic", "svm"),
    "model_selection": ("grid_search",),
    "naive_bayes": ("bayes", "naivebayes"),
    "neighbors": ("knn", "neighbours", "cluster"),
    "neural_network": ("neural_networks", "mlp"),
    "pipeline": ("preprocessing", "pipelines"),
    "preprocessing": ("scaler", "decomposition", "preprocess"),
    "svm": ("svc", "linear_model"),
    "tree": ("ensemble", "trees"),
}

_WRONG_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "C": ("c", "reg"),
    "alpha": ("reg", "a"),
    "criterion": ("criteria",),
    "degree": ("deg", "n_degree"),
    "gamma": ("g",),
    "hidden_layer_sizes": ("hidden_layers", "hidden_sizes", "hidden_units"),
    "kernel": ("kernal", "kernel_type"),
    "learning_rate": ("lr", "eta"),
    "learning_rate_init": ("lr",),
    "loss": ("loss_function",),
    "max_depth": ("depth", "max_dept"),
    "max_iter": ("max_iters", "n_iter", "epochs"),
    "n_components": ("components", "n_component"),
    "n_estimators": ("n_estimator", "n_trees", "num_trees"),
    "n_neighbors": ("k", "n_neighbours", "neighbors"),
    "probability": ("proba", "predict_proba"),
    "random_state": ("seed", "random_seed"),
    "reg_param": ("reg",),
    "var_smoothing": ("smoothing",),
    "voting": ("vote",),
    "weights": ("weight",),
}

# Arguments of other estimators, tried on those that do not have them.
_FOREIGN_ARGUMENTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "C": ("1.0", ("KNeighborsClassifier", "DecisionTreeClassifier", "GaussianNB")),
    "n_estimators": ("10", ("LogisticRegression", "DecisionTreeClassifier", "SVC")),
    "random_state": ("0", ("KNeighborsClassifier", "GaussianNB", "LinearDiscriminantAnalysis")),
    "max_depth": ("3", ("LogisticRegression", "AdaBoostClassifier", "BaggingClassifier")),
    "learning_rate": ("0.1", ("RandomForestClassifier", "LogisticRegression")),
    "max_iter": ("100", ("RandomForestClassifier", "KNeighborsClassifier", "GaussianNB")),
    "kernel": ("'rbf'", ("LogisticRegression", "KNeighborsClassifier")),
    "alpha": ("0.1", ("LogisticRegression", "SVC", "GaussianNB")),
    "probability": ("True", ("LogisticRegression", "MLPClassifier", "SGDClassifier")),
}

_BAD_VALUES: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "LogisticRegression": {
        "C": ("0", "-1", "'auto'"),
        "solver": ("'sgd'", "'adam'"),
        "penalty": ("'l1'",),
        "max_iter": ("-1",),
        "class_weight": ("'auto'",),
    },
    "SVC": {
        "C": ("0", "-1"),
        "kernel": ("'gaussian'", "'radial'", "'polynomial'"),
        "gamma": ("'none'", "-1"),
    },
    "KNeighborsClassifier": {
        "n_neighbors": ("0", "-1", "2.5"),
        "weights": ("'equal'", "'inverse'"),
    },
    "DecisionTreeClassifier": {
        "max_depth": ("0", "'none'", "2.5"),
        "criterion": ("'mse'", "'information_gain'"),
        "min_samples_split": ("1",),
        "max_features": ("'auto'",),
    },
    "RandomForestClassifier": {
        "n_estimators": ("0", "'10'"),
        "max_features": ("'auto'",),
        "criterion": ("'mse'",),
        "max_depth": ("0",),
    },
    "ExtraTreesClassifier": {"n_estimators": ("0",), "max_features": ("'auto'",)},
    "GradientBoostingClassifier": {
        "learning_rate": ("-0.1",),
        "loss": ("'deviance'",),
        "n_estimators": ("0",),
        "subsample": ("2",),
    },
    "AdaBoostClassifier": {"n_estimators": ("0",), "learning_rate": ("0",)},
    "GaussianNB": {"var_smoothing": ("-1",), "priors": ("0.5",)},
    "LinearDiscriminantAnalysis": {"solver": ("'lbfgs'",), "shrinkage": ("2",)},
    "SGDClassifier": {"loss": ("'log'", "'logistic'"), "alpha": ("-1",)},
    "MLPClassifier": {
        "activation": ("'sigmoid'", "'softmax'"),
        "solver": ("'newton'", "'rmsprop'"),
        "hidden_layer_sizes": ("0",),
        "alpha": ("-1",),
        "learning_rate": ("0.01",),
    },
    "BaggingClassifier": {"n_estimators": ("0",)},
    "BernoulliNB": {"alpha": ("-1",)},
}

# What lacks `predict_proba`, with the settings that people give it.
_NO_PROBABILITIES: Mapping[Call, float] = {
    Call("SVC"): 5,
    Call("SVC", (("C", "10"),)): 1.5,
    Call("SVC", (("kernel", "'linear'"),)): 2,
    Call("SVC", (("kernel", "'rbf'"), ("C", "1.0"))): 2,
    Call("LinearSVC"): 3,
    Call("LinearSVC", (("C", "0.1"),)): 1,
    Call("RidgeClassifier"): 2.5,
    Call("Perceptron"): 2.5,
    Call("SGDClassifier"): 2,
    Call("SGDClassifier", (("loss", "'hinge'"),)): 1,
    Call("LinearRegression"): 2.5,
    Call("Ridge", (("alpha", "1.0"),)): 1,
    Call("SVR"): 1,
    Call("RandomForestRegressor", (("n_estimators", "10"),)): 1.5,
    Call("DecisionTreeRegressor"): 1.5,
}

_UNDEFINED = (
    "X_train, y_train",
    "x_train, Y_train",
    "X, y",
    "x, y",
    "x_train, y",
    "x_train, labels",
)
_OTHER_METHODS = ("train", "fit_transform", "fit_model", "learn")
# A search that the task's rules forbid, because it would take the learner's part.
_GRIDS: Mapping[str, tuple[str, ...]] = {
    "KNeighborsClassifier": ("{'n_neighbors': [3, 5, 7]}", "{'n_neighbors': [1, 5, 9]}"),
    "DecisionTreeClassifier": ("{'max_depth': [2, 3, 5]}", "{'max_depth': [3, 5, 8]}"),
    "GaussianNB": ("{'var_smoothing': [1e-9, 1e-3]}",),
    "LogisticRegression": ("{'C': [0.1, 1, 10]}", "{'C': [0.01, 1]}"),
}
_TRANSFORMING = ("LinearDiscriminantAnalysis", "VotingClassifier", "StackingClassifier")
_OTHER_PACKAGES = {
    "xgboost": "XGBClassifier",
    "lightgbm": "LGBMClassifier",
    "catboost": "CatBoostClassifier",
}


def _is_pipeline(program: Program) -> bool:
    return program.form in ("make_pipeline", "Pipeline")


def _outermost(program: Program) -> str:
    return "Pipeline" if _is_pipeline(program) else program.estimator.name


def _used_names(program: Program) -> list[str]:
    return [name for _, names in program.imports for name in names]


def _with_estimator(program: Program, estimator: Call) -> Program:
    """The program with another estimator, imported in the place of the old one's import."""
    old = set(grammar.names_in(program.estimator))
    kept = {name for step in program.transformers for name in grammar.names_in(step)}
    imports: list[tuple[str, tuple[str, ...]]] = []
    is_imported = False
    for module, names in program.imports:
        if old & set(names) and not is_imported:
            imports += [(MODULES[name], (name,)) for name in grammar.names_in(estimator)]
            is_imported = True
        rest = tuple(name for name in names if name not in old or name in kept)
        if rest:
            imports.append((module, rest))
    return dataclasses.replace(program, estimator=estimator, imports=tuple(imports))


def _rename(program: Program, old: str, new: str, *, in_imports: bool) -> str:
    body = grammar.render(program)
    *imports, rest = re.split(r"(?<=\n)(?=    (?!from ))", body, maxsplit=1)
    word = re.compile(rf"\b{old}\b")
    head = "".join(imports)
    return (word.sub(new, head) if in_imports else head) + word.sub(new, rest)


def _missing_import(rng: random.Random, program: Program) -> Mistake | None:
    dropped = rng.choice(_used_names(program))
    left = [(module, tuple(n for n in names if n != dropped)) for module, names in program.imports]
    imports = tuple((module, names) for module, names in left if names)
    body = grammar.render(dataclasses.replace(program, imports=imports))
    return Mistake(body, f"undefined {dropped}")


def _wrong_module(rng: random.Random, program: Program) -> Mistake | None:
    module, names = rng.choice(program.imports)
    if len(names) > 1 or module not in _WRONG_MODULES:
        return None
    wrong = rng.choice(_WRONG_MODULES[module])
    imports = tuple((wrong if m == module else m, n) for m, n in program.imports)
    body = grammar.render(dataclasses.replace(program, imports=imports))
    return Mistake(body, f"import {wrong} {names[0]}")


def _wrong_name(rng: random.Random, program: Program) -> Mistake | None:
    name = rng.choice(_used_names(program))
    if name not in _WRONG_NAMES:
        return None
    wrong = rng.choice(_WRONG_NAMES[name])
    if rng.random() < 0.6:
        body = _rename(program, name, wrong, in_imports=True)
        return Mistake(body, f"import {MODULES[name]} {wrong}")
    return Mistake(_rename(program, name, wrong, in_imports=False), f"undefined {wrong}")


def _wrong_argument(rng: random.Random, program: Program) -> Mistake | None:
    call = rng.choice([*program.transformers, program.estimator, program.estimator])
    names = [name for name, _ in call.arguments if name in _WRONG_ARGUMENTS]
    if not names:
        return None
    name = rng.choice(names)
    wrong = rng.choice(_WRONG_ARGUMENTS[name])
    renamed = Call(call.name, tuple((wrong if n == name else n, v) for n, v in call.arguments))
    return Mistake(
        grammar.render(_replace_call(program, call, renamed)), f"argument {call.name} {wrong}"
    )


def _foreign_argument(rng: random.Random, program: Program) -> Mistake | None:
    name = rng.choice(list(_FOREIGN_ARGUMENTS))
    value, classes = _FOREIGN_ARGUMENTS[name]
    call = program.estimator
    if call.name not in classes:
        return None
    wrong = Call(call.name, (*call.arguments, (name, value)))
    return Mistake(
        grammar.render(_replace_call(program, call, wrong)), f"argument {call.name} {name}"
    )


def _bad_value(rng: random.Random, program: Program) -> Mistake | None:
    call = program.estimator
    if call.name not in _BAD_VALUES:
        return None
    name = rng.choice(list(_BAD_VALUES[call.name]))
    value = rng.choice(_BAD_VALUES[call.name][name])
    if value == "'l1'" and call.get("solver") == "'saga'":
        return None
    solver = f" {call.get('solver') or 'lbfgs'}" if value == "'l1'" else ""
    if name == "shrinkage" and call.get("solver") != "'lsqr'":
        return None
    wrong = _replace_call(program, call, call.replace(name, value))
    return Mistake(grammar.render(wrong), f"value {call.name} {name} {value}{solver}")


def _no_probabilities(rng: random.Random, program: Program) -> Mistake | None:
    if program.estimator.name == "VotingClassifier":
        voting = grammar.pick(rng, {"'hard'": 1, "": 1})
        arguments = [item for item in program.estimator.arguments if item[0] != "voting"]
        estimator = Call("VotingClassifier", tuple(arguments))
        wrong = _replace_call(
            program, program.estimator, estimator.replace("voting", voting) if voting else estimator
        )
    else:
        # The pipeline's steps stay, so they must suit the new estimator.
        wrong = _with_estimator(program, grammar.pick(rng, _NO_PROBABILITIES))
    return Mistake(grammar.render(wrong), f"probabilities {_outermost(wrong)}")


def _undefined_data(rng: random.Random, program: Program) -> Mistake | None:
    arguments = rng.choice(_UNDEFINED)
    body = grammar.render(dataclasses.replace(program, fit_arguments=arguments))
    known = ("x_train", "y_train")
    return Mistake(body, f"undefined {next(n for n in arguments.split(', ') if n not in known)}")


def _undefined_model(rng: random.Random, program: Program) -> Mistake | None:
    variable = rng.choice(("clf", "classifier", "pipeline", "estimator", "svm"))
    body = grammar.render(dataclasses.replace(program, variable=variable))
    if program.fit == "statement" and rng.random() < 0.3:
        body = body.replace(f"\n    {variable}.fit(", "\n    model.fit(")
    return Mistake(body, "undefined model")


def _not_fitted(rng: random.Random, program: Program) -> Mistake | None:
    del rng
    body = grammar.render(dataclasses.replace(program, fit="none"))
    return Mistake(body, f"unfitted {_outermost(program)}")


def _missing_labels(rng: random.Random, program: Program) -> Mistake | None:
    del rng
    body = grammar.render(dataclasses.replace(program, fit_arguments="x_train"))
    if any(step.name == "SelectKBest" for step in program.transformers):
        return Mistake(body, "labels SelectKBest")
    where = " in Pipeline" if _is_pipeline(program) else ""
    return Mistake(body, f"labels {program.estimator.name}{where}")


def _class_not_instance(rng: random.Random, program: Program) -> Mistake | None:
    if not _is_pipeline(program):
        return None
    step = rng.choice(program.transformers)
    body = grammar.render(program).replace(grammar.render_call(step), step.name)
    return Mistake(body, f"class {step.name}")


def _other_method(rng: random.Random, program: Program) -> Mistake | None:
    method = rng.choice(_OTHER_METHODS)
    if method == "fit_transform" and program.estimator.name in _TRANSFORMING:
        return None
    body = grammar.render(program).replace(".fit(", f".{method}(")
    return Mistake(body, f"method {_outermost(program)} {method}")


def _predictions(rng: random.Random, program: Program) -> Mistake | None:
    method = rng.choice(("predict", "predict_proba"))
    if program.fit == "chained":
        return None
    body = f"{grammar.render(program)}\n    model = model.{method}(x_train)"
    return Mistake(body, "returns array")


def _other_package(rng: random.Random, program: Program) -> Mistake | None:
    package = rng.choice(list(_OTHER_PACKAGES))
    arguments = (("n_estimators", rng.choice(("10", "20", "50"))),) if rng.random() < 0.6 else ()
    marked = _with_estimator(program, Call("LogisticRegression", arguments))
    body = grammar.render(marked).replace("LogisticRegression", _OTHER_PACKAGES[package])
    return Mistake(body.replace("from sklearn.linear_model", f"from {package}"), package)


def _forbidden(rng: random.Random, program: Program) -> Mistake | None:
    searched = rng.choice(list(_GRIDS))
    arguments = (("", Call(searched)), ("", rng.choice(_GRIDS[searched])))
    folds = (("cv", rng.choice(("2", "3", "5"))),) if rng.random() < 0.7 else ()
    wrong = _with_estimator(program, Call("GridSearchCV", (*arguments, *folds)))
    return Mistake(grammar.render(wrong), "forbidden GridSearchCV")


def _unsuited_steps(rng: random.Random, program: Program) -> Mistake | None:
    """A transformer whose output the next step refuses: sparse for dense, negative for counts."""
    if not _is_pipeline(program) or len(program.transformers) != 1:
        return None
    (old,) = program.transformers
    if program.estimator.name in ("MultinomialNB", "ComplementNB"):
        step = rng.choice((Call("StandardScaler"), Call("RobustScaler")))
        key = f"negative {program.estimator.name}"
    else:
        bins = Call("KBinsDiscretizer", (("n_bins", "3"),))
        step = rng.choice((bins, Call("OneHotEncoder", (("handle_unknown", "'ignore'"),))))
        key = f"sparse {program.estimator.name}"
    if old.name == step.name or grammar.runs_together((step, program.estimator)):
        return None
    imports = tuple(
        (MODULES[step.name] if names == (old.name,) else module,
         tuple(step.name if name == old.name else name for name in names))
        for module, names in program.imports
    )  # fmt: skip
    if any(module != MODULES[name] for module, names in imports for name in names):
        return None
    wrong = dataclasses.replace(program, transformers=(step,), imports=imports)
    return Mistake(grammar.render(wrong), key)


def _steps_not_listed(rng: random.Random, program: Program) -> Mistake | None:
    del rng
    if program.form != "Pipeline":
        return None
    body = grammar.render(program).replace("Pipeline([", "Pipeline(").replace("])", ")", 1)
    return Mistake(body, f"Pipeline of {len(program.transformers) + 1} arguments")


def _unclosed(rng: random.Random, program: Program) -> Mistake | None:
    del rng
    if program.fit != "statement":
        return None
    body = grammar.render(program)
    place = body.rindex(")\n    ")
    return Mistake(body[:place] + body[place + 1 :], "syntax unclosed")


def _unmatched(rng: random.Random, program: Program) -> Mistake | None:
    del rng
    if program.fit != "statement":
        return None
    body = grammar.render(program)
    place = body.rindex(")\n    ")
    return Mistake(body[:place] + ")" + body[place:], "syntax unmatched")


def _missing_comma(rng: random.Random, program: Program) -> Mistake | None:
    del rng
    if len(program.estimator.arguments) < 2:
        return None
    text = grammar.render_call(program.estimator)
    place = text.rindex(", ")
    wrong = text[:place] + text[place + 1 :]
    return Mistake(grammar.render(program).replace(text, wrong), "syntax comma")


def _indentation(rng: random.Random, program: Program) -> Mistake | None:
    body = grammar.render(program)
    place = body.rindex("\n    ")
    if rng.random() < 0.5:
        return Mistake(body[:place] + "\n  " + body[place + 5 :], "syntax unindent")
    return Mistake(body[:place] + "\n        " + body[place + 5 :], "syntax indent")


def _replace_call(program: Program, old: Call, new: Call) -> Program:
    if old is program.estimator:
        return dataclasses.replace(program, estimator=new)
    steps = tuple(new if step is old else step for step in program.transformers)
    return dataclasses.replace(program, transformers=steps)


_Kind = Callable[[random.Random, Program], Mistake | None]

_WEIGHTED: tuple[tuple[float, _Kind], ...] = (
    (16, _missing_import),
    (9, _wrong_module),
    (7, _wrong_name),
    (12, _wrong_argument),
    (20, _foreign_argument),
    (16, _bad_value),
    (14, _no_probabilities),
    (6, _undefined_data),
    (5, _undefined_model),
    (5, _not_fitted),
    (3, _missing_labels),
    (4, _class_not_instance),
    (3, _other_method),
    (2, _predictions),
    (2, _other_package),
    (3, _forbidden),
    (6, _unsuited_steps),
    (3, _steps_not_listed),
    (2.5, _unclosed),
    (1.5, _unmatched),
    (2, _missing_comma),
    (1.5, _indentation),
)
_KINDS: Mapping[int, _Kind] = {i: kind for i, (_, kind) in enumerate(_WEIGHTED)}
_WEIGHTS: Mapping[int, float] = {i: weight for i, (weight, _) in enumerate(_WEIGHTED)}
