"""Texts are cut where the function is left, or where the code block is closed, and nowhere else."""

import pytest

from env.tasks.endings import program_text

BODY = "model = SVC(\n    C=1,\n)\n\n    \t\n    model.fit(x_train, y_train)"


@pytest.mark.parametrize(
    ("behind", "is_cut"),
    [
        ("\n    return model\n\n\ndef predict(x):\n    return 1", True),
        ("\n# Test the function", True),
        ("\n\r\n\n'''", True),
        ("\r\nprint(model)", True),
        ("\n\u00e9", True),
        ("\n    \n\n", False),
        ("\n\tprint(model)\n ", False),
        ("\n    print(\n)", False),
        ("", False),
    ],
)
def test_the_function_ends_at_the_first_line_outside(behind, is_cut):
    kept = behind[: behind.find("\n\n\ndef")] if "def" in behind else ""
    expected = BODY + (kept if is_cut else behind)
    assert program_text(BODY + behind, "function") == expected


def test_the_first_line_continues_the_prompt():
    assert program_text("def f():\n    pass", "function") == "def f():\n    pass"
    assert program_text("\nimport numpy", "function") == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Here:\n```python\nx = 1\n```\nIt is one.", "Here:\n```python\nx = 1"),
        ("```\nx = 1```", "```\nx = 1"),
        ("```python\nx = '``'\n  ```", "```python\nx = '``'"),
        ("Use ```x``` like this:\n````py\nx\n````", "Use ```x``` like this:\n````py\nx"),
        ("Use `x`: ```\r\nx\r\n``````", "Use `x`: ```\r\nx"),
        ("```python\nx = 1\n``", None),
        ("```x = 1```", None),
        ("``\nx\n``", None),
        ("x = 1\n\ndef f(): pass", None),
        ("", None),
    ],
)
def test_a_block_ends_with_its_closing_fence(text, expected):
    assert program_text(text, "fence") == (text if expected is None else expected)


def test_without_an_ending_nothing_is_cut():
    text = "x\ny\n```\nz\n``` "
    assert program_text(text, "") == text


def test_unknown_endings_are_named():
    with pytest.raises(ValueError, match="action_end='line'"):
        program_text("x", "line")
