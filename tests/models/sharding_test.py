"""The partition table, and the decoder on eight simulated devices.

A process chooses its devices when it starts, so the tests on them run this file as a program.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

from models import lora, sharding
from models.convert import abstract_parameters
from models.lora import TARGETS, LoraConfig
from models.transformer import Decoder, positions
from tests.models.simulated import output_on_devices
from tests.models.small import small_decoder

CONFIG = small_decoder(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_kv_heads=4,
    attention_bias=True,
    query_key_norm=True,
)
ADAPTED = LoraConfig(rank=4, alpha=8.0, targets=tuple(TARGETS))
MESH = AbstractMesh((2, 4), ("fsdp", "tensor"))


def specs(tree, mesh=MESH):
    """Partitions of the arrays of a tree, by path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        sharding.path_name(path): sharding.partition_spec(
            sharding.path_name(path), leaf.shape, mesh
        )
        for path, leaf in leaves
    }


def abstract_adapters():
    params = abstract_parameters(CONFIG, jnp.float32)
    return jax.eval_shape(lambda key: lora.init(key, params, ADAPTED), jax.random.key(0))


def test_every_parameter_is_in_the_table():
    expected = {
        "embedder/embedding": P("tensor", "fsdp"),
        "lm_head/kernel": P("fsdp", "tensor"),
        "final_norm/scale": P(None),
        "layers/attention_norm/scale": P(None, None),
        "layers/mlp_norm/scale": P(None, None),
        "layers/attention/q_norm/scale": P(None, None),
        "layers/attention/k_norm/scale": P(None, None),
        "layers/attention/o/kernel": P(None, "tensor", "fsdp"),
        "layers/mlp/gate/kernel": P(None, "fsdp", "tensor"),
        "layers/mlp/up/kernel": P(None, "fsdp", "tensor"),
        "layers/mlp/down/kernel": P(None, "tensor", "fsdp"),
    }
    for name in "qkv":
        expected[f"layers/attention/{name}/kernel"] = P(None, "fsdp", "tensor")
        expected[f"layers/attention/{name}/bias"] = P(None, "tensor")
    assert specs(abstract_parameters(CONFIG, jnp.float32)) == expected


def test_adapters_lie_where_their_kernels_lie():
    kernels = specs(abstract_parameters(CONFIG, jnp.float32))
    for path, spec in specs(abstract_adapters()).items():
        parent, factor = path.rsplit("/", 1)
        _, fan_in, fan_out = kernels[f"{parent}/kernel"]
        assert spec == (P(None, fan_in, None) if factor == "a" else P(None, None, fan_out))


def test_gradients_and_optimiser_states_follow():
    for tree in (abstract_parameters(CONFIG, jnp.float32), abstract_adapters()):
        by_path = specs(tree)
        for optimiser in (optax.adamw(1e-3), optax.lion(1e-3)):
            state = specs(jax.eval_shape(optimiser.init, tree))
            followed = 0
            for path, spec in state.items():
                names = [name for name in by_path if path.endswith(f"/{name}")]
                assert spec == (by_path[names[0]] if names else P())
                followed += bool(names)
            assert followed >= len(by_path)


def test_single_layers_have_the_same_rules():
    assert sharding.partition_spec("layers/1/mlp/down/kernel", (48, 32), MESH) == P(
        "tensor", "fsdp"
    )


def test_what_does_not_divide_stays_whole():
    assert sharding.partition_spec("layers/mlp/down/kernel", (2, 49, 33), MESH) == P(
        None, None, None
    )
    assert sharding.partition_spec("embedder/embedding", (1023, 64), MESH) == P(None, "fsdp")
    only_fsdp = AbstractMesh((8,), ("fsdp",))
    assert sharding.partition_spec("embedder/embedding", (64, 64), only_fsdp) == P(None, "fsdp")


def test_what_the_table_does_not_name_is_whole():
    for path, shape in (("count", ()), ("value_head/kernel", (32, 1)), ("offset", (1,))):
        assert sharding.partition_spec(path, shape, MESH) == P()


def test_axes_must_fit_the_shape():
    with pytest.raises(ValueError, match=r"axes bsv do not name the dimensions of shape \(2, 3\)"):
        sharding.spec("bsv", (2, 3), MESH)


def test_without_a_mesh_nothing_is_constrained():
    lowered = jax.jit(lambda x: sharding.shard(x, "b", "v")).lower(jnp.ones((8, 8)))
    assert "sharding" not in lowered.as_text()


def test_on_eight_devices():
    words = output_on_devices(8, __file__)
    assert words == ["constraints", "shards", "loss", "gradients"]


def on_eight_devices():
    """Loss and gradients of the sharded decoder equal those of one device."""
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    model = Decoder(CONFIG, remat="full", lora=ADAPTED)
    rng = np.random.default_rng(0)
    mask = jnp.asarray(rng.random((4, 12)) < 0.9)
    tokens = jnp.asarray(rng.integers(0, 64, (4, 12)), jnp.int32)
    trees = {"params": abstract_parameters(CONFIG, jnp.float32), "lora": abstract_adapters()}
    variables = jax.tree.map(lambda leaf: 0.3 * rng.normal(size=leaf.shape), trees)
    variables = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), variables)

    def loss(variables, tokens, mask):
        logits = model.apply(variables, tokens, positions(mask), mask)
        losses = jax.nn.logsumexp(logits, -1) - logits[..., 3]
        return jnp.sum(jnp.where(mask, losses, 0)) / jnp.sum(mask)

    def step(variables, tokens, mask):
        return jax.value_and_grad(loss)(variables, tokens, mask)

    alone_loss, alone = jax.jit(step)(variables, tokens, mask)

    places = sharding.shardings(variables, mesh)
    batch = jax.sharding.NamedSharding(mesh, P("fsdp", None))
    sharded_step = jax.jit(
        step,
        in_shardings=(places, batch, batch),
        out_shardings=(jax.sharding.NamedSharding(mesh, P()), places),
    )
    arguments = (
        jax.device_put(variables, places),
        jax.device_put(tokens, batch),
        jax.device_put(mask, batch),
    )
    assert "sharding_constraint" not in sharded_step.lower(*arguments).as_text()
    with jax.set_mesh(mesh):
        lowered = sharded_step.lower(*arguments)
    # Embedding and logits, in a block queries, keys, values, the inner MLP and the residual
    # stream; at least once each in the forward and in the backward pass.
    assert lowered.as_text().count("sharding_constraint") >= 2 * (2 + 5)
    print("constraints")
    together_loss, together = lowered.compile()(*arguments)
    for name, tree in (("kernel", together["params"]), ("adapter", together["lora"])):
        gate = tree["layers"]["mlp"]["gate"]["kernel" if name == "kernel" else "b"]
        assert gate.addressable_shards[0].data.size < gate.size, name
    print("shards")
    np.testing.assert_allclose(together_loss, alone_loss, rtol=1e-5)
    print("loss")

    def compare(one, other):
        np.testing.assert_allclose(other, one, atol=1e-5 * np.abs(one).max())

    jax.tree.map(compare, alone, together)
    print("gradients")


if __name__ == "__main__":
    on_eight_devices()
