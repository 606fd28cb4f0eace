"""Writes the policy of a run for Hugging Face's tools, as a model or as a PEFT adapter.

  python -m etpo_jax.export --run_dir=runs/tiny --output=tuned
  python -m etpo_jax.export --run_dir=runs/lora --output=adapter --format=peft

A model has its adapters added to the weights; `transformers` loads it and `--model=tuned` does.
"""

import os
import pathlib
import shutil
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

import models
from env import command_line
from env.base import UsageError
from etpo_jax.config import Config
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.runs import directory, files, fingerprint
from etpo_jax.runs.checkpoint import choose, read_role
from models import peft_format
from models.config import DecoderConfig, read_json
from models.errors import ModelError
from models.repository import local_folder

# What a model folder holds beside weights and config.json.
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

_flags = flags.FlagValues()
flags.DEFINE_string("run_dir", None, "Run whose policy is written.", flag_values=_flags)
flags.DEFINE_integer(
    "checkpoint", None, "Update of the run; the newest by default.", flag_values=_flags
)
flags.DEFINE_string("output", None, "Folder to be made.", flag_values=_flags)
flags.DEFINE_enum(
    "format",
    "merged",
    ["merged", "peft"],
    "merged is a model of its own; peft is an adapter to the model that was trained.",
    flag_values=_flags,
)
flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "Type of the weights of a merged model; that of the run's --dtype by default.",
    flag_values=_flags,
)
flags.DEFINE_string(
    "model",
    None,
    "Where the model that was trained lies now; by default where it lay then.",
    flag_values=_flags,
)


def main() -> None:
    """Exports as the flags say and names the folder."""
    run_path, output = _required_path("run_dir"), _required_path("output")
    update = export(
        run_path,
        output,
        checkpoint=_flags["checkpoint"].value,
        as_adapter=_flags["format"].value == "peft",
        dtype=_flags["dtype"].value,
        model=_flags["model"].value,
    )
    print(f"{output}: the policy of {run_path} after update {update}")


def _required_path(name: str) -> pathlib.Path:
    value = _flags[name].value
    if value is None:
        raise UsageError(f"--{name} is missing")
    return pathlib.Path(value).expanduser()


def export(
    run_path: pathlib.Path,
    output: pathlib.Path,
    *,
    checkpoint: int | None = None,
    as_adapter: bool = False,
    dtype: str | None = None,
    model: str | None = None,
) -> int:
    """Writes the policy of a run into a new folder, which appears only when it is whole.

    Args:
      run_path: the run directory; the run may be under way.
      output: the folder to be made.
      checkpoint: the update whose policy is taken; None is the newest.
      as_adapter: a PEFT adapter in place of a model.
      dtype: of a merged model's weights; None is the run's `--dtype`.
      model: folder or repository of the model that was trained; None is the run's `--model`.

    Returns:
      The update of the checkpoint.

    Raises:
      UsageError: no such run or checkpoint, a folder that is there already, or a run without what
        is wanted.
      ModelError: the trained model cannot be read.
    """
    if output.exists():
        raise UsageError(f"--output={output}: is there already; name a new folder")
    if not directory.is_run_directory(run_path):
        raise UsageError(f"--run_dir={run_path}: is no run directory")
    config = Config.from_dict(files.read_json(run_path / directory.CONFIG))
    if config.run.algorithm == "reflection":
        raise UsageError(f"--run_dir={run_path}: reflection trains nothing; its model is --model")
    update = choose(run_path / directory.CHECKPOINTS, checkpoint)
    name = model or config.model.model
    fingerprint.check(run_path, name)
    folder = local_folder(name)
    part = output.with_name(f"{output.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    mesh = build_mesh()
    is_tied = config.learning.tie_policy and config.run.algorithm == "etpo"
    with jax.set_mesh(mesh):
        role = read_role(
            run_path / directory.CHECKPOINTS / str(update),
            ("critic", "trunk") if is_tied else ("policy",),
            mesh,
        )
        if as_adapter:
            _write_adapter(part, config, role, name, folder)
        else:
            _write_model(part, config, role, folder, dtype or config.model.dtype, mesh)
    names = _TOKENIZER_FILES if as_adapter else (*_TOKENIZER_FILES, _GENERATION)
    for file in names:
        if (folder / file).is_file():
            shutil.copyfile(folder / file, part / file)
    os.rename(part, output)
    return update


def _write_model(
    output: pathlib.Path,
    config: Config,
    role: dict[str, Any],
    folder: pathlib.Path,
    dtype: str,
    mesh: jax.sharding.Mesh,
) -> None:
    adapters = None
    if "params" in role:
        params, sizes = role["params"], DecoderConfig.from_folder(folder)
    else:
        decoder, params = models.load(folder, mesh=mesh, dtype=jnp.dtype(config.model.dtype))
        assert config.finetune.lora is not None  # what wrote adapters had them configured
        sizes, adapters = decoder.config, (role["lora"], config.finetune.lora)
    values = read_json(folder / "config.json")
    values.pop("torch_dtype", None)  # what older files call dtype
    models.save(output, sizes, params, dtype=jnp.dtype(dtype), values=values, adapters=adapters)


def _write_adapter(
    output: pathlib.Path, config: Config, role: dict[str, Any], name: str, folder: pathlib.Path
) -> None:
    if "lora" not in role or config.finetune.lora is None:
        raise UsageError("--format=peft: the run trained all weights (--finetune=full), no adapter")
    # PEFT finds a folder from wherever it is called.
    base_model = str(folder.resolve()) if pathlib.Path(name).expanduser().is_dir() else name
    sizes = DecoderConfig.from_folder(folder)
    peft_format.save(output, sizes, role["lora"], config.finetune.lora, base_model=base_model)


if __name__ == "__main__":
    command_line.run(main, errors=(ModelError,), flag_values=_flags)
