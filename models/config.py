"""Sizes, constants and parameters of a Llama-family decoder, and its Hugging Face `config.json`.

Nothing that shapes the computation has a default: a missing constant, or a feature that this
decoder lacks, is an error that names it. A new architecture of this family is a model type with its
fields and its `PARAMETERS` here, and what a layer does with them in `models.blocks`.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from models.errors import ModelError


@dataclasses.dataclass(frozen=True)
class LinearRope:
    """Position interpolation: angles are divided by `factor` (DeepSeek-Coder)."""

    factor: float


@dataclasses.dataclass(frozen=True)
class Llama3Rope:
    """Llama 3.1 scaling: low frequencies are divided by `factor`, high ones kept, a ramp between.

    Attributes:
      factor: divisor of low frequencies.
      low_freq_factor: frequencies with fewer turns than this in the original window are low.
      high_freq_factor: frequencies with more turns than this in the original window are kept.
      original_max_position_embeddings: window before the scaling, in tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


RopeScaling = LinearRope | Llama3Rope | None
_ROPE_TYPES: dict[str, type[LinearRope] | type[Llama3Rope]] = {
    "linear": LinearRope,
    "llama3": Llama3Rope,
}
_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_FAMILY = f"the Llama family (model_type {', '.join(_ARCHITECTURES)}) can be used"


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """One decoder-only transformer of the Llama family.

    Attributes:
      vocab_size: rows of the embedding, v.
      hidden_size: width of the residual stream, d.
      intermediate_size: width of the gated MLP, f.
      num_layers: blocks, l.
      num_heads: query heads, n.
      num_kv_heads: key and value heads, k; divides `num_heads`.
      head_dim: size of one head, h; even.
      rope_theta: base of the rotary embedding.
      rope_scaling: scaling of its frequencies; None for none.
      rms_norm_eps: epsilon of the root mean square norms.
      tie_word_embeddings: whether the output layer is the embedding.
      attention_bias: whether query, key and value projections have a bias (Qwen2).
      max_position_embeddings: longest sequence that the model was trained for, tokens.
      query_key_norm: whether each head of queries and keys is normed before rotation (Qwen3).
      sliding_window: number of newest tokens, itself included, that a token sees (Mistral 7B v0.1);
        None for all.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    rope_scaling: RopeScaling
    rms_norm_eps: float
    tie_word_embeddings: bool
    attention_bias: bool
    max_position_embeddings: int
    query_key_norm: bool = False
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_layers", "num_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.num_kv_heads < 1 or self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads}: must divide num_heads={self.num_heads}"
            )
        if self.head_dim < 2 or self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: must be even")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window={self.sliding_window}: must be at least 1")

    @property
    def has_lm_head(self) -> bool:
        """True if the output layer has weights of its own."""
        return not self.tie_word_embeddings

    @classmethod
    def from_folder(cls, path: str | pathlib.Path) -> "DecoderConfig":
        """Reads `config.json` of a model folder.

        Raises:
          ModelError: no such folder or file, not JSON, a constant missing, or an unsupported
            architecture or feature, by name.
        """
        folder = pathlib.Path(path)
        if not folder.is_dir():
            raise ModelError(f"{folder}: no such model folder")
        return cls.from_dict(read_json(folder / "config.json"), source=str(folder / "config.json"))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str) -> "DecoderConfig":
        """Reads the values of a `config.json`; errors are as in `from_folder` and name `source`."""
        model_type = _check_supported(values, source)
        heads = _number(values, "num_attention_heads", int, source)
        hidden = _number(values, "hidden_size", int, source)
        head_dim = values.get("head_dim")
        if head_dim is None and model_type != "qwen3":
            if heads < 1 or hidden % heads:
                raise ModelError(
                    f"{source}: hidden_size {hidden} over num_attention_heads {heads} is no integer"
                )
            head_dim = hidden // heads
        theta, scaling = _rope(values, source)
        window = None
        if model_type == "mistral" and values.get("sliding_window", 0) is not None:
            window = _number(values, "sliding_window", int, source)
        try:
            return cls(
                vocab_size=_number(values, "vocab_size", int, source),
                hidden_size=hidden,
                intermediate_size=_number(values, "intermediate_size", int, source),
                num_layers=_number(values, "num_hidden_layers", int, source),
                num_heads=heads,
                num_kv_heads=_number(values, "num_key_value_heads", int, source),
                head_dim=_number({"head_dim": head_dim}, "head_dim", int, source),
                rope_theta=theta,
                rope_scaling=scaling,
                rms_norm_eps=_number(values, "rms_norm_eps", float, source),
                tie_word_embeddings=bool(values.get("tie_word_embeddings", False)),
                attention_bias=model_type == "qwen2",
                max_position_embeddings=_number(values, "max_position_embeddings", int, source),
                query_key_norm=model_type == "qwen3",
                sliding_window=window,
            )
        except ModelError:
            raise
        except ValueError as error:
            raise ModelError(f"{source}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Values of a `config.json` that describes this decoder."""
        features = {
            "qwen2": self.attention_bias,
            "qwen3": self.query_key_norm,
            "mistral": self.sliding_window is not None,
        }
        found = [name for name, is_there in features.items() if is_there] or ["llama"]
        if len(found) > 1:
            raise ValueError(f"no published architecture is like {' and '.join(found)} at once")
        model_type = found[0]
        window = {} if self.sliding_window is None else {"sliding_window": self.sliding_window}
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": self.rope_theta}
        for name, kind in _ROPE_TYPES.items():
            if isinstance(self.rope_scaling, kind):
                rope |= {"rope_type": name, **dataclasses.asdict(self.rope_scaling)}
        return {
            "architectures": [_ARCHITECTURES[model_type]],
            "model_type": model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_parameters": rope,
            "tie_word_embeddings": self.tie_word_embeddings,
            **window,
        }


# Every kind of parameter, in the order in which checkpoints are written: the path in the tree, the
# letters of the axes (see `parameter_shapes`; "l" is the layer), the published name with the layer
# left open, and the attribute of the configuration without which there is none. A published matrix
# is [out, in]: every `kernel` is its transpose.
_LAYER = "model.layers.{}."
PARAMETERS = (
    ("embedder/embedding", "vd", "model.embed_tokens.weight", ""),
    ("layers/attention_norm/scale", "ld", _LAYER + "input_layernorm.weight", ""),
    ("layers/attention/q/kernel", "ldn", _LAYER + "self_attn.q_proj.weight", ""),
    ("layers/attention/k/kernel", "ldk", _LAYER + "self_attn.k_proj.weight", ""),
    ("layers/attention/v/kernel", "ldk", _LAYER + "self_attn.v_proj.weight", ""),
    ("layers/attention/q/bias", "ln", _LAYER + "self_attn.q_proj.bias", "attention_bias"),
    ("layers/attention/k/bias", "lk", _LAYER + "self_attn.k_proj.bias", "attention_bias"),
    ("layers/attention/v/bias", "lk", _LAYER + "self_attn.v_proj.bias", "attention_bias"),
    ("layers/attention/q_norm/scale", "lh", _LAYER + "self_attn.q_norm.weight", "query_key_norm"),
    ("layers/attention/k_norm/scale", "lh", _LAYER + "self_attn.k_norm.weight", "query_key_norm"),
    ("layers/attention/o/kernel", "lnd", _LAYER + "self_attn.o_proj.weight", ""),
    ("layers/mlp_norm/scale", "ld", _LAYER + "post_attention_layernorm.weight", ""),
    ("layers/mlp/gate/kernel", "ldf", _LAYER + "mlp.gate_proj.weight", ""),
    ("layers/mlp/up/kernel", "ldf", _LAYER + "mlp.up_proj.weight", ""),
    ("layers/mlp/down/kernel", "lfd", _LAYER + "mlp.down_proj.weight", ""),
    ("final_norm/scale", "d", "model.norm.weight", ""),
    ("lm_head/kernel", "dv", "lm_head.weight", "has_lm_head"),
)


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Path such as "layers/attention/q/kernel" to shape, for every parameter of a decoder."""
    sizes = {
        "v": config.vocab_size,
        "d": config.hidden_size,
        "f": config.intermediate_size,
        "l": config.num_layers,
        "n": config.num_heads * config.head_dim,
        "k": config.num_kv_heads * config.head_dim,
        "h": config.head_dim,
    }
    return {
        path: tuple(sizes[axis] for axis in axes)
        for path, axes, _, needed in PARAMETERS
        if not needed or getattr(config, needed)
    }


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads the object in a JSON file of a model folder.

    Raises:
      ModelError: the file is missing or holds no JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path.parent}: a model folder needs {path.name}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(values, dict):
        raise ModelError(f"{path}: must hold a JSON object")
    return values


def _check_supported(values: Mapping[str, Any], source: str) -> str:
    """Returns the model type; raises for each feature that the computation would ignore."""
    model_type = values.get("model_type")
    if model_type not in _ARCHITECTURES:
        raise ModelError(f"{source}: model_type {model_type!r} is not supported: only {_FAMILY}")
    for name in values.get("architectures") or ():
        if name != _ARCHITECTURES[model_type]:
            raise ModelError(f"{source}: architecture {name} is not supported: only {_FAMILY}")
    layer_types = set(values.get("layer_types") or ()) - {"full_attention"}
    unsupported = {
        "attention_bias": model_type != "qwen2" and values.get("attention_bias"),
        "mlp_bias": values.get("mlp_bias"),
        "use_sliding_window": values.get("use_sliding_window"),
        "layer_types": model_type.startswith("qwen") and layer_types,
        "partial_rotary_factor": (values.get("partial_rotary_factor") or 1.0) != 1.0,
        "quantization_config": values.get("quantization_config"),
        "hidden_act": values.get("hidden_act") != "silu",
    }
    for name, is_unsupported in unsupported.items():
        if is_unsupported:
            raise ModelError(f"{source}: {name} {values.get(name)!r} is not supported")
    return model_type


# Constants that were fixed in the code at first: key to the first version of transformers whose
# files state it.
_ADDED_IN = {"num_key_value_heads": (4, 31), "rope_theta": (4, 33)}


def _is_older_than(values: Mapping[str, Any], key: str) -> bool:
    """Tells whether a file was written by a version of transformers that did not know `key`."""
    parts = str(values.get("transformers_version", "")).split(".")
    if len(parts) < 2 or not (parts[0].isdigit() and parts[1].isdigit()):
        return False
    return (int(parts[0]), int(parts[1])) < _ADDED_IN[key]


def _number(values: Mapping[str, Any], key: str, kind: type, source: str) -> Any:
    """Reads a required number; constants that old files could not state have their old value."""
    value = values.get(key)
    if value is None and key in _ADDED_IN and _is_older_than(values, key):
        return 10000.0 if key == "rope_theta" else values["num_attention_heads"]
    if value is None:
        raise ModelError(f"{source}: {key} is missing")
    allowed = (int,) if kind is int else (int, float)
    if isinstance(value, bool) or not isinstance(value, allowed):
        raise ModelError(f"{source}: {key} {value!r} is not a number")
    return kind(value)


def _rope(values: Mapping[str, Any], source: str) -> tuple[float, RopeScaling]:
    """Reads base and scaling in the old layout (rope_theta, rope_scaling) or the new one.

    In a file with both layouts `rope_scaling` replaces `rope_parameters`, as in transformers.
    """
    old, new = values.get("rope_scaling") or {}, values.get("rope_parameters") or {}
    for name, rope in (("rope_scaling", old), ("rope_parameters", new)):
        if not isinstance(rope, Mapping) or any(isinstance(v, Mapping) for v in rope.values()):
            raise ModelError(f"{source}: {name} {rope!r} is not an object of numbers")
    rope = old or new
    if old and new:
        # transformers then takes 10000 where neither rope_scaling nor the file itself has a base.
        rope = {"rope_theta": values.get("rope_theta", 10000.0), **old}
        if new.get("rope_theta", rope["rope_theta"]) != rope["rope_theta"]:
            raise ModelError(
                f"{source}: rope_scaling and rope_parameters disagree about rope_theta, "
                f"{rope['rope_theta']} and {new['rope_theta']}"
            )
    base = _number(rope if "rope_theta" in rope else values, "rope_theta", float, source)
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(f"{source}: partial_rotary_factor is not supported")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type == "default":
        return base, None
    if rope_type not in _ROPE_TYPES:
        raise ModelError(f"{source}: RoPE scaling {rope_type!r} is not supported")
    kind = _ROPE_TYPES[rope_type]
    window = "original_max_position_embeddings"
    if kind is Llama3Rope and values.get(window) is not None:
        rope = {window: values[window], **rope}
        if rope[window] != values[window]:
            raise ModelError(
                f"{source}: {window} is {values[window]}, but {rope[window]} in the RoPE scaling"
            )
    fields = {
        field.name: _number(rope, field.name, field.type, source)  # type: ignore[arg-type]
        for field in dataclasses.fields(kind)
    }
    return base, kind(**fields)
