"""Tables of ends agree with the ends of whole texts, for every kind of tokenizer."""

import functools
import random

import jax
import numpy as np
import pytest

from env.tasks.endings import ACTION_ENDS, program_text
from etpo_jax import build
from etpo_jax.acting import endings
from etpo_jax.acting.rollout import Prompt
from etpo_jax.config import Config
from etpo_jax.devices.mesh import build_mesh
from models.tokenizer import Tokenizer
from tests.models import tokenizer_test


@functools.cache
def stand_in():
    return Tokenizer("tiny")


@pytest.fixture(params=["stand-in", "SentencePiece with bytes", "byte-level with added tokens"])
def tokenizer(request, tmp_path):
    if request.param == "stand-in":
        return stand_in()
    if request.param == "SentencePiece with bytes":
        return Tokenizer(tokenizer_test.code_llama(tmp_path))
    tokenizer_test.byte_level(
        tmp_path,
        special=("<end>", "<pad>"),
        text_tokens=(*tokenizer_test.QWEN, "\n\n", "\n\ndef", "```\n", " ```python\n", "\n)"),
        names={"eos_token": "<end>", "pad_token": "<pad>"},
    )
    return Tokenizer(tmp_path)


def random_actions(tokenizer, ending, count):
    """Random tokens with many of the characters that can end an action."""
    texts = [tokenizer.decode([token]) for token in range(tokenizer.vocab_size)]
    some = [token for token, text in enumerate(texts) if text]
    breaks = [token for token in some if set("\n\r") & set(texts[token])]
    ticks = [token for token in some if "`" in texts[token]]
    weights = (1, 1, 6) if ending == "fence" else (2, 1, 1)
    rng = random.Random(0)
    for _ in range(count):
        groups = rng.choices((some, breaks, ticks), weights, k=rng.randrange(40))
        yield [rng.choice(group) for group in groups]


@pytest.mark.parametrize("ending", ACTION_ENDS)
def test_tables_end_where_texts_end(tokenizer, ending):
    table_sv = endings.state_table(ending, tokenizer, tokenizer.vocab_size)
    assert table_sv.dtype == np.uint8
    num_ended = 0
    for ids in random_actions(tokenizer, ending, 1000):
        state, text = endings.START, ""
        for count, token in enumerate(ids, 1):
            state, text = table_sv[state, token], text + tokenizer.decode([token])
            is_ended = state == len(table_sv) - 1
            # Something is cut off exactly when the text has ended.
            assert is_ended == (program_text(text, ending) != text), (ids, text)
            # Characters of several tokens change nothing. Among bytes that are no characters,
            # SentencePiece loses line breaks as well.
            whole = tokenizer.decode(ids[:count])
            if "\ufffd" not in whole:
                assert is_ended == (program_text(whole, ending) != whole), (ids, whole)
            if is_ended:
                num_ended += 1
                break
    assert (num_ended > 50) == bool(ending)


@pytest.mark.parametrize("ending", ["function", "fence"])
def test_byte_tokens_and_special_tokens(tmp_path, ending):
    """Bytes are the characters they spell; special tokens and ids without a token do nothing."""
    tokenizer = Tokenizer(tokenizer_test.code_llama(tmp_path))
    size = tokenizer.vocab_size + 7
    table_sv = endings.state_table(ending, tokenizer, size)
    states_s = np.arange(len(table_sv))
    for token in (*tokenizer.eos_ids, tokenizer.pad_id, *range(size - 7, size)):
        np.testing.assert_array_equal(table_sv[:, token], states_s)

    def follow(*texts):
        state = endings.START
        for character in "".join(texts).encode():
            state = table_sv[state, 3 + character]
        return state == len(table_sv) - 1

    assert follow("x\n\u6f22" if ending == "function" else "```\n\u6f22```")
    assert not follow("x\n \u6f22" if ending == "function" else "```\u6f22``\n```")
    np.testing.assert_array_equal(table_sv[-1], len(table_sv) - 1)


def test_large_vocabularies_are_quick():
    """The number of operations on arrays is that of characters in the longest token."""

    class Words:
        vocab_size = 150_000

        def decode(self, ids):
            return f" word{ids[0]}\n"

    table_sv = endings.state_table("fence", Words(), 152_000)
    assert table_sv.shape == (10, 152_000)
    # A line that ends the opening fence, and one within the block.
    np.testing.assert_array_equal(table_sv[3:5, :150_000], 6)
    np.testing.assert_array_equal(table_sv[6:9, :150_000], 6)


def test_unknown_endings_are_named():
    with pytest.raises(ValueError, match="action_end='line'"):
        endings.state_table("line", stand_in(), 8)


def test_an_actor_gives_the_text_before_the_end():
    """The tokens reach to the one that leaves the function; the text ends with the function."""
    settings = {"temperature": 5.0, "top_k": 0, "max_new_tokens": 64, "support_threshold": 0.0}
    config, mesh = Config.from_dict(settings), build_mesh()
    language = build.load_language(config, mesh)
    decode = language.tokenizer.decode
    text = "def build_model(x_train, y_train):\n    "
    prompts = [Prompt(text, np.array(language.tokenizer.encode_prompt(text), np.int32))] * 16
    actor = build.make_actor(config, language, mesh, action_end="function")
    actions = actor.act(actor.weights({}), prompts, jax.random.key(0))
    num_ended = 0
    for text, tokens, log_probs in zip(
        actions.texts, actions.tokens, actions.log_probs, strict=True
    ):
        assert len(tokens) == len(log_probs)
        assert text == program_text(decode(tokens), "function")
        assert program_text(decode(tokens[:-1]), "function") == decode(tokens[:-1])
        num_ended += text != decode(tokens)
    assert num_ended > 4
    assert actions.num_tokens == sum(map(len, actions.tokens)) < 16 * 64
