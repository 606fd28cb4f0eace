"""Training runs of named settings on data sets and seeds, compared in one table.

    python -m benchmarks.study --setting='base:' --setting='beta 0.1: --beta=0.1' --seeds=0,1,2
    python -m benchmarks.study --vary=beta=0.05,0.1,0.2 --vary=temperature=0.7,1 --jobs=2
    python -m benchmarks.study --rows=docs/studies/sensitivity/runs.csv

Every run is an ordinary run of `etpo_jax.train` with a run directory of its own below --output. The
same command again keeps finished runs and continues the others. One row per run goes to runs.csv in
--output; the printed table has the mean over seeds and, for the reward, the range over seeds.
"""

import os
import shlex
import sys
from pathlib import Path

import pandas as pd
from absl import flags

from env import command_line
from env.base import UsageError
from etpo_jax.launch_files import launch_folder
from etpo_jax.reproduction import grid, measures
from etpo_jax.reproduction.grid import Cell, Progress
from etpo_jax.reproduction.tables import Table
from etpo_jax.runs.stopping import StopSignals

_flags = flags.FlagValues()
_SETTINGS = flags.DEFINE_multi_string(
    "setting",
    [],
    "A setting as 'NAME: FLAGS', its flags added to --base; may be repeated.",
    flag_values=_flags,
)
_VARY = flags.DEFINE_multi_string(
    "vary",
    [],
    "A setting for each value, as FLAG=VALUE,VALUE,...; may be repeated.",
    flag_values=_flags,
)
_BASE = flags.DEFINE_string(
    "base", "tiny.flags", "Flagfile that every run starts from.", flag_values=_flags
)
_SETUP = flags.DEFINE_string(
    "setup", None, "Flagfile read after --base and before a setting.", flag_values=_flags
)
_DATASETS = flags.DEFINE_list("datasets", ["balance_scale"], "Data sets.", flag_values=_flags)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds.", flag_values=_flags)
_NUM_ENV_STEPS = flags.DEFINE_integer(
    "num_env_steps", 480, "Environment steps of a run.", lower_bound=5, flag_values=_flags
)
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at the same time.", lower_bound=1, flag_values=_flags)
_OUTPUT = flags.DEFINE_string(
    "output", "results/study", "Folder of the runs and runs.csv.", flag_values=_flags
)
_ROWS = flags.DEFINE_string(
    "rows", None, "A runs.csv whose table is printed; nothing is run.", flag_values=_flags
)
_REWARD = "reward_fifth_5"
_SHOWN = (
    *("reward_fifth_1", "reward_fifth_3", _REWARD, "kl_fifth_5", "entropy", "distinct_programs"),
    *("repeated", "reward_best", "seconds"),
)


def main() -> int:
    if _ROWS.value is not None:
        print(table(pd.read_csv(_ROWS.value)))
        return 0
    settings = _settings()
    if not all(seed.isdecimal() for seed in _SEEDS.value):
        raise UsageError(f"--seeds={','.join(_SEEDS.value)}: must be whole numbers from 0 on")
    cells = [
        Cell(grid.folder_name(name), dataset, int(seed))
        for seed in _SEEDS.value
        for dataset in _DATASETS.value
        for name in settings
    ]
    by_folder = {grid.folder_name(name): (name, given) for name, given in settings.items()}
    if len(by_folder) < len(settings):
        raise UsageError("--setting: two names differ in punctuation alone")
    output = Path(_OUTPUT.value)
    with StopSignals() as stop:
        outcomes = grid.run(
            cells,
            output,
            lambda cell, folder: _command(cell, folder, by_folder[cell.algorithm][1]),
            is_finished=lambda folder: grid.has_steps(folder, _NUM_ENV_STEPS.value),
            jobs=_JOBS.value,
            is_stopped=stop.is_stopped,
            on_change=_show,
        )
    finished = {outcome.cell for outcome in outcomes if not outcome.error}
    rows = []
    for cell in cells:
        if cell in finished:
            name, given = by_folder[cell.algorithm]
            read = measures.read(cell, cell.folder(output))
            rows.append({"setting": name, "flags": given, **measures.row(read)})
    if rows:
        pd.DataFrame(rows).to_csv(output / "runs.csv", index=False)
        print(table(pd.DataFrame(rows)))
    return 0 if len(finished) == len(cells) else 1


def _settings() -> dict[str, str]:
    """Flags of every setting by its name."""
    settings = {}
    for text in _SETTINGS.value:
        name, colon, given = text.partition(":")
        if not colon or not name.strip():
            raise UsageError(f"--setting={text}: must be 'NAME: FLAGS'")
        settings[name.strip()] = given.strip()
    for text in _VARY.value:
        name, _, values = text.partition("=")
        if not values:
            raise UsageError(f"--vary={text}: must be FLAG=VALUE,VALUE,...")
        settings |= {f"{name}={value}": f"--{name}={value}" for value in values.split(",")}
    return settings or {"base": ""}


def _command(cell: Cell, folder: Path, given: str) -> list[str]:
    return [
        *(sys.executable, "-m", "etpo_jax.train", f"--flagfile={_BASE.value}"),
        *([f"--flagfile={_SETUP.value}"] if _SETUP.value else []),
        f"--executor=local:workers={max(1, (os.cpu_count() or 1) // _JOBS.value)}",
        *shlex.split(given),
        *(f"--dataset={cell.dataset}", f"--seed={cell.seed}", f"--run_dir={folder}"),
        f"--num_env_steps={_NUM_ENV_STEPS.value}",
    ]


def _show(progress: Progress) -> None:
    for failure in progress.failures[-1:]:
        print(f"{failure.cell}: {failure.error}", file=sys.stderr)
    print(progress.line(), file=sys.stderr, flush=True)


def table(rows: pd.DataFrame) -> str:
    """A Markdown table with one row per setting and data set, means over seeds."""
    shown = [column for column in _SHOWN if column in rows]
    lines = []
    for names, group in rows.groupby(["setting", "dataset"], sort=False):
        cells = {column: f"{group[column].mean():.3f}" for column in shown}
        reward = group[_REWARD]
        cells[_REWARD] += f" ({reward.min():.3f} to {reward.max():.3f})"
        lines.append([*names, str(len(group)), *cells.values()])
    title = "Means over seeds, and the range of the reward"
    return Table("study", title, ["setting", "dataset", "seeds", *shown], lines).markdown()


if __name__ == "__main__":
    command_line.run(main, flag_values=_flags, flagfile_folders=(launch_folder(),))
