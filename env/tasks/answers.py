"""Instructions of the code task for chat models, and the body of a program in their answers."""

import ast
import re
import textwrap
import warnings

from env.execution.program import BUILD_MODEL

INSTRUCTIONS = (
    "You complete Python code. The user sends a file with one <FILL_ME>, which stands for the body "
    "of build_model. Reply with the code that replaces <FILL_ME> and nothing else: no explanation, "
    "no markdown. The body must assign a fitted scikit-learn classifier to the variable `model`."
)

_FENCED = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_INDENT = "    "


def body_of(answer: str) -> str:
    """Returns the body in an answer; its first line lacks the four spaces that the prompt has.

    Models answer in a code block, repeat the whole function, or leave the indentation out; all of
    these are understood. Text that is not Python is returned unchanged: its execution reports why.
    """
    blocks = _FENCED.findall(answer)
    code = max(blocks, key=len) if blocks else answer
    code = code.replace("\r\n", "\n").expandtabs(4).strip("\n").rstrip()
    code = _inside_function(textwrap.dedent(code)) or code
    dedented = textwrap.dedent(code)
    if _parses(dedented):
        return textwrap.indent(dedented, _INDENT).removeprefix(_INDENT)
    # Only the first line is not indented: it follows the four spaces of the prompt.
    return code.removeprefix(_INDENT)


def _inside_function(code: str) -> str:
    """Returns imports before `build_model` and the lines in it; empty if it is not defined."""
    tree = _parse(code)
    if tree is None:
        return ""
    lines = code.splitlines()
    before: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == BUILD_MODEL.function:
            first = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            inside = lines[first[0].lineno - 1 : node.end_lineno]
            if first[0].lineno == node.lineno:
                inside = [lines[node.lineno - 1][first[0].col_offset :]]
            return "\n".join([*before, textwrap.dedent("\n".join(inside))])
        before += lines[node.lineno - 1 : node.end_lineno]
    return ""


def _parse(code: str) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd escapes in the model's code
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _parses(code: str) -> bool:
    return _parse(code) is not None
