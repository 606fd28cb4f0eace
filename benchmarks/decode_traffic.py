"""What devices send each other for every decoded token: `python -m benchmarks.decode_traffic`.

One step of decoding in the shape of CodeLlama-7B is compiled for simulated devices, from shapes
alone, and the results of its collective operations are added up. Kernels stay where their parts lie
and activations travel; beside it what a device would receive if kernels were gathered instead, as
they are where prompts are read and in gradient steps.
"""

import collections
import dataclasses
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from env import command_line
from etpo_jax.devices.aot import generation_weights
from etpo_jax.devices.mesh import axis_sizes, build_mesh
from models import decode
from models.config import DecoderConfig
from models.repository import config_folder
from models.sharding import spec

_MESH = flags.DEFINE_string("mesh", "fsdp:16", "Devices per axis; all of them are simulated.")
_ROWS = flags.DEFINE_integer("rows", 16, "Rows decoded together.", lower_bound=1)
_SLOTS = flags.DEFINE_integer("slots", 768, "Slots of the cache.", lower_bound=1)
_LAYERS = flags.DEFINE_integer("layers", 32, "Layers of the model.", lower_bound=1)

_BYTES = 2  # of an entry in bfloat16; compiled in float32, since a CPU's compiler widens the other
_COLLECTIVE = re.compile(
    r"= ([^=]*) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)\("
)


def main() -> None:
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", math.prod(axis_sizes(_MESH.value, 1)))
    mesh = build_mesh(_MESH.value)
    published = DecoderConfig.from_folder(config_folder("codellama/CodeLlama-7b-hf"))
    config = dataclasses.replace(published, num_layers=_LAYERS.value)
    with jax.set_mesh(mesh):
        weights = generation_weights(config, jnp.float32, mesh)
        step = jax.jit(decode.decode_step, static_argnums=1, donate_argnums=5)
        text = step.lower(weights, config, *_arguments(config, mesh)).compile().as_text()
    counts: collections.Counter[str] = collections.Counter()
    sizes: collections.Counter[str] = collections.Counter()
    for result, name in _COLLECTIVE.findall(text):
        counts[name] += 1
        for shape in re.findall(r"\w+\[([\d,]*)\]", result):
            sizes[name] += _BYTES * math.prod(int(size) for size in shape.split(",") if size)
    print(
        f"{_MESH.value}: one token for each of {_ROWS.value} rows, {_LAYERS.value} layers, bfloat16"
    )
    print(f"{'results of':24}{'number':>8}{'MiB':>10}")
    for name in sorted(sizes):
        print(f"{name:24}{counts[name]:8}{sizes[name] / 2**20:10.1f}")
    print(f"{'all':24}{counts.total():8}{sizes.total() / 2**20:10.1f}")
    print(f"{'kernels, were they gathered':32}{_gathered(weights, mesh) / 2**20:10.1f}")


def _arguments(config: DecoderConfig, mesh: Mesh) -> tuple[Any, ...]:
    """Shapes of what `decode_step` takes after weights and sizes."""
    b, m, k, h = _ROWS.value, _SLOTS.value, config.num_kv_heads, config.head_dim

    def array(dtype: Any, axes: str, *shape: int) -> jax.ShapeDtypeStruct:
        placed = NamedSharding(mesh, spec(axes, shape, mesh) if axes else P())
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)

    layer = {
        "k": array(jnp.float32, "bkhm", b, k, h, m),
        "v": array(jnp.float32, "bkmh", b, k, m, h),
    }
    token_b, position_b = (array(jnp.int32, "b", b) for _ in range(2))
    slot = array(jnp.int32, "")
    key_mask_bm = array(jnp.bool_, "b-", b, m)
    return token_b, position_b, slot, [layer] * config.num_layers, key_mask_bm


def _gathered(weights: Any, mesh: Mesh) -> float:
    """Bytes that a device would receive of the kernels' parts along `fsdp`."""
    del weights["embedder"]  # rows of it are looked up
    entries = sum(leaf.size for leaf in jax.tree.leaves(weights) if leaf.ndim > 1)
    fsdp, tensor = mesh.shape["fsdp"], mesh.shape["tensor"]
    return _BYTES * entries / tensor * (1 - 1 / fsdp)


if __name__ == "__main__":
    command_line.run(main)
