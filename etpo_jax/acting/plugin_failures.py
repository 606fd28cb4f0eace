"""Warns of a reward function that fails whatever it is given: nothing can be learnt from it."""

from collections.abc import Sequence

from absl import logging

from env.base import Step
from env.tasks.function_task import RAISED


class PluginFailures:
    """Collections in which every action failed by one error of the user's reward function.

    Such an error counts as a failure of the action and never ends a run, but it is most likely a
    mistake in the function itself.
    """

    def __init__(self) -> None:
        self._warned: set[str] = set()

    def check(self, steps: Sequence[Step]) -> None:
        """Warns, once for each error, if all actions of a collection failed by it.

        Args:
          steps: outcomes of the actions.
        """
        errors = {step.error for step in steps}
        raised = all(step.info.get(RAISED) for step in steps)
        if len(errors) != 1 or not raised or errors <= self._warned:
            return
        self._warned |= errors
        logging.warning(
            "the reward function failed for all %d completions of a collection with %s; if it is "
            "not the completions that are wrong, stop the run and correct the function",
            len(steps),
            *errors,
        )
