"""Makes the model fixtures: small random models of each family, and the logits of PyTorch for them.

`python -m tests.golden.make_logits` needs torch and writes, for each family, a folder as
`save_pretrained` of transformers writes it, and logits.npz beside the weights; for the stand-in,
whose weights are in models/tiny, the logits and the digest of its weights. Names after the command
(llama2, ..., stand_in) limit it to these.
"""

import functools
import hashlib
import json
import pathlib
import shutil
import sys

import ml_dtypes
import numpy as np

FOLDER = pathlib.Path(__file__).parent
STAND_IN = FOLDER.parent.parent / "models" / "tiny"
# Values that all families share. The sizes are all different, so that no two can be confused.
_SIZES = {
    "vocab_size": 72,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# One frequency is kept, one lies on the ramp, and two are divided by the factor.
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 1000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 48,
}


def _rope(base: float, **scaling: object) -> dict:
    return {"rope_type": "default", "rope_theta": base, **scaling}


# Family to its class, its own values, the stored type, and the largest file (None for one file).
FAMILIES: dict[str, tuple[str, dict, str, str | None]] = {
    "llama2": (
        "Llama",
        {"num_key_value_heads": 4, "rope_parameters": _rope(10000.0)},
        "float16",
        None,
    ),
    "codellama": (  # grouped key heads as in 34B, and heads whose sizes do not add up to the width
        "Llama",
        {"num_key_value_heads": 2, "head_dim": 16, "rope_parameters": _rope(1000000.0)},
        "bfloat16",
        None,
    ),
    "llama3": (
        "Llama",
        {"num_key_value_heads": 2, "tie_word_embeddings": True, "rope_parameters": _LLAMA3_ROPE},
        "bfloat16",
        "20KB",
    ),
    "deepseek": (
        "Llama",
        {
            "num_key_value_heads": 4,
            "rope_parameters": _rope(100000.0, rope_type="linear", factor=4.0),
        },
        "bfloat16",
        None,
    ),
    "qwen2": (
        "Qwen2",
        {"num_key_value_heads": 2, "rope_parameters": _rope(1000000.0), "rms_norm_eps": 1e-6},
        "float32",
        "60KB",
    ),
    "qwen3": (
        "Qwen3",
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "tie_word_embeddings": True,
            "rope_parameters": _rope(1000000.0),
            "rms_norm_eps": 1e-6,
        },
        "bfloat16",
        None,
    ),
    "mistral": (  # a window that is shorter than the rows
        "Mistral",
        {"num_key_value_heads": 2, "sliding_window": 7, "rope_parameters": _rope(10000.0)},
        "bfloat16",
        None,
    ),
}


def make_model(family: str, seed: int):
    """A random model of a family, in torch, its weights large enough to make every part matter."""
    import torch
    import transformers

    kind, special, _, _ = FAMILIES[family]
    config = getattr(transformers, f"{kind}Config")(**{**_SIZES, **special})
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            is_norm = name.endswith("norm.weight")
            weight.copy_(1 + 0.2 * noise if is_norm else 0.2 * noise)
    return model


def make_inputs(vocab_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens [b, s] and mask: a full row, one padded left, one right, one on both sides."""
    tokens = np.random.default_rng(seed).integers(0, vocab_size, (4, 24), np.int32)
    mask = np.ones_like(tokens, bool)
    mask[1, :9] = mask[2, 15:] = mask[3, :5] = mask[3, 20:] = False
    return tokens, mask


def load(kind: type, folder: pathlib.Path, dtype: str):
    """The torch model of a folder, ready to compute in a type."""
    import torch

    loaded = kind.from_pretrained(
        folder, dtype=getattr(torch, dtype), attn_implementation="eager", local_files_only=True
    )
    return loaded.eval()


def torch_logits(model, tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits [b, s, v] of a torch model; positions count real tokens."""
    import torch

    positions = np.where(mask, np.cumsum(mask, -1) - 1, 0)
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor(tokens, dtype=torch.long),
            attention_mask=torch.tensor(mask, dtype=torch.long),
            position_ids=torch.tensor(positions, dtype=torch.long),
        ).logits
    return logits.float().numpy()


def digest(folder: pathlib.Path) -> str:
    """Says whether logits belong to the weights of a folder."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def _make(family: str) -> None:
    import torch

    _, _, stored, max_file = FAMILIES[family]
    folder = FOLDER / family
    shutil.rmtree(folder, ignore_errors=True)
    model = make_model(family, seed=0).to(getattr(torch, stored))
    model.save_pretrained(folder, **({"max_shard_size": max_file} if max_file else {}))
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokens, mask = make_inputs(_SIZES["vocab_size"], seed=1)
    # Loaded again: casting the model would have rounded its rotary frequencies too.
    wide = torch_logits(load(type(model), folder, "float32"), tokens, mask)
    narrow = torch_logits(load(type(model), folder, "bfloat16"), tokens, mask)
    np.savez_compressed(
        folder / "logits.npz",
        tokens=tokens.astype(np.uint8),
        mask=mask,
        float32=wide[mask],
        bfloat16=narrow[mask].astype(ml_dtypes.bfloat16).view(np.uint16),
    )


def _make_stand_in() -> None:
    import transformers

    model = load(transformers.AutoModelForCausalLM, STAND_IN, "float32")
    tokens, mask = make_inputs(model.config.vocab_size, seed=1)
    logits = torch_logits(model, tokens, mask)
    np.savez_compressed(
        FOLDER / "stand_in_logits.npz",
        digest=digest(STAND_IN),
        tokens=tokens.astype(np.uint16),
        mask=mask,
        # The last real position of each row and a few tokens of every position keep this small.
        last=np.stack([row[real][-1] for row, real in zip(logits, mask, strict=True)]),
        some=logits[mask][:, ::37],
    )


def main(names: list[str]) -> None:
    import torch
    import transformers

    makers = {family: functools.partial(_make, family) for family in FAMILIES}
    makers["stand_in"] = _make_stand_in
    for name in names or makers:
        makers[name]()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    (FOLDER / "versions.json").write_text(json.dumps(versions, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
