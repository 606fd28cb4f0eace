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
from env.base import Task, UsageError
from env.datasets import Dataset, load_dataset
from env.execution import metrics, reward_cache
from env.executor import CachedExecutor, CodeExecutor, Executor, Limits, RayExecutor
from env.tasks.code_task import CodeTask
from env.tasks.table_questions import TableQuestions
from env.tasks.toy import ToyTask
from etpo_jax.acting.rollout import SamplingActor
from etpo_jax.acting.sampler import Sampler
from etpo_jax.config import Config, TaskConfig
from models.tokenizer import Tokenizer
from models.transformer import Decoder

_QUESTIONS = "questions:"


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
      UsageError: for an attention that these devices do not have.
    """
    attention, devices = config.model.attention, jax.default_backend()
    wanted = {"cudnn": ("gpu", "an NVIDIA GPU"), "splash": ("tpu", "a TPU")}
    if attention in wanted and devices != wanted[attention][0]:
        raise UsageError(
            f"--attention={attention}: needs {wanted[attention][1]}, and the devices are {devices}"
        )
    tokenizer = Tokenizer(config.model.model)
    model, base = models.load(config.model.model, mesh=mesh, dtype=jnp.dtype(config.model.dtype))
    model = model.clone(
        remat=config.model.remat,
        lora=config.finetune.lora,
        attention_implementation=config.model.attention,
    )
    return Language(model, base, tokenizer)


def open_dataset(config: TaskConfig, name: str) -> Dataset:
    """The table of that name, with the settings of the task."""
    return load_dataset(
        name,
        data_dir=config.data_dir,
        target=config.target,
        description=config.task_description,
        max_rows=config.max_rows,
        num_splits=config.num_splits,
        accept_changed=config.accept_changed_data,
    )


@contextlib.contextmanager
def open_task(config: Config) -> Iterator[tuple[Task, str]]:
    """The task of `--dataset`, ready to step, and the isolation that its programs run in."""
    with contextlib.closing(_make_task(config)) as task:
        yield task, getattr(task, "isolation", "none: this task executes no programs")


def _make_task(config: Config) -> Task:
    name = config.task.dataset
    if name == "toy":
        return ToyTask(max_steps=config.task.max_steps)
    if name.startswith(_QUESTIONS):
        dataset = open_dataset(config.task, name.removeprefix(_QUESTIONS))
        return TableQuestions(dataset, max_steps=config.task.max_steps)
    dataset = open_dataset(config.task, name)
    return CodeTask(
        dataset,
        _make_executor(config, dataset),
        max_steps=config.task.max_steps,
        prompt_style=config.task.prompt_style,  # type: ignore[arg-type]
        forbidden_constructs=[text for text in config.task.forbidden_constructs.split(",") if text],
    )


def _make_executor(config: Config, dataset: Dataset) -> Executor:
    execution = config.execution
    metric = metrics.find(config.task.metric)
    rules: dict[str, Any] = {
        "num_splits": config.task.num_splits,
        "metric": metric,
        "libraries": execution.library_names,
        "limits": Limits(
            timeout_s=execution.timeout_s,
            cpu_s=execution.cpu_s,
            memory_bytes=execution.memory_bytes,
            max_threads=execution.max_threads,
            max_output_bytes=execution.max_output_bytes,
        ),
    }
    executor: CodeExecutor | RayExecutor
    if execution.executor == "ray":
        executor = RayExecutor(
            dataset,
            address=execution.ray_address,
            num_actors=execution.num_ray_actors,
            num_workers=execution.num_workers,
            isolation=execution.isolation,
            **rules,
        )
    else:
        executor = CodeExecutor(
            dataset,
            num_workers=execution.num_workers or os.cpu_count() or 1,
            isolation=execution.isolation,
            **rules,
        )
    if execution.reward_cache == "off":
        return executor
    folder = execution.reward_cache
    context = reward_cache.reward_context(dataset, **rules)
    return CachedExecutor(
        executor, reward_cache.default_folder() if folder == "auto" else folder, context
    )


def make_actor(config: Config, language: Language, mesh: Mesh) -> SamplingActor:
    """The actor that samples as configured.

    Raises:
      UsageError: if a longest prompt with a longest action exceeds the model's window.
    """
    window = language.model.config.max_position_embeddings
    longest = config.model.max_prompt_length + config.sampling.max_new_tokens
    if longest > window:
        raise UsageError(
            f"--max_prompt_length={config.model.max_prompt_length} and "
            f"--max_new_tokens={config.sampling.max_new_tokens}: together more than the model's "
            f"window of {window} tokens"
        )
    sampler = Sampler(
        language.model.config,
        language.tokenizer.eos_ids,
        language.tokenizer.pad_id,
        config.sampling,
        mesh=mesh,
        attention=config.model.attention,
    )
    return SamplingActor(
        language.model,
        language.base,
        sampler,
        language.tokenizer,
        config.model.max_prompt_length,
        config.model.length_multiple,
    )
