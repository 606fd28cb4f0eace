"""Published weights to our tree of parameters and back, slice by slice into sharded arrays."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding

from models.config import PARAMETERS, DecoderConfig, parameter_shapes, read_json
from models.errors import ModelError
from models.lora import LoraConfig
from models.repository import local_folder
from models.sharding import path_name, shardings
from models.transformer import Decoder

_PUBLISHED_HEAD = "lm_head.weight"
_PUBLISHED_EMBEDDING = "model.embed_tokens.weight"
# Tensors of old checkpoints that are not read: rotary frequencies follow from the configuration.
_DERIVED = ".rotary_emb.inv_freq"

# Stored types: unsigned integers of their size, and the bits all set in infinity and NaN only.
_BITS: dict[str, tuple[Any, int]] = {
    "F32": (np.uint32, 0x7F800000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
_ROWS = 64  # stored rows read, checked and transposed at a time, so that they stay in the cache
_NUM_THREADS = min(8, os.cpu_count() or 1)
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MAX_FILE_BYTES = 4 * 1024**3


def load(
    path: str | pathlib.Path, *, mesh: Mesh | None = None, dtype: Any = jnp.float32
) -> tuple[Decoder, dict]:
    """Loads a model of the Llama family in Hugging Face format.

    Weights are read slice by slice into the shards of their arrays: the host holds at most one
    shard of one array beside the arrays that are complete.

    Args:
      path: folder with config.json and safetensors, "tiny" for the shipped stand-in, or a
        repository "org/name" (`models.repository.local_folder`).
      mesh: mesh whose axes `fsdp` and `tensor` split the arrays (`models.sharding`); None for one
        device.
      dtype: type of the parameters and of the computation, whatever type is stored.

    Returns:
      The network, and its parameters as nested dictionaries.

    Raises:
      ModelError: names in one line the file, tensor or feature that is missing, superfluous,
        corrupt, not supported, or of another shape or type.
    """
    folder = local_folder(path)
    config = DecoderConfig.from_folder(folder)
    abstract = abstract_parameters(config, dtype)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(_NUM_THREADS))
        reader = _Reader(folder, config, stack, pool)
        if mesh is None:
            params = jax.tree_util.tree_map_with_path(reader.whole, abstract)
        else:
            params = jax.tree_util.tree_map_with_path(
                reader.sharded, abstract, shardings(abstract, mesh)
            )
    return Decoder(config, dtype=dtype, param_dtype=dtype), params


def check(path: str | pathlib.Path) -> None:
    """Checks a folder as `load` does, by the headers of its weights; errors as there."""
    folder = local_folder(path)
    config = DecoderConfig.from_folder(folder)
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(1))
        _Reader(folder, config, stack, pool)


def save(
    folder: str | pathlib.Path,
    config: DecoderConfig,
    params: Mapping,
    *,
    dtype: Any = None,
    extra: Mapping[str, Any] | None = None,
    values: Mapping[str, Any] | None = None,
    adapters: tuple[Mapping, LoraConfig] | None = None,
    max_file_bytes: int = _MAX_FILE_BYTES,
) -> None:
    """Writes config.json and safetensors that `load` and the tools of Hugging Face read.

    Tensors are fetched, merged and converted one by one: the host holds one file at a time.

    Args:
      folder: folder to write, made if absent; weights in it are replaced.
      config: sizes and constants of the decoder.
      params: nested dictionaries of arrays, on the host or on devices that this process can read.
      dtype: type of all stored weights; None takes the type of the embedding.
      extra: further values of config.json, such as token ids.
      values: values of config.json in place of those of `config`, to keep a published file; its
        dtype is still replaced.
      adapters: a tree of adapters and its sizes, to be added to the kernels in float32.
      max_file_bytes: largest size of a file, unless a single tensor is larger.

    Raises:
      ValueError: a parameter has another shape than the configuration says.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # config.json is written last: without it, a save that was cut short is not taken for a model.
    for stale in [folder / "config.json", folder / _INDEX, *folder.glob("model*.safetensors")]:
        stale.unlink(missing_ok=True)
    stored = np.dtype(dtype or params["embedder"]["embedding"].dtype)
    sources = published_tensors(config)
    files = _split(sources, stored.itemsize, max_file_bytes)
    for file_name, names in files.items():
        tensors = {
            name: _published_tensor(params, sources[name], stored, adapters) for name in names
        }
        safetensors.numpy.save_file(tensors, folder / file_name, metadata={"format": "pt"})
    if len(files) > 1:
        total = sum(math.prod(source.shape) for source in sources.values()) * stored.itemsize
        weight_map = {name: file_name for file_name, names in files.items() for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / _INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
    written = {**(values or config.to_dict()), "dtype": stored.name, **(extra or {})}
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")


def abstract_parameters(config: DecoderConfig, dtype: Any) -> dict:
    """Tree of parameters as `jax.ShapeDtypeStruct`; no array is made."""
    leaves = {
        path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in parameter_shapes(config).items()
    }
    tree: dict = traverse_util.unflatten_dict(leaves, sep="/")
    return tree


@dataclasses.dataclass(frozen=True)
class PublishedTensor:
    """The place of a published tensor in our tree.

    Attributes:
      path: path of our parameter.
      layer: index on its leading axis; None for parameters outside the layers.
      shape: shape of the published tensor.
      is_transposed: whether our parameter is the transpose.
    """

    path: str
    layer: int | None
    shape: tuple[int, ...]
    is_transposed: bool


def published_tensors(config: DecoderConfig) -> dict[str, PublishedTensor]:
    """Tensors that a checkpoint of this configuration must hold, by published name."""
    shapes = parameter_shapes(config)
    sources = {}
    for path, axes, template, _ in PARAMETERS:
        if path not in shapes:
            continue
        is_transposed = path.endswith("/kernel")
        shape = shapes[path][axes.startswith("l") :]
        shape = shape[::-1] if is_transposed else shape
        for layer in range(config.num_layers) if axes.startswith("l") else (None,):
            sources[template.format(layer)] = PublishedTensor(path, layer, shape, is_transposed)
    return sources


class _Reader:
    """Reads parameters out of the safetensors files of a folder, after a check of their headers."""

    def __init__(
        self,
        folder: pathlib.Path,
        config: DecoderConfig,
        stack: contextlib.ExitStack,
        pool: concurrent.futures.Executor,
    ) -> None:
        self._folder = folder
        self._pool = pool
        self._tensors = _open_tensors(folder, stack)
        sources = published_tensors(config)
        self._check_names(set(sources), config)
        self._names: dict[str, list[str]] = {}
        for name, source in sources.items():
            self._check_tensor(name, source.shape)
            self._names.setdefault(source.path, []).append(name)
        if config.tie_word_embeddings and _PUBLISHED_HEAD in self._tensors:
            self._check_tied_head(sources[_PUBLISHED_EMBEDDING].shape)

    def whole(self, path: Sequence[Any], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        """Reads a parameter onto the default device."""
        bounds = tuple((0, size) for size in leaf.shape)
        return jax.block_until_ready(
            jax.device_put(self._read(path_name(path), bounds, leaf.dtype))
        )

    def sharded(
        self, path: Sequence[Any], leaf: jax.ShapeDtypeStruct, sharding: NamedSharding
    ) -> jax.Array:
        """Reads a parameter onto the devices of this process, one shard at a time."""
        devices = collections.defaultdict(list)
        for device, index in sharding.addressable_devices_indices_map(leaf.shape).items():
            assert index is not None  # as for every device of the sharding itself
            pairs = zip(index, leaf.shape, strict=True)
            devices[tuple(part.indices(size)[:2] for part, size in pairs)].append(device)
        arrays: list[jax.Array] = []
        for bounds, owners in devices.items():
            shard = self._read(path_name(path), bounds, leaf.dtype)
            arrays += jax.block_until_ready([jax.device_put(shard, owner) for owner in owners])
        return jax.make_array_from_single_device_arrays(leaf.shape, sharding, arrays)

    def _read(self, path: str, bounds: tuple[tuple[int, int], ...], dtype: Any) -> np.ndarray:
        """Reads the block of a parameter within [start, stop) of each axis onto the host."""
        block = np.empty([stop - start for start, stop in bounds], dtype)
        if path.startswith("layers/"):
            names = self._names[path][slice(*bounds[0])]
            parts, bounds = list(block), bounds[1:]
        else:
            names, parts = self._names[path], [block]
        if path.endswith("/kernel"):
            parts, bounds = [part.T for part in parts], bounds[::-1]
        for _ in self._pool.map(lambda name, part: self._fill(name, bounds, part), names, parts):
            pass
        return block

    def _fill(self, name: str, bounds: tuple[tuple[int, int], ...], part: np.ndarray) -> None:
        """Copies a block of a published tensor into an array with the same order of axes."""
        tensor = self._tensors[name]
        (first, last), columns = bounds[0], tuple(slice(*pair) for pair in bounds[1:])
        for start in range(first, last, _ROWS):
            stop = min(start + _ROWS, last)
            rows = tensor[(slice(start, stop), *columns)]
            bits, infinity = _BITS[tensor.get_dtype()]
            if np.any((rows.view(bits) & infinity) == infinity):
                raise ModelError(f"{self._folder}: tensor {name} holds NaN or infinity")
            part[start - first : stop - first] = _cast(rows, part.dtype)

    def _check_names(self, expected: set[str], config: DecoderConfig) -> None:
        ignored = {name for name in self._tensors if name.endswith(_DERIVED)}
        if config.tie_word_embeddings:
            ignored.add(_PUBLISHED_HEAD)
        for kind, names in (
            ("missing", expected - set(self._tensors)),
            ("not those of this architecture", set(self._tensors) - expected - ignored),
        ):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                listed = ", ".join(sorted(names)[:3])
                raise ModelError(f"{self._folder}: tensors are {kind}: {listed}{more}")

    def _check_tied_head(self, shape: tuple[int, ...]) -> None:
        """Refuses an output layer that is stored beside a tied embedding and differs from it."""
        self._check_tensor(_PUBLISHED_HEAD, shape)
        head, embedding = (self._tensors[name] for name in (_PUBLISHED_HEAD, _PUBLISHED_EMBEDDING))
        for start in range(0, shape[0], _ROWS):
            rows = slice(start, min(start + _ROWS, shape[0]))
            if not np.array_equal(head[rows], embedding[rows]):
                raise ModelError(
                    f"{self._folder}: {_PUBLISHED_HEAD} differs from the embedding, but "
                    "config.json says tie_word_embeddings; false there uses the stored layer"
                )

    def _check_tensor(self, name: str, shape: tuple[int, ...]) -> None:
        tensor = self._tensors[name]
        if tuple(tensor.get_shape()) != shape:
            raise ModelError(
                f"{self._folder}: tensor {name} has shape {tuple(tensor.get_shape())}, "
                f"config.json says {shape}"
            )
        if tensor.get_dtype() not in _BITS:
            raise ModelError(
                f"{self._folder}: tensor {name} is stored as {tensor.get_dtype()}; "
                f"{', '.join(_BITS)} can be read"
            )


def _open_tensors(folder: pathlib.Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Handles of all tensors in the files of a folder, by name; only headers are read."""
    tensors: dict[str, Any] = {}
    for path in _weight_files(folder):
        try:
            file = stack.enter_context(safetensors.safe_open(path, framework="numpy"))
        except FileNotFoundError:
            raise ModelError(f"{folder}: {path.name}, which {_INDEX} names, is missing") from None
        except safetensors.SafetensorError as error:
            raise ModelError(f"{path}: corrupt or truncated safetensors file ({error})") from error
        for name in file.keys():  # noqa: SIM118 (no mapping: it cannot be iterated over)
            if name in tensors:
                raise ModelError(f"{folder}: tensor {name} is in two files")
            tensors[name] = file.get_slice(name)
    return tensors


def _weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        weight_map = read_json(folder / _INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise ModelError(f"{folder / _INDEX}: has no weight_map")
        return [folder / name for name in sorted(set(map(str, weight_map.values())))]
    if any(folder.glob("*.bin")):
        raise ModelError(f"{folder}: holds PyTorch .bin weights only; {_SINGLE} is needed")
    raise ModelError(f"{folder}: a model folder needs {_SINGLE}, or {_INDEX} and its files")


def _cast(rows: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if rows.dtype == ml_dtypes.bfloat16 and dtype == np.float32:
        # The upper half of a float32; several times faster than the general conversion.
        return (rows.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return rows.astype(dtype, copy=False)


def _published_tensor(
    params: Mapping,
    source: PublishedTensor,
    dtype: np.dtype,
    adapters: tuple[Mapping, LoraConfig] | None,
) -> np.ndarray:
    leaf: Any = params
    for name in source.path.split("/"):
        leaf = leaf[name]
    tensor = np.asarray(leaf if source.layer is None else leaf[source.layer])
    if adapters is not None and (pair := adapter_of(adapters[0], source)) is not None:
        delta = pair["a"] @ pair["b"] * np.float32(adapters[1].scale)
        tensor = tensor.astype(np.float32) + delta
    if tensor.shape != (source.shape[::-1] if source.is_transposed else source.shape):
        raise ValueError(f"{source.path} has shape {leaf.shape}, not that of the configuration")
    tensor = tensor.astype(dtype)
    return np.ascontiguousarray(tensor.T if source.is_transposed else tensor)


def adapter_of(lora: Mapping, source: PublishedTensor) -> dict[str, np.ndarray] | None:
    """Factors a [in, r] and b [r, out] of the adapter of a published tensor, if it has one."""
    scope, *path = source.path.split("/")
    if scope != "layers" or len(path) != 3 or path[2] != "kernel":
        return None
    pair = lora["layers"].get(path[0], {}).get(path[1])
    if pair is None:
        return None
    return {name: np.asarray(factor[source.layer], np.float32) for name, factor in pair.items()}


def _split(
    sources: Mapping[str, PublishedTensor], item_bytes: int, max_file_bytes: int
) -> dict[str, list[str]]:
    """Names of the files to write, and the tensors of each, in the order of `sources`."""
    files: list[list[str]] = [[]]
    size = 0
    for name, source in sources.items():
        num_bytes = math.prod(source.shape) * item_bytes
        if files[-1] and size + num_bytes > max_file_bytes:
            files.append([])
            size = 0
        files[-1].append(name)
        size += num_bytes
    if len(files) == 1:
        return {_SINGLE: files[0]}
    count = len(files)
    return {f"model-{i + 1:05d}-of-{count:05d}.safetensors": names for i, names in enumerate(files)}
