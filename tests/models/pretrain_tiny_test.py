"""Making a stand-in, with a corpus and a network so small that it takes seconds."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

import models
from env.tasks import prompts
from models import pretrain_tiny
from models.convert import abstract_parameters
from models.stand_in import bpe, corpus, training
from models.stand_in.training import Example, Schedule, answer_loss, batches, train
from models.tokenizer import Tokenizer
from models.transformer import Decoder, positions
from tests.models.small import small_decoder

CONFIG = small_decoder(
    vocab_size=600, num_layers=1, num_heads=2, num_kv_heads=1, max_position_embeddings=1024
)
PRESET = pretrain_tiny.Preset(CONFIG, Schedule(6, 1200, 1e-2), num_documents=500)


@pytest.fixture(scope="module")
def texts():
    documents = list(corpus.documents(0, 500))
    return [text for d in documents for text in (*d.prompt.split(prompts.FILL_ME), d.text) if text]


@pytest.fixture(scope="module")
def raw(texts):
    return bpe.build(texts, vocab_size=600)


def test_tokenizer_keeps_every_text(raw, texts):
    odd = "naïve ☺ <s> \t\r\n\n    日本語 x=='a\"b'\\ 1e-3 _"
    for text in [*texts[:300], odd]:
        assert raw.decode(raw.encode(text).ids, skip_special_tokens=False) == text


def test_tokenizer_has_the_asked_size_and_special_tokens_first(raw):
    assert raw.get_vocab_size() == 600
    assert [raw.token_to_id(token) for token in bpe.SPECIAL] == list(range(7))


def test_tokenizer_is_the_same_for_the_same_texts(raw, texts):
    assert bpe.build(texts, vocab_size=600).to_str() == raw.to_str()


def test_template_lines_and_idioms_are_single_tokens(raw):
    def tokens(text):
        return [raw.decode([i]) for i in raw.encode(text).ids]

    assert tokens("from sklearn.svm import SVC") == ["from sklearn.", "svm", " import ", "SVC"]
    fit = "\n    model.fit(x_train, y_train)"
    assert tokens(fit) == [fit]
    assert tokens("(C=10, kernel='rbf')") == ["(", "C=", "10", ", ", "kernel=", "'rbf'", ")"]
    prompt = prompts.first_prompt("Balance Scale Weight & Distance", 62, 4)
    assert len(tokens(prompt.replace(prompts.FILL_ME, ""))) < 24


def test_tokenizer_refuses_a_corpus_too_small_for_its_vocabulary():
    with pytest.raises(ValueError, match="vocab_size=5000"):
        bpe.build(["from sklearn.svm import SVC"], vocab_size=5000, num_merges=5)


def test_batches_hold_every_answer_token_once_per_pass():
    examples = [
        Example(list(range(100 * i, 100 * i + 10 + i)), num_prompt_tokens=4 + i % 3)
        for i in range(1, 8)
    ]
    schedule = Schedule(steps=1, batch_tokens=100, learning_rate=1.0)
    stream = batches(examples, schedule, seed=0)
    seen: dict[int, list[int]] = {}
    for _ in range(4):  # two sequences of up to 48 tokens to a batch
        batch = next(stream)
        assert batch.tokens_bs.shape == (2, 48)
        for tokens, mask, slots, is_action in zip(*(np.asarray(a) for a in batch), strict=True):
            count = int(mask.sum())
            assert mask[:count].all()
            seen[int(tokens[0])] = tokens[slots[is_action]].tolist()
    expected = {e.tokens[0]: list(e.tokens[e.num_prompt_tokens :]) for e in examples}
    assert seen == expected


def test_a_document_beyond_the_longest_batch_is_an_error():
    schedule = Schedule(steps=1, batch_tokens=100, learning_rate=1.0)
    with pytest.raises(ValueError, match="600 tokens"):
        next(batches([Example([0] * 600, 1)], schedule, seed=0))


def test_training_learns_and_repeats_itself():
    rng = np.random.default_rng(0)
    # The answer repeats the last token of the prompt.
    examples = [Example([*rng.integers(8, 40, 5), t, t, t, 1], 6) for t in range(8, 40)]
    config = dataclasses.replace(CONFIG, vocab_size=40)
    runs = []
    for _ in range(2):
        losses: list[float] = []
        params = train(
            config,
            Schedule(steps=60, batch_tokens=48 * 32, learning_rate=2e-2),
            examples,
            seed=1,
            report=lambda step, loss, losses=losses: losses.append(loss),
        )
        runs.append((params, losses))
    (first, losses), (second, _) = runs
    assert losses[0] == pytest.approx(np.log(40), abs=0.3)
    assert losses[-1] < 0.5
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_padding_does_not_change_the_loss(monkeypatch):
    examples = [Example(list(range(10)), 4), Example(list(range(20, 32)), 3)]
    model = Decoder(CONFIG)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32),
        abstract_parameters(CONFIG, np.float32),
    )
    losses = []
    for length in (12, 40):
        monkeypatch.setattr(training, "_LENGTHS", (length,))
        schedule = Schedule(steps=1, batch_tokens=2 * length, learning_rate=1.0)
        batch = next(batches(examples, schedule, seed=0))
        assert batch.tokens_bs.shape == (2, length)
        losses.append(jax.jit(answer_loss, static_argnums=0)(model, params, batch))
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)
    # By hand: the mean over both rows of what the full logits say about each answer token.
    logits = models.apply(model, params, batch.tokens_bs, positions(batch.mask_bs), batch.mask_bs)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    tokens = np.asarray(batch.tokens_bs)
    expected = []
    for row in range(2):
        example = next(e for e in examples if e.tokens[0] == tokens[row, 0])
        for place in range(example.num_prompt_tokens, len(example.tokens)):
            expected.append(-log_probs[row, place - 1, tokens[row, place]])
    np.testing.assert_allclose(losses[0], np.mean(expected), rtol=1e-5)


def test_pretrain_writes_a_model_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_LENGTHS", (300,))  # a single compilation
    (tmp_path / "figures.json").write_text("{}")
    lines: list[str] = []
    pretrain_tiny.pretrain(PRESET, tmp_path, seed=3, command="COMMAND", report=lines.append)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "heldout.jsonl",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    ]
    assert "`COMMAND`" in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "training.json").read_text())["documents"] == 500
    assert len(lines) == 7
    model, params = models.load(tmp_path)
    assert model.config == CONFIG
    tokenizer = Tokenizer(tmp_path)
    assert tokenizer.eos_ids == {2, 6}
    assert tokenizer.pad_id == 0
    tokens = np.array([tokenizer.encode_infill(prompts.first_prompt("Airlines", 10, 2))])
    mask = np.ones_like(tokens, bool)
    logits = models.apply(model, params, tokens, np.arange(tokens.shape[1])[None], mask)
    assert np.isfinite(logits).all()


def test_an_unknown_preset_and_an_output_that_is_a_file_are_one_line_each(tmp_path):
    (tmp_path / "file").write_text("")
    for argument, part in (("--preset=huge", "huge"), (f"--output={tmp_path}/file", "folder")):
        command = [sys.executable, "-m", "models.pretrain_tiny", argument]
        result = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert result.returncode == 2
        assert result.stderr.count("\n") == 1
        assert part in result.stderr
