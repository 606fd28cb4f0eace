"""Instructions of the code task for chat models, and the program in an answer or a file."""

import ast
import re
import textwrap
import warnings
from typing import TypeGuard

from env.execution.program import BUILD_MODEL, ProgramTemplate

_INSTRUCTIONS = (
    "You write Python with scikit-learn. Reply with the whole function in one code block and "
    "nothing else; in a file, <FILL_ME> stands for its body. {data} "
    "and all the data there is: load, split and test nothing. The function fits one {model} "
    "that has {method} and ends with `return model`."
)
ANY_TEXT = (
    "Reply with the text that replaces <FILL_ME> in the message, or, if it has no <FILL_ME>, with "
    "the text that continues the message. Reply with nothing else."
)
"""Instructions of tasks that have none of their own."""

PROGRAM_BEGINS = "# The program " + 86 * "-"
PROGRAM_ENDS = "# End of the program " + 79 * "-"
"""Lines around the program in the script that a run writes for its table."""


def instructions(*, has_frame: bool = False, is_regression: bool = False) -> str:
    """Returns the system message for programs on data frames or arrays, with classes or numbers."""
    kind, method = ("regressor", "predict") if is_regression else ("classifier", "predict_proba")
    if not has_frame:
        data = "x_train and y_train are NumPy arrays"
        return _INSTRUCTIONS.format(data=data, model=kind, method=method)
    data = "x_train, a pandas DataFrame, and y_train, a NumPy array, are given"
    model = f"pipeline of encoders and a {kind}"
    return _INSTRUCTIONS.format(data=data, model=model, method=method)


INSTRUCTIONS = instructions()
"""Instructions of the paper's task."""

_FENCE = re.compile(r"```+([^\n]*)(?:\n|\Z)")
_THOUGHTS = re.compile(r"\A\s*<think>.*?(?:</think>|\Z)", re.DOTALL)
_SIGNATURE = re.compile(rf"\s*def {BUILD_MODEL.function}\(")
_IMPORT = re.compile(r"\s*(?:import [\w., ]+|from [\w.]+ import .+)$")
_INDENT = "    "


def body_of(answer: str) -> str:
    """Returns the body in an answer; its first line lacks the four spaces that the prompt has.

    Models think aloud, answer in a code block, repeat the whole function with imports above it, or
    leave the indentation out; all of these are understood. Text that is not Python is returned
    unchanged: its execution reports why.
    """
    code = _code_in(answer).expandtabs(4)
    dedented = textwrap.dedent(code)
    inside = _inside_function(dedented)
    if inside or parse(dedented) is not None:
        return textwrap.indent(inside or dedented, _INDENT).removeprefix(_INDENT)
    # Only the first line is not indented: it follows the four spaces of the prompt.
    return code.removeprefix(_INDENT)


def program_of(text: str, template: ProgramTemplate = BUILD_MODEL) -> str:
    """Returns the complete program in a text, in whichever of these forms it is written.

    - The script that a run writes for its table: the program in it.
    - A program that defines the function of `template` with its `return`: as it stands, behind the
      imports of the template.
    - A body in the paper's form, whose first line lacks the four spaces that the prompt has: inside
      the template.
    - An answer of a chat model, or a body that is indented like other code: as `body_of` reads it.
    """
    text = text.replace("\r\n", "\n")
    _, begins, rest = text.partition(PROGRAM_BEGINS + "\n")
    code = rest.partition(PROGRAM_ENDS)[0] if begins else _code_in(text)
    tree = parse(code)
    if tree is not None and any(_returns(node, template.function) for node in tree.body):
        froms = (node.module for node in tree.body if isinstance(node, ast.ImportFrom))
        imports = template.before.partition(f"def {template.function}(")[0]
        return code if "__future__" in froms else imports + code
    program = template.source(text)
    tree = parse(program)
    # Lines without indentation would leave the function, or not parse.
    if tree is None or not _is_function(tree.body[-1], template.function):
        program = template.source(body_of(text))
    return program


def _code_in(answer: str) -> str:
    """Returns an answer without thoughts, code fences and what is said around them."""
    before, *fences = _FENCE.split(_THOUGHTS.sub("", answer.replace("\r\n", "\n")))
    if len(fences) == 2 and not fences[0].strip() and before.strip():
        code = before  # a lone fence without a language closes what stands before it
    else:
        # Every second pair is an opening fence's language and the text of its block.
        code = max(fences[1::4], key=len, default=before)
    return code.strip("\n").rstrip()


def _inside_function(code: str) -> str:
    """Returns imports before `build_model` and the lines in it; empty if it is not defined."""
    tree = parse(code)
    if tree is None:
        return _inside_text(code)
    lines = code.splitlines()
    before: list[str] = []
    for node in tree.body:
        if _is_function(node, BUILD_MODEL.function):
            first = node.body[1:] if ast.get_docstring(node) and len(node.body) > 1 else node.body
            inside = lines[first[0].lineno - 1 : node.end_lineno]
            if first[0].lineno == node.lineno:
                inside = [lines[node.lineno - 1][first[0].col_offset :]]
            return "\n".join([*before, textwrap.dedent("\n".join(inside))])
        before += lines[node.lineno - 1 : node.end_lineno]
    return ""


def _inside_text(code: str) -> str:
    """Returns the same of text that does not parse: talk around the code, or code cut off."""
    lines = code.splitlines()
    starts = [i for i, line in enumerate(lines) if _SIGNATURE.match(line)]
    if not starts:
        return ""
    start = starts[-1]
    level = len(lines[start]) - len(lines[start].lstrip())
    ends = (
        i
        for i, line in enumerate(lines[start + 1 :], start + 1)
        if line.strip() and len(line) - len(line.lstrip()) <= level and not line.startswith(")")
    )
    end = next(ends, len(lines))
    before = [line.strip() for line in lines[:start] if _IMPORT.match(line)]
    # A signature may go over several lines.
    first = next((i for i in range(start, end) if lines[i].rstrip().endswith(":")), start) + 1
    return "\n".join([*before, textwrap.dedent("\n".join(lines[first:end])).rstrip()])


def _is_function(node: ast.stmt, name: str) -> TypeGuard[ast.FunctionDef]:
    return isinstance(node, ast.FunctionDef) and node.name == name


def _returns(node: ast.stmt, name: str) -> bool:
    return _is_function(node, name) and any(isinstance(n, ast.Return) for n in ast.walk(node))


def parse(code: str) -> ast.Module | None:
    """Returns the syntax tree of code, None where it is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about odd escapes in the model's code
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
