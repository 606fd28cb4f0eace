"""Parts of a program made from its configuration: model, task, actor."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import models
from env.base import Task
from env.code_task import CodeTask
from env.datasets import Dataset, load_dataset
from env.executor import CodeExecutor
from etpo_jax.config import Config, TaskConfig
from etpo_jax.rollout import Actor
from etpo_jax.sampler import Sampler
from models.tokenizer import Tokenizer
from models.transformer import Decoder


@dataclasses.dataclass(frozen=True)
class Language:
    """A language model: its trunk, its weights (the frozen base) and its tokenizer."""

    model: Decoder
    base: Any
    tokenizer: Tokenizer


def use_compilation_cache(path: str) -> None:
    """Keeps compiled programs in this folder; nothing if it is empty."""
    if not path:
        return
    folder = Path(path).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def load_language(config: Config, mesh: Mesh) -> Language:
    """Reads `--model`, sharded over the mesh.

    Raises:
      models.errors.ModelError: for a folder that cannot be used.
    """
    tokenizer = Tokenizer(config.model.model)
    model, base = models.load(config.model.model, mesh=mesh, dtype=jnp.dtype(config.model.dtype))
    return Language(model.clone(remat=config.model.remat), base, tokenizer)


def open_dataset(config: TaskConfig) -> Dataset:
    """The table of `--dataset`."""
    return load_dataset(
        config.dataset,
        data_dir=config.data_dir,
        target=config.target,
        description=config.task_description,
    )


@contextlib.contextmanager
def open_task(config: Config) -> Iterator[tuple[Task, str]]:
    """The task of `--dataset` with its executor running, and the isolation that is in force."""
    dataset = open_dataset(config.task)
    execution = config.execution
    executor = CodeExecutor(
        dataset,
        num_workers=execution.num_workers or os.cpu_count() or 1,
        timeout_s=execution.timeout_s,
        memory_bytes=execution.memory_mb * 2**20,
        num_splits=config.task.num_splits,
        isolation=execution.isolation,
    )
    with executor:
        task = CodeTask(
            dataset,
            executor,
            max_steps=config.task.max_steps,
            prompt_style=config.task.prompt_style,
        )
        yield task, executor.isolation


def make_actor(config: Config, language: Language, mesh: Mesh) -> Actor:
    """The actor that samples as configured."""
    sampler = Sampler(
        language.model.config,
        language.tokenizer.eos_ids,
        language.tokenizer.pad_id,
        config.sampling,
        mesh=mesh,
    )
    return Actor(
        sampler,
        language.tokenizer,
        config.model.max_prompt_length,
        config.model.length_multiple,
    )
