"""Tables and figure of docs/studies/real_model, from the folders of finished or stopped runs.

    python -m benchmarks.real_model --run=etpo:runs/etpo --run=reflection:runs/reflection \
        --output=docs/studies/real_model

writes `updates.csv` (the rows of `metrics.jsonl`), `programs.csv` (every executed program),
`tables.md` and `curves.svg`.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import flags
from scipy import stats

from env import command_line
from env.base import UsageError
from etpo_jax.runs import charts, directory, files
from etpo_jax.runs.charts import Line
from etpo_jax.runs.run_log import RunLog, error_kind

_flags = flags.FlagValues()
_RUNS = flags.DEFINE_multi_string(
    "run", [], "A run as NAME:FOLDER; may be repeated.", flag_values=_flags
)
_OUTPUT = flags.DEFINE_string(
    "output", "docs/studies/real_model", "Folder of tables and figure.", flag_values=_flags
)
_PROGRAM_FIELDS = ("env_step", "episode", "t", "reward", "error", "action")
_NUM_ERRORS = 6


def main() -> int:
    """Writes the study."""
    named = [text.partition(":")[::2] for text in _RUNS.value]
    if not named or not all(name and folder for name, folder in named):
        raise UsageError("--run is missing or not NAME:FOLDER")
    logs = {name: RunLog.read(Path(folder)) for name, folder in named}
    programs = {
        name: list(files.read_rows(log.path / directory.EPISODES)) for name, log in logs.items()
    }
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    fields = list(dict.fromkeys(key for log in logs.values() for key in log.metrics[0]))
    _write_csv(output / "updates.csv", {n: log.metrics for n, log in logs.items()}, fields)
    _write_csv(output / "programs.csv", programs, _PROGRAM_FIELDS)
    tables = [_fifths(logs, programs), _errors(programs)]
    files.replace(output / "tables.md", "\n\n".join(tables) + "\n")
    files.replace(output / "curves.svg", _curves(logs))
    print(f"wrote {output}")
    return 0


def _write_csv(
    path: Path, rows_by_run: Mapping[str, Sequence[files.Row]], fields: Sequence[str]
) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, ("run", *fields), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for name, rows in rows_by_run.items():
        writer.writerows({"run": name, **row} for row in rows)
    files.replace(path, text.getvalue())


def _fifths(logs: dict[str, RunLog], programs: dict[str, list[files.Row]]) -> str:
    """Running programs and rewards of the first and the last fifth of each run."""
    rows = []
    for name, executed in programs.items():
        for fifth, part in _ends(executed):
            first_answers = [row for row in part if row["t"] == 0]
            rewards = np.array([row["reward"] for row in part])
            rows.append(
                (
                    name,
                    fifth,
                    str(len(part)),
                    _share(part),
                    f"{rewards.mean():.2f} ± {_half_width(rewards):.2f}",
                    f"{len(first_answers)}: {_share(first_answers)}",
                )
            )
        minutes = (
            sum(sum(float(row[f"{part}_s"]) for part in _PARTS) for row in logs[name].metrics) / 60
        )
        rows.append(
            (
                name,
                "whole run",
                str(len(executed)),
                _share(executed),
                f"{np.mean([row['reward'] for row in executed]):.2f}; {minutes:.0f} minutes",
                "",
            )
        )
    header = ("run", "part", "programs", "running", "mean reward", "first answers: running")
    return _markdown(header, rows)


_PARTS = ("generate", "execute", "update")


def _share(rows: Sequence[files.Row]) -> str:
    """Share of running programs with a 95 % Wilson interval."""
    if not rows:
        return "-"
    running = sum(not row["error"] for row in rows)
    low, high = stats.binomtest(running, len(rows)).proportion_ci(method="wilson")
    return f"{running / len(rows):.0%} [{low:.0%}, {high:.0%}]"


def _half_width(values: np.ndarray) -> float:
    """Half of the 95 % t interval of a mean."""
    return float(stats.sem(values) * stats.t.ppf(0.975, len(values) - 1))


def _errors(programs: dict[str, list[files.Row]]) -> str:
    """Kinds of errors in the first and the last fifth of each run."""
    counts = {
        f"{name}, {fifth} fifth": Counter(error_kind(row["error"]) for row in part if row["error"])
        for name, executed in programs.items()
        for fifth, part in _ends(executed)
    }
    total = sum(counts.values(), Counter())
    kinds = [kind for kind, _ in total.most_common(_NUM_ERRORS)]
    rows = [(kind, *(str(count[kind]) for count in counts.values())) for kind in kinds]
    return _markdown(("error", *counts), rows)


def _ends(executed: list[files.Row]) -> Iterable[tuple[str, list[files.Row]]]:
    count = len(executed) // 5
    return (("first", executed[:count]), ("last", executed[-count:]))


def _markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _curves(logs: dict[str, RunLog]) -> bytes:
    figure, panels = charts.figure(11, 3.6, columns=3)
    shown = (
        ("reward_mean", "Mean reward of a batch", "failure -1"),
        ("runnable_rate", "Programs that run", "share of a batch"),
        ("kl_to_reference", "KL to the reference", "nats per action"),
    )
    for axes, (metric, title, unit) in zip(panels, shown, strict=True):
        charts.label(axes, title=title, x="environment steps", y=unit)
        for series, (name, log) in enumerate(logs.items()):
            raw, *means = charts.smoothed(log.column(metric), series)
            # A label that begins with an underscore stays out of the legend.
            lines = [Line("_", series, raw.y, is_raw=True)] if means else []
            lines.append(Line(name, series, (means or [raw])[0].y))
            charts.draw_lines(axes, log.column("env_step"), lines)
        charts.legend(axes)
    return charts.to_bytes(figure, "svg")


if __name__ == "__main__":
    command_line.run(main, flag_values=_flags)
