"""Records the corpus's error texts by executing mistakes: `python -m models.stand_in.record`.

Run it again when the mistakes, the executor's wording or scikit-learn's texts change.
"""

import json
import random
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags, logging

from env import command_line
from env.base import UsageError
from env.datasets import load_dataset
from env.executor import CodeExecutor
from env.tasks.code_task import CodeTask
from models.stand_in.grammar import sample_program
from models.stand_in.mistakes import ERRORS, sample_mistake

_DRAWS = flags.DEFINE_integer("draws", 60_000, "Mistakes to draw; kinds never drawn get no text.")
_BODIES_PER_KEY = flags.DEFINE_integer(
    "bodies_per_key",
    3,
    "Different programs to execute for each kind of mistake; they must raise the same error.",
    lower_bound=1,
)
_ISOLATION = flags.DEFINE_string("isolation", "auto", "Isolation tier of the executed programs.")


def bodies_by_key(rng: random.Random, draws: int, per_key: int) -> dict[str, list[str]]:
    """Up to `per_key` different bodies for every key seen in `draws` mistakes, by sorted key."""
    bodies: dict[str, list[str]] = {}
    for _ in range(draws):
        mistake = sample_mistake(rng, sample_program(rng))
        known = bodies.setdefault(mistake.key, [])
        if len(known) < per_key and mistake.body not in known:
            known.append(mistake.body)
    return dict(sorted(bodies.items()))


def agreed_texts(bodies: Mapping[str, Sequence[str]], errors: Mapping[str, str]) -> dict[str, str]:
    """The error text of each key.

    Args:
      bodies: output of `bodies_by_key`.
      errors: text of the error that each body raised; "" where it ran.

    Raises:
      UsageError: naming a key whose bodies ran or disagree.
    """
    table = {}
    for key, examples in bodies.items():
        texts = {errors[body] for body in examples}
        if len(texts) != 1 or "" in texts:
            raise UsageError(f"mistake {key!r} has no single error: {sorted(texts)}: {examples}")
        (table[key],) = texts
    return table


def main() -> None:
    bodies = bodies_by_key(random.Random(0), _DRAWS.value, _BODIES_PER_KEY.value)
    flat = [body for examples in bodies.values() for body in examples]
    logging.info("%d keys, %d programs", len(bodies), len(flat))
    dataset = load_dataset("balance_scale")
    with CodeExecutor(
        dataset,
        num_workers=2,
        timeout_s=60.0,
        memory_bytes=2 << 30,
        num_splits=1,
        isolation=_ISOLATION.value,
    ) as executor:
        task = CodeTask(dataset, executor)
        start = task.reset(np.random.default_rng(0))
        steps = task.step([start] * len(flat), flat, [])
    errors = {body: step.error for body, step in zip(flat, steps, strict=True)}
    table = agreed_texts(bodies, errors)
    ERRORS.write_text(json.dumps(table, indent=0, ensure_ascii=False) + "\n")
    print(f"{ERRORS.name}: {len(table)} errors")


if __name__ == "__main__":
    command_line.run(main)
