"""The stand-in's corpus: prompts of the code task, each with the body that a coder might answer.

Everything follows from a seed. Prompts are those of `env.tasks.prompts`, of the fourteen tables
and of some that do not exist; bodies come from `models.stand_in.grammar`, with the mistakes of
`models.stand_in.mistakes` and the errors that these really raise.
"""

import dataclasses
import random
from collections.abc import Iterator

from env.tables.registry import REGISTRY
from env.tasks import prompts
from models.stand_in import grammar as grammar
from models.stand_in.errors import error_texts
from models.stand_in.grammar import Program
from models.stand_in.mistakes import Mistake, sample_mistake


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
    """What the corpus is made of; each is a probability.

    The stand-in makes some mistakes that its corpus does not hold, so these shares lie above what
    the trained model shows (the model card has the figures).
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
    """`count` documents; the same for the same seed."""
    rng = random.Random(seed)
    for _ in range(count):
        yield _document(rng)


def held_out(seed: int, count: int, known: set[str]) -> list[str]:
    """`count` different whole programs that run, none of which has a body in `known`."""
    rng = random.Random(seed)
    bodies: dict[str, None] = {}
    while len(bodies) < count:
        body = grammar.render(grammar.sample_program(rng))
        if body not in known:
            bodies[body] = None
    return [prompts.program(body) for body in bodies]


def _document(rng: random.Random) -> Document:
    program = grammar.sample_program(rng)
    if rng.random() < SHARES.plain:
        return Document("", prompts.program(grammar.render(program)))
    style: prompts.PromptStyle = "official" if rng.random() < SHARES.official_style else "paper"
    table = _table(rng, style)
    if rng.random() >= SHARES.reflective:
        prompt = prompts.first_prompt(*table, style=style)
        if rng.random() < SHARES.mistake_at_first:
            return Document(prompt, _mistake(rng, program).body)
        return Document(prompt, grammar.render(program))
    previous = _mistake(rng, program)
    shorten = rng.randint(1, prompts.MAX_SHORTEN) if rng.random() < SHARES.shortened else 0
    prompt = prompts.reflective_prompt(
        *table, previous.body, error_texts()[previous.key], style=style, shorten=shorten
    )
    return Document(prompt, _answer_to_error(rng, program, previous))


def _answer_to_error(rng: random.Random, program: Program, previous: Mistake) -> str:
    """Usually the program that the mistake was made in."""
    if rng.random() < SHARES.other_program_in_reflection:
        program = grammar.sample_program(rng)
    if rng.random() >= SHARES.mistake_in_reflection:
        return grammar.render(program)
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
    """Description, rows to show and features."""
    if rng.random() < SHARES.other_table:
        words = rng.sample(_OTHER_WORDS.split(), rng.choice((1, 1, 2, 2, 3)))
        return " ".join(words), rng.randint(20, 2000), rng.randint(2, 40)
    entry = rng.choice(list(REGISTRY.values()))
    num_rows, num_features = entry.shape
    return entry.description, prompts.shown_rows(num_rows, style), num_features
