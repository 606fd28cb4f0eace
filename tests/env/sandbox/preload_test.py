"""What the worker imports before it forks."""

import os
import sys
import types

from env.sandbox import preload


def test_a_module_with_an_empty_path_has_no_folder(monkeypatch):
    module = types.ModuleType("six")
    module.__path__ = []
    monkeypatch.setitem(sys.modules, "six", module)
    roots = preload._roots()
    assert "six" not in roots
    assert roots[""] == os.path.dirname(os.__file__)
