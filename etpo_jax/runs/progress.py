"""Progress of a run on the screen: a bar, a summary at the end, and seconds by phase."""

import contextlib
import math
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from etpo_jax.runs import console, directory
from etpo_jax.runs.run_log import RunLog

if TYPE_CHECKING:
    from etpo_jax.devices.compilations import Compilations

_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps, ETA {remaining}, {desc}"
# Characters of the bar before fields behind it are left out.
_LEAST_BAR = 10
_LINE = "step {n_fmt}/{total_fmt} {percentage:3.0f}%  {desc}  ETA {remaining}"


class Progress(contextlib.AbstractContextManager["Progress"]):
    """One bar that is redrawn after each update; where the stream is no terminal, one line each."""

    def __init__(
        self, total_env_steps: int, *, env_step: int = 0, stream: TextIO | None = None
    ) -> None:
        """Starts the clock of the remaining time.

        Args:
          total_env_steps: number of environment steps at the end of the run.
          env_step: steps that earlier processes of the run have done.
          stream: receives the text; standard output by default.
        """
        stream = sys.stdout if stream is None else stream
        self._is_terminal = stream.isatty()
        bar_class = _Bar if self._is_terminal else _Lines
        self._separator = ", " if self._is_terminal else "  "
        self._bar = bar_class(
            total=total_env_steps,
            initial=env_step,
            file=stream,
            # tqdm would hide its bar on a terminal that does not tell its size.
            ncols=shutil.get_terminal_size().columns - 1,
            nrows=24,
            bar_format=_BAR if self._is_terminal else _LINE,
            mininterval=0.0,
            miniters=0,
            position=0,
            colour="green" if console.has_colours(stream) else None,
            # Lines begin with the first update.
            delay=0 if self._is_terminal else 1e-9,
        )

    def note(self, text: str) -> None:
        """Shows beside the bar what is being done; a file gets nothing."""
        if self._is_terminal:
            self._bar.set_description_str(text)

    def update(self, row: Mapping[str, Any]) -> None:
        """Shows a row of `metrics.jsonl`."""
        fields = (
            f"update {int(row['update']):3}",
            f"reward mean {_number(row.get('reward_mean'), 6, '.3f')}",
            f"best {_number(row.get('reward_best'), 6, '.3f')}",
            f"runnable {_number(row.get('runnable_rate'), 4, '.0%')}",
            f"{_number(row.get('tokens_per_s'), 6, ',.0f')} tokens/s",
        )
        self._bar.ncols = shutil.get_terminal_size().columns - 1
        self._bar.set_description_str(self._fitting(fields), refresh=False)
        self._bar.update(int(row["env_step"]) - self._bar.n)

    def _fitting(self, fields: Sequence[str]) -> str:
        """As many of the fields as leave a bar of some length on a terminal; all elsewhere."""
        text = self._separator.join(fields)
        if not self._is_terminal:
            return text
        total = len(str(self._bar.total))
        left = self._bar.ncols - _LEAST_BAR - len(" 50%|| / steps, ETA 00:00, ") - 2 * total
        while len(text) > left and len(fields) > 1:
            fields = fields[:-1]
            text = self._separator.join(fields)
        return text

    def close(self) -> None:
        """Ends the bar, so that other output may follow."""
        self._bar.close()

    def __exit__(self, *exception: object) -> None:
        self.close()


@contextlib.contextmanager
def shown(
    total: int, start: int, compilations: "Compilations", to: console.Console
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Context with a bar that also names what is compiled; yields its `update`.

    Args:
      total, start: environment steps at the end of the run, and those that are done.
      compilations: watches over what is compiled.
      to: if it is quiet, nothing is shown.
    """
    if to.is_quiet:
        yield lambda row: None
        return
    with Progress(total, env_step=start) as bar:
        compilations.on_start = lambda name: bar.note(f"compiling {name}")
        yield bar.update


class _Bar(tqdm):
    # tqdm's monitor is a thread that lowers `miniters`; here every update is drawn anyway.
    monitor_interval = 0


class _Lines(_Bar):
    """Prints each state of the bar as a line, without control characters."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        text = self.format_meter(**self.format_dict | {"ncols": None})
        print(text, file=self.fp, flush=True)

    def close(self) -> None:
        self.disable = True


def summary(run_path: Path) -> str:
    """Describes a run in a few lines: how far it came, its best program, where its files are.

    Raises:
      UsageError: the folder is no run directory.
    """
    log = RunLog.read(run_path)
    if log.finished is None:
        total = log.config.get("num_env_steps")
        state = f"Stopped after {log.env_steps} of {total} environment steps"
    else:
        state = f"Finished {log.env_steps} environment steps"
    lines = [f"{state}: {log.title}", ""]
    if (best := log.best) is not None:
        place = f"at environment step {best.env_step} of {log.env_steps}"
        lines.append(f"  best reward     {best.reward:.4f} {place}")
    else:
        lines.append("  best reward     none: no program has run without an error")
    fifths = log.episodes.fifths()
    # The fifths of fewer updates than five are from the same policy.
    if fifths is not None and len(log.metrics) >= 5:
        first, last = fifths
        lines.append(f"  mean reward     {first:.3f} in the first fifth, {last:.3f} in the last")
    if log.scores is not None:
        lines += ["", *(f"  {line}" for line in log.scores.lines()), ""]
    named_files = (
        ("best program", directory.BEST_CODE),
        ("curve", directory.CURVE),
        ("report", directory.REPORT),
        ("metrics", directory.METRICS),
        ("programs", directory.EPISODES),
    )
    paths = ((name, run_path / file) for name, file in named_files)
    lines += [f"  {name:15} {path}" for name, path in paths if path.exists()]
    lines.append("")
    if best is not None and best.split_scores:
        best_code = shlex.quote(str(run_path / directory.BEST_CODE))
        lines.append(f"Run the best program:  python {best_code}")
        if log.preparation is not None:
            options = "--predict NEW.csv --output=predictions.csv"
            lines.append(f"Predict other rows:    python {best_code} {options}")
    if log.finished is None:
        lines.append("Resume the run:        the same command again")
    else:
        lines.append("Continue the run:      the same command with a larger --num_env_steps")
    return "\n".join(lines).rstrip() + "\n"


class Timer:
    """Sums wall seconds of named phases.

    Phases may overlap, because the device works while programs execute, so their sum may exceed
    the wall time of an update.
    """

    def __init__(self, *phases: str):
        self.seconds = dict.fromkeys(phases, 0.0)

    def add(self, phase: str, seconds: float) -> None:
        """Adds the duration of a phase that the caller has timed."""
        self.seconds[phase] += seconds

    @contextlib.contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Adds the duration of the block."""
        started = time.monotonic()
        try:
            yield
        finally:
            self.add(phase, time.monotonic() - started)


def _number(value: Any, width: int, spec: str) -> str:
    """Formats a number to the right of `width` characters; a dash stands for a missing one."""
    is_known = value is not None and math.isfinite(value)
    return (format(float(value), spec) if is_known else "-").rjust(width)
