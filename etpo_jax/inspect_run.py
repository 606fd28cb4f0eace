"""Shows the content of a run or a checkpoint without loading its arrays.

  etpo inspect_run --run_dir=runs/demo

The folder may be a run directory, a folder of numbered orbax checkpoints or one orbax checkpoint. A
run may be under way.
"""

import dataclasses
import datetime
import json
import logging
import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from orbax.checkpoint import v1 as ocp

from env import command_line
from env.base import UsageError
from etpo_jax.runs import directory, files
from etpo_jax.runs.run_log import RunLog
from etpo_jax.runs.steps import METADATA, choose, committed_steps, literal

_JSON_FILE = "data.json"
# Entry that orbax keeps beside the checkpointables, without metadata.
_METRICS = "metrics"
# Number of values that `--arrays` lists for a checkpointable; `--json` has all.
_MAX_VALUES = 12
# What fits a screen of 80 columns and 24 lines.
_WIDTH, _MAX_TREES, _MAX_STEPS = 80, 8, 12


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One array or value of a stored tree.

    Attributes:
      path: keys from the root, joined by "/".
      shape: shape of the array; None for a value that is no array.
      dtype: dtype of the array, or type of the value.
      num_bytes: bytes of the unsharded array in memory; 0 for other values.
      sharding: the stored sharding in words; "" where there is none.
    """

    path: str
    shape: tuple[int, ...] | None
    dtype: str
    num_bytes: int
    sharding: str


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """One orbax checkpoint: the trees of its checkpointables by name."""

    path: Path
    committed: str
    num_bytes_on_disk: int
    trees: dict[str, tuple[Leaf, ...]]


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads shapes, dtypes and shardings of one checkpoint.

    Raises:
      UsageError: the folder is no checkpoint, or a damaged one.
    """
    if not (path / METADATA).is_file():
        raise UsageError(f"{path} is no orbax checkpoint")
    try:
        with literal(path) as plain:
            metadata = ocp.checkpointables_metadata(plain)
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    except (ValueError, OSError) as error:
        raise UsageError(f"checkpoint {path} cannot be read: {error}") from error
    trees = dict(metadata.metadata)
    for name in _stored_names(path):
        # Orbax shows no metadata of JSON values.
        if (path / name / _JSON_FILE).is_file():
            trees[name] = files.read_json(path / name / _JSON_FILE)
    for name in _stored_names(path) | trees.keys():
        if trees.get(name) is None and name != _METRICS:
            raise UsageError(f"checkpoint {path} is damaged: {name!r} cannot be read")
    return Checkpoint(
        path=path,
        committed=_time(metadata.commit_timestamp_nsecs),
        num_bytes_on_disk=size,
        trees={name: tuple(_leaves(tree)) for name, tree in sorted(trees.items())},
    )


def main() -> None:
    """Prints the summary of `--run_dir`."""
    # Reading metadata must not take an accelerator from a run that is under way.
    jax.config.update("jax_platforms", "cpu")
    # A damaged checkpoint is reported in one line by this program, not by orbax.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    folder = _flags["run_dir"].value
    if folder is None:
        raise UsageError("--run_dir is required: a run directory or an orbax checkpoint")
    step, as_json = _flags["checkpoint"].value, bool(_flags["json"].value)
    with_arrays = bool(_flags["arrays"].value)
    print(summary(Path(folder).expanduser(), step, as_json, with_arrays=with_arrays))


def summary(
    path: Path, step: int | None = None, as_json: bool = False, *, with_arrays: bool = False
) -> str:
    """Describes the content of a folder as text for people or as a JSON object.

    Args:
      path: a run directory, a folder of numbered checkpoints or one checkpoint.
      step: number of the checkpoint; None for the newest.
      as_json: return all details as one JSON object.
      with_arrays: the text lists each array; otherwise it fits a screen.
    Raises:
      UsageError: the folder holds no run and no checkpoint, or a damaged checkpoint.
    """
    if not path.is_dir():
        raise UsageError(f"--run_dir={path}: there is no such folder")
    log = RunLog.read(path) if directory.is_run_directory(path) else None
    steps, checkpoint = _find_checkpoint(path, step, is_run=log is not None)
    with files.understood(path):
        if as_json:
            return json.dumps(_to_json(log, steps, checkpoint), indent=2, allow_nan=False)
        lines = _lines(log, steps, checkpoint, with_arrays=with_arrays)
        return "\n".join(part for line in lines for part in _wrapped(line, with_arrays))


def _find_checkpoint(
    path: Path, step: int | None, *, is_run: bool
) -> tuple[list[int], Checkpoint | None]:
    """Finds the steps in a folder and the wanted checkpoint; None in a run that has none yet."""
    parent = path / directory.CHECKPOINTS if is_run else path
    steps = committed_steps(parent)
    if steps or step is not None:
        return steps, read_checkpoint(parent / str(choose(parent, step)))
    if is_run:
        return [], None
    if not (path / METADATA).is_file():
        raise UsageError(f"--run_dir={path}: holds neither a run nor an orbax checkpoint")
    return [], read_checkpoint(path)


def _stored_names(path: Path) -> set[str]:
    """Names of the checkpointables that were saved; orbax itself ignores those that are lost."""
    try:
        handlers = files.read_json(path / METADATA).get("item_handlers")
    except UsageError:
        return set()
    return set(handlers) if isinstance(handlers, dict) else set()


def _leaves(tree: Any) -> Iterator[Leaf]:
    for keys, leaf in jax.tree.leaves_with_path(tree):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        shape = getattr(leaf, "shape", None)
        if shape is None:
            # The metadata of a value is a placeholder of its type.
            yield Leaf(path, None, "str" if isinstance(leaf, str) else type(leaf).__name__, 0, "")
            continue
        sharding = _sharding(getattr(leaf, "sharding_metadata", None))
        num_bytes = math.prod(shape) * leaf.dtype.itemsize
        yield Leaf(path, tuple(shape), leaf.dtype.name, num_bytes, sharding)


def _sharding(metadata: Any) -> str:
    """Describes a sharding, such as "(None, fsdp) on fsdp:2 tensor:4"."""
    if metadata is None:
        return ""
    spec = getattr(metadata, "partition_spec", None)
    if spec is None:
        return "one device"
    axes = " ".join(f"{n}:{s}" for n, s in zip(metadata.axis_names, metadata.shape, strict=True))
    parts = ", ".join(
        "+".join(part) if isinstance(part, (tuple, list)) else str(part) for part in spec
    )
    return f"({parts}) on {axes}"


def _time(nanoseconds: int | None) -> str:
    if nanoseconds is None:
        return "at an unknown time"
    moment = datetime.datetime.fromtimestamp(nanoseconds / 1e9, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def _to_json(log: RunLog | None, steps: Sequence[int], checkpoint: Checkpoint | None) -> Any:
    run = None
    if log is not None:
        fifths = log.episodes.fifths()
        run = {
            "path": str(log.path),
            "title": log.title,
            "finished": log.finished,
            "env_step": log.env_steps,
            "update": len(log.metrics),
            "reward_first_fifth": fifths[0] if fifths else None,
            "reward_last_fifth": fifths[1] if fifths else None,
            "best": log.best.to_json() if log.best else None,
            "config": log.config,
            "versions": log.setup,
        }
    found = checkpoint and dataclasses.asdict(checkpoint) | {"path": str(checkpoint.path)}
    return files.to_json({"run": run, "checkpoint_steps": steps, "checkpoint": found})


def _wrapped(line: str, with_arrays: bool) -> list[str]:
    """A line in lines of a screen; words, such as paths, stay whole."""
    if with_arrays or len(line) <= _WIDTH:
        return [line]
    indent = " " * 14
    return textwrap.wrap(
        line, _WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _lines(
    log: RunLog | None,
    steps: Sequence[int],
    checkpoint: Checkpoint | None,
    *,
    with_arrays: bool,
) -> Iterator[str]:
    if log is not None:
        yield from _run_lines(log)
        yield ""
    if steps:
        newest = ["...", *steps[-_MAX_STEPS:]] if len(steps) > _MAX_STEPS else steps
        yield f"numbered checkpoints: {', '.join(map(str, newest))}"
    if checkpoint is None:
        yield "no checkpoint is committed yet"
        return
    size = files.bytes_text(checkpoint.num_bytes_on_disk)
    yield f"checkpoint {checkpoint.path}, committed {checkpoint.committed}, {size} on disk"
    for name, leaves in list(checkpoint.trees.items())[: None if with_arrays else _MAX_TREES]:
        if with_arrays:
            yield ""
        yield from _tree_lines(name, leaves, with_arrays=with_arrays)
    if not with_arrays:
        yield "--arrays lists every array, --json has everything"


def _run_lines(log: RunLog) -> Iterator[str]:
    versions = log.setup
    yield f"run           {log.path}: {log.title}"
    yield f"state         {'finished' if log.finished is not None else 'not finished'}"
    total = log.config.get("num_env_steps")
    yield f"steps         {log.env_steps} of {total} environment steps, {len(log.metrics)} updates"
    fifths = log.episodes.fifths()
    if fifths is not None:
        yield f"mean reward   {fifths[0]:.3f} in the first fifth, {fifths[1]:.3f} in the last"
    if log.best is None:
        yield "best program  none has run yet"
    else:
        code = log.path / directory.BEST_CODE
        yield f"best program  {log.best.reward:.4f} at environment step {log.best.env_step}, {code}"
    yield f"isolation     {versions.get('isolation', 'not recorded')}"
    names = ("python", "jax", "flax", "orbax-checkpoint", "scikit-learn")
    yield f"versions      {', '.join(f'{name} {versions.get(name)}' for name in names)}"
    yield f"commit        {versions.get('git_commit') or 'unknown'}"


def _tree_lines(name: str, leaves: Sequence[Leaf], *, with_arrays: bool) -> Iterator[str]:
    arrays = [leaf for leaf in leaves if leaf.shape is not None]
    values = [leaf for leaf in leaves if leaf.shape is None]
    elements = sum(math.prod(leaf.shape) for leaf in arrays if leaf.shape is not None)
    total = files.bytes_text(sum(leaf.num_bytes for leaf in arrays))
    parts = []
    if arrays:
        parts.append(f"{len(arrays)} arrays of {elements:,} elements, {total}")
    if values or not arrays:
        parts.append(f"{len(values)} numbers and texts, such as counters")
    yield f"{name}: {'; '.join(parts)}"
    if not with_arrays:
        return
    cells = [
        (leaf.path, str(list(leaf.shape or ())), leaf.dtype, files.bytes_text(leaf.num_bytes))
        for leaf in arrays
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for leaf, (*texts, size) in zip(arrays, cells, strict=True):
        left = (text.ljust(width) for text, width in zip(texts, widths, strict=False))
        yield "  ".join(["", *left, size.rjust(widths[-1]), leaf.sharding]).rstrip()
    for leaf in values[:_MAX_VALUES]:
        yield f"  {leaf.path}  {leaf.dtype}"
    if len(values) > _MAX_VALUES:
        yield f"  and {len(values) - _MAX_VALUES} more values (--json lists all)"


_flags = flags.FlagValues()
flags.DEFINE_string(
    "run_dir", None, "Run directory, folder of checkpoints or one checkpoint.", flag_values=_flags
)
flags.DEFINE_integer(
    "checkpoint", None, "Number of the checkpoint (default: the newest).", flag_values=_flags
)
flags.DEFINE_bool(
    "arrays", False, "List each array instead of a text that fits a screen.", flag_values=_flags
)
flags.DEFINE_bool("json", False, "Print one JSON object instead of text.", flag_values=_flags)

if __name__ == "__main__":
    command_line.run(main, flag_values=_flags)
