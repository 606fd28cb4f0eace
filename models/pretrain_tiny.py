"""Makes the stand-in language model: corpus, tokenizer, training, Hugging Face folder.

The stand-in is a coder of the Llama family, small enough for reinforcement learning on two cores.
It knows the task of the paper's prompts alone, and makes mistakes in it (see the model card in its
folder). `--preset=small` makes a larger one in the same way, best on an accelerator.
"""

import dataclasses
import functools
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Sequence

import tokenizers
from absl import flags

from env import command_line
from env.base import UsageError
from env.tasks import prompts
from models import convert
from models.config import DecoderConfig
from models.stand_in import bpe, card, corpus
from models.stand_in.bpe import BOS, EOS, EOT, PAD
from models.stand_in.corpus import Document
from models.stand_in.training import Example, Schedule, train
from models.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Preset:
    """Sizes of a stand-in.

    Attributes:
      config: sizes of the network, whose vocabulary is also that of the tokenizer.
      schedule: length and rate of the training.
      num_documents: size of the corpus.
    """

    config: DecoderConfig
    schedule: Schedule
    num_documents: int


_TINY = DecoderConfig(
    vocab_size=1024,
    hidden_size=64,
    intermediate_size=176,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    rope_theta=10_000.0,
    rope_scaling=None,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    attention_bias=False,
    max_position_embeddings=1024,
)
_SMALL = dataclasses.replace(
    _TINY,
    hidden_size=256,
    intermediate_size=688,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    head_dim=32,
)

PRESETS = {
    "tiny": Preset(
        config=_TINY,
        schedule=Schedule(steps=4000, batch_tokens=3072, learning_rate=4e-3),
        num_documents=80_000,
    ),
    "small": Preset(
        config=_SMALL,
        schedule=Schedule(steps=10_000, batch_tokens=32_768, learning_rate=1e-3),
        num_documents=1_000_000,
    ),
}

# Documents that the tokenizer is made from, enough for all frequent pieces.
_TOKENIZER_DOCUMENTS = 20_000
_HELD_OUT_PROGRAMS = 200

_PRESET = flags.DEFINE_enum("preset", "tiny", list(PRESETS), "Size of the stand-in.")
_OUTPUT = flags.DEFINE_string(
    "output", None, "Folder to write; by default the folder of the preset beside this program."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of corpus, first weights and order.", lower_bound=0)
_STEPS = flags.DEFINE_integer(
    "steps", None, "Optimizer steps, in place of the preset's.", lower_bound=1
)
_DOCUMENTS = flags.DEFINE_integer(
    "documents", None, "Size of the corpus, in place of the preset's.", lower_bound=1
)


def pretrain(
    preset: Preset,
    folder: pathlib.Path,
    *,
    seed: int,
    command: str,
    report: Callable[[str], None] = print,
) -> None:
    """Makes a model folder; files of the same names are replaced when all new ones are complete.

    Args:
      preset: sizes of the stand-in.
      folder: folder to write, made if absent.
      seed: seed of everything random.
      command: command that makes it again, for the model card.
      report: called with lines about the progress.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".making-") as name:
        making = pathlib.Path(name)
        training = {"command": command, **_make(preset, making, seed=seed, report=report)}
        (making / card.TRAINING).write_text(json.dumps(training, indent=2) + "\n")
        # Figures that were measured on other weights do not belong on the new card.
        (folder / card.FIGURES).unlink(missing_ok=True)
        for path in sorted(making.iterdir()):
            os.replace(path, folder / path.name)
    card.write(folder)


def _make(
    preset: Preset, folder: pathlib.Path, *, seed: int, report: Callable[[str], None]
) -> dict[str, float]:
    """Writes all files but the card; returns the figures of the training for it."""
    documents = list(corpus.documents(seed, preset.num_documents))
    raw = bpe.build(_texts(documents[:_TOKENIZER_DOCUMENTS]), vocab_size=preset.config.vocab_size)
    bpe.save(raw, folder, max_length=preset.config.max_position_embeddings)
    vocab = raw.get_vocab()
    ids = {
        "bos_token_id": vocab[BOS],
        "eos_token_id": [vocab[EOS], vocab[EOT]],
        "pad_token_id": vocab[PAD],
    }
    for name in ("config.json", "generation_config.json"):
        values = {**preset.config.to_dict(), **ids} if name == "config.json" else ids
        (folder / name).write_text(json.dumps(values, indent=2) + "\n")
    examples = _examples(documents, raw, Tokenizer(folder))
    num_tokens = sum(len(example.tokens) for example in examples)
    report(f"{len(examples):,} documents, {num_tokens:,} tokens")
    losses: list[float] = []

    def report_loss(step: int, loss: float) -> None:
        losses.append(loss)
        report(f"step {step}: {loss:.4f} nats per answer token")

    params = train(preset.config, preset.schedule, examples, seed=seed, report=report_loss)
    convert.save(folder, preset.config, params, extra=ids)
    _write_held_out(folder, documents, seed=seed)
    return {
        "documents": len(examples),
        "tokens": num_tokens,
        "steps": preset.schedule.steps,
        "batch_tokens": preset.schedule.batch_tokens,
        "last_loss": round(losses[-1], 4),
    }


def _texts(documents: Sequence[Document]) -> list[str]:
    """Prompts, cut at their markers, and answers."""
    return [part for d in documents for part in (*d.prompt.split(prompts.FILL_ME), d.text)]


def _examples(
    documents: Sequence[Document], raw: tokenizers.Tokenizer, tokenizer: Tokenizer
) -> list[Example]:
    """Token ids of documents: bodies end with the end of infilling, programs with that of text."""
    vocab = raw.get_vocab()
    texts = raw.encode_batch([document.text for document in documents])
    examples = []
    for document, text in zip(documents, texts, strict=True):
        prompt = tokenizer.encode_infill(document.prompt) if document.prompt else [vocab[BOS]]
        stop = vocab[EOT if document.prompt else EOS]
        examples.append(Example([*prompt, *text.ids, stop], len(prompt)))
    return examples


def _write_held_out(folder: pathlib.Path, documents: Sequence[Document], *, seed: int) -> None:
    """Writes programs for perplexity, whose bodies are not in the corpus, as lines of JSON."""
    known = {document.text for document in documents}
    programs = corpus.held_out(seed + 1, _HELD_OUT_PROGRAMS, known)
    lines = [json.dumps({"text": program}, ensure_ascii=False) for program in programs]
    (folder / "heldout.jsonl").write_text("\n".join(lines) + "\n")


def main() -> None:
    preset = PRESETS[_PRESET.value]
    command = f"python -m models.pretrain_tiny --preset={_PRESET.value}"
    for flag in (_SEED, _STEPS, _DOCUMENTS):
        if flag.present:
            command += f" --{flag.name}={flag.value}"
    steps = _STEPS.value or preset.schedule.steps
    schedule = dataclasses.replace(preset.schedule, steps=steps)
    preset = Preset(preset.config, schedule, _DOCUMENTS.value or preset.num_documents)
    folder = pathlib.Path(_OUTPUT.value or pathlib.Path(__file__).parent / _PRESET.value)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"--output: {folder} is not a folder")
    wall_s, cpu_s = time.monotonic(), time.process_time()
    report = functools.partial(print, flush=True)
    pretrain(preset, folder, seed=_SEED.value, command=command, report=report)
    print(
        f"{folder}: {card.parameter_count(preset.config):,} parameters,"
        f" {time.monotonic() - wall_s:.0f} s, {time.process_time() - cpu_s:.0f} s of CPU"
    )


if __name__ == "__main__":
    command_line.run(main, errors=(ValueError,))
