"""Slips that people and models make with scikit-learn: wrong names, arguments, values, classes.

`WRONG_` tables lead from the right word to the words that are written in its place.
"""

from collections.abc import Mapping

from models.stand_in.programs import Call

WRONG_NAMES: Mapping[str, tuple[str, ...]] = {
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

WRONG_MODULES: Mapping[str, tuple[str, ...]] = {
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

WRONG_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
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

# Argument of other estimators to a value, and to the estimators on which it is a mistake.
FOREIGN_ARGUMENTS: Mapping[str, tuple[str, tuple[str, ...]]] = {
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

# Class to arguments and the values, separated by spaces, that they refuse.
BAD_VALUES: Mapping[str, Mapping[str, str]] = {
    "LogisticRegression": {
        "C": "0 -1 'auto'",
        "solver": "'sgd' 'adam'",
        "penalty": "'l1'",
        "max_iter": "-1",
        "class_weight": "'auto'",
    },
    "SVC": {"C": "0 -1", "kernel": "'gaussian' 'radial' 'polynomial'", "gamma": "'none' -1"},
    "KNeighborsClassifier": {"n_neighbors": "0 -1 2.5", "weights": "'equal' 'inverse'"},
    "DecisionTreeClassifier": {
        "max_depth": "0 'none' 2.5",
        "criterion": "'mse' 'information_gain'",
        "min_samples_split": "1",
        "max_features": "'auto'",
    },
    "RandomForestClassifier": {
        "n_estimators": "0 '10'",
        "max_features": "'auto'",
        "criterion": "'mse'",
        "max_depth": "0",
    },
    "ExtraTreesClassifier": {"n_estimators": "0", "max_features": "'auto'"},
    "GradientBoostingClassifier": {
        "learning_rate": "-0.1",
        "loss": "'deviance'",
        "n_estimators": "0",
        "subsample": "2",
    },
    "AdaBoostClassifier": {"n_estimators": "0", "learning_rate": "0"},
    "GaussianNB": {"var_smoothing": "-1", "priors": "0.5"},
    "LinearDiscriminantAnalysis": {"solver": "'lbfgs'", "shrinkage": "2"},
    "SGDClassifier": {"loss": "'log' 'logistic'", "alpha": "-1"},
    "MLPClassifier": {
        "activation": "'sigmoid' 'softmax'",
        "solver": "'newton' 'rmsprop'",
        "hidden_layer_sizes": "0",
        "alpha": "-1",
        "learning_rate": "0.01",
    },
    "BaggingClassifier": {"n_estimators": "0"},
    "BernoulliNB": {"alpha": "-1"},
}

# Estimators without `predict_proba`, as people write them, to their weights.
NO_PROBABILITIES: Mapping[Call, float] = {
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

# Arguments of `fit` with a name that is not defined.
UNDEFINED = (
    *("X_train, y_train", "x_train, Y_train", "X, y", "x, y"),
    *("x_train, y", "x_train, labels"),
)
# Methods that people call in place of `fit`, and the estimators that have `fit_transform`.
OTHER_METHODS = ("train", "fit_transform", "fit_model", "learn")
TRANSFORMING = ("LinearDiscriminantAnalysis", "VotingClassifier", "StackingClassifier")
# Grids of searches. The task's rules forbid a search, because it would do the learner's part.
GRIDS: Mapping[str, tuple[str, ...]] = {
    "KNeighborsClassifier": ("{'n_neighbors': [3, 5, 7]}", "{'n_neighbors': [1, 5, 9]}"),
    "DecisionTreeClassifier": ("{'max_depth': [2, 3, 5]}", "{'max_depth': [3, 5, 8]}"),
    "GaussianNB": ("{'var_smoothing': [1e-9, 1e-3]}",),
    "LogisticRegression": ("{'C': [0.1, 1, 10]}", "{'C': [0.01, 1]}"),
}
# Packages that are not installed, and their classes.
OTHER_PACKAGES = {
    "xgboost": "XGBClassifier",
    "lightgbm": "LGBMClassifier",
    "catboost": "CatBoostClassifier",
}
