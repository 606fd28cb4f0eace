"""Device memory of a run by arithmetic on shapes: nothing is allocated and nothing is compiled.

The memory that stays in use on a device is exact. The memory of a running program is an estimate,
the largest arrays that are alive at the same time. The numbers of arrays below were fitted to what
the compilers for NVIDIA cards and for TPUs report for CodeLlama-7B
(`benchmarks/plan_against_compiler.py`, docs/codellama.md). CPUs compute packed rows
(`models.packing`), for which the figures of a gradient step are upper bounds.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh

from etpo_jax.algorithms.networks import Networks
from etpo_jax.config import Config
from etpo_jax.devices import accelerators
from etpo_jax.devices.mesh import abstract_mesh
from models import decode
from models.config import DecoderConfig
from models.convert import abstract_parameters
from models.repository import config_folder
from models.sharding import partition_spec, path_name, spec
from models.transformer import Decoder


@dataclasses.dataclass(frozen=True)
class _Compiler:
    """Numbers of arrays that programs of one compiler have at once.

    Attributes:
      scores: scores of attention [b, n, s, s] in float32, in the backward pass of a layer.
      inner, stream: inner activations of the MLP [b, s, f] and of the width of the stream
        [b, s, d], likewise.
      logits: float32 arrays [b, j, v] over the vocabulary, of all networks together.
      kept_of_products, kept_of_layer: activations that every layer keeps: with `--remat=dots`
        relative to the outputs of its matrix products, with `--remat=none` relative to the
        activations in its backward pass.
      sums: float32 sums of gradients over microbatches: before and after one is added, or one.
      caches: caches of keys and values, where that of the prompts may be copied into a longer one.
      reorders_inner: whether generation stores the fused input matrix of the MLP in another order
        than it is given in.
      reorders_shards: whether gradient steps store matrices in another order whose last axis is
        spread over devices, before they are gathered.
    """

    scores: float
    inner: float
    stream: float
    logits: float
    kept_of_products: float
    kept_of_layer: float
    sums: int
    caches: int
    reorders_inner: bool
    reorders_shards: bool


_COMPILERS = {
    "tpu": _Compiler(8, 6, 3, 5.5, 1.4, 0.67, 2, 2, True, False),
    "gpu": _Compiler(2, 7.5, 3, 4.5, 0.91, 1.04, 1, 1, False, True),
}

SAMPLED = "weights of generation"
"""Name of the row with the copy of the policy's weights that sampling reads."""

# Networks of a state that score actions; a target critic scores next states as well.
_SCORED = ("policy", "critic", "target_critic")


@dataclasses.dataclass(frozen=True)
class Item:
    """One row of the plan.

    Attributes:
      name: description for the plan.
      num_bytes: bytes on one device.
      num_parameters: parameters on all devices together; 0 for arrays that are no parameters.
    """

    name: str
    num_bytes: int
    num_parameters: int = 0


@dataclasses.dataclass(frozen=True)
class Memory:
    """Memory of one device of the mesh.

    Attributes:
      resident: arrays that are there at all times.
      generation: further arrays while actions are sampled.
      gradient_step: further arrays in a gradient step; empty where nothing is learnt.
      checkpoint: bytes of what is learnt on all devices together, which a checkpoint holds.
    """

    resident: tuple[Item, ...]
    generation: tuple[Item, ...]
    gradient_step: tuple[Item, ...]
    checkpoint: int

    @property
    def peak(self) -> int:
        """Bytes in the phase that needs more."""
        return total(self.resident) + max(total(self.generation), total(self.gradient_step))


def total(items: tuple[Item, ...]) -> int:
    """Sum of the items' bytes."""
    return sum(item.num_bytes for item in items)


def estimate(
    config: Config, decoder: DecoderConfig, mesh: AbstractMesh, platform: str = "tpu"
) -> Memory:
    """Estimates the memory of one device in a run, for the longest prompts and actions.

    Args:
      config: settings of the run.
      decoder: sizes of the model.
      mesh: devices of the run.
      platform: their kind, gpu or tpu; the larger figures of TPUs stand for any other.
    """
    compiler = _COMPILERS.get(platform, _COMPILERS["tpu"])
    dtype = jnp.dtype(config.model.compute_dtype)
    base = abstract_parameters(decoder, dtype)
    resident = [_item("base (reference)", base, mesh)]
    algorithm = config.algorithm
    state: Any = None
    if algorithm.learns:
        state = abstract_state(networks_of(config, decoder), base, config)
        resident += [
            _item(name.replace("_", " "), tree, mesh)
            for name, tree in _parts(state).items()
            if name != "step" and jax.tree.leaves(tree)
        ]
    # Generation reads weights layer by layer with adapters merged, and tied embeddings twice.
    layout = [base] + [base["embedder"]] * decoder.tie_word_embeddings
    sampled = Item(SAMPLED, sum(_num_bytes(tree, mesh) for tree in layout))
    copies = 1
    if config.samples_with_reference:
        copies = 2
        resident.append(dataclasses.replace(sampled, name="reference's weights of generation"))
    needed = []
    if algorithm.learns:
        needed = _gradient_step(config, decoder, mesh, base, state, compiler)
    if needed and algorithm.step_memory(config).is_beside_sampling:
        needed.insert(0, sampled)
    return Memory(
        tuple(resident),
        (sampled, *_generation(config, decoder, mesh, copies, compiler)),
        tuple(needed),
        sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
    )


def warning(config: Config) -> str:
    """One line if the devices of this process hold too little memory for a run, else nothing."""
    limit, endpoint = accelerators.limit_here(), getattr(config.learning, "endpoint", "")
    if limit is None or endpoint:
        return ""
    decoder = DecoderConfig.from_folder(config_folder(config.model.model))
    mesh = abstract_mesh(config.model.mesh)
    peak = estimate(config, decoder, mesh, limit.device.platform).peak
    return limit.verdict(peak) if peak > limit.num_bytes else ""


def networks_of(config: Config, decoder: DecoderConfig) -> Networks:
    """The networks of the run's algorithm, without arrays."""
    dtype = jnp.dtype(config.model.compute_dtype)
    model = Decoder(
        decoder,
        dtype=dtype,
        param_dtype=dtype,
        remat=config.model.rematerialized,
        precision=config.model.matmul_precision,
        lora=config.finetune.adapters,
        attention_implementation=config.model.attention,
    )
    return config.algorithm.make_networks(model, config)


def abstract_state(networks: Networks, base: Any, config: Config) -> Any:
    """Shapes of the state that the run's algorithm keeps."""
    initial = config.algorithm.initial_state
    return jax.eval_shape(lambda tree: initial(networks, tree, config), base)


def _generation(
    config: Config, decoder: DecoderConfig, mesh: AbstractMesh, copies: int, compiler: _Compiler
) -> list[Item]:
    width = jnp.dtype(config.model.compute_dtype).itemsize
    b, p = config.run.num_envs, config.model.max_prompt_length
    m = decode.num_slots(p + config.sampling.max_new_tokens, config.model.attention)
    n, k, h = decoder.num_heads, decoder.num_kv_heads, decoder.head_dim
    d, f = decoder.hidden_size, decoder.intermediate_size
    cache = 2 * decoder.num_layers * width * _local("bkmh", (b, k, m, h), mesh)
    inner = 2 * decoder.num_layers * width * _local("df", (d, f), mesh)
    # While prompts are read: scores of attention and activations, which for TPUs take the place
    # of the second cache. Kernels are split again afterwards.
    scores, gathered = 4 * _local("bn--", (b, n, p, p), mesh), _gathered(decoder, width, mesh)
    if compiler.caches > 1:
        reading = max(2 * scores + 3 * width * _local("b-f", (b, p, f), mesh) - cache, 0)
    else:
        reading = 2 * scores + 2 * width * _local("b--", (b, p, d), mesh)
        gathered = max(gathered - reading, 0)
    logits = 3 * 4 * _local("bv", (b, decoder.vocab_size), mesh)
    return [
        Item("keys and values", compiler.caches * copies * cache),
        Item("weights in another order", copies * inner * compiler.reorders_inner),
        Item("activations and logits", copies * (reading + logits)),
        Item("gathered weights of a layer", gathered),
    ]


def _gradient_step(
    config: Config,
    decoder: DecoderConfig,
    mesh: AbstractMesh,
    base: Any,
    state: Any,
    compiler: _Compiler,
) -> list[Item]:
    width = jnp.dtype(config.model.compute_dtype).itemsize
    finetune = config.finetune
    _, minibatch_size = config.algorithm.gradient_steps(config)
    b = finetune.microbatch_size or minibatch_size
    j = config.sampling.max_new_tokens
    s = config.model.max_prompt_length + j
    d, f, v = decoder.hidden_size, decoder.intermediate_size, decoder.vocab_size
    stream = width * _local("bs-", (b, s, d), mesh)
    # cuDNN never has the scores of all keys at once.
    scores = 0 if config.model.attention == "cudnn" else compiler.scores
    layer = int(
        scores * 4 * _local("bn--", (b, decoder.num_heads, s, s), mesh)
        + compiler.inner * width * _local("b-f", (b, s, f), mesh)
        + compiler.stream * stream
    )
    kept = {
        "full": stream,
        "dots": stream + compiler.kept_of_products * _products(config, decoder, b, s, mesh),
        "none": stream + compiler.kept_of_layer * layer,
    }[config.model.rematerialized]
    parts = _parts(state)
    networks = [parts[name] for name in ("critic", "policy") if jax.tree.leaves(parts.get(name))]
    sizes = [_num_bytes(network, mesh) for network in networks]
    step = config.algorithm.step_memory(config)
    gradient = sum(sizes) if step.gradients_at_once else max(sizes)
    logits = compiler.logits * _local("b-v", (b, min(config.model.logits_at_once or j, j), v), mesh)
    if step.scored_rows:
        logits = compiler.logits * _local("b-v", (max(step.scored_rows, b), j, v), mesh)
    if finetune.microbatch_size not in (0, minibatch_size):
        sums = [_num_bytes(_as_float32(network), mesh) for network in networks]
        is_apart = finetune.adapters is None and not step.gradients_at_once
        gradient += compiler.sums * (max(sums) if is_apart else sum(sums))
    gathered = _gathered(decoder, width, mesh)
    if finetune.adapters is None:
        # A layer's gradient before it is summed over devices.
        gathered += _gathered(decoder, jnp.dtype(finetune.trained_dtype).itemsize, mesh)
    reordered = 0
    if compiler.reorders_shards:
        # Copies of the reference's matrices in the backward pass, or of those of all networks
        # before any gradient exists.
        forward = [base, *(parts.get(name) for name in _SCORED)]
        shards = [_reordered_bytes(tree, mesh) for tree in forward]
        reordered = max(shards[0], sum(shards) + shards[-1] - gradient)
    return [
        Item("gradients", gradient),
        Item("weights in another order", reordered),
        Item("kept activations", int(len(networks) * decoder.num_layers * kept)),
        Item("activations of a layer", layer),
        Item("gathered weights of a layer", gathered),
        Item("logits", int(4 * logits)),
    ]


def _reordered_bytes(tree: Any, mesh: AbstractMesh) -> int:
    """Bytes on one device of the layers' matrices whose last axis is spread over `fsdp`."""
    if mesh.shape["fsdp"] == 1:
        return 0
    return sum(
        _shard_size(leaf.shape, partition, mesh) * leaf.dtype.itemsize
        for path, leaf in jax.tree.leaves_with_path(tree)
        if len(leaf.shape) == 3
        and (partition := partition_spec(path_name(path), leaf.shape, mesh))[-1] == "fsdp"
    )


def _products(config: Config, decoder: DecoderConfig, b: int, s: int, mesh: AbstractMesh) -> float:
    """Bytes of the outputs of a layer's matrix products, those of adapters included."""
    sizes = (
        ("n", decoder.num_heads * decoder.head_dim),
        ("k", 2 * decoder.num_kv_heads * decoder.head_dim),
        ("f", 2 * decoder.intermediate_size),
        ("-", 2 * decoder.hidden_size),
    )
    count = sum(_local(f"b-{axis}", (b, s, size), mesh) for axis, size in sizes)
    parts = 1 if config.finetune.adapters is None else 2
    return parts * count * jnp.dtype(config.model.compute_dtype).itemsize


def _gathered(decoder: DecoderConfig, width: int, mesh: AbstractMesh) -> int:
    """Bytes of one layer's weights gathered from the devices of `fsdp`; 0 if that is one device."""
    if mesh.shape["fsdp"] == 1:
        return 0
    kernels = abstract_parameters(decoder, jnp.float32)["layers"]
    count = sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(kernels))
    return width * count // mesh.shape["tensor"]


def _parts(state: Any) -> dict[str, Any]:
    """The parts of an algorithm's state by name."""
    if dataclasses.is_dataclass(state):
        return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return dict(state) if isinstance(state, Mapping) else {"state": state}


def _item(name: str, tree: Any, mesh: AbstractMesh) -> Item:
    count = sum(leaf.size for leaf in jax.tree.leaves(tree))
    return Item(name, _num_bytes(tree, mesh), count)


def _num_bytes(tree: Any, mesh: AbstractMesh) -> int:
    """Bytes of a tree's arrays on one device, by the partition table."""
    return sum(
        _shard_size(leaf.shape, partition_spec(path_name(path), leaf.shape, mesh), mesh)
        * leaf.dtype.itemsize
        for path, leaf in jax.tree.leaves_with_path(tree)
    )


def _local(axes: str, shape: tuple[int, ...], mesh: AbstractMesh) -> int:
    """Number of elements on one device of an activation with these axis letters."""
    return _shard_size(shape, spec(axes, shape, mesh), mesh)


def _shard_size(shape: tuple[int, ...], partition: Any, mesh: AbstractMesh) -> int:
    divisor = math.prod(mesh.shape[axis] for axis in partition if axis is not None)
    return math.prod(shape) // divisor


def _as_float32(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), tree)
