"""Golden prompts, and what no action or error may do to a prompt."""

import ast
import time

import pytest

from env.tables import registry
from env.tasks import prompts

BODY = """from sklearn.svm import SVC
    model = SVC(C=100, kernel='rbf')

    model.fit(x_train, y_train)"""
ERROR = "AttributeError: predict_proba is not available when probability=False"

FIRST = '''"""Classification with a {description} Prediction Dataset"""
import numpy as np

def build_model(x_train: np.ndarray, y_train: np.ndarray):
    """Import modules, return a scikit model trained with x_train in shape {shape} and y_train."""
    <FILL_ME>
    return model
'''

FIRST_OFFICIAL = '''
"""Classification with a Breast Cancer Wisconsin Prediction Dataset"""
import numpy as np

def build_model(x_train: np.ndarray, y_train: np.ndarray):
    """ Import modules, return a scikit model trained with x_train in shape (69, 9) and y_train."""
    <FILL_ME>
    return model
'''

REFLECTIVE = '''"""Classification with a Pharyngitis Prediction Dataset"""
import numpy as np

"""An error was reported while executing this function: AttributeError: predict_proba is not \
available when probability=False. Please fix it."""
# def build_model(x_train: np.ndarray, y_train: np.ndarray):
#     """Import modules, return a scikit model trained with x_train in shape (256, 18) \
and y_train."""
#     from sklearn.svm import SVC
#     model = SVC(C=100, kernel='rbf')
#
#     model.fit(x_train, y_train)
#     return model

def build_model(x_train: np.ndarray, y_train: np.ndarray):
    """Fix the error in the previous function."""
    <FILL_ME>
    return model
'''

REFLECTIVE_OFFICIAL = '''
"""Classification with a Pharyngitis Prediction Dataset"""
import numpy as np

""" An error was reported while executing this function: AttributeError: predict_proba is not \
available when probability=False. Please fix it."""
def build_model(x_train: np.ndarray, y_train: np.ndarray):
    """ Import modules, return a scikit model trained with x_train in shape (512, 18) \
and y_train."""
    from sklearn.svm import SVC
    model = SVC(C=100, kernel='rbf')

    model.fit(x_train, y_train)
    return model

def build_model(x_train: np.ndarray, y_train: np.ndarray):
    """ Fix the error in the previous function. """
    <FILL_ME>
    return model
'''


def first(name, style="paper"):
    entry = registry.find(name)
    rows, features = entry.shape
    return prompts.first_prompt(
        entry.description, prompts.shown_rows(rows, style), features, style=style
    )


@pytest.mark.parametrize(
    ("name", "description", "shape"),
    [
        ("balance_scale", "Balance Scale Weight & Distance", "(62, 4)"),
        ("pharyngitis", "Pharyngitis", "(256, 18)"),
        ("tic_tac_toe", "Tic-Tac-Toe Endgame", "(47, 9)"),
        ("eucalyptus", "Eucalyptus Soil Conservation", "(320, 19)"),
    ],
)
def test_first_prompt_as_in_figure_6(name, description, shape):
    assert first(name) == FIRST.format(description=description, shape=shape)


def test_first_prompt_as_in_the_authors_code():
    assert first("breast_w", "official") == FIRST_OFFICIAL


def test_reflective_prompt_as_in_figure_7():
    text = prompts.reflective_prompt("Pharyngitis", 256, 18, BODY, ERROR)
    assert text == REFLECTIVE


def test_reflective_prompt_as_in_the_authors_code():
    text = prompts.reflective_prompt("Pharyngitis", 512, 18, BODY, ERROR, style="official")
    assert text == REFLECTIVE_OFFICIAL


@pytest.mark.parametrize("style", prompts.STYLES)
@pytest.mark.parametrize("shorten", range(prompts.MAX_SHORTEN + 1))
def test_hostile_texts_stay_inside_their_place(style, shorten):
    body = 'x = """<FILL_ME>\n    <FILL_ME>"""\r\n\x00\x0c    y = 1\u2028z = 2\n\n'
    error = 'Error: """<FILL_ME>"""\nsecond line\u2028third\x1b[31m' + "\x07noise " * 300
    text = prompts.reflective_prompt("Any", 62, 4, body, error, style=style, shorten=shorten)
    assert text.count("<FILL_ME>") == 1
    assert all(c.isprintable() or c == "\n" for c in text)
    assert text.endswith("    <FILL_ME>\n    return model\n")
    if style == "paper":
        # Nothing of the failed function is left to run: what remains is one function and strings.
        tree = ast.parse(text.replace("<FILL_ME>", "model = None"))
        kinds = [type(node).__name__ for node in tree.body]
        assert kinds == ["Expr", "Import", "Expr", "FunctionDef"]


def test_every_level_is_shorter_and_the_error_goes_first():
    body = "\n    ".join(f"line_{i} = {'y' * 200}" for i in range(40))
    error = "ValueError: " + "start " * 40 + "end"
    texts = [
        prompts.reflective_prompt("Any", 62, 4, body, error, shorten=shorten)
        for shorten in range(prompts.MAX_SHORTEN + 1)
    ]
    assert [len(text) for text in texts] == sorted({len(text) for text in texts}, reverse=True)
    assert "line_20" in texts[1]
    assert "start end. Please fix it." in texts[1].replace(" ... ", " ")
    assert "line_20" not in texts[3]
    assert "line_0" in texts[3]
    assert "line_39" in texts[3]
    assert len(texts[-1]) < 520
    beyond = prompts.reflective_prompt("Any", 62, 4, body, error, shorten=99)
    assert beyond == texts[-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("OSError: no file: '/home/user/secret/data.csv'", "OSError: no file: 'data.csv'"),
        ("OSError: C:\\Users\\me\\x.py and ~/a/b.py", "OSError: x.py and b.py"),
        ("TypeError: <function f at 0x7f3a2b3c4d5e> failed", "TypeError: <function f> failed"),
        ("SyntaxError: invalid syntax (<string>, line 7)", "SyntaxError: invalid syntax"),
        ("SyntaxError: invalid syntax (body.py, line 7)", "SyntaxError: invalid syntax"),
        ("ValueError: see https://scikit-learn.org/a/b.html for more", "ValueError: see for more"),
        ("ValueError: a\n\n  b\tc\r\x1b[1;31md\x1b[0m\x00", "ValueError: a b c d"),
        ("ValueError: ratio a / b, y/n, 1e-3/2", "ValueError: ratio a / b, y/n, 1e-3/2"),
        ("ValueError: \ud800 caf\u00e9", "ValueError: caf\u00e9"),
        ("ValueError: <FILL_ME> \"\"\" '''", "ValueError: FILL_ME ' '"),
        ("ValueError: " + 5 * '"' + 7 * "'", "ValueError: '"),
    ],
)
def test_errors_are_cleaned(text, expected):
    assert prompts.clean_error(text) == expected


def test_errors_are_bounded_in_the_middle():
    text = prompts.clean_error("KeyError: " + "x" * 5000 + " the end")
    assert len(text) == prompts.MAX_ERROR_CHARS
    assert text.startswith("KeyError: x")
    assert text.endswith("x the end")
    assert " ... " in text


@pytest.mark.parametrize("part", ["-/", "/", " ", "\x1b[", "0x", "(<", "a://", "~/a"])
def test_errors_made_to_take_long_do_not(part):
    start = time.process_time()
    prompts.clean_error(part * 1_000_000)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("body", [BODY, BODY + "\n\n    ", "model = 1  # last"])
def test_program_runs_as_it_stands(body):
    body = body.replace("from sklearn.svm import SVC", "SVC = lambda **options: Model()")
    scope = {"Model": type("Model", (), {"fit": lambda self, x, y: self})}
    exec(compile(prompts.program(body), "program", "exec"), scope)
    scope["build_model"](None, None)
