"""A trained policy as a folder for Hugging Face's tools: a whole model, or a PEFT adapter.

A model cannot hold the coefficients of a tilt. They stand in `tilt.json` beside its weights, with a
logits processor that samples from the policy; it needs the reference beside the policy.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

import models
from env.base import UsageError
from etpo_jax.config import Config
from etpo_jax.distribution import TILT, TILT_STATISTICS
from etpo_jax.roles import Role
from models import peft_format
from models.config import DecoderConfig, read_json
from models.errors import ModelError
from models.repository import local_folder

Form = Literal["merged", "peft"]
FORMS: tuple[Form, ...] = ("merged", "peft")

# Files that a model folder may hold beside weights and config.json.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)
_GENERATION = "generation_config.json"
_TILT_FILE = f"{TILT}.json"
_PROCESSOR = "tilt_processor.py"


class TiltedPolicy(NamedTuple):
    """What an exported folder says about a tilted policy, beside its weights.

    Attributes:
      reference: folder or repository of the model that was trained.
      coefficients: theta of `etpo_jax.distribution.Distribution.tilted`.
      temperature, support_threshold: those that theta was trained with.
    """

    reference: str
    coefficients: tuple[float, ...]
    temperature: float
    support_threshold: float


def read_tilt(folder: Path) -> TiltedPolicy | None:
    """The tilt of an exported policy; None where a model folder has none.

    Raises:
      UsageError: the file cannot be used.
    """
    path = folder / _TILT_FILE
    if not path.is_file():
        return None
    try:
        values = read_json(path)
        return TiltedPolicy(
            values["reference"],
            tuple(map(float, values["coefficients"])),
            float(values["temperature"]),
            float(values["support_threshold"]),
        )
    except (ModelError, KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: cannot be used as a tilt: {error}") from error


def check_new(output: Path) -> None:
    """Raises UsageError if the folder to be made is there already."""
    if output.exists():
        raise UsageError(f"{output} is there already: name a new folder to export to")


def write_policy(
    output: Path,
    config: Config,
    role: Role,
    mesh: jax.sharding.Mesh,
    *,
    form: Form = "merged",
    dtype: str | None = None,
    model: str | None = None,
) -> None:
    """Writes a policy into a new folder, which appears only when it is complete.

    Args:
      output: the folder to be made.
      config: settings of the run.
      role: variables of the policy.
      mesh: devices of the arrays.
      form: a model with adapters added to the weights, or an adapter to the model that was trained.
      dtype: type of a model's weights; None is the run's `--dtype`.
      model: folder or repository of the model that was trained; None is the run's `--model`.

    Raises:
      UsageError: the folder is there already, or there is no adapter.
      models.errors.ModelError: the trained model cannot be read.
    """
    check_new(output)
    if form not in FORMS:
        raise UsageError(f"form {form!r}: must be {' or '.join(FORMS)}")
    name = model or config.model.model
    folder = local_folder(name)
    part = output.with_name(f"{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.parent.mkdir(parents=True, exist_ok=True)
    with jax.set_mesh(mesh):
        if form == "peft":
            _write_adapter(part, config, role, name, folder)
        else:
            _write_model(part, config, role, folder, dtype or config.model.compute_dtype, mesh)
    for file in (*_TOKENIZER_FILES, *([_GENERATION] if form == "merged" else [])):
        if (folder / file).is_file():
            shutil.copyfile(folder / file, part / file)
    if TILT in role:
        _write_tilt(part, config, role, name)
    os.rename(part, output)


def _write_tilt(output: Path, config: Config, role: Role, name: str) -> None:
    tilted = TiltedPolicy(
        str(Path(name).expanduser().resolve()) if Path(name).expanduser().is_dir() else name,
        tuple(jax.device_get(role[TILT]).tolist()),
        config.sampling.temperature,
        config.sampling.support_threshold,
    )
    values = {**tilted._asdict(), "statistics": TILT_STATISTICS._asdict()}
    (output / _TILT_FILE).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).with_name(_PROCESSOR), output / _PROCESSOR)


def _write_model(
    output: Path, config: Config, role: Role, folder: Path, dtype: str, mesh: jax.sharding.Mesh
) -> None:
    adapters: Any = None
    if "params" in role:
        params, sizes = role["params"], DecoderConfig.from_folder(folder)
    else:
        decoder, params = models.load(
            folder, mesh=mesh, dtype=jnp.dtype(config.model.compute_dtype)
        )
        sizes = decoder.config
        if "lora" in role:
            adapters = (role["lora"], config.finetune.adapters)
    values = read_json(folder / "config.json")
    values.pop("torch_dtype", None)  # the name of dtype in older files
    models.save(output, sizes, params, dtype=jnp.dtype(dtype), values=values, adapters=adapters)


def _write_adapter(output: Path, config: Config, role: Role, name: str, folder: Path) -> None:
    adapters = config.finetune.adapters
    if "lora" not in role or adapters is None:
        raise UsageError("--format=peft: the run trained all weights (--finetune=full), no adapter")
    # PEFT finds a folder from wherever it is called.
    base_model = str(folder.resolve()) if Path(name).expanduser().is_dir() else name
    sizes = DecoderConfig.from_folder(folder)
    peft_format.save(output, sizes, role["lora"], adapters, base_model=base_model)
