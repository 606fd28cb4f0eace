"""The model card of a stand-in: its purpose, its making, and the figures measured on it."""

import json
import math
import pathlib
import textwrap
from collections.abc import Mapping

from env.tables.registry import REGISTRY
from models.config import DecoderConfig, parameter_shapes
from models.stand_in.corpus import SHARES

TRAINING = "training.json"
FIGURES = "figures.json"

_CARD = (pathlib.Path(__file__).parent / "card.md").read_text(encoding="utf-8")
_NOT_MEASURED = "Not measured yet: `python -m benchmarks.stand_in --model=FOLDER --write_card`."

_MEASURED = """Measured by `python -m benchmarks.stand_in` at temperature {temperature:g}:
{samples} samples of the first prompt for each table; every failed sample is then shown with its
error and answered once. Rewards are the mean ROC AUC over five splits, or -1 (scikit-learn
{scikit_learn}).

| | {names} |
|---|{rules}|
{rows}
"""

_ROWS = (
    ("runs", "runnable", "{:.1%}"),
    ("mean reward", "reward_mean", "{:.3f}"),
    ("mean ROC AUC of those that run", "auc_mean", "{:.3f}"),
    ("90th percentile of all rewards", "reward_p90", "{:.3f}"),
    ("best reward", "reward_best", "{:.3f}"),
    ("above 0.93", "share_above_093", "{:.2%}"),
    ("different programs among 64", "distinct_of_64", "{:.1f}"),
    ("tokens of an action", "action_tokens", "{:.1f}"),
    ("failures that the next answer mends", "fixed", "{:.1%}"),
)


def parameter_count(config: DecoderConfig) -> int:
    """Number of parameters of a decoder."""
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


def write(folder: pathlib.Path) -> None:
    """Writes README.md from the folder's config.json, training.json and, if any, figures.json."""
    config = DecoderConfig.from_folder(folder)
    measured = folder / FIGURES
    text = _CARD.format(
        parameters=parameter_count(config),
        layers=config.num_layers,
        width=config.hidden_size,
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        inner=config.intermediate_size,
        vocab=config.vocab_size,
        descriptions=textwrap.fill(
            ", ".join(entry.description for entry in REGISTRY.values()),
            width=98,
            initial_indent="  ",
            subsequent_indent="  ",
        ),
        first=(1 - SHARES.plain) * (1 - SHARES.reflective),
        mistakes=SHARES.mistake_at_first,
        reflective=(1 - SHARES.plain) * SHARES.reflective,
        fixed=1 - SHARES.mistake_in_reflection,
        plain=SHARES.plain,
        **json.loads((folder / TRAINING).read_text()),
        figures=_figures(json.loads(measured.read_text())) if measured.exists() else _NOT_MEASURED,
    )
    (folder / "README.md").write_text(text)


def _figures(figures: Mapping) -> str:
    tables: Mapping[str, Mapping[str, float]] = figures["tables"]
    rows = [
        " | ".join([f"| {title}", *(form.format(table[key]) for table in tables.values())]) + " |"
        for title, key, form in _ROWS
    ]
    return _MEASURED.format(
        **{name: value for name, value in figures.items() if name != "tables"},
        names=" | ".join(tables),
        rules="|".join("---" for _ in tables),
        rows="\n".join(rows),
    )
