"""The script that a run writes for its table, used as its owner would: without this project."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest

from env.datasets import load_dataset
from env.execution import metrics
from env.execution.program import BUILD_MODEL, template_of
from env.executor import CodeExecutor
from env.tables.script_text import script_text
from env.tasks import answers
from etpo_jax.runs import best_script
from etpo_jax.runs.best import Best

_ROOT = Path(__file__).resolve().parents[3]
# The random numbers of the forest are those of numpy's global generator.
_BODY = """\
from sklearn.ensemble import RandomForestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer
    class Forest(RandomForestClassifier):
        pass
    model = make_pipeline(FunctionTransformer(lambda x: 2 * x), Forest(20))
    model.fit(x_train, y_train)"""


def _write(folder: Path, dataset, *, metric: str = "roc_auc", body: str = _BODY) -> Best:
    """Makes the files of a run whose best program has this body, scored as the run scores it."""
    template = template_of(dataset)
    rules = {"num_workers": 1, "metric": metrics.find(metric), "template": template}
    with CodeExecutor(dataset, **rules) as executor:
        (result,) = executor.run([body])
    assert not result.error
    program = template.source(body)
    best = Best(result.reward, result.split_scores, 3, dataset.name, 0, body, program)
    folder.mkdir()
    (folder / "best_code.py").write_text(best.code(is_script=True))
    preparation = {"metric": metric, **dataset.preparation}
    (folder / "preparation.json").write_text(json.dumps(preparation))
    if dataset.holdout is not None:
        with CodeExecutor(dataset, holdout=True, **rules) as executor:
            (held_out,) = executor.run([body])
        assert not held_out.error
        (folder / "holdout.json").write_text(json.dumps(held_out.reward))
    return best


def _run(script: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    """Runs a script in an isolated Python that knows nothing of this project."""
    return subprocess.run(
        [sys.executable, "-I", script, *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def _figures(output: str) -> dict[str, float]:
    """The figures that a script printed, by their names."""
    found = re.findall(r"^(split \d+|mean|holdout) +(-?[\d.]+)$", output, re.MULTILINE)
    return {name: float(value) for name, value in found}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Files of a run on a table of the paper, with its best program."""
    folder = tmp_path_factory.mktemp("runs") / "balance_scale"
    return folder, _write(folder, load_dataset("balance_scale"))


def test_a_script_on_a_table_of_the_paper_prints_the_scores_of_the_run(published, tmp_path):
    folder, best = published
    done = _run(folder / "best_code.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        "table     preparation.json\nrows      125 for the splits, 0 held"
    )
    expected = {f"split {split}": score for split, score in enumerate(best.split_scores)}
    assert _figures(done.stdout) == pytest.approx({**expected, "mean": best.reward}, abs=1e-6)


def test_a_program_of_the_folder_below_finds_the_preparation(published, tmp_path):
    folder, best = published
    (folder / "top_programs").mkdir()
    script = folder / "top_programs" / "01_0.9.py"
    script.write_text(best.code(is_script=True))
    assert f"mean      {best.reward:.6f}" in _run(script, cwd=tmp_path).stdout


def test_other_scores_than_those_of_the_run_are_said(published, tmp_path):
    folder, best = published
    script = tmp_path / "best_code.py"
    text = (folder / "best_code.py").read_text().replace("Forest(20)", "Forest(2)")
    script.write_text(text)
    done = _run(script, cwd=tmp_path)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"error: {tmp_path}/preparation.json is missing: copy it from the folder of the run\n"
    )
    (tmp_path / "preparation.json").write_text((folder / "preparation.json").read_text())
    assert f"The run scored {best.reward:.6f}: the program" in _run(script, cwd=tmp_path).stdout


def test_run_action_gives_a_script_the_reward_of_its_program(published):
    folder, best = published
    command = [sys.executable, "-m", "env.run_action", f"--action_file={folder}/best_code.py"]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["reward"] == best.reward


# A table of one's own -----------------------------------------------------------------------------

# Works on the columns by name; the order in which it goes through a set changes the forest.
_FRAME_BODY = """\
from sklearn.ensemble import RandomForestClassifier
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder
    texts = list({"town", "visit plan"})
    columns = ColumnTransformer([
        ("texts", OneHotEncoder(handle_unknown="ignore"), texts),
        ("numbers", SimpleImputer(), list({"age", "days"})),
    ])
    model = make_pipeline(columns, RandomForestClassifier(20))
    model.fit(x_train, y_train)"""
_NUMBER_BODY = """\
from sklearn.ensemble import RandomForestRegressor
    model = RandomForestRegressor(20)
    model.fit(x_train, y_train)"""
_FORMS = {
    "array": ("stays", "array", "roc_auc", _BODY),
    "frame": ("stays", "frame", "average_precision", _FRAME_BODY),
    "number": ("spent", "array", "rmse", _NUMBER_BODY),
}


def _customers(num_rows: int, seed: int) -> pd.DataFrame:
    """A table with missing values, categories, text labels and a number to predict."""
    rng = np.random.default_rng(seed)
    age, days = rng.normal(40, 10, num_rows).round(1), rng.integers(0, 100, num_rows)
    town = rng.choice(["Graz", "Linz, Urfahr", "Wien"], num_rows)
    plan = rng.choice(["a", "b"], num_rows)
    value = (age - 40) / 10 + (town == "Wien") + (plan == "a") + rng.normal(size=num_rows)
    table = pd.DataFrame({"age": age, "town": town, "days": days, "visit plan": plan})
    table["stays"] = np.where(value > 1, "yes, gladly", "no")
    table["spent"] = (100 * value).round(2)
    table.loc[rng.random(num_rows) < 0.1, ["age", "town"]] = None
    return table


def _own(form: str, folder: Path) -> tuple[Path, Best, str]:
    """Makes a run on a table of one's own: its folder, best program and target."""
    target, table_form, metric, body = _FORMS[form]
    table = _customers(160, seed=0).drop(columns=({"stays", "spent"} - {target}).pop())
    table.loc[:2, target] = None
    table.to_csv(folder / "customers.csv", index=False)
    dataset = load_dataset(
        f"csv:{folder / 'customers.csv'}",
        target=target,
        table_form=table_form,
        regression=target == "spent",
    )
    return folder / "run", _write(folder / "run", dataset, metric=metric, body=body), target


@pytest.fixture(scope="module", params=list(_FORMS))
def own(request, tmp_path_factory):
    """A run on a table of one's own in each form."""
    return _own(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def of_array(tmp_path_factory):
    """The folder of a run on a table of one's own in the array form."""
    return _own("array", tmp_path_factory.mktemp("own"))[0]


def test_a_script_prints_scores_and_holdout_of_the_run(own, tmp_path):
    folder, best, _ = own
    done = _run(folder / "best_code.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "The run scored" not in done.stdout
    expected = {f"split {split}": score for split, score in enumerate(best.split_scores)}
    expected |= {"mean": best.reward, "holdout": json.loads((folder / "holdout.json").read_text())}
    assert _figures(done.stdout) == pytest.approx(expected, abs=1e-6)


def test_predictions_of_a_fit_and_of_a_saved_model(own, tmp_path):
    folder, _, target = own
    new = _customers(12, seed=1)
    new.loc[3, "town"] = "Bregenz"  # is in no row of the run
    new = new.drop(columns=["stays", "spent"])[["visit plan", "days", "town", "age"]]
    new.assign(note="not known to the run").to_csv(tmp_path / "new.csv", index=False)
    script = folder / "best_code.py"
    options = ("--predict=new.csv", "--output=fitted.csv", "--save=model.joblib")
    done = _run(script, *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "")
    unknown = "column 'town': 1 of 12 cells are not as in the run, such as 'Bregenz'"
    is_frame = json.loads((folder / "preparation.json").read_text())["form"] == "frame"
    notes = [] if is_frame else [f"note: {unknown}: they count as missing"]
    assert done.stderr.splitlines() == [
        *notes,
        "Fitting the program to 157 rows.",
        "Saved model.joblib.",
        "Wrote 12 predictions to fitted.csv.",
    ]
    fitted = pd.read_csv(tmp_path / "fitted.csv")
    assert list(fitted["row"]) == list(range(12))
    if target == "spent":
        assert list(fitted) == ["row", "prediction"]
        assert fitted["prediction"].between(-400, 600).all()
    else:
        classes = ["no", "yes, gladly"]
        probabilities = fitted[[f"probability of {name}" for name in classes]].to_numpy()
        assert np.allclose(probabilities.sum(axis=1), 1)
        assert list(fitted["prediction"]) == [classes[k] for k in probabilities.argmax(axis=1)]
        assert len(set(fitted["prediction"])) == 2
    script.with_name("preparation.json").rename(tmp_path / "away.json")
    try:
        options = ("--load=model.joblib", "--predict=new.csv", "--output=loaded.csv")
        done = _run(script, *options, cwd=tmp_path)
    finally:
        (tmp_path / "away.json").rename(script.with_name("preparation.json"))
    assert done.returncode == 0
    assert done.stderr.splitlines() == [*notes, "Wrote 12 predictions to loaded.csv."]
    assert (tmp_path / "loaded.csv").read_text() == (tmp_path / "fitted.csv").read_text()
    # In Python, where best_script stands for an imported best_code.
    bundle = joblib.load(tmp_path / "model.joblib")
    raw = best_script.read(bundle["preparation"], tmp_path / "new.csv")
    table = best_script.predictions(bundle, best_script.features(bundle["preparation"], raw))
    assert list(table["prediction"]) == pytest.approx(list(fitted["prediction"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--table=none.csv"], "--table=none.csv: there is no file none.csv"),
        (["--predict=none.csv", "--output=p.csv"], "--predict=none.csv: there is no file none.csv"),
        (["--predict=short.csv", "--output=p.csv"], "--predict=short.csv: the table lacks the col"),
        (["--table=short.csv"], "--table=short.csv: the table lacks the target"),
        (["--table=unknown.csv"], "--table=unknown.csv: no row has a target that the run knows"),
        (["--predict=short.csv", "--output=./short.csv"], "--output=./short.csv: is a table that"),
        (["--predict=new.csv"], "--predict=NEW.csv and --output=PREDICTIONS.csv go together"),
        (["--load=m", "--save=n"], "--load=MODEL goes with --predict=NEW.csv and --output"),
        (["--load=m", "--predict=short.csv", "--output=p"], "--load=m: there is no file m"),
        (["--load=short.csv", "--predict=short.csv", "--output=p"], "--load=short.csv: is no mo"),
        (["--save=none/m"], "--save=none/m: there is no file none/m"),
        (["--tabel=short.csv"], "unrecognized arguments: --tabel=short.csv"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_is_wrong_is_one_line(of_array, tmp_path, arguments, message):
    (tmp_path / "short.csv").write_text("age,days\n40,2\n50,3\n")
    unknown = _customers(4, seed=0).assign(stays="perhaps")
    unknown.to_csv(tmp_path / "unknown.csv", index=False)
    done = _run(of_array / "best_code.py", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.removeprefix("Fitting the program to 157 rows.\n").splitlines()
    assert line.startswith(f"error: {message}")


# Scores -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [2, 4])
@pytest.mark.parametrize("metric", metrics.METRICS)
def test_scores_of_classes_are_those_of_the_run(metric, num_classes):
    rng = np.random.default_rng(0)
    labels = np.arange(60) % num_classes
    probabilities = rng.dirichlet(np.ones(num_classes), 60)
    probabilities[3] = np.eye(num_classes)[1 - labels[3] % 2]  # none for the true class
    preparation = {"task": "classification", "metric": metric}
    expected = metrics.find(metric)(labels, probabilities)
    assert best_script.score(preparation, labels, probabilities) == pytest.approx(
        expected, abs=1e-12
    )


@pytest.mark.parametrize("noise", [0.1, 5.0])
@pytest.mark.parametrize("metric", metrics.REGRESSION_METRICS)
def test_scores_of_numbers_are_those_of_the_run(metric, noise):
    rng = np.random.default_rng(0)
    numbers = rng.normal(1000, 3, 60)
    predicted = numbers + rng.normal(0, noise, 60)
    preparation = {"task": "regression", "metric": metric}
    expected = metrics.find(metric)(numbers, predicted)
    assert best_script.score(preparation, numbers, predicted) == pytest.approx(expected, abs=1e-9)


def test_a_holdout_without_a_score_is_said(capsys):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 2)), np.arange(60) % 3
    preparation = {
        **{"task": "classification", "metric": "mine:score", "classes": ["a", "b", "c"]},
        **{"file": {}, "splits": {"num": 2, "stratified": False}},
    }
    best_script.print_scores(preparation, (x, y), (x[:2], y[:2]), None)
    output = capsys.readouterr().out
    assert "metric    roc_auc\n          in place of mine:score, which this script does" in output
    assert list(_figures(output)) == ["split 0", "split 1", "mean"]
    assert "\nholdout   no score: Number of classes in y_true not equal" in output


def test_a_metric_of_the_users_own_is_replaced_by_the_usual_one():
    for task, usual in (("classification", "roc_auc"), ("regression", "r2")):
        assert best_script.metric_name({"task": task, "metric": "mine:score"}) == usual


# The text of scripts ------------------------------------------------------------------------------


def _script() -> str:
    return Best(0.5, (0.5,), 1, "a\nb", 0, "", "x = 1\n").code(is_script=True)


def test_a_script_imports_nothing_of_this_project():
    imports = {
        name
        for node in ast.walk(ast.parse(_script()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    tops = {name.partition(".")[0] for name in imports} - set(sys.stdlib_module_names)
    assert tops <= {"numpy", "pandas", "sklearn", "joblib", "cloudpickle", "pyarrow", "arff"}


def _names(source: str) -> list[str]:
    """Names that the top level of a source defines."""
    names = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign):
            names += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return names


def test_the_parts_of_a_script_have_names_of_their_own():
    names = _names(Path(best_script.__file__).read_text()) + _names(script_text())
    assert len(names) == len(set(names))


def test_the_program_stands_in_the_script_as_it_is():
    assert (
        answers.program_of(_script().replace("x = 1", BUILD_MODEL.source(_BODY)))
        .strip()
        .endswith(BUILD_MODEL.source(_BODY).strip())
    )
    assert _script().startswith("# Best program of an etpo_jax run.\n# score 0.500000, by split:")
