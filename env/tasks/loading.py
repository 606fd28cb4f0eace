"""Tasks of the user's, by the name of a class or factory."""

from env.base import Task, UsageError
from env.plugins import load_object

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
    missing = [name for name in _METHODS if not callable(getattr(task, name, None))]
    missing += [name for name in ("name", "max_shorten") if not hasattr(task, name)]
    if missing:
        raise UsageError(
            f"--task={spec}: is not a task: {type(task).__name__} lacks {', '.join(missing)}; "
            "subclass env.base.Task, which has all but reset, render and step"
        )
    return task
