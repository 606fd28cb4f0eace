"""Host memory and time of reading a checkpoint into shards: `python -m benchmarks.loading`.

A synthetic checkpoint (1 GiB of bfloat16) is read on 8 simulated devices, which are host memory
themselves: what the arrays occupy in the end is resident, what the process had at its peak above
that was in transit, the largest shard of any array for comparison. Beside it the naive way: the
whole checkpoint as NumPy arrays, stacked, then placed. Memory is that of the process alone
(RssAnon); the file's own pages belong to the operating system's cache.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from absl import flags

from env import command_line

_SIZE = flags.DEFINE_float("gibibytes", 1.0, "Size of the checkpoint.", lower_bound=0.2)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "What it is read as.")
_DEVICES = flags.DEFINE_integer("devices", 8, "Simulated devices.", lower_bound=1)
_WAY = flags.DEFINE_enum("way", None, ["sliced", "naive"], "Measure one; none: both, each alone.")
_FOLDER = flags.DEFINE_string("folder", None, "Checkpoint of an earlier run; none makes one.")


class PeakMemory:
    """Samples the anonymous memory of this process while it is open; bytes."""

    def __enter__(self) -> "PeakMemory":
        self.before = self.peak = _anonymous_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._stop.wait(0.002):
            self.peak = max(self.peak, _anonymous_bytes())

    def __exit__(self, *unused: object) -> None:
        self._stop.set()
        self._thread.join()


def _anonymous_bytes() -> int:
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


def make_checkpoint(folder: pathlib.Path, gibibytes: float) -> None:
    """A random model of about this size, in files of a quarter of it."""
    import jax
    import ml_dtypes
    import numpy as np

    import models
    from models.config import DecoderConfig
    from models.convert import abstract_parameters, parameter_shapes

    def config(num_layers: int) -> DecoderConfig:
        return DecoderConfig(
            vocab_size=32016,
            hidden_size=1024,
            intermediate_size=2752,
            num_layers=num_layers,
            num_heads=16,
            num_kv_heads=16,
            head_dim=64,
            rope_theta=1e6,
            rope_scaling=None,
            rms_norm_eps=1e-5,
            tie_word_embeddings=False,
            attention_bias=False,
            max_position_embeddings=4096,
        )

    def num_bytes(num_layers: int) -> int:
        shapes = parameter_shapes(config(num_layers)).values()
        return 2 * sum(int(np.prod(shape)) for shape in shapes)

    layer = num_bytes(2) - num_bytes(1)
    chosen = config(1 + max(0, round((gibibytes * 1024**3 - num_bytes(1)) / layer)))
    rng = np.random.default_rng(0)

    def random(leaf: Any) -> np.ndarray:
        bits = rng.integers(0x3C00, 0x3F00, leaf.shape, np.uint16)  # between 0.008 and 0.5
        return bits.view(ml_dtypes.bfloat16)

    params = jax.tree.map(random, abstract_parameters(chosen, ml_dtypes.bfloat16))
    total = num_bytes(chosen.num_layers)
    models.save(folder, chosen, params, max_file_bytes=total // 4)


def _load_naively(folder: pathlib.Path, mesh: Any, dtype: Any) -> Any:
    """All tensors, then all parameters, then their shards."""
    import jax
    import numpy as np
    import safetensors.numpy

    from models import convert
    from models.config import DecoderConfig
    from models.sharding import path_name, shardings

    tensors: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= safetensors.numpy.load_file(path)
    config = DecoderConfig.from_folder(folder)
    abstract = convert.abstract_parameters(config, dtype)
    names: dict[str, list[str]] = {}
    for name, source in convert.published_tensors(config).items():
        names.setdefault(source.path, []).append(name)

    def stacked(path: Any, leaf: Any) -> np.ndarray:
        name = path_name(path)
        parts = [tensors[published].astype(dtype) for published in names[name]]
        parts = [part.T for part in parts] if name.endswith("/kernel") else parts
        return np.stack(parts) if name.startswith("layers/") else parts[0]

    params = jax.tree_util.tree_map_with_path(stacked, abstract)
    return jax.block_until_ready(jax.device_put(params, shardings(abstract, mesh)))


def measure(folder: pathlib.Path, way: str) -> None:
    """Reads the checkpoint once in this process and prints a row of the table."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import AxisType

    import models

    shape = (2, _DEVICES.value // 2) if _DEVICES.value % 2 == 0 else (_DEVICES.value, 1)
    mesh = jax.make_mesh(shape, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    dtype = jnp.dtype(_DTYPE.value)
    start = time.perf_counter()
    with PeakMemory() as memory:
        if way == "sliced":
            _, params = models.load(folder, mesh=mesh, dtype=dtype)
        else:
            params = _load_naively(folder, mesh, dtype)
    seconds = time.perf_counter() - start
    shards = [shard.data for leaf in jax.tree.leaves(params) for shard in leaf.addressable_shards]
    resident = sum(shard.nbytes for shard in shards)
    transit = memory.peak - memory.before - resident
    figures = (resident, memory.peak - memory.before, transit, max(s.nbytes for s in shards))
    print(f"{way:8}" + "".join(f"{n / 1024**2:12.0f}" for n in figures) + f"{seconds:10.1f}")


def main() -> None:
    if _WAY.value:
        measure(pathlib.Path(_FOLDER.value), _WAY.value)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(_FOLDER.value or temporary)
        if not (folder / "config.json").exists():
            make_checkpoint(folder, _SIZE.value)
        print(f"{_DEVICES.value} devices, read as {_DTYPE.value}; MiB")
        columns = ("resident", "peak", "in transit", "largest")
        print(f"{'way':8}" + "".join(f"{name:>12}" for name in columns) + f"{'seconds':>10}")
        sys.stdout.flush()
        count = f"--xla_force_host_platform_device_count={_DEVICES.value}"
        environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": count}
        for way in ("sliced", "naive"):
            flags_of_child = [f"--{n}={v}" for n, v in (("way", way), ("folder", folder))]
            subprocess.run(
                [sys.executable, "-m", "benchmarks.loading", *sys.argv[1:], *flags_of_child],
                env=environment,
                check=True,
            )


if __name__ == "__main__":
    command_line.run(main)
