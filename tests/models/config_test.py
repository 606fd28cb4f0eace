"""Published configurations are read as meant; everything that is not supported is named."""

import json
import math

import pytest

from models.config import DecoderConfig, LinearRope, Llama3Rope, parameter_shapes
from models.errors import ModelError


def published(**values):
    """Values that all published files of the family have in common, updated with `values`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "use_cache": True,
        **values,
    }


def sizes(vocab, hidden, inner, layers, heads, kv_heads, window):
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": window,
    }


QWEN2 = {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_sliding_window": False}
QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "use_sliding_window": False}
MISTRAL = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
LLAMA3_ROPE = {
    "factor": 32.0,
    "high_freq_factor": 4.0,
    "low_freq_factor": 1.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
# Model, its config.json as published, base, scaling, and the parameters that its card or paper
# states or that follow from adding up its checkpoint.
PUBLISHED = [
    pytest.param(
        published(rope_theta=1e6, **sizes(32016, 4096, 11008, 32, 32, 32, 16384)),
        (1e6, None, 6_738_546_688),
        id="CodeLlama-7b",
    ),
    pytest.param(
        published(rope_theta=1e6, **sizes(32016, 5120, 13824, 40, 40, 40, 16384)),
        (1e6, None, 13_016_028_160),
        id="CodeLlama-13b",
    ),
    pytest.param(
        published(rope_theta=1e6, **sizes(32000, 8192, 22016, 48, 64, 8, 16384)),
        (1e6, None, 33_743_970_304),
        id="CodeLlama-34b",
    ),
    pytest.param(  # written before there was a key for the base, which was 10000 then
        published(
            rope_scaling=None,
            pretraining_tp=1,
            transformers_version="4.31.0.dev0",
            **sizes(32000, 4096, 11008, 32, 32, 32, 4096),
        ),
        (1e4, None, 6_738_415_616),
        id="Llama-2-7b",
    ),
    pytest.param(
        published(
            rope_theta=500000.0,
            rope_scaling={**LLAMA3_ROPE, "factor": 8.0},
            attention_bias=False,
            mlp_bias=False,
            **sizes(128256, 4096, 14336, 32, 32, 8, 131072),
        ),
        (5e5, Llama3Rope(8.0, 1.0, 4.0, 8192), 8_030_261_248),
        id="Llama-3.1-8B",
    ),
    pytest.param(
        published(
            rope_theta=500000.0,
            rope_scaling=LLAMA3_ROPE,
            head_dim=64,
            **sizes(128256, 2048, 8192, 16, 32, 8, 131072),
        )
        | {"tie_word_embeddings": True},
        (5e5, Llama3Rope(32.0, 1.0, 4.0, 8192), 1_235_814_400),
        id="Llama-3.2-1B",
    ),
    pytest.param(
        published(rope_theta=10000.0, **sizes(32000, 2048, 5632, 22, 32, 4, 2048)),
        (1e4, None, 1_100_048_384),
        id="TinyLlama-1.1B",
    ),
    pytest.param(
        published(
            rope_theta=100000,
            rope_scaling={"factor": 4.0, "type": "linear"},
            **sizes(32256, 4096, 11008, 32, 32, 32, 16384),
        ),
        (1e5, LinearRope(4.0), 6_740_512_768),
        id="deepseek-coder-6.7b",
    ),
    pytest.param(
        published(
            **QWEN2
            | sizes(151936, 1536, 8960, 28, 12, 2, 32768)
            | {"rope_theta": 1000000.0, "sliding_window": 131072},
        )
        | {"rms_norm_eps": 1e-6, "tie_word_embeddings": True},
        (1e6, None, 1_543_714_304),
        id="Qwen2.5-Coder-1.5B",
    ),
    pytest.param(
        published(
            **QWEN3,
            rope_theta=1000000,
            head_dim=128,
            sliding_window=None,
            **sizes(151936, 1024, 3072, 28, 16, 8, 40960),
        )
        | {"rms_norm_eps": 1e-6, "tie_word_embeddings": True},
        (1e6, None, 596_049_920),
        id="Qwen3-0.6B",
    ),
    pytest.param(
        published(
            **MISTRAL,
            rope_theta=10000.0,
            sliding_window=4096,
            **sizes(32000, 4096, 14336, 32, 32, 8, 32768),
        ),
        (1e4, None, 7_241_732_096),
        id="Mistral-7B-v0.1",
    ),
    pytest.param(
        published(
            **MISTRAL,
            rope_theta=1000000.0,
            sliding_window=None,
            **sizes(32768, 4096, 14336, 32, 32, 8, 32768),
        ),
        (1e6, None, 7_248_023_552),
        id="Mistral-7B-v0.3",
    ),
]


def read(values):
    return DecoderConfig.from_dict(values, source="config.json")


@pytest.mark.parametrize(("values", "expected"), PUBLISHED)
def test_published(values, expected):
    base, scaling, num_parameters = expected
    config = read(values)
    assert config.rope_theta == base
    assert config.rope_scaling == scaling
    heads = values["num_attention_heads"]
    assert config.head_dim == values.get("head_dim", values["hidden_size"] // heads)
    assert config.attention_bias == (values["model_type"] == "qwen2")
    assert config.query_key_norm == (values["model_type"] == "qwen3")
    window = values.get("sliding_window") if values["model_type"] == "mistral" else None
    assert config.sliding_window == window
    assert sum(math.prod(shape) for shape in parameter_shapes(config).values()) == num_parameters


@pytest.mark.parametrize(("values", "expected"), PUBLISHED)
def test_written_and_read_again(values, expected):
    config = read(values)
    assert read(json.loads(json.dumps(config.to_dict()))) == config


CODE_LLAMA = PUBLISHED[0].values[0]


@pytest.mark.parametrize(
    "key",
    [
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "hidden_act",
        "model_type",
    ],
)
def test_a_forgotten_constant_is_named(key):
    values = {name: value for name, value in CODE_LLAMA.items() if name != key}
    with pytest.raises(ModelError, match=f"^config.json: {key}"):
        read(values)


@pytest.mark.parametrize(("family", "key"), [("Mistral", "sliding_window"), ("Qwen3", "head_dim")])
def test_a_forgotten_constant_of_a_family_is_named(family, key):
    """transformers has a default for it, which is not that of every published model."""
    values = next(case.values[0] for case in PUBLISHED if case.id.startswith(family))
    with pytest.raises(ModelError, match=rf"^config\.json: {key} is missing$"):
        read({name: value for name, value in values.items() if name != key})


def test_rope_scaling_beside_rope_parameters():
    """The older key wins, as in transformers; it was dropped without a word."""
    scaling = {"type": "linear", "factor": 4.0}
    both = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "rope_scaling": scaling}
    config = read({**CODE_LLAMA, **both})
    assert (config.rope_theta, config.rope_scaling) == (1e6, LinearRope(4.0))
    config = read({**CODE_LLAMA, **both, "rope_scaling": None})
    assert (config.rope_theta, config.rope_scaling) == (1e6, None)


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_llama3_scaling_with_its_window_outside(key):
    scaling = {**LLAMA3_ROPE, "rope_theta": 1e6}
    window = scaling.pop("original_max_position_embeddings")
    config = read({**CODE_LLAMA, key: scaling, "original_max_position_embeddings": window})
    assert config.rope_scaling == Llama3Rope(32.0, 1.0, 4.0, 8192)
    with pytest.raises(ModelError, match="original_max_position_embeddings is missing"):
        read({**CODE_LLAMA, key: scaling})


def test_newer_files_must_state_what_old_ones_could_not():
    values = {key: value for key, value in CODE_LLAMA.items() if key != "rope_theta"}
    assert read({**values, "transformers_version": "4.32.1"}).rope_theta == 10000.0
    for version in ("4.33.0", "5.23.0", "unknown", None):
        with pytest.raises(ModelError, match="rope_theta is missing"):
            read({**values, "transformers_version": version})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mixtral"}, "model_type 'mixtral' is not supported"),
        ({"model_type": "mistral"}, "architecture LlamaForCausalLM is not supported"),
        ({**MISTRAL, "sliding_window": 0}, "sliding_window=0: must be at least 1"),
        ({**MISTRAL, "sliding_window": "all"}, "sliding_window 'all' is not a number"),
        ({**QWEN3, "attention_bias": True}, "attention_bias True is not supported"),
        ({**QWEN3, "layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        ({"model_type": "gpt_bigcode"}, "model_type 'gpt_bigcode' is not supported"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"attention_bias": True}, "attention_bias True is not supported"),
        ({"mlp_bias": True}, "mlp_bias True is not supported"),
        ({"use_sliding_window": True}, "use_sliding_window True is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config .* is not supported"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "RoPE scaling 'dynamic'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "RoPE scaling 'yarn'"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
        ({"rope_scaling": 4.0}, "rope_scaling 4.0 is not an object"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "is not an object of numb"),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0, "rope_theta": 1e4},
                "rope_parameters": {"rope_theta": 5e5},
            },
            r"disagree about rope_theta, 10000\.0 and 500000\.0",
        ),
        (
            {"rope_scaling": LLAMA3_ROPE, "original_max_position_embeddings": 4096},
            "original_max_position_embeddings is 4096, but 8192 in the RoPE scaling",
        ),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported"),
        (
            {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is not supported",
        ),
        ({"num_attention_heads": "32"}, "num_attention_heads '32' is not a number"),
        ({"num_attention_heads": 0}, "hidden_size 4096 over num_attention_heads 0"),
        ({"num_key_value_heads": 5}, "num_kv_heads=5: must divide num_heads=32"),
        ({"hidden_size": 4097}, "hidden_size 4097 over num_attention_heads 32"),
        ({"head_dim": 127}, "head_dim=127: must be even"),
        ({"num_hidden_layers": 0}, "num_layers=0"),
    ],
)
def test_unsupported_is_named(change, message):
    with pytest.raises(ModelError, match=message) as caught:
        read({**CODE_LLAMA, **change})
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("config.json: ")


def test_folder(tmp_path):
    with pytest.raises(ModelError, match="no such model folder"):
        DecoderConfig.from_folder(tmp_path / "absent")
    with pytest.raises(ModelError, match=r"a model folder needs config\.json"):
        DecoderConfig.from_folder(tmp_path)
    path = tmp_path / "config.json"
    for text in ("{", "\udcff"):
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(ModelError, match="not valid JSON"):
            DecoderConfig.from_folder(tmp_path)
    path.write_text("[]")
    with pytest.raises(ModelError, match="must hold a JSON object"):
        DecoderConfig.from_folder(tmp_path)
    path.write_text(json.dumps(CODE_LLAMA))
    assert DecoderConfig.from_folder(tmp_path) == read(CODE_LLAMA)
