"""What a run says of itself before its first update, each fact with a name in front."""

import math
import os
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import Mesh

from env.base import Task
from env.tasks.code_task import CodeTask
from env.version import __version__
from etpo_jax import about_tables, build
from etpo_jax.acting import formats
from etpo_jax.acting.formats import Prompt
from etpo_jax.build import Language
from etpo_jax.config import Config
from etpo_jax.devices import memory
from etpo_jax.runs import files

Fact = tuple[str, str]
"""A name and a text, which may have several lines."""

_PROMPT_LINES = 12
_PROMPT_WIDTH = 88


def title(config: Config) -> Fact:
    """The first line: version, algorithm, task, seed and folder."""
    place = f", in {config.run.run_dir}" if config.run.run_dir else ""
    text = f"{config.run.algorithm} on {config.task.title}, seed {config.run.seed}{place}"
    return f"etpo {__version__}", text


def steps(config: Config) -> str:
    """Environment steps, updates and gradient steps of a run."""
    run = config.run
    updates = math.ceil(run.num_env_steps / run.collection_size)
    text = f"{count(run.num_env_steps, 'environment step')} = {count(updates, 'update')} of "
    text += count(run.collection_size, "action")
    if config.algorithm.learns:
        number, size = config.algorithm.gradient_steps(config)
        text += f", {count(number, 'gradient step')} of {count(size, 'transition')}"
        text += " in each" * (updates > 1)
    return text


def about_task(config: Config, task: Task, mesh: Mesh) -> Iterator[Fact]:
    """Steps, devices, memory if it is too little, wall and table of a run whose task is open."""
    yield "steps", steps(config)
    yield "devices", _devices(mesh)
    if short := memory.warning(config):
        yield "memory", short
    yield "wall", _wall(config, task)
    if table := about_tables.introduction(task):
        yield "table", table


def about_model(config: Config, language: Language, seconds: float) -> Iterator[Fact]:
    """Size of a model that was read within `seconds`, and the format of its prompts."""
    size = _size(language.base).replace("numbers", "parameters")
    text = f"{config.model.model}, {size} as {config.model.compute_dtype}, read in {seconds:.1f} s"
    yield "model", text
    if note := build.precision_note(config, jax.default_backend()):
        yield "precision", note
    yield prompt_format(config, language)


def prompt_format(config: Config, language: Any) -> Fact:
    """The format of the prompts of a model with a tokenizer."""
    text = formats.describe(config.task.format_name, language.tokenizer)
    return "prompts", text.removeprefix("prompts: ")


def about_training(config: Config, state: Any) -> Iterator[Fact]:
    """Size of the state of an algorithm that learns."""
    if config.algorithm.learns:
        yield "training", f"{_size(state)} in the trained networks and the optimiser"


def about_prompt(prompt: Prompt) -> Fact:
    """A rendered prompt, shortened to a dozen lines."""
    lines = [line[:_PROMPT_WIDTH] for line in prompt.text.strip("\n").split("\n")]
    if (left_out := len(lines) - _PROMPT_LINES) > 0:
        head, tail = lines[: _PROMPT_LINES - 4], lines[-4:]
        lines = [*head, f"... {count(left_out, 'more line')} ...", *tail]
    length = f"{len(prompt.tokens)} tokens" if len(prompt.tokens) else "the first one"
    return "prompt", "\n".join([length, *(f"| {line}" for line in lines)])


def count(number: int, noun: str) -> str:
    """A number with its noun, in the plural where that is right."""
    return f"{number} {noun}{'s' * (number != 1)}"


def _devices(mesh: Mesh) -> str:
    axes = ", ".join(f"{name}:{size}" for name, size in mesh.shape.items())
    hosts = f" of {count(jax.process_count(), 'host')}" if jax.process_count() > 1 else ""
    kind = mesh.devices.flat[0].device_kind
    return f"{mesh.devices.size} x {kind}{hosts}, mesh {axes}"


def _wall(config: Config, task: Task) -> str:
    isolation = build.isolation_of(task)
    if not isinstance(task, CodeTask) or config.task.task:
        return isolation
    workers = config.execution.num_workers or os.cpu_count() or 1
    each = " on each node" if config.execution.executor.startswith("ray") else ""
    return f"{isolation}, {count(workers, 'program')} at once{each}"


def _size(tree: Any) -> str:
    """Number of values in the arrays of a tree, and their bytes on all devices together."""
    arrays = jax.tree.leaves(tree)
    number = sum(array.size for array in arrays)
    num_bytes = sum(array.size * array.dtype.itemsize for array in arrays)
    shown = f"{number / 1e6:,.2f} M" if number >= 1e4 else f"{number:,}"
    return f"{shown} numbers, {files.bytes_text(num_bytes)}"
