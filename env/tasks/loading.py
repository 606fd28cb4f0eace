"""Tasks of the user's, by the name of a class or factory."""

from typing import Any

from env.base import Task, UsageError
from env.plugins import load_object
from env.tasks.endings import ACTION_ENDS

IN_PYTHON = " (given in Python)"
"""End of the setting `task` where the task is an object that a Python program made."""

_METHODS = ("reset", "render", "step", "program", "close")


def load_task(spec: str) -> Task:
    """Makes the task that `--task=package.module:factory` names.

    Args:
      spec: names a subclass of `Task`, a function without arguments that returns a task, or a task.

    Raises:
      UsageError: when the object cannot be imported or made, or is not a task.
    """
    task = load_object(spec, flag="--task")
    if isinstance(task, type) or (callable(task) and not hasattr(task, "step")):
        try:
            task = task()
        except UsageError as error:
            raise UsageError(f"--task={spec}: {error}") from None
        except Exception as error:  # the user's own code, which may raise anything
            reason = " ".join(str(error).split())
            raise UsageError(f"--task={spec}: {type(error).__name__}: {reason}") from None
        if task is None:
            raise UsageError(f"--task={spec}: returned None and must return a task")
    check_task(task, f"--task={spec}")
    return task


def check_task(task: Any, named: str) -> None:
    """Checks that an object has all that a task has.

    Args:
      task: any object.
      named: the flag or argument that it is, for messages.

    Raises:
      UsageError: naming what it lacks.
    """
    missing = [name for name in _METHODS if not callable(getattr(task, name, None))]
    missing += [name for name in ("name", "max_shorten") if not hasattr(task, name)]
    if missing or isinstance(task, type):
        lack = f"lacks {', '.join(missing)}" if missing else "is a class, not an object"
        kind = task if isinstance(task, type) else type(task)
        raise UsageError(
            f"{named}: is not a task: {kind.__name__} {lack}; subclass etpo_jax.Task, which has "
            "all but reset, render and step"
        )
    # A task that is no subclass may leave it out.
    if (action_end := getattr(task, "action_end", "")) not in ACTION_ENDS:
        raise UsageError(
            f"{named}: action_end is {action_end!r} and must be one of "
            f"{', '.join(map(repr, ACTION_ENDS))}"
        )
