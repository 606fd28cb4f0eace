"""Tasks that the user names on the command line."""

import sys

import pytest

from env.base import UsageError
from env.tasks.loading import load_task

_MODULE = """
from env.base import State, Step, Task, UsageError

class Mine(Task):
    name = "mine"
    def reset(self, rng):
        return State(0, {})
    def render(self, state, *, shorten=0):
        return "prompt"
    def step(self, states, actions, rngs):
        return [Step(0.0, None, "", {}) for _ in states]

class Partial(Task):
    def reset(self, rng):
        return State(0, {})

class Structural:
    name, max_shorten = "structural", 0
    reset = render = step = program = close = lambda self, *_: None

class Endless(Mine):
    action_end = "line"

def make():
    return Mine()

def make_number():
    return 3

def make_nothing():
    Mine()

def refuse():
    raise UsageError("no table")

instance = Mine()
number = 3
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "my_tasks.py").write_text(_MODULE)
    (tmp_path / "broken_tasks.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_tasks", raising=False)


@pytest.mark.parametrize(
    ("attribute", "name"),
    [
        ("Mine", "mine"),
        ("make", "mine"),
        ("instance", "mine"),
        ("Structural", "structural"),
    ],
)
def test_a_class_a_factory_or_an_instance_is_a_task(attribute, name):
    assert load_task(f"my_tasks:{attribute}").name == name


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_tasks", "must have the form package.module:attribute"),
        (":Mine", "must have the form"),
        ("no_such_module:Task", "No module named 'no_such_module'"),
        ("my_tasks:Missing", "has no attribute 'Missing'"),
        ("broken_tasks:Task", "ZeroDivisionError"),
        ("my_tasks:Partial", "TypeError: Can't instantiate abstract class Partial"),
        ("my_tasks:refuse", "no table"),
        ("my_tasks:make_number", "int lacks reset, render, step, program, close, name"),
        ("my_tasks:make_nothing", "returned None and must return a task"),
        ("./my_tasks.py:Mine", "names a file; did you mean my_tasks:Mine?"),
        ("my_tasks:number", "int lacks reset"),
        ("my_tasks:Endless", "action_end is 'line' and must be one of '', 'function', 'fence'"),
    ],
)
def test_what_is_no_task_is_one_clear_error(spec, message):
    with pytest.raises(UsageError) as caught:
        load_task(spec)
    assert str(caught.value).startswith(f"--task={spec}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
