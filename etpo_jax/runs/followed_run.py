"""A run directory as hosts other than the first have it: they read it and write nothing."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from etpo_jax.runs.directory import Best, RunDirectory


class FollowedRun(RunDirectory):
    """The same interface; what it would write is written by the first host."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = None

    def record(self, **facts: Any) -> None:
        pass

    def cut_back(self, *, update: int, env_step: int, best: Best | None) -> None:
        pass

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        pass

    def append_episodes(self, rows: Sequence[Mapping[str, Any]]) -> None:
        pass

    def write_best(self, best: Best) -> None:
        pass

    def write_tokens(self, actions: Sequence[Mapping[str, Any]]) -> None:
        pass

    def mark_finished(self, summary: Mapping[str, Any]) -> None:
        pass
