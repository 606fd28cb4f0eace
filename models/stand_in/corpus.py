"""The stand-in's corpus: prompts of the code task, each with the body that a coder might answer.

Everything follows from a seed. Prompts are rendered by `env.tasks.prompts` for the fourteen tables
and for some that do not exist; bodies come from `models.stand_in.grammar`, with the mistakes of
`models.stand_in.mistakes` and the errors that these raise when they are executed.
"""

import dataclasses
import random
from collections.abc import Iterator

from env.tables.registry import REGISTRY
from env.tasks import prompts
from models.stand_in.grammar import sample_program
from models.stand_in.mistakes import Mistake, error_texts, sample_mistake
from models.stand_in.programs import Program, render


@dataclasses.dataclass(frozen=True)
class Document:
    """One training example.

    Attributes:
      prompt: a prompt with its `<FILL_ME>`, or "" for a whole program without one.
      text: the body that replaces the marker, or the program.
    """

    prompt: str
    text: str


@dataclasses.dataclass(frozen=True)
class Shares:
    """Probabilities that make up the corpus.

    The trained model also makes mistakes that its corpus does not hold, so programs that run are
    more frequent here than among its answers (the model card has the figures).

    Attributes:
      plain: whole programs without a prompt.
      reflective: prompts that report an error, among the documents with a prompt.
      mistake_at_first: first prompts that are answered with a mistake.
      mistake_in_reflection: prompts with an error that are answered with a mistake.
      other_program_in_reflection: prompts with an error that are answered with another program.
      official_style: prompts in the style of the authors' code.
      shortened: prompts with an error whose text is shortened.
      other_table: prompts about a table that does not exist.
    """

    plain: float = 0.04
    reflective: float = 0.48
    mistake_at_first: float = 0.42
    mistake_in_reflection: float = 0.17
    other_program_in_reflection: float = 0.1
    official_style: float = 0.08
    shortened: float = 0.04
    other_table: float = 0.1


SHARES = Shares()

_OTHER_WORDS = """
    Heart Liver Wine Quality Customer Churn Loan Default Income Credit Card Fraud Mushroom Iris
    Glass Seeds Student Grade Traffic Weather Rain Energy Sensor Fault Steel Plate Bank Marketing
    Voting Zoo Car Evaluation Sonar Vehicle Yeast Housing Hotel Booking Movie Song Genre Game
"""


def documents(seed: int, count: int) -> Iterator[Document]:
    """Yields `count` documents, the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        yield _document(rng)


def held_out(seed: int, count: int, known: set[str]) -> list[str]:
    """Draws `count` different whole programs that run, with no body that is in `known`."""
    rng = random.Random(seed)
    bodies: dict[str, None] = {}
    while len(bodies) < count:
        body = render(sample_program(rng))
        if body not in known:
            bodies[body] = None
    return [prompts.program(body) for body in bodies]


def _document(rng: random.Random) -> Document:
    program = sample_program(rng)
    if rng.random() < SHARES.plain:
        return Document("", prompts.program(render(program)))
    style: prompts.PromptStyle = "official" if rng.random() < SHARES.official_style else "paper"
    table = _table(rng, style)
    if rng.random() >= SHARES.reflective:
        prompt = prompts.first_prompt(*table, style=style)
        if rng.random() < SHARES.mistake_at_first:
            return Document(prompt, _mistake(rng, program).body)
        return Document(prompt, render(program))
    previous = _mistake(rng, program)
    shorten = rng.randint(1, prompts.MAX_SHORTEN) if rng.random() < SHARES.shortened else 0
    prompt = prompts.reflective_prompt(
        *table, previous.body, error_texts()[previous.key], style=style, shorten=shorten
    )
    return Document(prompt, _answer_to_error(rng, program, previous))


def _answer_to_error(rng: random.Random, program: Program, previous: Mistake) -> str:
    """The body after an error: usually the program in which the mistake was made."""
    if rng.random() < SHARES.other_program_in_reflection:
        program = sample_program(rng)
    if rng.random() >= SHARES.mistake_in_reflection:
        return render(program)
    if rng.random() < 0.2:
        return previous.body
    return _mistake(rng, program).body


def _mistake(rng: random.Random, program: Program) -> Mistake:
    """A mistake whose error was recorded; all but the rarest are."""
    while True:
        mistake = sample_mistake(rng, program)
        if mistake.key in error_texts():
            return mistake


def _table(rng: random.Random, style: prompts.PromptStyle) -> tuple[str, int, int]:
    """Description, number of rows to show and number of features of a table for a prompt."""
    if rng.random() < SHARES.other_table:
        words = rng.sample(_OTHER_WORDS.split(), rng.choice((1, 1, 2, 2, 3)))
        return " ".join(words), rng.randint(20, 2000), rng.randint(2, 40)
    entry = rng.choice(list(REGISTRY.values()))
    num_rows, num_features = entry.shape
    return entry.description, prompts.shown_rows(num_rows, style), num_features
