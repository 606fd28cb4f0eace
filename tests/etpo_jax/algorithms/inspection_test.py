"""The inspector's numbers are those of the losses; its page shows them."""

import json
import pathlib
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from etpo_jax.acting.transitions import Transition, collate
from etpo_jax.algorithms.base import Hyperparameters
from etpo_jax.algorithms.etpo import Etpo
from etpo_jax.algorithms.etpo_losses import make_inspect
from etpo_jax.algorithms.gradients import constrain
from etpo_jax.algorithms.inspection import to_rows
from etpo_jax.config import Config
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.runs import token_page
from models.config import DecoderConfig
from models.transformer import Decoder, positions
from tests.models.small import perturbed

VOCAB, BETA = 11, 0.3
MODEL = Decoder(
    DecoderConfig(
        vocab_size=VOCAB,
        hidden_size=8,
        intermediate_size=8,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=8,
        rope_theta=1e4,
        rope_scaling=None,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        attention_bias=False,
        max_position_embeddings=32,
    )
)
TRANSITIONS = [
    Transition(
        np.array([3, 4, 5], np.int32),
        np.array([6, 7, 1], np.int32),
        np.full(3, -2, np.float32),
        0.5,
        None,
    ),
    Transition(
        np.array([3], np.int32), np.array([8, 1], np.int32), np.full(2, -2, np.float32), -1.0, None
    ),
]


class Letters:
    def decode(self, ids):
        return "".join("" if i == 1 else "\n" if i == 7 else f"<{i}>" for i in ids)


@pytest.fixture(scope="module")
def inspected():
    config = Config.from_dict(
        {
            "critic_loss": "one_step",
            "q_parameterization": "residual",
            "beta": BETA,
            "support_threshold": 0.0,
        }
    )
    networks = Etpo.make_networks(MODEL, config)
    token = jnp.zeros((1, 1), jnp.int32)
    params = jax.jit(MODEL.init)(jax.random.key(0), token, token, token == 0)["params"]
    base = perturbed(params, seed=1, scale=0.5)
    state = jax.jit(
        lambda base: constrain(Etpo.initial_state(networks, base, config), build_mesh())
    )(base)
    state = perturbed(state, seed=2, scale=0.5)
    batch = collate(TRANSITIONS, pad_id=0, length_multiple=4, max_prompt_length=8, max_new_tokens=4)
    inspection = make_inspect(networks, config)(state, base, batch, Hyperparameters.of(config))
    return base, state, jax.device_get(inspection)


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.mark.parametrize("row", [0, 1])
def test_numbers_of_each_token(inspected, row):
    base, state, inspection = inspected
    transition = TRANSITIONS[row]
    sequence = np.concatenate([transition.prompt_tokens, transition.action_tokens])
    tokens = np.pad(sequence, (0, 6 - len(sequence)))[None]
    mask = jnp.ones_like(tokens, bool)
    first = len(transition.prompt_tokens) - 1

    def logits(params):
        out = MODEL.apply({"params": params}, jnp.asarray(tokens), positions(mask), mask)
        return np.asarray(out[0, first : len(sequence) - 1], np.float64)

    rho, pi = log_softmax(logits(base)), log_softmax(logits(state.policy["params"]))
    kl = (np.exp(pi) * (pi - rho)).sum(-1)

    def q_of(critic):
        return BETA * (logits(critic.trunk["params"]) - logits(base)) + float(critic.offset)

    value = (np.exp(pi) * q_of(state.target_critic)).sum(-1) - BETA * kl
    target = np.append(value[1:], transition.reward)
    (tokens_row,) = to_rows(
        [transition], type(inspection)(*(array[row : row + 1] for array in inspection)), Letters()
    )
    assert tokens_row["reward"] == transition.reward
    assert not tokens_row["continues"]
    assert len(tokens_row["tokens"]) == len(transition.action_tokens)
    for j, (token, shown) in enumerate(
        zip(transition.action_tokens, tokens_row["tokens"], strict=True)
    ):
        expected = {
            "q": q_of(state.critic)[j, token],
            "value": value[j],
            "target": target[j],
            "log_prob": pi[j, token],
            "log_reference": rho[j, token],
            "kl": kl[j],
        }
        for name, number in expected.items():
            assert shown[name] == pytest.approx(number, abs=1e-3), name
        order = np.argsort(-pi[j])[:5]
        assert [top[0] for top in shown["top"]] == [Letters().decode([i]) for i in order]
        np.testing.assert_allclose(
            [top[1:] for top in shown["top"]],
            np.stack([np.exp(pi[j, order]), q_of(state.critic)[j, order]], axis=1),
            atol=1e-3,
        )


def action(**numbers):
    token = {"text": "<b>", "log_prob": -1.0, "log_reference": -2.0, "kl": 0.25, "q": 0.125}
    better = token | {"value": 0.5, "target": 0.75, "top": [["\n", 0.75, 0.0625]]}
    worse = token | {"value": 0.5, "target": -0.5, "top": [["\n", 0.5, 1.0]], "text": ""}
    return {"prompt": "p<q", "reward": 0.5, "continues": False, "tokens": [better, worse]} | numbers


def test_the_page_colours_by_credit_and_escapes():
    page = token_page.inspector([action()])
    assert 'class="token up" tabindex="0" data-index="0" style="--w:0.50">&lt;b&gt;' in page
    assert 'class="token down" tabindex="0" data-index="1" style="--w:1.00">' in page
    assert "p&lt;q" in page
    assert token_page.inspector([]) == ""


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.skipif(CHROMIUM is None, reason="shows the page in Chromium, which is not installed")
def test_a_browser_shows_the_token_with_the_largest_credit(tmp_path):
    path = pathlib.Path(tmp_path) / "page.html"
    path.write_text(
        f"<!doctype html><style>{token_page.STYLE}</style>{token_page.inspector([action()])}"
        f"<script>{token_page.SCRIPT}</script>"
    )
    result = subprocess.run(
        [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}/profile",
            "--dump-dom",
            path.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    dom = result.stdout
    detail = dom[dom.index('class="token-detail"') :].split("</details>")[0]
    for text in ("credit -1", "target -0.5", "value 0.5", "KL 0.25", "50.0 %", "Q 1"):
        assert text in detail, text
    assert 'class="token down chosen"' in dom
    assert json.dumps("\n")[1:-1] in detail
