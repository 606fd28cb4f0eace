"""The plan's memory of programs beside what a compiler reports, in several settings.

    JAX_PLATFORMS=cpu python -m benchmarks.plan_against_compiler --device=h200 --output=table.md

compiles CodeLlama-7B's gradient step and generation for cards that need not be there (`etpo plan
--aot`), one program after the other. Rows are written as they come.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from env import command_line
from env.base import UsageError
from env.flagfiles import expand_flagfiles
from etpo_jax import flags as settings_flags
from etpo_jax.config import Config
from etpo_jax.devices import aot, compiled_table, memory, topologies
from etpo_jax.devices.mesh import abstract_mesh
from etpo_jax.launch_files import launch_folder
from models.config import DecoderConfig
from models.repository import config_folder

_flags = flags.FlagValues()
_DEVICE = flags.DEFINE_string(
    "device", "h200", "Card to compile for, see etpo plan --aot.", flag_values=_flags
)
_ROWS = flags.DEFINE_list(
    "rows", [], "Names of the rows to compile; all by default.", flag_values=_flags
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "File that gets the table; printed in any case.", flag_values=_flags
)

_HEAD = (
    "| program | settings | compiler, GiB | plan, GiB | difference |",
    "|---|---|---|---|---|",
)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A program, and what its run differs in from `launch/codellama_7b_h200.flags`.

    Attributes:
      name: names the row.
      is_full: trains all weights, by `launch/codellama_7b_full.flags`.
      flags: further flags.
      program: one of `aot.PROGRAMS`.
    """

    name: str
    is_full: bool
    flags: tuple[str, ...] = ()
    program: str = "gradient_step"


SETTINGS = (
    Setting("full", True),
    Setting("full_cudnn", True, ("--attention=cudnn",)),
    Setting("full_microbatches", True, ("--microbatch_size=4",)),
    Setting("full_four_cards", True, ("--mesh=fsdp:4",)),
    Setting("float32_four_cards", True, ("--mesh=fsdp:4", "--finetune=full")),
    Setting("adapters", False),
    Setting("adapters_dots", False, ("--remat=dots:logits=64",)),
    Setting("adapters_none", False, ("--remat=none:logits=64", "--minibatch_size=4")),
    Setting("adapters_float32", False, ("--dtype=float32",)),
    Setting("adapters_all_logits", False, ("--remat=full", "--attention=cudnn")),
    Setting("adapters_microbatches", False, ("--microbatch_size=4",)),
    Setting("adapters_four_cards", False, ("--mesh=fsdp:4",)),
    Setting("generation_8", False, ("--num_envs=8",), "generation"),
    Setting("generation_64", False, ("--num_envs=64",), "generation"),
)
"""Whole models; all kinds of trained weights, attention, remat, precision and meshes."""


def configuration(setting: Setting) -> Config:
    """The settings of a row's run."""
    values = flags.FlagValues()
    settings_flags.define_flags(values)
    files = ["codellama_7b_h200.flags", *["codellama_7b_full.flags"] * setting.is_full]
    arguments = [f"--flagfile={launch_folder() / name}" for name in files]
    expanded = expand_flagfiles([*arguments, *setting.flags])
    values(["plan_against_compiler", *expanded])
    return settings_flags.from_flags(values)


def estimated(config: Config, program: str, platform: str) -> int:
    """Bytes of the program's temporaries by the plan."""
    decoder = DecoderConfig.from_folder(config_folder(config.model.model))
    needed = memory.estimate(config, decoder, abstract_mesh(config.model.mesh), platform)
    return compiled_table.estimated(program, needed)


def rows(device: str, names: list[str]) -> Iterator[str]:
    """Rows of the table, each after its compilation.

    Raises:
      UsageError: the compiler is not installed, or there is no such row.
    """
    if unknown := set(names) - {setting.name for setting in SETTINGS}:
        raise UsageError(f"--rows={','.join(sorted(unknown))}: there is no such row")
    platform = topologies.find(device).device.platform
    for setting in SETTINGS:
        if names and setting.name not in names:
            continue
        config = configuration(setting)
        (made,) = aot.compile_for(config, device, [setting.program])
        planned = estimated(config, setting.program, platform)
        yield row(*titles(setting), made.temporaries, planned)


def titles(setting: Setting) -> tuple[str, str]:
    """The program of a row and its settings, in words."""
    title = "generation"
    if setting.program == "gradient_step":
        title = f"gradient step, {'all weights' if setting.is_full else 'adapters'}"
    return title, " ".join(setting.flags) or "as in the flagfile"


def row(program: str, settings: str, compiled: int, planned: int) -> str:
    """One row of the table."""
    return (
        f"| {program} | `{settings}` | {compiled / 2**30:.2f} | {planned / 2**30:.2f} | "
        f"{100 * (planned / compiled - 1):+.1f} % |"
    )


def main() -> None:
    """Prints the table while it is made, and writes it."""
    lines = list(_HEAD)
    print("\n".join(lines))
    for line in rows(_DEVICE.value, _ROWS.value):
        print(line, flush=True)
        lines.append(line)
        if _OUTPUT.value:
            Path(_OUTPUT.value).write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    command_line.run(main, flag_values=_flags)
