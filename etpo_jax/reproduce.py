"""Reproduces the paper's tables and figures: runs algorithms x data sets x seeds and reports.

  etpo reproduce --tables=2,4 --figures=3,10 --datasets=balance_scale,tic_tac_toe \
      --seeds=0,1,2,3,4 --output=results/reproduce

Every cell of the grid is an ordinary run of etpo_jax.train with launch/paper/ALGORITHM.flags, in a
run directory of its own. The same command again resumes a stopped grid; cells that fail are named
and left out. The tables show the published results beside ours.
"""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

from absl import flags

from env import command_line
from env.base import UsageError
from env.tables.registry import REGISTRY
from etpo_jax import perplexity
from etpo_jax.launch_files import launch_folder
from etpo_jax.reproduction import grid, measures, page
from etpo_jax.reproduction.grid import Cell, Outcome, Progress
from etpo_jax.reproduction.measures import Results, Run
from etpo_jax.reproduction.page import Origin
from etpo_jax.runs import versions
from etpo_jax.runs.stopping import StopSignals

_PAPER = launch_folder() / "paper"
_TABLES = flags.DEFINE_list("tables", ["2", "3", "4", "5"], "Numbers of the tables to make.")
_FIGURES = flags.DEFINE_list("figures", ["1", "3", "4", "10"], "Numbers of the figures to make.")
_ALGORITHMS = flags.DEFINE_list(
    "algorithms",
    [],
    "Names of launch/paper/NAME.flags; by default those that the tables and figures compare.",
)
_DATASETS = flags.DEFINE_list(
    "datasets", ["balance_scale", "tic_tac_toe"], "Names of the data sets, or files."
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "Seeds of the runs.")
_NUM_ENV_STEPS = flags.DEFINE_integer(
    "num_env_steps", 500, "Environment steps of each run.", lower_bound=5
)
_JOBS = flags.DEFINE_integer("jobs", 1, "Number of runs at the same time.", lower_bound=1)
_OUTPUT = flags.DEFINE_string("output", "results/reproduce", "Folder for runs, tables and figures.")
_SETUP = flags.DEFINE_string(
    "setup", None, "Flagfile that is read after each algorithm's, for another model or other sizes."
)
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder with raw tables; see docs/tasks.md.")
_PERPLEXITY_FILES = flags.DEFINE_list(
    "perplexity_files", [str(perplexity.HELD_OUT)], "Text files for the perplexities of Table 3."
)


@dataclasses.dataclass(frozen=True)
class Request:
    """The checked flags of the program."""

    tables: tuple[str, ...]
    figures: tuple[str, ...]
    algorithms: tuple[str, ...]
    datasets: tuple[str, ...]
    seeds: tuple[int, ...]
    num_env_steps: int
    jobs: int
    output: Path
    train_flags: tuple[str, ...]
    perplexity_files: tuple[Path, ...]

    @property
    def cells(self) -> list[Cell]:
        """All cells, seed by seed: a grid that is stopped early can compare algorithms already."""
        return [
            Cell(algorithm, dataset, seed)
            for seed in self.seeds
            for dataset in self.datasets
            for algorithm in self.algorithms
        ]

    def command(self, cell: Cell, folder: Path) -> list[str]:
        """The training command of a cell."""
        return [
            *(sys.executable, "-m", "etpo_jax.train"),
            f"--flagfile={_PAPER / cell.algorithm}.flags",
            f"--executor=local:workers={max(1, (os.cpu_count() or 1) // self.jobs)}",
            *self.train_flags,
            f"--num_env_steps={self.num_env_steps}",
            f"--dataset={cell.dataset}",
            f"--seed={cell.seed}",
            f"--run_dir={folder}",
        ]


def main() -> int:
    request = _request()
    with StopSignals("Stopping once the running cells are saved; Ctrl-C again stops now.") as stop:
        outcomes = grid.run(
            request.cells,
            request.output,
            request.command,
            is_finished=lambda folder: grid.has_steps(folder, request.num_env_steps),
            jobs=request.jobs,
            is_stopped=stop.is_stopped,
            on_change=lambda progress: _show(progress, request.output),
        )
        if stop.received:
            print("\nStopped; the same command resumes the grid.")
            return 128 + stop.received
    failures = [outcome for outcome in outcomes if outcome.error]
    finished = [outcome.cell for outcome in outcomes if not outcome.error]
    if not finished:
        raise UsageError(
            f"no cell has finished; the first failure: {failures[0].cell}: {failures[0].error}"
        )
    runs = [measures.read(cell, cell.folder(request.output)) for cell in finished]
    order = {cell: index for index, cell in enumerate(request.cells)}
    results = measures.group(sorted(runs, key=lambda run: order[run.cell]))
    perplexities = []
    if "3" in request.tables:
        for run in _of_table_3(results):
            try:
                perplexities += _measure_perplexity(run, request)
            except UsageError as error:
                failures.append(Outcome(run.cell, f"perplexity: {error}"))
    commit = versions.current()["git_commit"]
    paths = page.write(
        request.output,
        results,
        origin=Origin(commit, request.num_env_steps, versions.command()),
        failures=failures,
        wanted_tables=request.tables,
        wanted_figures=request.figures,
        perplexities=perplexities,
    )
    print("\n" + "\n".join(map(str, paths)))
    return 1 if failures else 0


def _request() -> Request:
    for name, wanted, known in (
        ("tables", _TABLES.value, page.TABLES),
        ("figures", _FIGURES.value, page.FIGURES),
    ):
        for number in wanted:
            if number not in known:
                raise UsageError(f"--{name}={number}: must be among {', '.join(known)}")
    needed = [page.TABLES[n] for n in _TABLES.value] + [page.FIGURES[n] for n in _FIGURES.value]
    needed_names = [name for names in needed for name in names]
    algorithms = tuple(dict.fromkeys(_ALGORITHMS.value or needed_names))
    if not algorithms:
        raise UsageError("--algorithms, --tables and --figures are all empty: nothing to run")
    for name in algorithms:
        if not (_PAPER / f"{name}.flags").is_file():
            present = ", ".join(sorted(path.stem for path in _PAPER.glob("*.flags")))
            raise UsageError(f"--algorithms={name}: must be among {present}")
    for name in _DATASETS.value:
        if ":" not in name and name not in (*REGISTRY, "toy") and not Path(name).is_file():
            raise UsageError(f"--datasets={name}: must be a file or among {', '.join(REGISTRY)}")
    if not _DATASETS.value or not _SEEDS.value:
        raise UsageError("--datasets and --seeds must name at least one each")
    if not all(text.isdecimal() for text in _SEEDS.value):
        raise UsageError(f"--seeds={','.join(_SEEDS.value)}: must be whole numbers from 0 on")
    train_flags = []
    if _SETUP.value is not None:
        if not Path(_SETUP.value).is_file():
            raise UsageError(f"--setup={_SETUP.value}: is no file")
        train_flags.append(f"--flagfile={_SETUP.value}")
    if _DATA_DIR.value is not None:
        train_flags.append(f"--data_dir={_DATA_DIR.value}")
    for name in _PERPLEXITY_FILES.value:
        perplexity.read_documents(Path(name))
    return Request(
        tables=tuple(_TABLES.value),
        figures=tuple(_FIGURES.value),
        algorithms=algorithms,
        datasets=tuple(dict.fromkeys(_DATASETS.value)),
        seeds=tuple(dict.fromkeys(map(int, _SEEDS.value))),
        num_env_steps=_NUM_ENV_STEPS.value,
        jobs=_JOBS.value,
        output=Path(_OUTPUT.value),
        train_flags=tuple(train_flags),
        perplexity_files=tuple(map(Path, _PERPLEXITY_FILES.value)),
    )


def _show(progress: Progress, output: Path) -> None:
    """Prints the table at both ends and a line per cell; `progress.md` always has the table."""
    output.mkdir(parents=True, exist_ok=True)
    progress.write(output / "progress.md")
    if progress.is_at_an_end:
        print(progress.table(), flush=True)
    else:
        latest = progress.outcomes[-1]
        print(f"{latest.cell}: {latest.error or 'finished'}; {progress.line()}", flush=True)


def _of_table_3(results: Results) -> list[Run]:
    """Runs whose perplexity is measured: those of ETPO, or else of all algorithms that train."""
    names = [name for name in page.TABLES["3"] if name in results]
    names = names or [name for name in results if name != "reflection"]
    return [run for name in names for runs in results[name].values() for run in runs]


def _measure_perplexity(run: Run, request: Request) -> list[tuple[str, str, float, float]]:
    """Measures rows of Table 3 with `etpo_jax.evaluate`; the result is kept beside the run.

    Raises:
      UsageError: if the program fails.
    """
    kept = run.path / "perplexity.json"
    texts = [str(path) for path in request.perplexity_files]
    key = {"files": texts, "env_steps": len(run.reward_t)}
    answer = files.read_json(kept) if kept.exists() else {}
    if answer.get("key") != key:
        command = [
            *(sys.executable, "-m", "etpo_jax.evaluate", f"--run_dir={run.path}", "--json"),
            *("--perplexity", f"--perplexity_files={','.join(texts)}", "--num_samples=0"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:] or ["no output"]
            raise UsageError(f"{shlex.join(command)}: exit code {done.returncode}, {last[0]}")
        answer = {"key": key, "rows": json.loads(done.stdout)["perplexity"]}
        files.write_json(kept, answer)
    return [
        (str(run.cell), Path(row["text"]).name, float(row["before"]), float(row["after"]))
        for row in answer["rows"]
    ]


if __name__ == "__main__":
    command_line.run(main)
