"""Ends a run whose reward function fails whatever it is given: nothing could be learnt from it."""

from collections.abc import Sequence

from env.base import Step, UsageError
from env.tasks.function_task import RAISED

_PATIENCE = {"value": 3, "other": 1}
"""Collections that may fail by errors that bad input causes as well, and by any others."""


class PluginFailures:
    """Counts collections in which every action failed by one error of the user's reward function.

    Errors such as ValueError and KeyError are what a reward may well raise for a wrong completion,
    so that several collections must fail by the same one; any other error ends the run at once.
    """

    def __init__(self) -> None:
        self._error, self._collections = "", 0

    def check(self, steps: Sequence[Step], *, has_worked: bool) -> None:
        """Notes a collection.

        Args:
          steps: outcomes of all of its actions.
          has_worked: whether any action of the run has had a reward so far.

        Raises:
          UsageError: with the error that every action fails by.
        """
        errors = {step.error for step in steps}
        kind = steps[0].info.get(RAISED) if steps else None
        if has_worked or len(errors) != 1 or not all(step.info.get(RAISED) for step in steps):
            self._error, self._collections = "", 0
            return
        (error,) = errors
        self._collections = self._collections + 1 if error == self._error else 1
        self._error = error
        if self._collections >= _PATIENCE.get(str(kind), 1):
            raise UsageError(
                f"the reward function has failed for every one of {len(steps)} completions with "
                f"{error}; correct it, or let it return a low number for a wrong completion"
            )
