"""Scores the program below on a table, predicts with it, or saves it fitted.

    python best_code.py                                   # scores on the table of the run
    python best_code.py --table=OTHER.csv                 # on another table of the same form
    python best_code.py --predict=NEW.csv --output=P.csv  # fits on all rows, predicts for NEW.csv
    python best_code.py --save=model.joblib               # fits on all rows, saves the model
    python best_code.py --load=model.joblib --predict=NEW.csv --output=P.csv

It needs numpy, pandas and scikit-learn, and preparation.json beside it or in the folder above,
which says how the run read its table. A language model wrote the program, and here it runs without
the walls of the run: read it first. Load only models that you trust: loading one runs its code.
"""

import os
import subprocess
import sys

# Scores are those of the run only with its order of sets and its rounding of sums, which Python and
# numpy take from the environment when they start.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

if (
    __name__ == "__main__"
    and sys.orig_argv[-len(sys.argv) :] == sys.argv
    and (sys.flags.hash_randomization or os.environ.get("OMP_NUM_THREADS") != "1")
):
    ignored = "PYTHON" if sys.flags.ignore_environment else "\n"
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ignored)}
    isolation = ["-s"] * sys.flags.no_user_site + ["-P"] * getattr(sys.flags, "safe_path", 0)
    command = [sys.executable, *isolation, *sys.argv]
    sys.exit(subprocess.call(command, env=kept | ENVIRONMENT))

import argparse
import contextlib
import io
import json
import random
import warnings
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import sklearn
from sklearn import metrics

# The program --------------------------------------------------------------------------------------


def build_model(x_train, y_train):
    """Stands for the program of a run."""
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression().fit(x_train, y_train)


# End of the program -------------------------------------------------------------------------------
# How a table is read ------------------------------------------------------------------------------

from env.tables.prepared import (
    features,
    holdout_rows,
    known_rows,
    labels,
    read,
    split_rows,
    unread_cells,
    visible_rows,
)

# End of how a table is read -----------------------------------------------------------------------

PREPARATION = "preparation.json"
# The split scores in the run.
RUN_SCORES = ()


class ProblemError(Exception):
    """Something that the user can mend; the text is the one line that they see."""


def main() -> None:
    """Does what the command line says."""
    options = parse()
    warnings.simplefilter("ignore")  # programs were chosen by their scores, with these warnings
    bundle = load(options.load) if options.load else None
    preparation = bundle["preparation"] if bundle else read_preparation()
    if options.predict:
        tables = (options.predict, options.table, preparation["file"].get("path"))
        if any(same_file(options.output, table) for table in tables if table):
            raise ProblemError(f"--output={options.output}: is a table that would be lost")
        with explained(f"--predict={options.predict}"):
            raw = read(preparation, options.predict)
            x_new = features(preparation, raw)
        for line in unread_cells(preparation, raw):
            print("note:", line, file=sys.stderr)
    if bundle is None:
        chosen = (known_rows,) if options.predict or options.save else (visible_rows, holdout_rows)
        with explained(f"--table={options.table}" if options.table else "the table of the run"):
            raw = read(preparation, options.table)
            parts = [part(preparation, raw, rows(preparation, raw)) for rows in chosen]
            if not len(parts[0][1]):
                raise ValueError("no row has a target that the run knows")
        if len(parts) == 2:
            print_scores(preparation, parts[0], parts[1], options.table)
            return
        bundle = fit_on_all(preparation, parts[0])
    if options.save:
        save(bundle, options.save)
    if options.predict:
        table = predictions(bundle, x_new)
        with explained(f"--output={options.output}"):
            table.to_csv(options.output)
        print(f"Wrote {len(table)} predictions to {options.output}.", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        stop(message)


def parse() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", metavar="PATH", help="table in place of that of the run")
    parser.add_argument("--predict", metavar="PATH", help="table to predict the target of")
    parser.add_argument("--output", metavar="PATH", help="CSV file for the predictions")
    parser.add_argument("--save", metavar="PATH", help="file for the fitted model")
    parser.add_argument("--load", metavar="PATH", help="model of --save, in place of a fit")
    options = parser.parse_args()
    if bool(options.predict) != bool(options.output):
        stop("--predict=NEW.csv and --output=PREDICTIONS.csv go together")
    if options.load and (options.save or options.table or not options.predict):
        stop("--load=MODEL goes with --predict=NEW.csv and --output=PREDICTIONS.csv only")
    return options


def stop(problem: str) -> NoReturn:
    """Ends the script with one line on what is wrong."""
    print("error:", " ".join(problem.split()), file=sys.stderr)
    sys.exit(2)


def same_file(path, other):
    """Returns whether two paths lead to one file that exists."""
    return os.path.exists(path) and os.path.exists(other) and os.path.samefile(path, other)


@contextlib.contextmanager
def explained(subject):
    """Turns errors of reading and writing into problems of `subject`."""
    try:
        yield
    except FileNotFoundError as error:
        raise ProblemError(f"{subject}: there is no file {error.filename}") from error
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ProblemError(f"{subject}: {error}") from error


def read_preparation():
    """Returns what `preparation.json` holds."""
    here = Path(__file__).resolve().parent
    for folder in (here, here.parent):
        if (folder / PREPARATION).is_file():
            with explained(f"{folder / PREPARATION}"):
                return json.loads((folder / PREPARATION).read_text("utf-8"))
    raise ProblemError(f"{here / PREPARATION} is missing: copy it from the folder of the run")


# Fits and scores ----------------------------------------------------------------------------------


def fit(x, y, seed=0):
    """Runs the program as the run did: by itself, and with random numbers of this seed."""
    random.seed(seed)
    np.random.seed(seed)
    # numpy's C code looks `secrets.randbits` up under this name.
    vars(np.random.bit_generator)["randbits"] = random.Random(seed).getrandbits
    before, rest = Path(__file__).read_text("utf-8").split("\n# The program -", 1)
    program = rest.split("\n# End of the program -", 1)[0].partition("\n")[2]
    lines = "\n" * (before.count("\n") + 2)  # so that errors name the lines of this file
    namespace: dict[str, Any] = {"__name__": "program"}
    exec(compile(lines + program, __file__, "exec", dont_inherit=True), namespace)
    return namespace["build_model"](x, y)


def part(preparation, raw, rows):
    """Returns features and target of the rows at these positions; no features of no rows."""
    x = features(preparation, raw.iloc[rows]) if len(rows) else None
    return x, labels(preparation, raw)[rows]


def take(x, rows):
    """Returns the rows of an array or a frame at these positions."""
    if isinstance(x, pd.DataFrame):
        return x.iloc[rows].reset_index(drop=True)
    return x[rows]


def predict(preparation, model, x):
    """Returns class probabilities `[rows, classes]`, or numbers `[rows]` for a regression."""
    if preparation["task"] == "regression":
        return np.asarray(model.predict(x), np.float64).reshape(len(x))
    predicted = np.asarray(model.predict_proba(x), np.float64)
    expected = (len(x), len(preparation["classes"]))
    if predicted.shape != expected:
        raise ValueError(f"predict_proba returned the shape {predicted.shape}, not {expected}")
    return predicted


def score(preparation, y, predicted):
    """Returns the score of predictions; larger is better, 1 is perfect."""
    name = metric_name(preparation)
    if name == "roc_auc":
        if predicted.shape[1] == 2:
            return metrics.roc_auc_score(y, predicted[:, 1])
        return metrics.roc_auc_score(y, predicted, multi_class="ovo")
    if name == "accuracy":
        return metrics.accuracy_score(y, predicted.argmax(axis=1))
    if name == "log_loss":  # the geometric mean of the probability of the true class
        given = predicted[np.arange(len(y)), y]
        return np.exp(np.log(np.maximum(given, np.finfo(np.float64).tiny)).mean())
    if name == "average_precision":
        is_binary = predicted.shape[1] == 2
        targets = y if is_binary else np.eye(predicted.shape[1])[y]
        return metrics.average_precision_score(targets, predicted[:, 1] if is_binary else predicted)
    if name == "r2":
        return max(metrics.r2_score(y, predicted), -1.0)
    # 1 is no error, 0 the error of the best constant.
    loss, constant = {
        "rmse": (metrics.root_mean_squared_error, np.mean(y)),
        "mae": (metrics.mean_absolute_error, np.median(y)),
    }[name]
    return max(1 - loss(y, predicted) / loss(y, np.full(len(y), constant)), -1.0)


def metric_name(preparation):
    """Returns the metric of the run; for a function of the user's own the usual metric."""
    usual = "r2" if preparation["task"] == "regression" else "roc_auc"
    return usual if ":" in preparation["metric"] else preparation["metric"]


def print_scores(preparation, visible, held_out, path):
    """Prints the scores of the splits, their mean and the score on the rows that are held out.

    Args:
      preparation: what `preparation.json` holds.
      visible: features and target of the rows of the splits.
      held_out: features and target of the rows of the holdout, perhaps none.
      path: table that they are from; None for that of the run.
    """
    name = metric_name(preparation)
    (x, y), (x_held_out, y_held_out) = visible, held_out
    print(f"table     {path or preparation['file'].get('path', PREPARATION)}")
    print(f"rows      {len(y)} for the splits, {len(y_held_out)} held out")
    print(f"metric    {name}")
    if name != preparation["metric"]:
        print(f"          in place of {preparation['metric']}, which this script does not have")
    scores = []
    for split in range(preparation["splits"]["num"]):
        train, test = split_rows(preparation, y, split)
        predicted = predict(preparation, fit(take(x, train), y[train], split), take(x, test))
        with explained(f"split {split} has no score"):
            scores.append(score(preparation, y[test], predicted))
        print(f"split {split}   {scores[-1]:.6f}", flush=True)
    print(f"mean      {np.mean(scores):.6f}")
    if len(y_held_out):
        predicted = predict(preparation, fit(x, y), x_held_out)
        try:
            print(f"holdout   {score(preparation, y_held_out, predicted):.6f}")
        except ValueError as error:  # it lacks a class
            print(f"holdout   no score: {error}")
    run = np.mean(RUN_SCORES or scores)
    is_of_run = path is None and name == preparation["metric"]
    if is_of_run and not np.allclose(scores, RUN_SCORES or scores, rtol=0, atol=1e-6):
        print(f"The run scored {run:.6f}: the program, its table or the libraries differ.")


# Predictions --------------------------------------------------------------------------------------


def fit_on_all(preparation, known):
    """Returns the program fitted to every row that has a target, with what predictions need."""
    print(f"Fitting the program to {len(known[1])} rows.", file=sys.stderr, flush=True)
    return {"model": fit(*known), "preparation": preparation, "versions": versions()}


def versions():
    """Returns the versions of the libraries that a fitted model depends on."""
    return {module.__name__: module.__version__ for module in (np, pd, sklearn)}


def save(bundle, path):
    """Saves a fitted model, with classes and functions that it defines itself."""
    try:
        import cloudpickle  # of which joblib, a part of scikit-learn, brings its own copy at times
    except ImportError:
        from joblib.externals import cloudpickle

    with explained(f"--save={path}"), open(path, "wb") as file:
        cloudpickle.dump(bundle, file)
    print(f"Saved {path}.", file=sys.stderr)


def load(path):
    """Returns a saved model; other versions of the libraries are named."""
    import joblib

    with explained(f"--load={path}"):
        content = Path(path).read_bytes()
    try:
        bundle = joblib.load(io.BytesIO(content))
        saved_with = bundle["versions"]
    except Exception as error:  # of the many that other files lead to
        raise ProblemError(f"--load={path}: is no model that --save wrote ({error})") from error
    if saved_with != versions():
        listed = ", ".join(f"{name} {version}" for name, version in saved_with.items())
        print(f"note: {path} was saved with {listed}", file=sys.stderr)
    return bundle


def predictions(bundle, x):
    """Returns predictions as a frame with one row for each row of `x`, in its order.

    Args:
      bundle: a model that `--save` saved, as `joblib.load` returns it.
      x: the result of `features`.
    """
    preparation = bundle["preparation"]
    predicted = predict(preparation, bundle["model"], x)
    if preparation["task"] == "regression":
        columns = {"prediction": predicted}
    else:
        classes = preparation["classes"]
        columns = {"prediction": [classes[code] for code in predicted.argmax(axis=1)]}
        shown = predicted.round(6)
        columns |= {f"probability of {name}": shown[:, k] for k, name in enumerate(classes)}
    return pd.DataFrame(columns, index=pd.RangeIndex(len(x), name="row"))


if __name__ == "__main__":
    try:
        main()
    except ProblemError as problem:
        stop(str(problem))
