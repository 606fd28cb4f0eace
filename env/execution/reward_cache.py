"""A cache on disk of the rewards of programs, keyed by content.

A reward is a function of program, table, splits, metric and libraries, which are seeded per split.
All of these are in the key, so that no entry ever has to be invalidated.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from env.base import UsageError
from env.execution.metrics import Metric
from env.execution.program import BUILD_MODEL, ProgramTemplate
from env.execution.results import ExecutionResult, Executor
from env.sandbox.limits import Limits
from env.tables.table import Dataset

_FORMAT = 1
"""Part of the key; a change to how programs are run that changes rewards must raise it."""
_LIBRARIES = ("numpy", "scipy", "scikit-learn", "pandas")
# These outcomes depend on the load and the memory of the machine.
_NOT_CACHED = ("TimeoutError", "MemoryError", "SystemError")


class CachedExecutor:
    """An executor that remembers the results of another one.

    `run` may be called from many threads, and many processes may share a folder. A body that occurs
    several times among the unknown ones of a call is executed once.

    Args:
      executor: runs unknown bodies; closed with this one.
      folder: folder of the results; see `default_folder`.
      context: JSON values that rewards depend on beside program, libraries and machine; see
        `reward_context`.
      template: how the executor makes a program of a body.

    Attributes:
      hits: number of bodies so far that did not have to be executed.
      misses: number of bodies so far that were executed.
    """

    def __init__(
        self,
        executor: Executor,
        folder: str | Path,
        context: Mapping[str, Any],
        template: ProgramTemplate = BUILD_MODEL,
    ):
        self._executor = executor
        self._template = template
        text = json.dumps(
            {
                **context,
                "format": _FORMAT,
                "function": template.function,
                "python": platform.python_version(),
                "machine": platform.machine(),
                "versions": {name: _version(name) for name in _LIBRARIES},
                # A program without a wall around it could write into the cache.
                "isolation": executor.isolation,
            },
            sort_keys=True,
            indent=2,
        )
        self._folder = Path(folder).expanduser() / hashlib.sha256(text.encode()).hexdigest()[:32]
        self._folder.mkdir(parents=True, exist_ok=True)
        _write(self._folder / "context.json", text)
        self._lock = threading.Lock()
        self._has_warned = False
        self.hits = 0
        self.misses = 0

    @property
    def isolation(self) -> str:
        """Isolation tier of the wrapped executor."""
        return self._executor.isolation

    def run(self, bodies: Sequence[str]) -> list[ExecutionResult]:
        """Returns results in the order of `bodies`, remembered or executed now."""
        keys = [self._key(body) for body in bodies]
        known = {key: found for key in set(keys) if (found := self._load(key)) is not None}
        unknown: dict[str, str] = {}
        for key, body in zip(keys, bodies, strict=True):
            if key not in known:
                unknown.setdefault(key, body)
        results = self._executor.run(list(unknown.values())) if unknown else ()
        executed = dict(zip(unknown, results, strict=True))
        for key, result in executed.items():
            self._store(key, result)
        with self._lock:
            self.misses += len(executed)
            self.hits += len(bodies) - len(executed)
        results, known = [], known | executed
        for key in keys:
            results.append(known[key])
            # Only the first of equal bodies was executed.
            known[key] = dataclasses.replace(known[key], cached=True)
        return results

    def close(self) -> None:
        """Closes the wrapped executor; results on disk stay."""
        self._executor.close()

    def _key(self, body: str) -> str:
        # Half a surrogate pair has no encoding of its own, yet may be in a text.
        source = self._template.source(body).encode("utf-8", "surrogatepass")
        return hashlib.sha256(source).hexdigest()

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"

    def _load(self, key: str) -> ExecutionResult | None:
        try:
            fields = json.loads(self._path(key).read_text("utf-8"))
            return ExecutionResult(
                reward=float(fields["reward"]),
                split_scores=tuple(float(score) for score in fields["split_scores"]),
                error=str(fields["error"]),
                wall_s=float(fields["wall_s"]),
                cached=True,
                interval=_interval(fields),
            )
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError):  # a damaged entry counts as unknown
            return None

    def _store(self, key: str, result: ExecutionResult) -> None:
        if result.error.startswith(_NOT_CACHED):
            return
        fields = dataclasses.asdict(result)
        del fields["cached"]
        if result.interval is None:
            del fields["interval"]
        path = self._path(key)
        try:
            path.parent.mkdir(exist_ok=True)
            _write(path, json.dumps(fields))
        except OSError as error:  # costs the time of another execution, not the result
            if not self._has_warned:
                logging.warning("rewards cannot be remembered in %s: %s", self._folder, error)
                self._has_warned = True


def _interval(fields: Mapping[str, Any]) -> tuple[float, float] | None:
    if "interval" not in fields:
        return None
    low, high = fields["interval"]
    return float(low), float(high)


def default_folder() -> Path:
    """Returns the folder `etpo_jax/rewards` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "etpo_jax" / "rewards"


def reward_context(
    dataset: Dataset,
    *,
    num_splits: int,
    metric: Metric,
    limits: Limits,
    libraries: Sequence[str] = (),
    holdout: bool = False,
) -> dict[str, Any]:
    """Returns what rewards depend on beside program, usual libraries and machine, as JSON values.

    Args: as for `env.executor.CodeExecutor`. The version of a further library is known if its
      distribution has the name of the module.
    """
    scored: dict[str, Any] = {"num_splits": num_splits}
    if holdout:
        if dataset.holdout is None:
            raise UsageError("the table has no holdout rows, so there is no holdout score")
        scored = {"holdout": dataset.holdout.checksum}
    return {
        # Covers form, kind of target and stratification.
        "dataset": dataset.checksum,
        **scored,
        "metric": metric.name,
        "metric_version": metric.version,
        # Limits of time are left out: outcomes of them are not remembered.
        "memory_bytes": limits.memory_bytes,
        "max_threads": limits.max_threads,
        "max_output_bytes": limits.max_output_bytes,
        "libraries": {name: _version(name) for name in sorted(libraries)},
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _write(path: Path, text: str) -> None:
    """Writes a file that other processes see whole or not at all."""
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, path)
    except BaseException:
        os.unlink(part)
        raise
