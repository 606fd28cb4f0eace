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

_CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [code, infilling, stand-in, test]
---

# A stand-in coder of {parameters:,} parameters

A decoder of the Llama family ({layers} layers, width {width}, {heads} query heads over {kv_heads}
key heads, MLP {inner}, vocabulary {vocab}) that answers the prompts of one task: write, or mend,
the body of `build_model(x_train, y_train)` with scikit-learn. It stands in for CodeLlama where
reinforcement learning on real executions must be quick: demonstrations, tests, comparisons of
algorithms on two cores.

## What it is

- It was trained from scratch on text that a program makes: a grammar over scikit-learn's
  classifiers, scalers, pipelines and settings, with the mistakes that people make. The error
  messages in its prompts were recorded by executing these mistakes.
- It is a policy with room to learn. It often makes mistakes that a reward can teach it to avoid;
  most of its programs that run score in the middle of the field, better ones are rare, and the best
  on the small tables need several good choices at once.
- It uses the infilling format of CodeLlama with the same token names: `<s>`, `▁<PRE>`, prefix,
  `▁<SUF>`, suffix, `▁<MID>`, body, `▁<EOT>`. An answer ends with `▁<EOT>` or `</s>`.
- It knows the descriptions of fourteen tables:
{descriptions}.

## What it is not

- It is no language model: it knows no English beyond its prompts, and no Python beyond its grammar.
- It is no evidence on large models: an algorithm that wins here works, but need not win with
  CodeLlama.
- It is no help in choosing a classifier: the shares of its answers were set by hand, and it has
  seen no table, only the words of the prompts.
- Its programs are not to be trusted: run them in a sandbox, like those of any model.

## How it was made

`{command}`: corpus, tokenizer and training follow from a seed, and the same machine writes the same
bytes. The corpus has {documents:,} documents of {tokens:,} tokens: {first:.0%} are first prompts
({mistakes:.0%} of them answered with a mistake), {reflective:.0%} prompts that report an error
({fixed:.0%} answered with a program that runs) and {plain:.0%} whole programs. The tokenizer is a
byte-level BPE; the lines of the prompts and frequent names, arguments and values are single tokens.
{steps:,} steps of AdamW on the tokens of the answers, {batch_tokens:,} tokens each with their
prompts, ended at a training loss of {last_loss:.3f} nats per token (the mean of the last batches).
`heldout.jsonl` holds programs whose bodies are not in the corpus, for perplexity.

## Figures

{figures}
"""

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
