"""What a run tells the person in front of the screen: a progress line, and a summary at the end."""

import collections
import math
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from etpo_jax.runs import directory
from etpo_jax.runs.run_log import RunLog

# Updates over which the speed is averaged for the remaining time.
_SPEED_WINDOW = 20
_CLEAR_TO_END_OF_LINE = "\x1b[K"


class Progress:
    """One line per update: rewritten in place on a terminal, plain lines elsewhere.

    Elsewhere (a file, a pipe) there are no control characters and at most one line per
    `interval_s`; the last update is always shown.
    """

    def __init__(
        self,
        total_env_steps: int,
        *,
        env_step: int = 0,
        stream: TextIO | None = None,
        interval_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Starts the clock of the remaining time.

        Args:
          total_env_steps: where the run ends.
          env_step: steps done before this process, by the run that it resumes.
          stream: where to write; standard output by default.
          interval_s: seconds between lines where the stream is no terminal.
          clock: seconds, from any origin.
        """
        self._total = total_env_steps
        self._stream = sys.stdout if stream is None else stream
        self._is_terminal = self._stream.isatty()
        self._interval_s = interval_s
        self._clock = clock
        self._start = (clock(), env_step)
        self._seen: collections.deque[tuple[float, int]] = collections.deque(maxlen=_SPEED_WINDOW)
        self._shown_s = -math.inf
        self._held_back: str | None = None

    def update(self, row: Mapping[str, Any]) -> None:
        """Shows a row of `metrics.jsonl`."""
        now_s = self._clock()
        self._seen.append((now_s, int(row["env_step"])))
        line = self._line(row)
        if self._is_terminal:
            # A line that wraps could not be rewritten.
            line = line[: shutil.get_terminal_size().columns - 1]
            self._stream.write(f"\r{line}{_CLEAR_TO_END_OF_LINE}")
            self._stream.flush()
        elif now_s - self._shown_s >= self._interval_s:
            self._print(line)
            self._shown_s, self._held_back = now_s, None
        else:
            self._held_back = line

    def close(self) -> None:
        """Ends the line, so that other output may follow."""
        if self._is_terminal and self._seen:
            self._print("")
        elif self._held_back is not None:
            self._print(self._held_back)
        self._held_back = None
        self._seen.clear()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def _line(self, row: Mapping[str, Any]) -> str:
        env_step, width = int(row["env_step"]), len(str(self._total))
        fields = (
            f"step {env_step:{width}}/{self._total} {_number(env_step / self._total, 4, '.0%')}",
            f"update {int(row['update']):3}",
            f"reward mean {_number(row.get('reward_mean'), 6, '.3f')}",
            f"best {_number(row.get('reward_best'), 6, '.3f')}",
            f"runnable {_number(row.get('runnable_rate'), 4, '.0%')}",
            f"{_number(row.get('tokens_per_s'), 6, ',.0f')} tokens/s",
            f"ETA {self._remaining()}",
        )
        return "  ".join(fields)

    def _remaining(self) -> str:
        # The first update compiles: as soon as there is another it says nothing about the rest.
        (then_s, then), (now_s, now) = self._start, self._seen[-1]
        if len(self._seen) > 1:
            then_s, then = self._seen[0]
        if now >= self._total:
            return duration(0)
        if now <= then:
            return "?"
        return duration((now_s - then_s) / (now - then) * (self._total - now))


def duration(seconds: float) -> str:
    """Such as 0:07, 12:30 or 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def summary(run_path: Path) -> str:
    """A run as a few lines of text: how far it came, its best program, where everything is.

    Raises:
      UsageError: the folder is no run directory.
    """
    log = RunLog.read(run_path)
    total = log.config.get("num_env_steps")
    if log.finished is None:
        state = f"Stopped after {log.env_steps} of {total} environment steps"
    else:
        state = f"Finished {log.env_steps} environment steps"
    lines = [f"{state}: {log.title}", ""]
    if log.best is not None:
        lines.append(
            f"  best reward     {log.best.reward:.4f} at environment step {log.best.env_step}"
        )
    fifths = log.episodes.fifths()
    if fifths is not None:
        lines.append(
            f"  mean reward     {fifths[0]:.3f} in the first fifth, {fifths[1]:.3f} in the last"
        )
    named_files = (
        ("best program", directory.BEST_CODE),
        ("curve", directory.CURVE),
        ("report", directory.REPORT),
        ("metrics", directory.METRICS),
        ("programs", directory.EPISODES),
    )
    lines += [
        f"  {name:15} {run_path / file}" for name, file in named_files if (run_path / file).exists()
    ]
    lines.append("")
    if log.best is not None:
        best_code = shlex.quote(str(run_path / directory.BEST_CODE))
        lines.append(f"Run the best program:  python {best_code}")
    if log.finished is None:
        lines.append("Go on with the run:    the same command again")
    return "\n".join(lines).rstrip() + "\n"


def _number(value: Any, width: int, spec: str) -> str:
    """`value` formatted to the right of `width` characters; a dash where there is none."""
    is_known = value is not None and math.isfinite(value)
    return (format(float(value), spec) if is_known else "-").rjust(width)
