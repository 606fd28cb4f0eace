"""Adapters in the format of Hugging Face PEFT, which adds them to the published weights."""

import json
import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors.numpy

from models.config import DecoderConfig
from models.convert import adapter_of, published_tensors
from models.lora import LoraConfig

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def save(
    folder: str | pathlib.Path,
    config: DecoderConfig,
    lora: Mapping,
    lora_config: LoraConfig,
    *,
    base_model: str,
) -> None:
    """Writes an adapter that `peft.PeftModel.from_pretrained(model, folder)` reads.

    Factors are stored transposed and in float32: `lora_A` [r, in] and `lora_B` [out, r].

    Args:
      folder: folder to write, made if absent.
      config: sizes of the model that the adapter belongs to.
      lora: {"layers": {module: {target: {"a": [l, in, r], "b": [l, r, out]}}}}
      lora_config: sizes and targets of the adapter.
      base_model: folder or repository from which PEFT is to load that model.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors, modules = {}, set()
    for name, source in published_tensors(config).items():
        pair = adapter_of(lora, source)
        if pair is None:
            continue
        module = name.removesuffix(".weight")
        modules.add(module.rsplit(".", 1)[1])
        for factor, published in (("a", "lora_A"), ("b", "lora_B")):
            tensors[f"base_model.model.{module}.{published}.weight"] = np.ascontiguousarray(
                pair[factor].T
            )
    safetensors.numpy.save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": lora_config.rank,
        "lora_alpha": lora_config.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(modules),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
