"""Writes the policy of a run for Hugging Face's tools, as a model or as a PEFT adapter.

  etpo export --run_dir=runs/demo --output=tuned
  etpo export --run_dir=runs/lora --output=adapter --format=peft

In a model, adapters are added to the weights; `transformers` and `--model=tuned` load it.
"""

from pathlib import Path

import jax
from absl import flags

from env import command_line
from env.base import UsageError
from etpo_jax import build
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.runs import directory, fingerprint, policy_folder
from etpo_jax.runs.checkpoint import read_role
from etpo_jax.runs.steps import read_newest
from models.errors import ModelError

_flags = flags.FlagValues()
flags.DEFINE_string("run_dir", None, "Run whose policy is written.", flag_values=_flags)
flags.DEFINE_integer(
    "checkpoint",
    None,
    "Update whose policy is written; by default the newest checkpoint's.",
    flag_values=_flags,
)
flags.DEFINE_string("output", None, "Folder that is made for the policy.", flag_values=_flags)
flags.DEFINE_enum(
    "format",
    "merged",
    list(policy_folder.FORMS),
    "merged writes a whole model, peft an adapter to the model that was trained.",
    flag_values=_flags,
)
flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "Type of the weights of a merged model; by default that of the run's --dtype.",
    flag_values=_flags,
)
flags.DEFINE_string(
    "model",
    None,
    "Folder or repository of the model that was trained, if it has moved since.",
    flag_values=_flags,
)


def main() -> None:
    """Exports as the flags say and prints the name of the folder."""
    run_path = _required_path("run_dir", "the folder of the run")
    output = _required_path("output", "a new folder for the policy")
    policy_folder.check_new(output)
    config = build.settings_of(directory.open_for_reading(run_path))
    keys = config.algorithm.policy_keys(config)
    if not keys:
        raise UsageError(
            f"--run_dir={run_path}: {config.run.algorithm} trains nothing; its model is --model"
        )
    model = _flags["model"].value or config.model.model
    fingerprint.check(run_path, model)
    mesh = build_mesh()
    with jax.set_mesh(mesh):
        update, role = read_newest(
            run_path / directory.CHECKPOINTS,
            _flags["checkpoint"].value,
            lambda path: read_role(path, keys, mesh),
        )
    policy_folder.write_policy(
        output,
        config,
        role,
        mesh,
        form=_flags["format"].value,  # type: ignore[arg-type]
        dtype=_flags["dtype"].value,
        model=model,
    )
    print(f"{output}: the policy of {run_path} after update {update}")
    if policy_folder.read_tilt(output) is not None:
        print(
            "Its weights alone are not the policy, which has a tilt: sample with tilt_processor.py "
            "of that folder, whose docstring has the call."
        )


def _required_path(name: str, meaning: str) -> Path:
    value = _flags[name].value
    if value is None:
        raise UsageError(f"--{name} is missing: name {meaning}")
    return Path(value).expanduser()


if __name__ == "__main__":
    command_line.run(main, errors=(ModelError,), flag_values=_flags)
