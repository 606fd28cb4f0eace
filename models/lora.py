"""Low-rank adapters (Hu et al. 2021): a second tree beside the parameters, W + scale * A B.

Averaging or adding two adapters factor by factor is not averaging or adding their products.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

# Linear maps that may have an adapter, and the part of a layer that they belong to.
TARGETS = {
    "q": "attention",
    "k": "attention",
    "v": "attention",
    "o": "attention",
    "gate": "mlp",
    "up": "mlp",
    "down": "mlp",
}


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Sizes of the adapters and the linear maps of every layer that have one.

    Attributes:
      rank: columns of A, r.
      alpha: numerator of the scale alpha / r.
      targets: distinct names out of `TARGETS`.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank={self.rank}: must be at least 1")
        if not self.alpha > 0:
            raise ValueError(f"alpha={self.alpha}: must be above 0")
        unknown = [name for name in self.targets if name not in TARGETS]
        if unknown or not self.targets or len(set(self.targets)) < len(self.targets):
            raise ValueError(
                f"targets={','.join(self.targets)}: must be distinct names of {', '.join(TARGETS)}"
            )

    @property
    def scale(self) -> float:
        """Factor of the product A B: alpha / r."""
        return self.alpha / self.rank


def init_a(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """First values of A [.., d, r]: uniform within 1 / sqrt(d), as in PEFT; B starts at 0."""
    bound = shape[-2] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def init(key: jax.Array, params: Mapping, config: LoraConfig) -> dict:
    """New adapters of every target, float32: A is random and B zero, so that they change nothing.

    Args:
      key: random key of A.
      params: parameters, or their shapes; leading axes of a kernel (layers) are kept.
      config: sizes and targets.

    Returns:
      {"layers": {module: {target: {"a": [l, d, r], "b": [l, r, out]}}}}
    """
    adapters: dict[str, dict] = {}
    for index, name in enumerate(sorted(config.targets)):
        module = TARGETS[name]
        *lead, fan_in, fan_out = params["layers"][module][name]["kernel"].shape
        adapters.setdefault(module, {})[name] = {
            "a": init_a(jax.random.fold_in(key, index), (*lead, fan_in, config.rank)),
            "b": jnp.zeros((*lead, config.rank, fan_out), jnp.float32),
        }
    return {"layers": adapters}


def scaled(pair: Mapping[str, jax.Array], config: LoraConfig) -> dict[str, jax.Array]:
    """Factors of an adapter with the scale multiplied into B."""
    return {"a": pair["a"], "b": pair["b"] * config.scale}


def merge(params: Mapping, lora: Mapping, config: LoraConfig) -> dict:
    """Parameters with the adapters added to their kernels, in the kernels' dtypes."""
    layers = dict(params["layers"])
    for module, targets in lora["layers"].items():
        layers[module] = dict(layers[module])
        for name, pair in targets.items():
            entry = layers[module][name]
            factors = scaled(pair, config)
            change = jnp.matmul(factors["a"], factors["b"], precision="highest")
            kernel = entry["kernel"].astype(jnp.float32) + change
            layers[module][name] = {**entry, "kernel": kernel.astype(entry["kernel"].dtype)}
    return {**params, "layers": layers}
