"""Bytes and operations that benchmarks count are those that the compiled programs have."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import accounting, memory_share, probes, records, turns
from benchmarks.decoding import Decoding
from benchmarks.random_model import decoder_config, random_parameters
from etpo_jax.acting.transitions import Transition, collate
from etpo_jax.config import Config, SamplingConfig
from models import decode
from models.convert import abstract_parameters

CONFIG = decoder_config("tiny", 64)


def costs(compiled):
    found = compiled.cost_analysis()
    return found[0] if isinstance(found, list) else found


def test_the_copy_moves_what_it_counts():
    probe = probes.copy(1 << 20)
    compiled = probes.add_one.lower(jnp.zeros(1 << 18, jnp.float32)).compile()
    assert compiled.memory_analysis().alias_size_in_bytes == 1 << 20, "not in place"
    assert probe.amount == 4 * costs(compiled)["bytes accessed"] == 4 * 2 * (1 << 20)
    probe.program()


def test_the_product_has_the_operations_that_it_counts():
    probe = probes.matmul(jnp.float32, 64)
    shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    assert probe.amount == 4 * costs(probes.product.lower(shape, shape).compile())["flops"]
    probe.program()


def test_a_forward_pass_has_the_operations_that_are_counted_and_little_else():
    weights = jax.eval_shape(
        lambda: decode.unstack(random_parameters(CONFIG, jnp.float32, stop_id=2), CONFIG)
    )
    tokens, mask = (jax.ShapeDtypeStruct((2, 32), dtype) for dtype in (jnp.int32, jnp.bool_))
    lowered = jax.jit(lambda *args: decode.prefill(args[0], CONFIG, *args[1:], 32)).lower(
        weights, tokens, mask
    )
    counted = accounting.forward_flops(CONFIG, tokens=64, logits=2)
    attention = 2 * accounting.matmul_flops(32, CONFIG.head_dim, 32) * 2 * 4 * 2
    assert 1 < costs(lowered.compile())["flops"] / (counted + attention) < 1.15


def test_weights_and_cache_of_a_step_are_the_arrays_that_it_reads():
    for dtype in (jnp.float32, jnp.bfloat16):
        itemsize = jnp.dtype(dtype).itemsize
        weights = jax.eval_shape(
            lambda dtype=dtype: decode.unstack(random_parameters(CONFIG, dtype, stop_id=2), CONFIG)
        )
        table = weights.pop("embedder")["embedding"]
        assert table.shape == (CONFIG.vocab_size, CONFIG.hidden_size)
        expected = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(weights))
        assert accounting.weight_bytes(CONFIG, itemsize) == expected
    tokens_bp = jnp.ones((3, 8), jnp.int32)
    params = random_parameters(CONFIG, jnp.float32, stop_id=2)
    _, cache = decode.prefill(
        decode.unstack(params, CONFIG), CONFIG, tokens_bp, tokens_bp > 0, cache_length=20
    )
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(cache))
    assert accounting.cache_bytes(CONFIG, 3, 20, 4) == held
    step = accounting.decode_step_bytes(CONFIG, 3, prompt=16, new=8, itemsize=4)
    assert step == accounting.weight_bytes(CONFIG, 4) + held


def test_codellama_is_as_large_as_published():
    config = decoder_config("codellama_7b", 768)
    assert accounting.num_parameters(config) == 6_738_546_688
    shapes = jax.tree.leaves(abstract_parameters(config, jnp.bfloat16))
    assert accounting.num_parameters(config) == sum(leaf.size for leaf in shapes)
    assert accounting.weight_bytes(config, 2) == pytest.approx(13.2e9, rel=0.01)
    # Of full caches of 768 tokens; a step reads what is filled.
    for rows, gigabytes in ((8, 3.2), (64, 25.8)):
        full = accounting.cache_bytes(config, rows, 768, 2)
        assert full == pytest.approx(gigabytes * 1e9, rel=0.01)
        must = accounting.decode_step_bytes(config, rows, prompt=512, new=256, itemsize=2)
        assert must - accounting.weight_bytes(config, 2) == pytest.approx(full * 640 / 768)


@pytest.mark.parametrize(("loss", "networks"), [("retrace", 16), ("path", 14)])
def test_a_gradient_step_counts_every_network_and_its_next_prompts(loss, networks):
    settings = {"critic_loss": loss}
    if loss == "path":
        settings |= {"q_parameterization": "dueling", "policy_loss": "exact"}
    learning = Config.from_dict(settings).learning
    alone = accounting.gradient_step_flops(CONFIG, learning, 4, 16, 8, 0)
    sequences = accounting.forward_flops(CONFIG, 4 * 24, 4 * 8)
    head_alone = accounting.forward_flops(CONFIG, 0, 4)
    num_next = 3 if loss == "retrace" else 1
    assert alone == networks // 2 * sequences + num_next * head_alone
    both = accounting.gradient_step_flops(CONFIG, learning, 4, 16, 8, 12)
    assert both - alone == num_next * accounting.forward_flops(CONFIG, 4 * 12, 0)


def test_prompts_alone_run_in_the_program_of_whole_actions(caplog):
    params = random_parameters(CONFIG, jnp.float32, stop_id=2)
    weights = jax.jit(decode.unstack, static_argnums=1)(params, CONFIG)
    sampling = SamplingConfig(max_new_tokens=24, top_k=50, support_threshold=0.0)
    decoding = Decoding(CONFIG, weights, 2, 8, sampling)
    decoding.check_lengths()
    assert np.all(decoding.generate().action_mask_bj)
    with jax.log_compiles():
        first = decoding.read_prompts()
        assert not [line for line in caplog.messages if line.startswith("Compiling")]
        jax.block_until_ready(jnp.arange(23) * 7)
        assert [line for line in caplog.messages if line.startswith("Compiling")]
    assert np.asarray(first.action_mask_bj).sum(axis=1).tolist() == [1, 1]


def test_an_iteration_learns_from_next_prompts():
    # Imported in a process of its own: the benchmark defines the flags of a run.
    code = """
from benchmarks.iteration import continuing
print(continuing(10, 5).tolist())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.lower()) == ([True] * 4 + [False]) * 2
    tokens = np.arange(3, 9, dtype=np.int32)
    rows = [
        Transition(tokens, tokens, np.zeros(6, np.float32), 0.0, following)
        for following in (tokens, None)
    ]
    batch = collate(rows, pad_id=0, length_multiple=8, max_prompt_length=8, max_new_tokens=8)
    assert batch.next_prompt_mask_bp.sum(axis=1).tolist() == [6, 1]


def test_measurements_are_on_the_disk_as_soon_as_they_are_made(tmp_path):
    made = records.beside(str(tmp_path / "table.md"))
    seen = []

    def note(name, index, cpu_s, wall_s):
        made.add(program=name, round=index, cpu_s=cpu_s, wall_s=wall_s)
        seen.append(len(records.read(tmp_path / "table.jsonl")))

    turns.measure({"a": lambda: None, "b": lambda: None}, rounds=2, on_times=note)
    assert seen == [1, 2, 3, 4]
    # A process that was killed while it wrote leaves a line without an end.
    with open(tmp_path / "table.jsonl", "a") as file:
        file.write('{"program": "a", "rou')
    assert [row["program"] for row in records.read(tmp_path / "table.jsonl")] == [
        "b",
        "a",
        "a",
        "b",
    ]
    records.beside(str(tmp_path / "table.md"))
    assert not (tmp_path / "table.jsonl").exists()


@pytest.mark.parametrize(
    ("shared", "variable"),
    [(True, "XLA_PYTHON_CLIENT_PREALLOCATE"), (False, "XLA_PYTHON_CLIENT_MEM_FRACTION")],
)
def test_memory_is_taken_as_in_a_run_unless_a_peer_shares_it(shared, variable, monkeypatch):
    environment = {}
    monkeypatch.setattr(memory_share.os, "environ", environment)
    memory_share.use(shared=shared)
    assert list(environment) == [variable]
    environment[variable] = "mine"
    memory_share.use(shared=shared)
    assert environment == {variable: "mine"}


def test_the_newer_name_of_the_share_stands_alone(monkeypatch):
    monkeypatch.setattr(memory_share.os, "environ", {"XLA_CLIENT_MEM_FRACTION": "0.5"})
    memory_share.use(shared=False)
    assert memory_share.os.environ == {"XLA_CLIENT_MEM_FRACTION": "0.5"}
