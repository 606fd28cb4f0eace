"""The script that a run writes for its table, used as its owner would: without this project."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from env.datasets import load_dataset
from env.execution import metrics
from env.execution.program import BUILD_MODEL
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
    with CodeExecutor(dataset, num_workers=1, metric=metrics.find(metric)) as executor:
        (result,) = executor.run([body])
    assert not result.error
    program = BUILD_MODEL.source(body)
    best = Best(result.reward, result.split_scores, 3, dataset.name, 0, body, program)
    folder.mkdir()
    (folder / "best_code.py").write_text(best.code(is_script=True))
    preparation = {"metric": metric, **dataset.preparation}
    (folder / "preparation.json").write_text(json.dumps(preparation))
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
    assert tops <= {"numpy", "pandas", "sklearn", "joblib", "pyarrow", "arff"}


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
