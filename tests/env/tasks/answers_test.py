"""The body in a chat model's answer, whichever way it writes it."""

import pytest

from env.execution.program import BUILD_MODEL
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


FUNCTION = BUILD_MODEL.source(BODY)
SCRIPT = f"""# Best program of a run.
{answers.PROGRAM_BEGINS}
{FUNCTION}

{answers.PROGRAM_ENDS}
def build_model(): ...
"""


@pytest.mark.parametrize(
    "text",
    [
        BODY,
        INDENTED,
        FLAT,
        "\n" + FLAT + "\n",
        FUNCTION,
        "# Written by hand.\n" + FUNCTION.removeprefix("import numpy as np\n"),
        WHOLE,
        f"Here it is:\n```python\n{WHOLE}```",
        FUNCTION.replace("x_train", "table").replace("y_train", "classes"),
        "from __future__ import annotations\n" + FUNCTION,
        f"from sklearn.base import *\n{FUNCTION}\nif __name__ == '__main__':\n    raise OSError\n",
        "def build_model(x, y):\n    return fitted(x, y)\n\n\n"
        + FUNCTION.replace("build_model", "fitted"),
        SCRIPT,
        SCRIPT.replace("\n", "\r\n"),
    ],
)
def test_a_program_is_found_in_whichever_form_a_file_has(text):
    namespace = {"__name__": "program"}
    exec(answers.program_of(text), namespace)
    model = namespace["build_model"]([[0.0], [1.0]], [0, 1])
    assert type(model).__name__ == "GaussianNB"


def test_a_body_in_the_papers_form_gives_the_program_of_the_run():
    leaving = f"{BODY}\n    return model\n\ndef unused():\n    model = 1"
    for body in (BODY, "model = (", leaving, "pass", "if len(x_train):\n        model = 1"):
        assert answers.program_of(body) == prompts.program(body)


def test_an_unindented_body_that_ends_in_a_block_stays_in_its_function():
    program = answers.program_of("model = 1\nif len(x_train):\n    model = 2")
    assert program == prompts.program("model = 1\n    if len(x_train):\n        model = 2")
