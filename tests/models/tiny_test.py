"""The shipped stand-in is complete, matches its card, and is made by the code beside it."""

import hashlib
import json
import math
import pathlib
import shutil

import jax
import numpy as np
import pytest

import models
from env.tables.registry import REGISTRY
from env.tasks import prompts
from models import pretrain_tiny
from models.stand_in import bpe, card, corpus
from models.tokenizer import Tokenizer
from models.transformer import positions

TINY = pathlib.Path(models.__file__).parent / "tiny"


@pytest.fixture(scope="module")
def figures():
    return json.loads((TINY / card.FIGURES).read_text())


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer(TINY)


def test_folder_is_complete_and_small():
    sizes = {path.name: path.stat().st_size for path in TINY.iterdir()}
    assert sorted(sizes) == [
        "README.md",
        "config.json",
        "figures.json",
        "generation_config.json",
        "heldout.jsonl",
        "model.safetensors",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    ]
    assert sizes["model.safetensors"] <= 6_000_000
    assert sizes["heldout.jsonl"] <= 100_000


def test_network_is_that_of_the_preset():
    model, _ = models.load(TINY)
    assert model.config == pretrain_tiny.PRESETS["tiny"].config
    assert model.config.num_kv_heads < model.config.num_heads


def test_prompts_and_bodies_are_short(tokenizer):
    for entry in REGISTRY.values():
        rows, columns = prompts.shown_rows(entry.shape[0]), entry.shape[1]
        first = prompts.first_prompt(entry.description, rows, columns)
        assert len(tokenizer.encode_infill(first)) <= 26
    documents = [d for d in corpus.documents(11, 300) if "An error" in d.prompt]
    reflective = [len(tokenizer.encode_infill(d.prompt)) for d in documents]
    assert np.median(reflective) <= 110
    bodies = [len(tokenizer.encode(d.text)) for d in documents]
    assert 15 <= np.median(bodies) <= 45
    assert max(bodies) < 100


def test_tokenizer_keeps_the_corpus(tokenizer):
    for document in corpus.documents(12, 200):
        assert tokenizer.decode(tokenizer.encode(document.text)) == document.text


def answer_losses(tokenizer, seed, count):
    """Cross-entropy in nats of each answer token, over the documents with prompts among `count`."""
    model, params = models.load(TINY)
    documents = [d for d in corpus.documents(seed, count) if d.prompt]
    prompt_ids = [tokenizer.encode_infill(d.prompt) for d in documents]
    # The end of infilling is the last of the special tokens.
    stop = max(tokenizer.eos_ids)
    answers = [[*tokenizer.encode(d.text)[1:], stop] for d in documents]
    lengths = [len(p) + len(a) for p, a in zip(prompt_ids, answers, strict=True)]
    tokens = np.zeros((len(documents), max(lengths)), np.int32)
    for row, (prompt, answer) in enumerate(zip(prompt_ids, answers, strict=True)):
        tokens[row, : lengths[row]] = [*prompt, *answer]
    mask = np.arange(tokens.shape[1]) < np.array(lengths)[:, None]
    logits = models.apply(model, params, tokens, positions(mask), mask)
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    return [
        -log_probs[row, len(prompt) - 1 + i, token]
        for row, (prompt, answer) in enumerate(zip(prompt_ids, answers, strict=True))
        for i, token in enumerate(answer)
    ]


def test_it_answers_unseen_documents_as_well_as_seen_ones(tokenizer):
    seen, unseen = (np.mean(answer_losses(tokenizer, seed, 300)) for seed in (0, 13))
    assert unseen < 0.5  # by chance 6.9
    # 300 documents leave a standard error of about 0.02.
    assert unseen - seen < 0.07


def test_figures_are_those_of_these_weights(figures):
    weights = (TINY / "model.safetensors").read_bytes()
    assert figures["model_sha256"] == hashlib.sha256(weights).hexdigest()
    assert figures["samples"] >= 1000
    assert figures["temperature"] == 1.0


@pytest.mark.parametrize("name", ["balance_scale", "tic_tac_toe"])
def test_it_starts_where_learning_is_possible(figures, name):
    table = figures["tables"][name]
    assert 0.45 <= table["runnable"] <= 0.65
    assert table["distinct_of_64"] >= 55
    assert table["fixed"] >= 0.6
    assert math.isclose(
        table["reward_mean"],
        table["runnable"] * table["auc_mean"] - (1 - table["runnable"]),
        abs_tol=1e-6,
    )


def test_the_best_programs_are_rare(figures):
    assert figures["tables"]["balance_scale"]["share_above_093"] < 1 / 300


def test_card_shows_the_figures(tmp_path):
    folder = shutil.copytree(TINY, tmp_path / "tiny")
    card.write(folder)
    assert (folder / "README.md").read_text() == (TINY / "README.md").read_text()


def test_held_out_text_is_python():
    lines = (TINY / "heldout.jsonl").read_text().splitlines()
    assert len(lines) >= 100
    for line in lines:
        compile(json.loads(line)["text"], "heldout", "exec")


@pytest.mark.slow
def test_tokenizer_is_the_one_that_the_code_makes():
    documents = list(corpus.documents(0, pretrain_tiny._TOKENIZER_DOCUMENTS))
    made = bpe.build(pretrain_tiny._texts(documents), vocab_size=1024)
    stored = json.loads((TINY / "tokenizer.json").read_text())
    assert json.loads(made.to_str()) == stored
