"""Benchmarks import names that exist, those too that no other test starts."""

import ast
import importlib
import pathlib

import pytest

FILES = sorted(pathlib.Path(__file__).parents[2].glob("benchmarks/*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imported_names_of_the_project_exist(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not node.module:
            continue
        if node.module.split(".")[0] in ("env", "etpo_jax", "models"):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):  # a module of a package, or an error
                    importlib.import_module(f"{node.module}.{alias.name}")
