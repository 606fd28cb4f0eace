"""Generation against the full forward pass, and what a row may and may not depend on."""

import functools
import itertools
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from etpo_jax.acting import endings, sampler
from etpo_jax.acting.sampler import Sampler
from etpo_jax.config import SamplingConfig
from models import decode, sharding
from models.transformer import Decoder, positions
from tests.models.simulated import output_on_devices
from tests.models.small import small_decoder

CONFIG = small_decoder(hidden_size=32, intermediate_size=48, num_layers=1, rope_theta=100.0)
MODEL = Decoder(CONFIG)
EOS, PAD, NEW, PROMPT, ROWS = (3, 8), 5, 9, 6, 12
ALL_OPTIONS = {"temperature": 0.7, "support_threshold": 0.01, "top_k": 8, "top_p": 0.95}


@functools.cache
def parameters(seed=0):
    tokens = jnp.zeros((1, 2), jnp.int32)
    init = jax.jit(MODEL.init)
    params = init(jax.random.key(seed), tokens, tokens, tokens == 0)["params"]
    return params | {"lm_head": {"kernel": 8 * params["lm_head"]["kernel"]}}


@functools.cache
def weights(seed=0):
    return jax.jit(decode.unstack, static_argnums=1)(parameters(seed), CONFIG)


def build(eos_ids=EOS, mesh=None, next_state_sv=None, **options):
    """A sampler from all tokens but for these options."""
    values = {"max_new_tokens": NEW, "support_threshold": 0.0} | options
    sampling = SamplingConfig(**values)
    return Sampler(CONFIG, eos_ids, PAD, sampling, next_state_sv=next_state_sv, mesh=mesh)


def prompts(rows=ROWS, seed=0):
    rng = np.random.default_rng(seed)
    tokens_bp = rng.integers(10, CONFIG.vocab_size, (rows, PROMPT), np.int32)
    mask_bp = np.arange(PROMPT) >= rng.integers(0, PROMPT, (rows, 1))
    return tokens_bp, mask_bp


def keys(rows=ROWS, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


def action_logits(params, tokens_bp, mask_bp, generation):
    """Logits of every action token from one pass over the whole sequence."""
    tokens_bs = np.concatenate([tokens_bp, generation.action_tokens_bj], axis=1)
    mask_bs = np.concatenate([mask_bp, generation.action_mask_bj], axis=1)
    logits_bsv = jax.jit(MODEL.apply)({"params": params}, tokens_bs, positions(mask_bs), mask_bs)
    return np.asarray(logits_bsv, np.float64)[:, PROMPT - 1 : -1]


def test_log_probs_equal_the_full_forward():
    tokens_bp, mask_bp = prompts()
    generation = jax.device_get(
        build(**ALL_OPTIONS).generate(
            weights(), tokens_bp, mask_bp, keys(), reference_weights=weights(1)
        )
    )
    mask_bj, tokens_bj = generation.action_mask_bj, generation.action_tokens_bj
    logits_bjv, reference_bjv = (
        action_logits(params, tokens_bp, mask_bp, generation)
        for params in (parameters(), parameters(1))
    )
    p_bjv = scipy.special.softmax(logits_bjv / 0.7, axis=-1)
    p_bjv[scipy.special.softmax(reference_bjv / 0.7, axis=-1) < 0.01] = 0
    p_bjv[p_bjv < np.sort(p_bjv, axis=-1)[..., -8:-7]] = 0
    p_bjv /= p_bjv.sum(axis=-1, keepdims=True)
    sorted_bjv = np.sort(p_bjv, axis=-1)[..., ::-1]
    kept_bj = (np.cumsum(sorted_bjv, axis=-1) - sorted_bjv < 0.95).sum(axis=-1)
    last_bj1 = np.take_along_axis(sorted_bjv, kept_bj[..., None] - 1, axis=-1)
    p_bjv = np.where(p_bjv >= last_bj1, p_bjv, 0)
    p_bjv /= p_bjv.sum(axis=-1, keepdims=True)
    taken_bj = np.take_along_axis(p_bjv, tokens_bj[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(
        generation.log_probs_bj[mask_bj], np.log(taken_bj[mask_bj]), atol=1e-4
    )
    assert (generation.log_probs_bj[~mask_bj] == 0).all()
    assert generation.log_probs_bj.min() < -1


def test_actions_end_with_their_stop_token():
    tokens_bj, mask_bj, _ = jax.device_get(
        build().generate(weights(), *prompts(), keys(), temperature=2.0)
    )
    lengths_b = mask_bj.sum(axis=1)
    np.testing.assert_array_equal(mask_bj, np.arange(NEW) < lengths_b[:, None])
    assert (tokens_bj[~mask_bj] == PAD).all()
    is_stop_bj = np.isin(tokens_bj, EOS) & mask_bj
    is_last_bj = np.arange(NEW) == lengths_b[:, None] - 1
    assert not (is_stop_bj & ~is_last_bj).any()
    has_stop_b = is_stop_bj.any(axis=1)
    assert (lengths_b[~has_stop_b] == NEW).all()
    assert 0 < has_stop_b.sum() < ROWS
    assert set(tokens_bj[is_stop_bj]) == set(EOS)


def test_decoding_ends_with_the_last_row(monkeypatch):
    steps = []

    def counted(*arguments, **options):
        jax.debug.callback(lambda: steps.append(1))
        return decode.decode_step(*arguments, **options)

    monkeypatch.setattr(sampler, "decode_step", counted)
    everything_but_pad = set(range(CONFIG.vocab_size)) - {PAD}
    one_token = build(everything_but_pad, max_new_tokens=30)
    tokens_bp, mask_bp = prompts()
    generation = one_token.generate(weights(), tokens_bp, mask_bp, keys())
    jax.effects_barrier()
    expected = int((generation.action_tokens_bj == PAD).all(axis=0).argmax()) - 1
    assert len(steps) == expected < 10


def generated_elsewhere(monkeypatch, model, *arguments, **options):
    """The actions that the program of accelerators gives, here on the CPU."""

    def choose(*arguments, cpu, default):
        return default(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(jax.lax, "platform_dependent", choose)
        sampler._generate.clear_cache()
        generation = jax.device_get(model.generate(*arguments, **options))
    sampler._generate.clear_cache()
    return generation


@pytest.mark.parametrize("new", [1, 2, 5, 9])
def test_looking_for_the_end_every_few_tokens_changes_nothing(monkeypatch, new):
    """Neither for rows that end in between nor for those that take all tokens."""
    model = build(max_new_tokens=new, **ALL_OPTIONS)
    arguments, options = (weights(), *prompts(), keys()), {"reference_weights": weights(1)}
    expected = jax.device_get(model.generate(*arguments, **options))
    actual = generated_elsewhere(monkeypatch, model, *arguments, **options)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_reading_the_filled_part_of_the_cache_changes_nothing(monkeypatch, elsewhere):
    model = build(eos_ids=EOS[:1], max_new_tokens=30)
    arguments = (weights(), *prompts(), keys())
    expected = jax.device_get(model.generate(*arguments))
    assert expected.action_mask_bj.sum(axis=1).max() == 30
    widths = set()

    def seen(*arguments, **options):
        widths.add(arguments[6].shape[1])
        return decode.decode_step(*arguments, **options)

    monkeypatch.setattr(sampler, "decode_step", seen)
    monkeypatch.setattr(sampler, "_LEAST_SEGMENT", 5)
    if elsewhere:
        actual = generated_elsewhere(monkeypatch, model, *arguments)
    else:
        sampler._generate.clear_cache()
        actual = jax.device_get(model.generate(*arguments))
        sampler._generate.clear_cache()
    assert widths == {PROMPT + 8, PROMPT + 16, PROMPT + 24, PROMPT + 30}
    np.testing.assert_array_equal(actual.action_tokens_bj, expected.action_tokens_bj)
    np.testing.assert_array_equal(actual.action_mask_bj, expected.action_mask_bj)
    np.testing.assert_allclose(actual.log_probs_bj, expected.log_probs_bj, atol=1e-5)


class Words:
    """A third of the tokens is a line break, and a third is a word."""

    vocab_size = CONFIG.vocab_size

    def decode(self, ids):
        return "".join(("\n", " ", "x")[token % 3] for token in ids)


def test_actions_end_with_the_token_that_leaves_the_function():
    """An ending cuts tokens off and changes nothing before; decoding stops with the last row."""
    words = Words()
    table_sv = endings.state_table("function", words, CONFIG.vocab_size)
    arguments = (weights(), *prompts(), keys())
    plain = jax.device_get(build(max_new_tokens=24).generate(*arguments))
    ended = jax.device_get(build(max_new_tokens=24, next_state_sv=table_sv).generate(*arguments))
    num_cut = 0
    for row in range(ROWS):
        texts = [words.decode([token]) for token in plain.action_tokens_bj[row]]
        length = plain.action_mask_bj[row].sum()
        ends = [
            j for j, pair in enumerate(itertools.pairwise(texts[:length]), 2) if pair == ("\n", "x")
        ]
        is_stop = np.isin(plain.action_tokens_bj[row, length - 1], EOS)
        ends = [j for j in ends if not (is_stop and j == length)]
        expected = min([length, *ends])
        num_cut += bool(ends)
        for name, array in ended._asdict().items():
            np.testing.assert_array_equal(
                array[row, :expected], getattr(plain, name)[row, :expected]
            )
        assert not ended.action_mask_bj[row, expected:].any()
        assert (ended.action_tokens_bj[row, expected:] == PAD).all()
        assert (ended.log_probs_bj[row, expected:] == 0).all()
    assert num_cut > ROWS // 3
    assert ended.action_mask_bj.sum() < plain.action_mask_bj.sum()


def test_tables_of_one_size_share_a_program():
    """Another tokenizer, ending text elsewhere, compiles nothing new."""
    table_sv = endings.state_table("function", Words(), CONFIG.vocab_size)
    arguments = (weights(), *prompts(), keys())
    build(next_state_sv=table_sv).generate(*arguments)
    size = sampler._generate._cache_size()
    other_sv = np.roll(table_sv, 1, axis=1)
    build((4,), next_state_sv=other_sv).generate(*arguments)
    assert sampler._generate._cache_size() == size


def test_a_row_depends_on_its_prompt_and_key_alone():
    model = build()
    tokens_bp, mask_bp = prompts()
    together = jax.device_get(model.generate(weights(), tokens_bp, mask_bp, keys()))
    row = slice(7, 8)
    padded_tokens = np.pad(tokens_bp[row], ((0, 0), (4, 0)), constant_values=EOS[0])
    padded_mask = np.pad(mask_bp[row], ((0, 0), (4, 0)))
    alone = model.generate(weights(), padded_tokens, padded_mask, keys()[row])
    for actual, expected in zip(alone, together, strict=True):
        np.testing.assert_allclose(actual, expected[row], atol=1e-5)
    other = model.generate(weights(), tokens_bp, mask_bp, keys(seed=1))
    assert (other.action_tokens_bj != together.action_tokens_bj).any(axis=1).all()


def test_shared_prompt_equals_its_copies():
    model = build()
    tokens_1p, mask_1p = prompts(1, seed=3)
    tokens_bp, mask_bp = (np.repeat(array, ROWS, axis=0) for array in (tokens_1p, mask_1p))
    shared = model.generate(weights(), tokens_1p, mask_1p, keys())
    copied = model.generate(weights(), tokens_bp, mask_bp, keys())
    for actual, expected in zip(shared, copied, strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_top_k_of_one_is_greedy():
    tokens_bp, mask_bp = prompts()
    generation = jax.device_get(build(top_k=1).generate(weights(), tokens_bp, mask_bp, keys()))
    best_bj = action_logits(parameters(), tokens_bp, mask_bp, generation).argmax(axis=-1)
    mask_bj = generation.action_mask_bj
    np.testing.assert_array_equal(generation.action_tokens_bj[mask_bj], best_bj[mask_bj])
    assert (generation.log_probs_bj == 0).all()


def test_temperature_of_a_call():
    cold, given, usual = (
        build(temperature=configured).generate(weights(), *prompts(), keys(), temperature=passed)
        for configured, passed in ((0.2, None), (1.0, 0.2), (1.0, None))
    )
    np.testing.assert_array_equal(cold.action_tokens_bj, given.action_tokens_bj)
    assert (usual.action_tokens_bj != given.action_tokens_bj).any()


def test_nothing_compiles_after_the_first_call():
    warm = build(**ALL_OPTIONS)
    warm.generate(weights(), *prompts(), keys(), reference_weights=weights(1))
    compilations = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **__: compilations.append(event) if "compile" in event else None
    )
    try:
        same = build(temperature=0.5, top_k=9, top_p=0.8, support_threshold=0.02)
        for model in (warm, same):
            model.generate(
                weights(1),
                *prompts(seed=1),
                keys(seed=2),
                reference_weights=weights(),
                temperature=0.9,
            )
        assert not compilations
        jax.jit(lambda x: x + NEW)(parameters()["final_norm"]["scale"])
        assert compilations  # the listener does hear them
    finally:
        jax.monitoring.clear_event_listeners()


def test_first_tokens_follow_the_distribution():
    draws = 4000
    tokens_1p, mask_1p = prompts(1, seed=4)
    model = build(temperature=1.3, max_new_tokens=1)
    generation = jax.device_get(model.generate(weights(), tokens_1p, mask_1p, keys(draws)))
    logits_1jv = action_logits(
        parameters(), tokens_1p, mask_1p, jax.tree.map(lambda x: x[:1], generation)
    )
    counts_v = np.bincount(generation.action_tokens_bj[:, 0], minlength=CONFIG.vocab_size)
    expected_v = draws * scipy.special.softmax(logits_1jv[0, 0] / 1.3)
    assert expected_v.min() > 5
    assert scipy.stats.chisquare(counts_v, expected_v).pvalue > 0.01


@pytest.mark.parametrize("options", [{}, {"support_threshold": 1e-3, "top_k": 9, "top_p": 0.9}])
def test_ids_beyond_the_tokenizer_are_never_drawn(options):
    """The rows that pad an embedding leave the distribution before it is truncated."""
    tokens_1p, mask_1p = prompts(1)
    settings = SamplingConfig(max_new_tokens=1, **{"support_threshold": 0.0} | options)
    model = Sampler(CONFIG, EOS, PAD, settings, vocabulary=17)
    reference = {"reference_weights": weights(1)} if options else {}
    drawn = jax.device_get(model.generate(weights(), tokens_1p, mask_1p, keys(2000), **reference))
    assert drawn.action_tokens_bj.max() < 17
    if not options:
        first = jax.tree.map(lambda x: x[:1], drawn)
        logits_v = action_logits(parameters(), tokens_1p, mask_1p, first)[0, 0, :17]
        expected = scipy.special.log_softmax(logits_v)[drawn.action_tokens_bj[:, 0]]
        np.testing.assert_allclose(drawn.log_probs_bj[:, 0], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda: Sampler(CONFIG, EOS, 3, SamplingConfig()), "pad_id=3"),
        (lambda: Sampler(CONFIG, (), PAD, SamplingConfig()), "eos_ids"),
        (lambda: Sampler(CONFIG, (40,), PAD, SamplingConfig()), "token 40"),
        (lambda: build().generate(weights(), *prompts(2), keys(3)), "2 prompts"),
        (lambda: build().generate(weights(), *prompts(), keys(), temperature=0.0), "temperature=0"),
        (
            lambda: build(support_threshold=0.1).generate(weights(), *prompts(), keys()),
            "support_threshold=0.1",
        ),
    ],
)
def test_bad_arguments_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


def test_a_mesh_changes_nothing(tmp_path):
    """Runs on 8 simulated devices in another process: jax fixes their number when it starts."""
    path = tmp_path / "generation.npz"
    output_on_devices(8, __file__, path)
    expected = build().generate(weights(), *prompts(), keys())
    with np.load(path) as split:
        for name, array in expected._asdict().items():
            np.testing.assert_allclose(split[name], array, atol=1e-4)


def save_generation_of_mesh(path: str) -> None:
    mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        placed = jax.device_put(parameters(), sharding.shardings(parameters(), mesh))
        split_weights = jax.jit(decode.unstack, static_argnums=1)(placed, CONFIG)
        check_that_weights_stay(split_weights)
    kernel = split_weights["layers"][0]["attention"]["qkv"]["kernel"]
    assert tuple(kernel.sharding.spec) == ("fsdp", "tensor"), kernel.sharding
    split = build(mesh=mesh).generate(split_weights, *prompts(), keys())
    assert split.action_tokens_bj.sharding.spec[0] == "fsdp", split.action_tokens_bj.sharding
    np.savez(path, **split._asdict())


def check_that_weights_stay(split_weights):
    """Checks that activations travel between devices at each token, and kernels do not."""
    generate = jax.jit(build().generate)
    program = generate.lower(split_weights, *prompts(), keys()).compile().as_text()
    collectives = re.compile(
        r"= \(?\w+\[([\d,]*)\].* (?:all-gather|all-reduce|all-to-all|collective-permute|"
        r'reduce-scatter)(?:-start)?\(.*op_name="[^"]*/while/body/'
    )
    shapes = [
        [int(size) for size in text.split(",") if size] for text in collectives.findall(program)
    ]
    assert [ROWS, 1, CONFIG.intermediate_size // 2] in shapes  # before the last product of a layer
    # Activations have rows first. No kernel has a side, or a part of it, that divides their number.
    assert all(ROWS % shape[0] == 0 for shape in shapes if shape), shapes


if __name__ == "__main__":
    save_generation_of_mesh(sys.argv[1])
