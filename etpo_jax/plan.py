"""Plan of a run before it is started: its steps, its memory, and whether it fits a device.

  etpo plan --flagfile=codellama_7b_v5e_16.flags --device=v5e
  etpo plan --flagfile=codellama_7b_v5e_16.flags --aot=v5e:4x4
  etpo plan --flagfile=codellama_7b_h200.flags --aot=h200

It needs no weights and no accelerator: `--model` may be a folder that holds config.json alone, and
the devices of `--mesh` need not exist. `--aot` compiles the run's programs for GPUs where JAX's
CUDA plugin is installed, and for TPUs where libtpu is.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
from absl import flags
from jax.sharding import AbstractMesh

from env import command_line
from etpo_jax import flags as settings_flags
from etpo_jax import startup
from etpo_jax.config import Config
from etpo_jax.devices import accelerators, aot, compiled_table, memory, topologies
from etpo_jax.devices.accelerators import Limit, gib, mib
from etpo_jax.devices.memory import Item, Memory, total
from etpo_jax.devices.mesh import abstract_mesh
from etpo_jax.launch_files import launch_folder
from etpo_jax.renamed import RENAMED
from etpo_jax.runs import directory, schedule
from models.config import DecoderConfig
from models.errors import ModelError
from models.repository import config_folder

_HINT = (
    "flags that save memory, cheapest first: --remat=full:logits=64, --microbatch_size, "
    "more devices in --mesh, --num_envs, --dtype, --finetune=full:dtype=bfloat16, "
    "--optimizer=lion, --finetune=lora"
)

_flags = flags.FlagValues()
settings_flags.define_flags(_flags)
flags.DEFINE_enum(
    "device",
    None,
    list(accelerators.ACCELERATORS),
    "Kind of the devices in --mesh, for which the plan says whether the run fits.",
    flag_values=_flags,
)
flags.DEFINE_string("aot", None, topologies.HELP, flag_values=_flags)
flags.DEFINE_multi_enum(
    "aot_programs",
    list(aot.PROGRAMS),
    aot.PROGRAMS,
    "Program to compile with --aot; the flag may be given twice.",
    flag_values=_flags,
)
flags.DEFINE_float(
    "aot_timeout_s",
    None,
    "Seconds after which the compilation of a program is given up; none by default.",
    lower_bound=1.0,
    flag_values=_flags,
)
flags.DEFINE_string(
    "aot_folder",
    None,
    "Folder in which the text of each compiled program is kept, as PROGRAM.hlo.gz.",
    flag_values=_flags,
)


def main() -> int:
    """Prints the plan; the exit code is 1 if the run is known not to fit."""
    # A plan must not take an accelerator from a run that is under way.
    jax.config.update("jax_platforms", "cpu")
    config = settings_flags.from_flags(_flags)
    name = _flags["device"].value
    limit = accelerators.stated_limit(accelerators.find(name)) if name else None
    text, fits = _describe(config, limit)
    print(text, flush=True)
    check_disk(config)
    if _flags["aot"].value:
        lines, is_compiled = _compiler_lines(config, _flags["aot"].value)
        print("\n".join(lines))
        fits = fits and is_compiled
    return 0 if fits else 1


def describe(config: Config) -> str:
    """The plan of a run on the devices of this machine, as text.

    Raises:
      models.errors.ModelError: the model's folder or config cannot be used.
      UsageError: the mesh cannot be made.
    """
    return _describe(config, accelerators.limit_here())[0]


def check_disk(config: Config) -> None:
    """Raises UsageError if the disk of --run_dir is too small for the run's checkpoints."""
    endpoint = getattr(config.learning, "endpoint", "")
    if not config.run.run_dir or endpoint:
        return
    decoder = DecoderConfig.from_folder(config_folder(config.model.model))
    needed = memory.estimate(config, decoder, abstract_mesh(config.model.mesh), "cpu").checkpoint
    if needed:
        path = Path(config.run.run_dir).expanduser() / directory.CHECKPOINTS
        schedule.check_disk(path, needed)


def _describe(config: Config, limit: Limit | None) -> tuple[str, bool]:
    """The text of the plan, and False if the run is known not to fit."""
    if endpoint := getattr(config.learning, "endpoint", ""):
        model = f"model {config.model.model} behind {endpoint}: no device is needed"
        return "\n".join([*_step_lines(config), model]), True
    mesh = abstract_mesh(config.model.mesh)
    decoder = DecoderConfig.from_folder(config_folder(config.model.model))
    needed = memory.estimate(config, decoder, mesh, limit.device.platform if limit else "cpu")
    lines = [*_step_lines(config), *_model_lines(config, decoder, mesh), "", *_memory_lines(needed)]
    lines += _checkpoint_lines(needed)
    if limit is None:
        lines.append(
            "figures of programs are those of TPUs; CPUs need less, above all where gradient steps "
            "pack rows"
        )
        return "\n".join(lines), True
    lines.append(limit.verdict(needed.peak))
    fits = needed.peak <= limit.num_bytes
    if not fits:
        lines.append(_HINT)
    return "\n".join(lines), fits


def _step_lines(config: Config) -> Iterator[str]:
    yield f"{config.run.algorithm} on {config.task.title}, seed {config.run.seed}"
    yield startup.steps(config)


def _model_lines(config: Config, decoder: DecoderConfig, mesh: AbstractMesh) -> Iterator[str]:
    axes = ", ".join(f"{name}:{size}" for name, size in mesh.shape.items())
    yield (
        f"prompts up to {config.model.max_prompt_length} tokens, actions up to "
        f"{config.sampling.max_new_tokens}"
    )
    yield f"mesh {axes}: {startup.count(math.prod(mesh.shape.values()), 'device')}"
    yield (
        f"model {config.model.model}: {decoder.num_layers} layers, width {decoder.hidden_size}, "
        f"vocabulary {decoder.vocab_size}, {config.model.compute_dtype}"
    )


def _memory_lines(needed: Memory) -> Iterator[str]:
    text = gib if needed.peak >= 2**30 else mib
    yield f"{'on each device':36}{'parameters':>14}{'memory':>14}"
    phases = (
        ("always", needed.resident),
        ("while actions are sampled, about", needed.generation),
        ("in a gradient step, about", needed.gradient_step),
    )
    for title, items in phases:
        if items:
            yield title
            yield from _item_lines(items, text)
    is_learning = total(needed.gradient_step) > total(needed.generation)
    phase = "in a gradient step" if is_learning else "while actions are sampled"
    yield f"{'peak':50}{text(needed.peak):>14}  {phase}"


def _checkpoint_lines(needed: Memory) -> Iterator[str]:
    if not needed.checkpoint:
        return
    text = gib if needed.checkpoint >= 2**30 else mib
    disk = text(schedule.disk_needed(needed.checkpoint))
    yield (
        f"checkpoints: {text(needed.checkpoint)} each, {disk} of disk while one is written beside "
        f"the {schedule.KEPT} that are kept"
    )


def _item_lines(items: tuple[Item, ...], text: Callable[[int], str]) -> Iterator[str]:
    for item in items:
        count = f"{item.num_parameters / 1e6:,.2f} M" if item.num_parameters else ""
        yield f"  {item.name:34}{count:>14}{text(item.num_bytes):>14}"
    yield f"  {'sum':48}{text(total(items)):>14}"


def _compiler_lines(config: Config, name: str) -> tuple[list[str], bool]:
    """What the compiler says of the programs, and True if all of them fit."""
    programs = list(_flags["aot_programs"].value or ())
    if not config.algorithm.learns and "gradient_step" in programs:
        programs.remove("gradient_step")
    decoder = DecoderConfig.from_folder(config_folder(config.model.model))
    limit = accelerators.stated_limit(topologies.find(name).device)
    mesh = abstract_mesh(config.model.mesh)
    needed = memory.estimate(config, decoder, mesh, limit.device.platform)
    folder = _flags["aot_folder"].value
    made = aot.compile_for(
        config,
        name,
        programs,
        timeout_s=_flags["aot_timeout_s"].value,
        folder=folder and Path(folder),
    )
    lines = ["", f"compiled for {name}, on each device ({gib(limit.num_bytes)}{limit.source})"]
    lines += compiled_table.lines(made, needed, limit.num_bytes)
    return lines, compiled_table.fits(made, needed, limit.num_bytes)


if __name__ == "__main__":
    command_line.run(
        main,
        errors=(ModelError,),
        flag_values=_flags,
        sections=settings_flags.help_sections(_flags),
        flagfile_folders=(launch_folder(),),
        before_parsing=lambda arguments: settings_flags.define_chosen(arguments, _flags),
        renamed=RENAMED,
    )
