"""Searches the settings of several methods by one protocol and compares the methods with the best.

    python -m benchmarks.search --protocol=docs/studies/comparison/protocol.toml --jobs=2

The protocol is a TOML file (`Protocol`). In its first stage every method runs the same number of
settings, drawn from the stated ranges; later stages keep the best of the stage before, on further
seeds, tables or values of a setting. Each run appends a row to runs.csv in --output. The same
command goes on from these rows alone, so that a copy of runs.csv is all that another machine needs.
"""

import dataclasses
import functools
import itertools
import os
import shutil
import sys
import tomllib
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from absl import flags

from env import command_line
from env.base import UsageError
from etpo_jax.launch_files import launch_folder
from etpo_jax.reproduction import grid, measures
from etpo_jax.reproduction.grid import Cell, Progress
from etpo_jax.runs import files
from etpo_jax.runs.stopping import StopSignals

FINAL_FILE = "final.json"
"""File of a run directory with the figures that `benchmarks.measured_run` adds."""

_flags = flags.FlagValues()
_PROTOCOL = flags.DEFINE_string("protocol", None, "The protocol, a TOML file.", flag_values=_flags)
_SETUP = flags.DEFINE_string(
    "setup", None, "Flagfile read after a method's flags and settings.", flag_values=_flags
)
_JOBS = flags.DEFINE_integer("jobs", 1, "Runs at the same time.", lower_bound=1, flag_values=_flags)
_OUTPUT = flags.DEFINE_string(
    "output", "results/search", "Folder of the runs and runs.csv.", flag_values=_flags
)
_KEEP_RUNS = flags.DEFINE_bool(
    "keep_runs", False, "Keep the folder of a run whose row is written.", flag_values=_flags
)

_CRITERION = ("reward_fifth_5", "kl_fifth_5")

Setting = Mapping[str, str]
"""Flag of a run to its value."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """Runs of the best settings so far.

    Attributes:
      name: name of the stage, for messages.
      methods: the methods that take part.
      seeds, datasets: each setting runs on each data set with each seed.
      keep: number of settings kept of each method's stage before, best first; 0 keeps all.
      vary: values of a flag that replace that of each setting.
      num_samples: fresh episodes of the final policy, on which its reward and KL are measured.
    """

    name: str
    methods: Sequence[str]
    seeds: Sequence[int]
    datasets: Sequence[str]
    keep: int = 0
    vary: Mapping[str, Sequence[float | str]] = dataclasses.field(default_factory=dict)
    num_samples: int = 0


@dataclasses.dataclass(frozen=True)
class Protocol:
    """What is run, and how the best settings are chosen.

    Attributes:
      seed: seed of the draws.
      num_settings: settings drawn for each method.
      num_env_steps: environment steps of a run.
      criterion_betas: a setting is judged by the mean over its runs, and over these values of
        beta0, of J = reward - beta0 KL in the last fifth of a run.
      ranges: flag to its range, `{log = [low, high]}` or `{choice = [...]}`, for every method that
        is searched.
      methods: name of a method to its `flags` and further `ranges`; one with `searched = false` has
        its flags alone.
      stages: in the order in which they run.
      before: folder, relative to the protocol's, of an earlier study with the same draws, whose
        runs the page compares with these; "" for none.
    """

    seed: int
    num_settings: int
    num_env_steps: int
    criterion_betas: Sequence[float]
    ranges: Mapping[str, Mapping[str, Sequence]]
    methods: Mapping[str, Mapping[str, Any]]
    stages: Sequence[Stage]
    before: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a protocol.

        Raises:
          UsageError: the file is missing, is no TOML or has other members than a protocol.
        """
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
            content["stages"] = [Stage(**stage) for stage in content.pop("stage")]
            protocol = cls(**content)
        except (OSError, tomllib.TOMLDecodeError, TypeError, KeyError) as error:
            raise UsageError(f"--protocol={path}: is no protocol ({error})") from error
        for stage in protocol.stages:
            for method in stage.methods:
                if method not in protocol.methods:
                    raise UsageError(f"--protocol={path}: stage {stage.name} names {method}")
        return protocol

    @property
    def setting_names(self) -> list[str]:
        """Flags that some method varies."""
        names = dict.fromkeys(self.ranges)
        for method in self.methods.values():
            names |= dict.fromkeys(method.get("ranges", ()))
        for stage in self.stages:
            names |= dict.fromkeys(stage.vary)
        return list(names)

    def draws(self, method: str) -> list[Setting]:
        """The settings of a method.

        Each flag is a Latin hypercube of its own, with a seed made of its name: flags that methods
        have in common have the same values in the settings of the same number.
        """
        given = self.methods[method]
        if not given.get("searched", True):
            return [{}]
        ranges = {**self.ranges, **given.get("ranges", {})}
        columns = {
            name: _column(self.seed, self.num_settings, name, kind) for name, kind in ranges.items()
        }
        return [{n: column[i] for n, column in columns.items()} for i in range(self.num_settings)]

    def candidates(self, stage: Stage, method: str, rows: pd.DataFrame) -> list[int]:
        """Numbers of a method's settings that a stage runs, the best first.

        Settings with a failed run are not kept.
        """
        kept = list(range(len(self.draws(method))))
        seeds: set[int] = set()
        for earlier in self.stages:
            if method in earlier.methods:
                if earlier.keep and len(kept) > earlier.keep:
                    scores = self.scores(method, rows[rows.seed.isin(seeds)])
                    complete = scores["count"] == scores["count"].reindex(kept).max()
                    ranked = scores.J[complete & scores.index.isin(kept)].sort_values()
                    kept = ranked.index[::-1][: earlier.keep].tolist()
                seeds |= set(earlier.seeds)
            if earlier is stage:
                break
        return kept

    def scores(self, method: str, rows: pd.DataFrame) -> pd.DataFrame:
        """The criterion `J` and the `count` of runs of each setting of a method, as drawn."""
        drawn = [dict.fromkeys(self.setting_names, "") | dict(s) for s in self.draws(method)]
        found = rows[rows.algorithm == method]
        if found.empty:
            return pd.DataFrame({"J": [], "count": []})
        is_drawn = [
            all(row[name] == drawn[int(row["setting"])][name] for name in self.setting_names)
            for _, row in found.iterrows()
        ]
        beta0 = float(np.mean(self.criterion_betas))
        j = found[_CRITERION[0]] - beta0 * found[_CRITERION[1]]
        return j[is_drawn].groupby(found.setting.astype(int)).agg(J="mean", count="size")


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a stage: its method, the number of the drawn setting and the setting itself."""

    method: str
    number: int
    setting: Setting
    num_samples: int


def main() -> int:
    if _PROTOCOL.value is None:
        raise UsageError("--protocol is missing: name a TOML file")
    protocol = Protocol.read(Path(_PROTOCOL.value))
    output = Path(_OUTPUT.value)
    failed = 0
    with StopSignals() as stop:
        for stage in protocol.stages:
            rows = read_rows(output / "runs.csv", protocol)
            runs = missing(protocol, stage, rows)
            print(f"stage {stage.name}: {len(runs)} runs", flush=True)
            recorder = _Recorder(output, protocol, runs)
            outcomes = grid.run(
                list(runs),
                output,
                lambda cell, folder, runs=runs: _command(protocol, cell, folder, runs[cell]),
                is_finished=functools.partial(_is_complete, protocol, stage),
                jobs=_JOBS.value,
                is_stopped=stop.is_stopped,
                on_change=recorder.record,
            )
            failed += sum(bool(outcome.error) for outcome in outcomes)
            if stop.received:
                return 128 + stop.received
            for method in stage.methods:
                print(method, protocol.candidates(stage, method, recorder.rows()), flush=True)
    return 1 if failed else 0


def read_rows(path: Path, protocol: Protocol) -> pd.DataFrame:
    """The rows of the runs so far; settings are text, "" where a method has none."""
    names = protocol.setting_names
    if path.exists():
        rows = pd.read_csv(path, dtype=dict.fromkeys(names, str))
    else:
        rows = pd.DataFrame(columns=["algorithm", "setting", "dataset", "seed", *_CRITERION])
    return rows.assign(**{n: rows[n].fillna("") if n in rows else "" for n in names})


def missing(protocol: Protocol, stage: Stage, rows: pd.DataFrame) -> dict[Cell, Run]:
    """The runs of a stage that have no row yet, seed by seed, by their cell."""
    names = protocol.setting_names
    done = set(rows[["algorithm", "dataset", "seed", *names]].itertuples(index=False, name=None))
    runs = {}
    varied = [
        dict(zip(stage.vary, v, strict=True)) for v in itertools.product(*stage.vary.values())
    ]
    kept = {method: protocol.candidates(stage, method, rows) for method in stage.methods}
    for seed, position, dataset in itertools.product(
        stage.seeds, range(protocol.num_settings), stage.datasets
    ):
        for method in stage.methods:
            for change in varied if position < len(kept[method]) else ():
                number = kept[method][position]
                setting = protocol.draws(method)[number] | {n: str(v) for n, v in change.items()}
                key = (method, dataset, seed, *(setting.get(name, "") for name in names))
                if key not in done:
                    text = "".join(f"-{name}={value}" for name, value in change.items())
                    cell = Cell(f"{method}-{number:02d}{text}", dataset, seed)
                    runs[cell] = Run(method, number, setting, stage.num_samples)
    return runs


class _Recorder:
    """Appends the row of each run that ends to runs.csv, and deletes the folder of the run."""

    def __init__(self, output: Path, protocol: Protocol, runs: Mapping[Cell, Run]) -> None:
        self._output = output
        self._protocol = protocol
        self._runs = runs
        self._seen = 0

    def rows(self) -> pd.DataFrame:
        """All rows so far."""
        return read_rows(self._output / "runs.csv", self._protocol)

    def record(self, progress: Progress) -> None:
        """Writes the rows of the runs that ended since the last call."""
        new = progress.outcomes[self._seen :]
        self._seen = len(progress.outcomes)
        for outcome in new:
            if outcome.error:
                print(f"{outcome.cell}: {outcome.error}", file=sys.stderr)
                continue
            run, folder = self._runs[outcome.cell], outcome.cell.folder(self._output)
            final = {}
            if run.num_samples:
                final = files.read_json(folder / FINAL_FILE)
            row = {
                **{"algorithm": run.method, "setting": run.number},
                **dict.fromkeys(self._protocol.setting_names, ""),
                **run.setting,
                **measures.row(measures.read(outcome.cell, folder)),
                **{f"final_{name}": round(value, 4) for name, value in final.items()},
            }
            rows = pd.concat([self.rows(), pd.DataFrame([row])])
            files.replace(self._output / "runs.csv", rows.to_csv(index=False))
            if not _KEEP_RUNS.value:
                shutil.rmtree(folder)
        print(progress.line(), flush=True)


def _is_complete(protocol: Protocol, stage: Stage, folder: Path) -> bool:
    """True for a run that has all its steps and, where the stage asks for it, its measurement."""
    is_measured = not stage.num_samples or (folder / FINAL_FILE).exists()
    return is_measured and grid.has_steps(folder, protocol.num_env_steps)


def _command(protocol: Protocol, cell: Cell, folder: Path, run: Run) -> list[str]:
    program = ["etpo_jax.train"]
    if run.num_samples:
        program = ["benchmarks.measured_run", f"--num_samples={run.num_samples}"]
    return [
        *(sys.executable, "-m", *program, *protocol.methods[run.method]["flags"]),
        *(f"--{name}={value}" for name, value in run.setting.items()),
        f"--executor=local:workers={max(1, (os.cpu_count() or 1) // _JOBS.value)}",
        *([f"--flagfile={_SETUP.value}"] if _SETUP.value else []),
        *(f"--dataset={cell.dataset}", f"--seed={cell.seed}", f"--run_dir={folder}"),
        f"--num_env_steps={protocol.num_env_steps}",
    ]


def _column(seed: int, count: int, name: str, kind: Mapping[str, Sequence]) -> list[str]:
    """One value of a flag in each of `count` equal parts of its range, in random order."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    share_n = (rng.permutation(count) + rng.random(count)) / count
    if set(kind) == {"log"}:
        low, high = kind["log"]
        return [f"{low * (high / low) ** share:.2g}" for share in share_n]
    if set(kind) == {"choice"}:
        return [str(kind["choice"][int(share * len(kind["choice"]))]) for share in share_n]
    raise UsageError(f"range of {name}: must be {{log = [low, high]}} or {{choice = [...]}}")


if __name__ == "__main__":
    command_line.run(main, flag_values=_flags, flagfile_folders=(launch_folder(),))
