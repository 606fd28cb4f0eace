"""Partition of arrays over a mesh: one table for parameters, adapters, optimiser and activations.

Mesh axes are `fsdp`, over which batches and parameters are split, and `tensor`, over which heads,
MLP columns and the vocabulary are split. A dimension that a mesh axis does not divide stays whole.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

# Axis letter to mesh axis; letters that are absent are never split. "d" is the model width of a
# parameter. Activations are split over the batch and have their whole width ("-"), except in a
# decoding step, whose width is split so that each device multiplies its own part of a kernel.
_MESH_AXIS = {"b": "fsdp", "d": "fsdp", "n": "tensor", "k": "tensor", "f": "tensor", "v": "tensor"}

# End of a parameter's path, as a regular expression, to the letters of its last axes. "n" and "k"
# are numbers of heads times the size of a head.
_PARAMETERS = (
    ("embedder/embedding", "vd"),
    ("lm_head/kernel", "dv"),
    ("attention/q/kernel", "dn"),
    ("attention/k/kernel", "dk"),
    ("attention/v/kernel", "dk"),
    ("attention/qkv/kernel", "dk"),
    ("attention/o/kernel", "nd"),
    ("attention/q/bias", "n"),
    ("attention/(k|v|qkv)/bias", "k"),
    ("mlp/(gate|up)/kernel", "df"),
    ("mlp/gate_up/kernel", "d-f"),
    ("mlp/down/kernel", "fd"),
    ("norm/scale", "-"),
    ("(q|k|v|gate|up)/a", "d-"),
    ("attention/q/b", "-n"),
    ("attention/[kv]/b", "-k"),
    ("mlp/(gate|up)/b", "-f"),
    ("attention/o/a", "n-"),
    ("mlp/down/a", "f-"),
    ("(o|down)/b", "-d"),
)
_RULES = tuple((re.compile(rf"(.*[/_])?{suffix}"), axes) for suffix, axes in _PARAMETERS)


def partition_spec(path: str, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> P:
    """Partition of the array at a path such as "layers/attention/q/kernel".

    Only the end of the path counts, so that gradients and optimiser states follow their parameters;
    leading axes that the table does not name (layers) are not split. Arrays that it does not name
    are small (step counters, scalar heads) and lie whole on every device.
    """
    for rule, axes in _RULES:
        if rule.fullmatch(path) and len(shape) >= len(axes):
            return spec("-" * (len(shape) - len(axes)) + axes, shape, mesh)
    return P()


def spec(axes: Sequence[str], shape: Sequence[int], mesh: Mesh | AbstractMesh) -> P:
    """Partition of an array whose axes have these letters, one for each dimension.

    Raises:
      ValueError: the number of letters is not that of the dimensions.
    """
    if len(axes) != len(shape):
        raise ValueError(f"axes {''.join(axes)} do not name the dimensions of shape {shape}")
    names: list[str | None] = []
    for letter, size in zip(axes, shape, strict=True):
        name = _MESH_AXIS.get(letter)
        divides = name in mesh.shape and size % mesh.shape[name] == 0
        names.append(name if divides else None)
    return P(*names)


def shardings(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for every leaf (anything with a shape) of a tree, by its path."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, partition_spec(path_name(path), leaf.shape, mesh)),
        tree,
    )


def path_name(path: Sequence[Any]) -> str:
    """A tree path as names joined by "/"."""
    return jax.tree_util.keystr(tuple(path), simple=True, separator="/")


def shard(x: jax.Array, *axes: str) -> jax.Array:
    """Constrains an activation inside jit to the partition of its axis letters.

    For example `shard(logits_bsv, "b", "s", "v")`; "-" leaves an axis whole. The mesh is that of
    `jax.set_mesh`, entered outside of jit; without one nothing happens.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes, x.shape, mesh))


def shard_parameter(path: str, x: jax.Array) -> jax.Array:
    """Constrains a parameter inside jit to the partition of its path, as `shard` does."""
    mesh = jax.sharding.get_abstract_mesh()
    where = partition_spec(path, x.shape, mesh)
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, where)


def map_attention(
    attend: Callable[..., jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    *,
    axes: tuple[str, str, str],
) -> jax.Array:
    """Calls `attend(q, k, v, mask)`, on each device of the mesh for its own rows and heads.

    The mesh is that of `jax.set_mesh`; without one there is a single call.

    Args:
      attend: attention on one device; its output has the shape of q.
      q, k, v: queries, keys and values.
      mask: True for keys that are seen, [b, m].
      axes: letters of the axes of q, k and v: "b" rows, "n" heads, "k" key heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend(q, k, v, mask)
    split = dict(zip(axes[1], spec(axes[1], k.shape, mesh), strict=True))
    # Query heads are split like the key heads that they share.
    split["n"] = split["k"]
    queries, keys, values, visible = (
        P(*(split.get(letter) for letter in letters)) for letters in (*axes, "bm")
    )
    mapped: Any = jax.shard_map(
        attend, in_specs=(queries, keys, values, visible), out_specs=queries, check_vma=False
    )
    result: jax.Array = mapped(q, k, v, mask)
    return result
