"""The programs that the stand-in writes: scikit-learn estimators and pipelines, and their text."""

import dataclasses
from collections.abc import Mapping
from typing import Literal, TypeAlias

# An argument's value: source text, a nested estimator, or named estimators of a vote.
Value: TypeAlias = "str | Call | tuple[tuple[str, Call], ...]"

Form = Literal["plain", "make_pipeline", "Pipeline", "by_hand"]
"""How transformers and estimator are put together. `by_hand` transforms `x_train` outside of the
model: the program runs, but its validation rows stay raw."""

Fit = Literal["statement", "chained", "none"]
"""How training is written."""


@dataclasses.dataclass(frozen=True)
class Call:
    """The call of a class with its arguments; an argument named "" is positional."""

    name: str
    arguments: tuple[tuple[str, Value], ...] = ()

    def get(self, argument: str) -> "Value | None":
        """The value of an argument, None when it is not given."""
        return dict(self.arguments).get(argument)

    def replace(self, argument: str, value: Value) -> "Call":
        """The same call with one argument set, in its place or at the end."""
        others = [item for item in self.arguments if item[0] != argument]
        place = next((i for i, (name, _) in enumerate(self.arguments) if name == argument), None)
        others.insert(len(others) if place is None else place, (argument, value))
        return Call(self.name, tuple(others))


@dataclasses.dataclass(frozen=True)
class Program:
    """One body of `build_model` before it is text; mistakes are made by changing its fields.

    Attributes:
      transformers: transformers in the order in which they precede the estimator.
      estimator: the estimator that is trained.
      form: see `Form`.
      fit: see `Fit`.
      imports: (module, names) of every import statement.
      variable: name that the model is assigned to.
      fit_arguments: arguments of `fit`, as source text.
    """

    transformers: tuple[Call, ...]
    estimator: Call
    form: Form
    fit: Fit
    imports: tuple[tuple[str, tuple[str, ...]], ...]
    variable: str = "model"
    fit_arguments: str = "x_train, y_train"


MODULES: Mapping[str, str] = {
    name: module
    for module, names in {
        "calibration": "CalibratedClassifierCV",
        "decomposition": "PCA",
        "discriminant_analysis": "LinearDiscriminantAnalysis QuadraticDiscriminantAnalysis",
        "dummy": "DummyClassifier",
        "ensemble": "AdaBoostClassifier BaggingClassifier ExtraTreesClassifier "
        "GradientBoostingClassifier HistGradientBoostingClassifier RandomForestClassifier "
        "RandomForestRegressor StackingClassifier VotingClassifier",
        "feature_selection": "SelectKBest VarianceThreshold",
        "linear_model": "LinearRegression LogisticRegression Perceptron Ridge RidgeClassifier "
        "SGDClassifier",
        "model_selection": "GridSearchCV",
        "naive_bayes": "BernoulliNB ComplementNB GaussianNB MultinomialNB",
        "neighbors": "KNeighborsClassifier NearestCentroid",
        "neural_network": "MLPClassifier",
        "pipeline": "Pipeline make_pipeline",
        "preprocessing": "KBinsDiscretizer MaxAbsScaler MinMaxScaler Normalizer OneHotEncoder "
        "PolynomialFeatures PowerTransformer QuantileTransformer RobustScaler SplineTransformer "
        "StandardScaler",
        "svm": "LinearSVC SVC SVR",
        "tree": "DecisionTreeClassifier DecisionTreeRegressor ExtraTreeClassifier",
    }.items()
    for name in names.split()
}
"""The scikit-learn module of every class and function that programs use."""


def names_in(call: Call) -> list[str]:
    """Classes that a call and the calls inside of it name, in the order of writing."""
    names = [call.name]
    for _, value in call.arguments:
        if isinstance(value, Call):
            names += names_in(value)
        elif not isinstance(value, str):
            names += [name for _, member in value for name in names_in(member)]
    return names


def render(program: Program) -> str:
    """The body as source text: its first line without indentation, later ones with four spaces."""
    lines = [
        f"from sklearn.{module} import {', '.join(names)}" for module, names in program.imports
    ]
    transformers = [render_call(call) for call in program.transformers]
    model = render_call(program.estimator)
    if program.form == "by_hand":
        lines += [f"x_train = {text}.fit_transform(x_train)" for text in transformers]
    elif program.form == "make_pipeline":
        model = f"make_pipeline({', '.join([*transformers, model])})"
    elif program.form == "Pipeline":
        labels = ["scaler", "prep"][: len(transformers)]
        steps = [
            f"('{label}', {text})"
            for label, text in zip([*labels, "model"], [*transformers, model], strict=True)
        ]
        model = f"Pipeline([{', '.join(steps)}])"
    training = f".fit({program.fit_arguments})"
    lines.append(f"{program.variable} = {model}{training if program.fit == 'chained' else ''}")
    if program.fit == "statement":
        lines.append(program.variable + training)
    return "\n    ".join(lines)


def render_call(call: Call) -> str:
    """The call as source text."""
    arguments = []
    for name, value in call.arguments:
        if isinstance(value, Call):
            text = render_call(value)
        elif isinstance(value, str):
            text = value
        else:
            members = [f"('{label}', {render_call(member)})" for label, member in value]
            text = f"[{', '.join(members)}]"
        arguments.append(f"{name}={text}" if name else text)
    return f"{call.name}({', '.join(arguments)})"
