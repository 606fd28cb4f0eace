"""Opens a run as far as its first prompt, to find what would end the run at its start.

Table, wall and tokenizer are opened and the headers of the weights are checked. No weights are
read, and nothing is compiled or written.
"""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from env import shell_limits
from env.base import UsageError
from etpo_jax import build, startup
from etpo_jax.acting import formats
from etpo_jax.acting.external import TextPrompts
from etpo_jax.acting.rollout import Prompts
from etpo_jax.config import Config
from etpo_jax.devices import memory
from etpo_jax.devices.mesh import build_mesh
from etpo_jax.runs import directory, files, fingerprint, schedule, trackers
from models import convert
from models.config import DecoderConfig
from models.repository import local_folder
from models.tokenizer import Tokenizer


def rehearse(config: Config, *, overwrite: bool = False) -> Iterator[startup.Fact]:
    """Yields the facts that a run tells at its start.

    Args:
      config: settings of the run.
      overwrite: whether the run would delete an earlier one in its folder.

    Raises:
      UsageError: as the run would at its start.
      models.errors.ModelError: as the run would when it loads the model.
    """
    shell_limits.check()
    trackers.check(config.run.tracker_names)
    path = Path(config.run.run_dir).expanduser() if config.run.run_dir else None
    if path is not None:
        _check_folder(path, config, overwrite=overwrite)
    mesh = build_mesh(config.model.mesh)
    with build.open_task(config) as task, jax.set_mesh(mesh):
        yield from startup.about_task(config, task, mesh)
        prompts: Prompts
        if getattr(config.learning, "endpoint", ""):
            prompts = TextPrompts(task)
        else:
            started = time.monotonic()
            convert.check(config.model.model)
            decoder = DecoderConfig.from_folder(local_folder(config.model.model))
            build.check_model(config)
            build.check_window(config, decoder.max_position_embeddings)
            if path is not None and not overwrite:
                fingerprint.check(path, config.model.model)
            tokenizer = Tokenizer(config.model.model)
            took = f"{time.monotonic() - started:.1f} s"
            yield "model", f"{config.model.model}, its tokenizer and headers read in {took}"
            text = formats.describe(config.task.format_name, tokenizer)
            yield "prompts", text.removeprefix("prompts: ")
            yield from _disk(config, decoder, path)
            prompts = build.make_prompts(config, task, tokenizer)
        state = task.reset(np.random.default_rng([config.run.seed, 0, 0]))
        yield startup.about_prompt(prompts.encode(state))


def _disk(config: Config, decoder: DecoderConfig, path: Path | None) -> Iterator[startup.Fact]:
    """What checkpoints need, for an algorithm that learns; UsageError if the disk is too small."""
    if not config.algorithm.learns:
        return
    base = convert.abstract_parameters(decoder, jnp.dtype(config.model.compute_dtype))
    state = memory.abstract_state(memory.networks_of(config, decoder), base, config)
    num_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    needed = files.bytes_text(schedule.disk_needed(num_bytes))
    yield "disk", f"{needed} while a checkpoint is written beside those that are kept"
    if path is not None:
        schedule.check_disk(path / directory.CHECKPOINTS, num_bytes)


def _check_folder(path: Path, config: Config, *, overwrite: bool) -> None:
    """Checks that the folder of a run can be made, or that its run can be resumed."""
    if not path.exists():
        parent = next(folder for folder in path.absolute().parents if folder.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            raise UsageError(f"run directory {path} cannot be created in {parent}")
        return
    if not path.is_dir():
        raise UsageError(f"run directory {path} cannot be created: it is a file")
    directory.refuse_foreign(path)
    if not overwrite and directory.is_run_directory(path) and directory.has_begun(path):
        directory.check_settings(path, config.to_dict(), config.may_differ)
