"""A task of several turns that is not about code: questions about a few rows of a table.

An episode shows some rows and asks `max_steps` questions about them, one after the other. An answer
that matches exactly is worth 1 and any other 0; the next prompt shows it and the right answer.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from env.base import State, Step, Task, UsageError
from env.tables.table import Dataset

NUM_ROWS = 4
MAX_COLUMNS = 3
_TARGET = "class"


@dataclasses.dataclass(frozen=True)
class _Question:
    text: str
    answer: str


class TableQuestions(Task):
    """Episodes of questions about the rows of a table.

    A state holds the seed that its rows and questions are drawn with, and the answers so far.

    Args:
      dataset: table from which rows are drawn.
      max_steps: number of questions of an episode.
    """

    max_shorten = 1
    instructions = (
        "Answer the last question of the text: reply with what replaces <FILL_ME>, nothing else."
    )

    def __init__(self, dataset: Dataset, *, max_steps: int = 3):
        if max_steps < 1:
            raise UsageError(f"max_steps is {max_steps} and must be at least 1")
        if len(dataset.labels) < NUM_ROWS:
            raise UsageError(f"{dataset.name}: questions need {NUM_ROWS} rows at least")
        if dataset.is_regression or len(dataset.class_names) != dataset.num_classes:
            raise UsageError(f"{dataset.name}: questions need the names of the classes")
        self.name = f"questions about {dataset.name}"
        self._dataset = dataset
        self._max_steps = max_steps

    def reset(self, rng: np.random.Generator) -> State:
        """Draws new rows and new questions."""
        return State(0, {"seed": int(rng.integers(2**31)), "answers": []})

    def render(self, state: State, *, shorten: int = 0) -> str:
        """Returns the rows, the questions so far (not with `shorten`) and the next question."""
        table, questions = self._draw(state.data["seed"])
        lines = [f"Rows of a table about {self._dataset.description}:", *table]
        if not shorten:
            for question, given in zip(questions, state.data["answers"], strict=False):
                verdict = "right" if given == question.answer else f"wrong: {question.answer}"
                lines += [f"Question: {question.text}", f"Answer: {_shown(given)} ({verdict})"]
        lines += [f"Question: {questions[state.t].text}", "Answer: <FILL_ME>", ""]
        return "\n".join(lines)

    def step(
        self, states: Sequence[State], actions: Sequence[str], rngs: Sequence[np.random.Generator]
    ) -> list[Step]:
        """Compares each answer with the right one."""
        del rngs
        return [self._step(s, _answer_of(a)) for s, a in zip(states, actions, strict=True)]

    def program(self, action: str) -> str:
        """Returns the answer that the action was taken for."""
        return _answer_of(action) + "\n"

    def action_of(self, answer: str) -> str:
        """Returns the answer without white space around it."""
        return answer.strip()

    def _step(self, state: State, given: str) -> Step:
        question = self._draw(state.data["seed"])[1][state.t]
        is_right = given == question.answer
        answers = [*state.data["answers"], given]
        following = State(state.t + 1, {**state.data, "answers": answers})
        return Step(
            reward=float(is_right),
            next_state=following if following.t < self._max_steps else None,
            error="" if is_right else f"the answer is {question.answer}",
            info={"question": question.text, "answer": question.answer},
        )

    def _draw(self, seed: int) -> tuple[list[str], list[_Question]]:
        """Returns the lines of the table and the questions of the episode with that seed."""
        rng = np.random.default_rng(seed)
        dataset = self._dataset
        rows = rng.choice(len(dataset.labels), NUM_ROWS, replace=False)
        num_features = len(dataset.feature_names)
        features = np.sort(rng.choice(num_features, min(MAX_COLUMNS, num_features), replace=False))
        columns = {dataset.feature_names[i]: dataset.features[rows, i] for i in features}
        classes = [dataset.class_names[label] for label in dataset.labels[rows]]
        header = " | ".join(["row", *columns, _TARGET])
        table = [header]
        for i in range(NUM_ROWS):
            cells = [f"{values[i]:g}" for values in columns.values()]
            table.append(" | ".join([str(i + 1), *cells, classes[i]]))
        return table, [_question(rng, columns, classes) for _ in range(self._max_steps)]


def _question(
    rng: np.random.Generator, columns: dict[str, np.ndarray], classes: list[str]
) -> _Question:
    name = list(columns)[rng.integers(len(columns))]
    values = columns[name]
    row = int(rng.integers(NUM_ROWS))
    match rng.integers(5):
        case 0:
            return _Question(f"What is the largest {name}?", f"{values.max():g}")
        case 1:
            return _Question(f"What is the smallest {name}?", f"{values.min():g}")
        case 2:
            count = int((values > values[row]).sum())
            return _Question(f"How many rows have a {name} above {values[row]:g}?", str(count))
        case 3:
            return _Question(f"What is the {name} of row {row + 1}?", f"{values[row]:g}")
        case _:
            return _Question(f"What is the {_TARGET} of row {row + 1}?", classes[row])


def _answer_of(action: str) -> str:
    """Returns the first line of an action without white space around it."""
    return (action.strip().splitlines() or [""])[0].strip()


def _shown(answer: str) -> str:
    # Shown answers are one short, printable line without a marker of their own.
    text = "".join(c for c in answer if c.isprintable()).replace("<FILL_ME>", "FILL_ME")
    return text[:40]
