"""Baselines: plain scikit-learn models whose scores say what a found program is worth.

Each is a body of `build_model`, with the default settings of its estimator. An executor runs it as
it runs every program: on the same splits and behind the same walls.
"""

_ARRAY = """\
from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from {module} import {estimator}
    model = make_pipeline(StandardScaler(), {estimator}())
    model.fit(x_train, y_train)"""

_FRAME = """\
import pandas as pd
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
    from {module} import {estimator}
    numbers = list(x_train.select_dtypes(["number", "bool"]))
    dates = list(x_train.select_dtypes("datetime"))
    words = [name for name in x_train if name not in [*numbers, *dates]]
    to_float = FunctionTransformer(lambda x: x.astype("float64"))
    to_days = FunctionTransformer(lambda x: (x - pd.Timestamp(0)) / pd.Timedelta(days=1))
    fill = SimpleImputer(strategy="median", keep_empty_features=True)
    one_hot = OneHotEncoder(handle_unknown="ignore", max_categories=20, sparse_output=False)
    columns = make_column_transformer(
        (make_pipeline(to_float, fill, StandardScaler()), numbers),
        (make_pipeline(to_days, fill, StandardScaler()), dates),
        (one_hot, words),
    )
    model = make_pipeline(columns, {estimator}())
    model.fit(x_train, y_train)"""

_CLASSIFIERS = {
    "logistic regression": ("sklearn.linear_model", "LogisticRegression"),
    "random forest": ("sklearn.ensemble", "RandomForestClassifier"),
    "gradient boosting": ("sklearn.ensemble", "HistGradientBoostingClassifier"),
}
_REGRESSORS = {
    "ridge regression": ("sklearn.linear_model", "Ridge"),
    "random forest": ("sklearn.ensemble", "RandomForestRegressor"),
    "gradient boosting": ("sklearn.ensemble", "HistGradientBoostingRegressor"),
}


def bodies(*, has_frame: bool, is_regression: bool) -> dict[str, str]:
    """Returns name and body of each baseline.

    Columns are standardised. In the frame form missing numbers become the median, dates become days
    and every other column at most 20 categories.

    Args:
      has_frame: whether programs get a DataFrame; otherwise they get an array.
      is_regression: whether the target is a quantity; otherwise it has classes.
    """
    template = _FRAME if has_frame else _ARRAY
    estimators = _REGRESSORS if is_regression else _CLASSIFIERS
    return {
        name: template.format(module=module, estimator=estimator)
        for name, (module, estimator) in estimators.items()
    }
