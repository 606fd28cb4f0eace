"""Parts of a run made from its settings: task, language model, actor, algorithm."""

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

import models
from env.base import Task, UsageError
from env.datasets import Dataset, load_dataset
from env.execution import metrics, reward_cache
from env.execution.ray_executor import RayExecutor
from env.execution.reward_cache import CachedExecutor, Executor
from env.executor import CodeExecutor
from env.sandbox.limits import Limits
from env.tasks.code_task import CodeTask
from env.tasks.loading import IN_PYTHON, load_task
from env.tasks.table_questions import TableQuestions
from env.tasks.toy import ToyTask
from etpo_jax.acting import formats
from etpo_jax.acting.endings import state_table
from etpo_jax.acting.external import ExternalModel, TextPrompts
from etpo_jax.acting.rollout import Actor, Prompts, SamplingActor, TokenPrompts
from etpo_jax.acting.sampler import Sampler
from etpo_jax.algorithms.base import Algorithm
from etpo_jax.algorithms.reflection import EndpointReflection
from etpo_jax.config import LENGTH_MULTIPLE, Config, ExecutionConfig, TaskConfig
from etpo_jax.runs import policy_folder
from models.tokenizer import Tokenizer
from models.transformer import Decoder

_QUESTIONS = "questions:"
_CACHE_VARIABLE = "JAX_COMPILATION_CACHE_DIR"


@dataclasses.dataclass(frozen=True)
class Language:
    """A language model: its decoder, its weights (the frozen base) and its tokenizer."""

    model: Decoder
    base: Any
    tokenizer: Tokenizer


@dataclasses.dataclass(frozen=True)
class Agent:
    """The acting and learning side of a run.

    Attributes:
      language: the model on our devices; None if it is behind an endpoint.
      prompts: encodes states for the actor.
      actor: samples actions.
      algorithm: learns from them.
    """

    language: Language | None
    prompts: Prompts
    actor: Actor
    algorithm: Algorithm


def use_compilation_cache() -> None:
    """Keeps compiled programs on the disk, so that the next start is quick.

    The folder is that of the environment variable JAX_COMPILATION_CACHE_DIR, by default
    ~/.cache/etpo_jax; an empty variable turns it off.
    """
    name = os.environ.get(_CACHE_VARIABLE, "~/.cache/etpo_jax")
    if not name:
        return
    folder = Path(name).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def check_model(config: Config) -> None:
    """Checks what can be known of `--model` and `--attention` before weights are read.

    Raises:
      UsageError: for an attention that these devices do not have, or for the exported weights of a
        tilted policy, which are not that policy.
    """
    if policy_folder.read_tilt(Path(config.model.model).expanduser()) is not None:
        raise UsageError(
            f"--model={config.model.model}: the weights of a tilted policy alone are not that "
            "policy; evaluate its run, or sample with the folder's tilt_processor.py"
        )
    attention, devices = config.model.attention, jax.default_backend()
    wanted = {"cudnn": ("gpu", "an NVIDIA GPU"), "splash": ("tpu", "a TPU")}
    if attention in wanted and devices != wanted[attention][0]:
        raise UsageError(
            f"--attention={attention}: needs {wanted[attention][1]}, and the devices are {devices}"
        )


def load_language(config: Config, mesh: Mesh) -> Language:
    """Reads `--model`, sharded over the mesh.

    Raises:
      models.errors.ModelError: for a folder that cannot be used.
      UsageError: as `check_model`.
    """
    check_model(config)
    tokenizer = Tokenizer(config.model.model)
    model, base = models.load(
        config.model.model, mesh=mesh, dtype=jnp.dtype(config.model.compute_dtype)
    )
    model = model.clone(
        remat=config.model.rematerialized,
        precision=config.model.matmul_precision,
        lora=config.finetune.adapters,
        attention_implementation=config.model.attention,
    )
    return Language(model, base, tokenizer)


def precision_note(config: Config, platform: str) -> str:
    """What float32 means where devices have faster products than float32's own; else empty."""
    faster = {"gpu": "TF32", "tpu": "bfloat16"}.get(platform)
    model = config.model
    if not faster or (model.compute_dtype, model.matmul_precision) != ("float32", "default"):
        return ""
    return (
        f"Matrix products of float32 are computed in {faster} on these devices; "
        "--dtype=float32:precision=highest computes them in float32."
    )


def open_dataset(config: TaskConfig, name: str) -> Dataset:
    """The table of that name, with the settings of the task."""
    return load_dataset(
        name,
        data_dir=config.data_dir,
        target=config.target,
        description=config.task_description,
        max_rows=config.max_rows,
        num_splits=config.num_splits,
        table_form=config.table_form,  # type: ignore[arg-type]
        regression=config.metric in metrics.REGRESSION_METRICS,
        holdout=config.holdout,
        rare_classes=config.rare_classes,
        strict=config.strict_data,
    )


@contextlib.contextmanager
def open_task(config: Config) -> Iterator[Task]:
    """The task that the settings describe, ready to step; closed at the end."""
    with contextlib.ExitStack() as opened:
        yield _make_task(config, opened)


def isolation_of(task: Task) -> str:
    """The isolation that a task's programs run in, for the records of a run."""
    return getattr(task, "isolation", "none: this task executes no programs")


def _make_task(config: Config, opened: contextlib.ExitStack) -> Task:
    """The task of the settings; what must be closed is put on `opened` as soon as it has begun."""
    if config.task.task.endswith(IN_PYTHON):
        raise UsageError(
            f"--task={config.task.task}: cannot be made from the settings alone; name a factory as "
            "--task=package.module:factory"
        )
    if config.task.task:
        return opened.enter_context(contextlib.closing(load_task(config.task.task)))
    name = config.task.dataset
    if name == "toy":
        return ToyTask(max_steps=config.task.max_steps)
    if name.startswith(_QUESTIONS):
        dataset = open_dataset(config.task, name.removeprefix(_QUESTIONS))
        return TableQuestions(dataset, max_steps=config.task.max_steps)
    dataset = open_dataset(config.task, name)
    return CodeTask(
        dataset,
        _make_executor(config, dataset, opened),
        max_steps=config.task.max_steps,
        prompt_style=config.task.prompt_style,  # type: ignore[arg-type]
    )


@contextlib.contextmanager
def open_holdout(config: Config, dataset: Dataset) -> Iterator[Executor]:
    """An executor on this machine that scores programs on the holdout; closed at the end.

    Raises:
      UsageError: the table has no holdout.
    """
    with contextlib.ExitStack() as opened:
        yield _make_executor(config, dataset, opened, holdout=True)


def _make_executor(
    config: Config, dataset: Dataset, opened: contextlib.ExitStack, *, holdout: bool = False
) -> Executor:
    execution = config.execution
    rules: dict[str, Any] = {
        "num_splits": config.task.num_splits,
        "metric": metrics.find(config.task.metric),
        "libraries": execution.library_names,
        "limits": _limits(execution),
    }
    if not execution.executor.startswith("ray"):
        _check_libraries(execution.library_names)
    executor: CodeExecutor | RayExecutor
    if execution.executor.startswith("ray") and not holdout:
        executor = RayExecutor(
            dataset,
            address=execution.executor_options.get("address", ""),
            num_actors=execution.executor_options.get("actors", 0),
            num_workers=execution.num_workers,
            isolation=execution.isolation,
            **rules,
        )
    else:
        executor = CodeExecutor(
            dataset,
            num_workers=execution.num_workers or os.cpu_count() or 1,
            isolation=execution.isolation,
            holdout=holdout,
            **rules,
        )
    opened.enter_context(executor)
    folder = execution.reward_cache
    if folder == "off":
        return executor
    context = reward_cache.reward_context(dataset, holdout=holdout, **rules)
    return CachedExecutor(
        executor, reward_cache.default_folder() if folder == "auto" else folder, context
    )


def _check_libraries(names: Sequence[str]) -> None:
    """Raises UsageError for a module of `--libraries` that is not installed here."""
    for name in names:
        top = name.partition(".")[0]
        if not top.isidentifier() or importlib.util.find_spec(top) is None:
            raise UsageError(f"--libraries={name}: there is no such module here; install it first")


def _limits(execution: ExecutionConfig) -> Limits:
    units = {"memory_mb": ("memory_bytes", 2**20), "max_output_kb": ("max_output_bytes", 2**10)}
    values: dict[str, Any] = {}
    for flag, value in execution.named_limits.items():
        name, unit = units.get(flag, (flag, 1))
        values[name] = value * unit
    return Limits(**values)


def make_agent(config: Config, task: Task, language: Language, mesh: Mesh) -> Agent:
    """The agent of a model on our devices.

    Raises:
      UsageError: for settings that do not fit the model.
    """
    prompts = make_prompts(config, task, language.tokenizer)
    return Agent(
        language,
        prompts,
        make_actor(config, language, mesh, action_end=prompts.action_end),
        config.algorithm(language.model, language.base, config, mesh),
    )


def make_prompts(config: Config, task: Task, tokenizer: Tokenizer) -> TokenPrompts:
    """The prompts of a task in the configured format, which the task is told.

    Raises:
      UsageError: the model does not have what the format needs.
    """
    chosen = formats.choose(config.task.format_name, tokenizer)
    return TokenPrompts(task, tokenizer, config.model.max_prompt_length, chosen)


def make_endpoint_agent(config: Config, task: Task) -> Agent:
    """The agent of a model behind `--endpoint`.

    Raises:
      UsageError: for a task that a chat model cannot be asked, or without the client.
    """
    external = ExternalModel(
        task,
        url=config.learning.endpoint,
        model=config.model.model,
        options=config.learning.options,
        sampling=config.sampling,
    )
    return Agent(None, TextPrompts(task), external, EndpointReflection(external))


def check_window(config: Config, window: int) -> None:
    """Raises UsageError if a longest prompt with a longest action exceeds a model's window."""
    longest = config.model.max_prompt_length + config.sampling.max_new_tokens
    if longest > window:
        raise UsageError(
            f"--max_prompt_length={config.model.max_prompt_length} and "
            f"--max_new_tokens={config.sampling.max_new_tokens}: together more than the model's "
            f"window of {window} tokens"
        )


def make_actor(
    config: Config, language: Language, mesh: Mesh, *, action_end: str = ""
) -> SamplingActor:
    """The actor that samples as configured; `action_end` as in `env.base.Task`.

    Raises:
      UsageError: as `check_window`.
    """
    check_window(config, language.model.config.max_position_embeddings)
    sampler = Sampler(
        language.model.config,
        language.tokenizer.eos_ids,
        language.tokenizer.pad_id,
        config.sampling,
        next_state_sv=state_table(action_end, language.tokenizer, language.model.config.vocab_size),
        vocabulary=language.tokenizer.vocab_size,
        mesh=mesh,
        attention=config.model.attention,
        precision=config.model.matmul_precision,
    )
    return SamplingActor(
        language.model,
        language.base,
        sampler,
        language.tokenizer,
        config.model.max_prompt_length,
        LENGTH_MULTIPLE,
        action_end=action_end,
    )


def settings_of(values: Mapping[str, Any]) -> Config:
    """The settings that a run directory stores, of a run whose model is on our devices.

    Raises:
      UsageError: the settings are of another version, or the model is behind an endpoint.
    """
    try:
        config = Config.from_dict(values)
    except ValueError as error:
        raise UsageError(f"the settings of the run cannot be used: {error}") from error
    if getattr(config.learning, "endpoint", ""):
        raise UsageError("the run's model is behind an endpoint, not in the run")
    return config
