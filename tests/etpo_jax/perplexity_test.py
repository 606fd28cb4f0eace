import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import models
from env.base import UsageError
from etpo_jax import perplexity
from etpo_jax.algorithms.networks import Networks
from etpo_jax.distribution import tilt_statistics
from models.transformer import Decoder
from tests.models.small import small_decoder

VOCAB = 11
DECODER = small_decoder(
    vocab_size=VOCAB, hidden_size=8, intermediate_size=12, num_layers=1, num_heads=2, head_dim=4
)


@pytest.fixture(scope="module")
def networks():
    return Networks(Decoder(DECODER), "residual", False)


@pytest.fixture(scope="module")
def scorer(networks):
    return perplexity.Scorer(networks, 0, length=20, stride=10)


@pytest.fixture(scope="module")
def base(networks):
    # Drawn here: compiling the decoder's own initialisation would take longer than the tests.
    token = jnp.zeros((1, 1), jnp.int32)
    shapes = jax.eval_shape(networks.model.init, jax.random.key(0), token, token, token == 0)
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), shapes["params"]
    )


def random_ids(*lengths):
    rng = np.random.default_rng(0)
    return [rng.integers(0, VOCAB, length).tolist() for length in lengths]


def loop_nats(networks, params, ids):
    """Each token after the first, with all that stands before it."""
    # One length, one compilation; what stands behind a token does not reach it.
    tokens = np.pad(ids, (0, 24 - len(ids)))[None]
    mask = np.arange(24)[None] < len(ids)
    logits = models.apply(networks.model, params, tokens, np.arange(24)[None], mask)
    log_probs = np.asarray(jax.nn.log_softmax(logits[0]))
    return -sum(log_probs[i - 1, ids[i]] for i in range(1, len(ids)))


def test_windows_by_hand():
    ids = list(range(10))
    found = list(perplexity.windows(ids, length=4, stride=2))
    assert [list(w.ids) for w in found] == [
        [0, 1, 2, 3],
        [2, 3, 4, 5],
        [4, 5, 6, 7],
        [6, 7, 8, 9],
    ]
    assert [w.num_scored for w in found] == [3, 2, 2, 2]
    assert [list(w.ids) for w in perplexity.windows(ids[:5], length=4, stride=3)] == [
        [0, 1, 2, 3],
        [3, 4],
    ]


@pytest.mark.parametrize("size", range(13))
@pytest.mark.parametrize(("length", "stride"), [(2, 1), (5, 1), (5, 3), (5, 4), (20, 10)])
def test_every_token_but_the_first_is_scored_once(size, length, stride):
    scored = []
    for window in perplexity.windows(range(size), length, stride):
        assert 1 <= window.num_scored < len(window.ids) <= length
        scored += window.ids[-window.num_scored :]
    assert scored == list(range(1, size))


def test_one_window_equals_the_loop(networks, base, scorer):
    documents = random_ids(9, 2, 17, 1)
    found = scorer.measure(base, {}, documents)
    expected = sum(loop_nats(networks, base, ids) for ids in documents)
    assert (found.num_documents, found.num_tokens) == (4, 8 + 1 + 16)
    assert found.nats == pytest.approx(expected, rel=1e-5)
    # Weighted by tokens: not the mean of the documents' perplexities.
    assert found.value == pytest.approx(np.exp(expected / 25), rel=1e-5)


def test_overlapping_windows_see_their_own_context_only(networks, base):
    (ids,) = random_ids(23)
    # A role of its own over a base that must not be looked at.
    role, other = {"params": base}, jax.tree.map(jnp.zeros_like, base)
    found = perplexity.Scorer(networks, 0, length=8, stride=5).measure(other, role, [ids])
    expected = 0.0
    for window in perplexity.windows(ids, 8, 5):
        whole = loop_nats(networks, base, list(window.ids))
        context = list(window.ids[: len(window.ids) - window.num_scored])
        expected += whole - loop_nats(networks, base, context)
    assert found.num_tokens == 22
    assert found.nats == pytest.approx(expected, rel=1e-5)


def test_a_tilted_policy_is_measured_with_its_tilt(networks, base, scorer):
    (ids,), theta = random_ids(9), np.linspace(-0.4, 0.9, 10, dtype=np.float32)
    tokens = np.array(ids)[None]
    logits = models.apply(networks.model, base, tokens, np.arange(9)[None], tokens >= 0)[0]
    log_rho = np.asarray(jax.nn.log_softmax(logits))
    tilted = log_rho + np.stack(tilt_statistics(log_rho), axis=-1) @ theta
    expected = -sum(np.asarray(jax.nn.log_softmax(tilted))[i - 1, ids[i]] for i in range(1, 9))
    found = scorer.measure(base, {"tilt": jnp.asarray(theta)}, [ids])
    assert found.nats == pytest.approx(expected, rel=1e-5)
    assert abs(found.nats - scorer.measure(base, {}, [ids]).nats) > 0.1


def test_a_uniform_model_has_the_size_of_the_vocabulary(base, scorer):
    uniform = jax.tree.map(jnp.zeros_like, base)
    assert scorer.measure(uniform, {}, random_ids(9, 12)).value == pytest.approx(VOCAB, rel=1e-5)
    with pytest.raises(ValueError, match="no text has two tokens"):
        scorer.measure(uniform, {}, [[3], []])


def test_files_are_one_text_or_one_per_line(tmp_path):
    text, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    text.write_text("def f():\n    return 1\n")
    lines.write_text('{"text": "one"}\n\n{"text": "two", "id": 7}\n')
    assert perplexity.read_documents(text) == ["def f():\n    return 1\n"]
    assert perplexity.read_documents(lines) == ["one", "two"]


@pytest.mark.parametrize("line", ["[1]", '{"body": "x"}', "text", '{"text": 3}'])
def test_a_bad_line_is_named(tmp_path, line):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"text": "fine"}) + f"\n{line}\n")
    with pytest.raises(UsageError, match=r"bad\.jsonl: line 2"):
        perplexity.read_documents(path)


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.txt", "binary.txt"):
        with pytest.raises(UsageError, match=name):
            perplexity.read_documents(tmp_path / name)
