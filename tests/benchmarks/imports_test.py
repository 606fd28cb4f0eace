"""Benchmarks import names that exist, those too that no other test starts.

Sources are read and not imported: two programs may define flags of the same name.
"""

import ast
import importlib.util
import pathlib

import pytest

FILES = sorted(pathlib.Path(__file__).parents[2].glob("benchmarks/*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imported_names_of_the_project_exist(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if node.module.split(".")[0] in ("env", "etpo_jax", "models", "benchmarks"):
            missing = {alias.name for alias in node.names} - _names(node.module)
            for name in missing:
                assert _find(f"{node.module}.{name}"), f"{node.module} has no {name}"


def test_a_missing_name_is_noticed():
    assert "complete" not in _names("etpo_jax.devices.memory")
    assert "estimate" in _names("etpo_jax.devices.memory")
    assert not _find("etpo_jax.devices.complete")


def _names(module):
    """Names that the source of a module binds anywhere outside of functions and classes."""
    specification = _find(module)
    assert specification, f"there is no module {module}"
    if specification.origin is None:  # a folder without __init__.py
        return set()
    found, todo = set(), list(ast.parse(pathlib.Path(specification.origin).read_text()).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        todo += ast.iter_child_nodes(node)
    return found


def _find(name):
    try:
        return importlib.util.find_spec(name)
    except ModuleNotFoundError:  # its parent is no package
        return None
