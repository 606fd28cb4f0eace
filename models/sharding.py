"""Where arrays lie on a mesh: one table for parameters, adapters, optimiser state and activations.

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
# parameter: an activation is split over the batch and has its whole width ("-"), but for a step of
# decoding, which is split over its width so that it meets the part of a kernel that is there.
_MESH_AXIS = {
    "b": "fsdp",
    "d": "fsdp",
    "n": "tensor",
    "k": "tensor",
    "f": "tensor",
    "v": "tensor",
}

# Last names of a parameter's path to the letters of its last axes. The heads of q, k, v and o are
# "n" or "k" with the head's size multiplied in.
_PARAMETERS = (
    ("embedder/embedding", "vd"),
    ("lm_head/kernel", "dv"),
    ("attention/q/kernel", "dn"),
    ("attention/k/kernel", "dk"),
    ("attention/v/kernel", "dk"),
    ("attention/o/kernel", "nd"),
    ("attention/q/bias", "n"),
    ("attention/[kv]/bias", "k"),
    ("mlp/(gate|up)/kernel", "df"),
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
    """How the array at a path such as "layers/attention/q/kernel" is split.

    Only the end of the path counts, so that gradients and optimiser states follow their parameters;
    axes before those of the table (layers) are not split. What the table does not name is small
    (step counters, scalar heads) and lies whole on every device.
    """
    for rule, axes in _RULES:
        if rule.fullmatch(path) and len(shape) >= len(axes):
            return spec("-" * (len(shape) - len(axes)) + axes, shape, mesh)
    return P()


def spec(axes: Sequence[str], shape: Sequence[int], mesh: Mesh | AbstractMesh) -> P:
    """The partition of an array whose axes have these letters, one per dimension.

    Raises:
      ValueError: the letters are not as many as the dimensions.
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


def map_attention(
    attend: Callable[..., jax.Array],
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array,
    *,
    axes: tuple[str, str, str],
) -> jax.Array:
    """`attend(q, k, v, mask)`, on the mesh of `jax.set_mesh` by each device for its rows and heads.

    Args:
      attend: returns an array in the shape of q.
      q, k, v: queries, keys and values.
      mask: of keys, [b, m].
      axes: letters of the axes of q, k and v: "b" rows, "n" heads, "k" key heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return attend(q, k, v, mask)
    split = dict(zip(axes[1], spec(axes[1], k.shape, mesh), strict=True))
    # Query heads lie with the key head that they share, or are whole with it.
    split["n"] = split["k"]
    queries, keys, values, visible = (
        P(*(split.get(letter) for letter in letters)) for letters in (*axes, "bm")
    )
    mapped: Any = jax.shard_map(
        attend, in_specs=(queries, keys, values, visible), out_specs=queries, check_vma=False
    )
    result: jax.Array = mapped(q, k, v, mask)
    return result
