"""The body in a chat model's answer, whichever way it writes it."""

import pytest

from env.tasks import answers, prompts

BODY = """from sklearn.naive_bayes import GaussianNB
    if len(x_train):
        model = GaussianNB()
    model.fit(x_train, y_train)"""
INDENTED = "    " + BODY
FLAT = "\n".join(line.removeprefix("    ") for line in INDENTED.splitlines())
WHOLE = (
    "import numpy as np\n\n"
    "def build_model(x_train: np.ndarray, y_train: np.ndarray):\n"
    f'    """Fits."""\n{INDENTED}\n'
)


@pytest.mark.parametrize(
    "answer",
    [
        BODY,
        INDENTED,
        FLAT,
        BODY + "\n",
        f"```python\n{FLAT}\n```",
        f"```\n{INDENTED}\n```",
        f"Here you are:\n\n```python\n{BODY}\n```\nIt uses `GaussianNB`.",
        f"```py\n{FLAT}",  # cut off at its limit
        f"{FLAT}\n```\nIt uses `GaussianNB`.",
        f"```python\nx = 1\n```\nBetter:\n```python\n{FLAT}\n```\n" + "Why: " * 99,
        FLAT.replace("\n", "\r\n"),
        FLAT.replace("    ", "\t"),
    ],
)
def test_a_body_is_found_however_it_is_wrapped(answer):
    assert answers.body_of(answer) == BODY


@pytest.mark.parametrize("answer", [WHOLE, f"```python\n{WHOLE}```"])
def test_of_the_whole_function_its_inside_is_taken_with_the_imports_before_it(answer):
    assert answers.body_of(answer) == "import numpy as np\n    " + BODY


def test_a_function_on_one_line_and_one_of_a_docstring_alone():
    one = "def build_model(x_train, y_train): return None"
    assert answers.body_of(one) == "return None"
    assert answers.body_of('def build_model(x, y):\n    """Nothing."""') == '"""Nothing."""'


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (f"<think>\n```python\nx\n```\n</think>\n\n```python\n{WHOLE}```", ""),
        (f"Sure! Here it is:\n{WHOLE}\nprint(build_model(x, y))\nHope it helps.", ""),
        (f"```python\n{WHOLE}    return model.fit(", "\n    return model.fit("),
        (
            "It is:\nimport numpy as np\ndef build_model(\n    x_train: np.ndarray,\n"
            f"    y_train: np.ndarray,\n) -> object:\n{INDENTED}",
            "",
        ),
    ],
)
def test_thoughts_talk_and_cut_off_functions(answer, body):
    found = answers.body_of(answer).replace('"""Fits."""\n    ', "")
    assert found == "import numpy as np\n    " + BODY + body


@pytest.mark.parametrize("answer", ["", "I cannot help with that.", "model = (", "```", "\x00"])
def test_what_is_no_python_is_left_for_execution_to_judge(answer):
    assert isinstance(answers.body_of(answer), str)
    assert answers.body_of("I cannot help") == "I cannot help"


def test_every_form_gives_a_program_that_compiles():
    for answer in (BODY, INDENTED, FLAT, WHOLE):
        compile(prompts.program(answers.body_of(answer)), "program", "exec")
