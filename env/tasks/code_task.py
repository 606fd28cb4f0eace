"""The paper's task (section 5.1): write the body of `build_model`, be rewarded with its score.

An episode starts from the first prompt. A program that runs ends it with its score; one that fails
costs -1 (Eq. 10) and leads to the reflective prompt, which shows it and its error, until the step
limit.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from env.base import State, Step, Task, UsageError
from env.execution.results import FAILURE_REWARD, ExecutionResult, Executor
from env.tables.table import Dataset
from env.tasks import answers, prompts

FORBIDDEN_CONSTRUCTS = ("GridSearchCV(",)
"""Constructs that the authors' environment refuses to run."""


class CodeTask(Task):
    """Episodes of writing and repairing one program.

    Args:
      dataset: table that programs are scored on. The task reads its description and shape, and
        where it has a frame, what `env.tasks.columns` tells about that.
      executor: runs and scores bodies; closed with the task.
      max_steps: largest number of steps of an episode.
      prompt_style: style of prompts, see `env.tasks.prompts.PromptStyle`; "" is `paper` for models
        that infill and `scored` for others.
      forbidden_constructs: texts that no body may contain; such a body fails without running.
    """

    action_end = "function"

    def __init__(
        self,
        dataset: Dataset,
        executor: Executor,
        *,
        max_steps: int = 5,
        prompt_style: prompts.PromptStyle | Literal[""] = "",
        forbidden_constructs: Sequence[str] = FORBIDDEN_CONSTRUCTS,
    ):
        if max_steps < 1:
            raise UsageError(f"max_steps is {max_steps} and must be at least 1")
        if prompt_style and prompt_style not in prompts.STYLES:
            raise UsageError(
                f"prompt_style is {prompt_style!r} and must be one of {', '.join(prompts.STYLES)}"
            )
        if "" in forbidden_constructs:
            raise UsageError("an empty forbidden construct would refuse every program")
        self.name = dataset.name
        self.dataset = dataset
        self.executor = executor
        self._description = dataset.description
        self._form = form = prompts.Form.of(dataset)
        self.max_shorten = form.max_shorten
        self._shape = (dataset.features if dataset.frame is None else dataset.frame).shape
        self.instructions = answers.instructions(
            has_frame=form.table is not None, is_regression=form.is_regression
        )
        self._max_steps = max_steps
        self._given_style = prompt_style
        self._forbidden = tuple(forbidden_constructs)
        self.use_format("infill")

    def use_format(self, prompt_format: str) -> None:
        """Chooses the style for one of `env.tasks.prompts.FORMATS`, unless one was given."""
        self._style: prompts.PromptStyle = self._given_style or (
            "paper" if prompt_format == "infill" else "scored"
        )

    @property
    def isolation(self) -> str:
        """Name of the isolation tier that programs run in."""
        return self.executor.isolation

    def reset(self, rng: np.random.Generator) -> State:
        """Returns the first state, the same for every episode; its prompt is eta(g)."""
        del rng
        return State(0, {})

    def render(self, state: State, *, shorten: int = 0) -> str:
        """Returns eta(g), or eta(g, a, e) after a failure; `env.tasks.prompts` shortens prompts."""
        num_rows, num_features = self._shape
        shown = prompts.shown_rows(num_rows, self._style)
        table = (self._description, shown, num_features)
        options: dict[str, Any] = {"style": self._style, "form": self._form, "shorten": shorten}
        if not state.data:
            return prompts.first_prompt(*table, **options)
        failed = (state.data["body"], state.data["error"])
        return prompts.reflective_prompt(*table, *failed, **options)

    def messages(self, state: State, *, shorten: int = 0) -> list[dict[str, str]]:
        """Returns the state as a conversation: after a failure, the answer and its error follow."""
        num_rows, num_features = self._shape
        shown = prompts.shown_rows(num_rows, self._style)
        options: dict[str, Any] = {"form": self._form, "shorten": shorten}
        request = prompts.first_turn(self._description, shown, num_features, **options)
        # A style that was asked for is the text that the user sends.
        asked = self.render(State(0, {}), shorten=shorten) if self._given_style else request
        turns = [("system", self.instructions), ("user", asked)]
        if state.data:
            body, error = state.data["body"], state.data["error"]
            answer, report = prompts.reflective_turns(body, error, **options)
            turns += [("assistant", answer), ("user", report)]
        return [{"role": role, "content": content} for role, content in turns]

    def step(
        self, states: Sequence[State], actions: Sequence[str], rngs: Sequence[np.random.Generator]
    ) -> list[Step]:
        """Runs all bodies at once; a reward depends on the body alone."""
        del rngs
        refusals = [self._refusal(body) for body in actions]
        allowed = [body for body, refusal in zip(actions, refusals, strict=True) if not refusal]
        outcomes = iter(self.executor.run(allowed) if allowed else ())
        return [
            self._refused(state, body, refusal)
            if refusal
            else self._executed(state, body, next(outcomes))
            for state, body, refusal in zip(states, actions, refusals, strict=True)
        ]

    def program(self, action: str) -> str:
        """Returns the body inside its function, as a Python file."""
        return prompts.program(action, self._form)

    def action_of(self, answer: str) -> str:
        """Extracts the body from the answer of a chat model."""
        return answers.body_of(answer)

    def close(self) -> None:
        """Closes the executor."""
        self.executor.close()

    def _refusal(self, body: str) -> str:
        for construct in self._forbidden:
            if construct in body:
                return f"do not use {construct.rstrip('(')}"
        return ""

    def _refused(self, state: State, body: str, refusal: str) -> Step:
        info = {"split_scores": [], "wall_s": 0.0, "cached": False}
        return Step(FAILURE_REWARD, self._after_failure(state, body, refusal), refusal, info)

    def _executed(self, state: State, body: str, outcome: ExecutionResult) -> Step:
        info = {
            "split_scores": list(outcome.split_scores),
            "wall_s": outcome.wall_s,
            "cached": outcome.cached,
        }
        if not outcome.error:
            return Step(outcome.reward, None, "", info)
        following = self._after_failure(state, body, outcome.error)
        return Step(outcome.reward, following, outcome.error, info)

    def _after_failure(self, state: State, body: str, error: str) -> State | None:
        if state.t + 1 >= self._max_steps:
            return None
        return State(state.t + 1, {"body": body, "error": error})
