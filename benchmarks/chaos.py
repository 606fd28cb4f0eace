"""Faults at seeded instants of a training run, each followed by a resume that must lose nothing.

    nice python -m benchmarks.chaos --faults=48 --records=chaos.jsonl --output=chaos.md
    nice python -m benchmarks.chaos --faults=9        # one of each kind, as in CI

Faults are added to those that the records hold, and the table is about all of them.

Runs of the stand-in model are hit again and again until they have ended, and then compared with one
that nothing has disturbed: `metrics.jsonl` and `episodes.jsonl` without times, the best programs,
and every number of the last checkpoint must be the same. After each fault the log may be one
update ahead of the newest checkpoint at most. Prints a table in Markdown by kind of fault; the exit
code is 1 if a fault was not survived. A kind that this machine cannot make is named and left out.
"""

import collections
import dataclasses
import itertools
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import flags

from benchmarks import chaos_faults, chaos_runs, records
from benchmarks.chaos_faults import Kind
from env import command_line
from env.base import UsageError
from etpo_jax.devices import host_link
from etpo_jax.runs import directory

_flags = flags.FlagValues()
_FAULTS = flags.DEFINE_integer(
    "faults", 48, "Number of faults, of all kinds in turn.", lower_bound=0, flag_values=_flags
)
_MINUTES = flags.DEFINE_float(
    "minutes", 600.0, "Time after which no further fault is begun.", flag_values=_flags
)
_KINDS = flags.DEFINE_list(
    "kinds", [], "Names of the kinds of faults; all by default.", flag_values=_flags
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of kinds and instants.", flag_values=_flags)
_FOLDER = flags.DEFINE_string(
    "folder", None, "Folder for the runs; by default a new one, removed after.", flag_values=_flags
)
_RECORDS = flags.DEFINE_string(
    "records", None, "File of JSON lines that keeps the faults of all calls.", flag_values=_flags
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "File that gets the table; printed in any case.", flag_values=_flags
)

ENDS_WITHIN_S = 10.0
"""Seconds in which the other hosts end once one is gone; a second of it without other load."""

_HEAD = "| fault | faults | survived | updates lost, most | exit codes | seconds to the end, most |"
_RULE = "|---|---:|---:|---:|---|---:|"
_UNWANTED = ("Traceback", "stack trace", "rows are missing")
_MAX_ERRORS = 10_000  # characters that are shown where a fault was not survived
_MAX_ATTEMPTS = 8  # at an instant before the end of the run


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of one fault.

    Attributes:
      kind: name of the kind.
      instant: where in the run it came.
      codes: exit codes of the processes of the run.
      lost: updates in the log that the newest checkpoint did not have.
      end_s: seconds from the fault to the end of the last process.
      is_at_end: the run has ended, so that it can be compared as a whole.
      problems: what was not as expected; empty for a fault that was survived.
    """

    kind: str
    instant: str
    codes: tuple[int, ...]
    lost: int
    end_s: float
    is_at_end: bool
    problems: tuple[str, ...]


class Chain:
    """A run that faults of some kinds hit, one after the other, and the run it must be equal to."""

    def __init__(self, folder: Path, num_hosts: int, flags: Sequence[str], cache: Path):
        """Makes the uninterrupted run.

        Args:
          folder: folder for everything; an uninterrupted run that it holds is used again.
          num_hosts: processes of each run.
          flags: settings of each run.
          cache: folder of compiled programs.
        """
        self._folder, self._num_hosts, self._cache = folder, num_hosts, cache
        self._flags = [*chaos_runs.SETTINGS, f"--reward_cache={folder / 'rewards'}", *flags]
        self._home, self._reference = folder / "run", folder / "uninterrupted"
        self._outcomes: list[Outcome] = []
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self._home, ignore_errors=True)
        if (self._reference / directory.FINISHED).exists():
            return
        shutil.rmtree(self._reference, ignore_errors=True)
        if problems := self._finish(self._reference):
            raise UsageError(f"the uninterrupted run: {'; '.join(problems)}")

    def suffer(self, kind: Kind, rng: random.Random) -> list[Outcome]:
        """Starts or resumes the run and lets a fault hit it.

        Returns:
          The faults of a run that has ended with this one, else none.
        """
        ended: list[Outcome] = []
        if kind.num_hosts > 1 and chaos_runs.num_logged(self._home) >= chaos_runs.NUM_UPDATES - 1:
            ended = self.end()  # too late for hosts that have to join before they are hit
        for _ in range(_MAX_ATTEMPTS):
            outcome = self._strike(kind, rng)
            if outcome is not None:
                break
            shutil.rmtree(self._home)  # ended before the instant
        else:
            raise UsageError(f"{kind.name}: this machine is too fast or too slow to be hit")
        self._outcomes.append(outcome)
        if outcome.problems:
            _show_errors(self._folder)
        print(
            f"{outcome.kind}, {outcome.instant}: codes {list(outcome.codes)}, lost {outcome.lost}, "
            f"{outcome.end_s:.1f} s{''.join(f'; PROBLEM: {text}' for text in outcome.problems)}",
            flush=True,
        )
        return ended + (self.end() if outcome.is_at_end or outcome.problems else [])

    def end(self) -> list[Outcome]:
        """Lets the run go on to its end, if it has begun, and compares it as a whole."""
        found, self._outcomes = self._outcomes, []
        if not found:
            return []
        problems = self._finish(self._home)
        if not problems:
            problems = chaos_runs.differences(self._home, self._reference, is_whole=True)
        print(f"  a run ended after {len(found)} faults: {'; '.join(problems) or 'equal'}")
        shutil.rmtree(self._home)
        at_end = tuple(problems)
        return [dataclasses.replace(each, problems=each.problems + at_end) for each in found]

    def _finish(self, run_path: Path) -> list[str]:
        """Runs to the end what nothing disturbs; returns what went wrong."""
        hosts = self._start(run_path, ())
        codes = [host.wait() for host in hosts]
        if not any(codes):
            return []
        return [f"a run without a fault ended with {codes}: {_last_line(hosts[0].errors)}"]

    def _start(self, run_path: Path, flags: Sequence[str]) -> list[chaos_runs.Host]:
        return chaos_runs.start(
            run_path,
            self._folder,
            [*self._flags, *flags],
            num_hosts=self._num_hosts,
            cache=self._cache,
        )

    def _strike(self, kind: Kind, rng: random.Random) -> Outcome | None:
        """One process of the run from its start to its end by the fault; None if it was missed."""
        # The log may be ahead of the checkpoint, until a process has read both.
        done = max(chaos_runs.num_kept(self._home), chaos_runs.num_logged(self._home))
        updates, delay_s = _instant(done, kind, rng)
        with kind.place(self._home) as path:
            hosts = self._start(path, kind.flags)
            is_hit = chaos_runs.await_instant(hosts, path, updates, delay_s)
            kind.strike(hosts, path, rng)
            struck = time.monotonic()
            codes = tuple(host.wait() for host in hosts)
            end_s = time.monotonic() - struck
            logged = chaos_runs.num_logged(path)
            problems = [f"{len(left)} orphans" for host in hosts if (left := host.orphans())]
        if not is_hit or (set(codes) == {0} and 0 not in kind.codes):
            return None
        lost = logged - chaos_runs.num_kept(self._home)
        # A process that ends before it has read the log leaves the row that an earlier one lost.
        has_begun = codes[0] > 0 or kind.may_lose > 0
        if lost > (kind.may_lose if has_begun else 1):
            problems.append(f"{lost} updates lost")
        problems += _complaints(kind, hosts, codes, end_s)
        problems += chaos_runs.differences(self._home, self._reference, is_whole=False)
        place = f"after update {updates}" if updates else "after the start"
        return Outcome(
            kind.name, f"{delay_s:.2f} s {place}", codes, lost, end_s, 0 in codes, tuple(problems)
        )


def main() -> int:
    """Lets faults happen, prints the table and returns the exit code."""
    kinds = _chosen_kinds()
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        path = Path(_RECORDS.value or Path(temporary) / "records.jsonl")
        _suffer(kinds, Path(_FOLDER.value or temporary).absolute(), records.Records(path))
        found = records.read(path) if path.exists() else []
    text = _table(found)
    print(f"\n{text}")
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(text)
    return 1 if any(row["problems"] for row in found) else 0


def _suffer(kinds: Sequence[Kind], folder: Path, results: records.Records) -> None:
    """Lets all faults happen; each is recorded once the run that it hit has ended."""
    rng = random.Random(_SEED.value)
    ends_at = time.monotonic() + 60.0 * _MINUTES.value
    chains: dict[tuple, Chain] = {}
    for kind in _in_turn(kinds, _FAULTS.value):
        if time.monotonic() > ends_at:
            break
        key = (kind.num_hosts, kind.flags if kind.num_hosts > 1 else ())
        if key not in chains:
            chains[key] = Chain(folder / f"hosts{kind.num_hosts}", *key, folder / "compiled")
        for outcome in chains[key].suffer(kind, rng):
            results.add(**dataclasses.asdict(outcome))
    for chain in chains.values():
        for outcome in chain.end():
            results.add(**dataclasses.asdict(outcome))


def _in_turn(kinds: Sequence[Kind], count: int) -> list[Kind]:
    """So many faults: of all kinds, then of those that hit one process, and so on."""
    alone = [kind for kind in kinds if kind.num_hosts == 1]
    return list(itertools.islice(itertools.cycle([*kinds, *alone]), count))


def _chosen_kinds() -> list[Kind]:
    wanted = [kind for kind in chaos_faults.KINDS if not _KINDS.value or kind.name in _KINDS.value]
    found = []
    for kind in wanted:
        if reason := kind.obstacle():
            print(f"left out: {kind.name} ({reason})", file=sys.stderr, flush=True)
        else:
            found.append(kind)
    if not found:
        names = ", ".join(kind.name for kind in chaos_faults.KINDS)
        raise UsageError(f"--kinds={','.join(_KINDS.value)}: no such fault here; there are {names}")
    return found


def _instant(done: int, kind: Kind, rng: random.Random) -> tuple[int, float]:
    """Number of updates after which a fault comes, and seconds after that.

    Several hosts are hit once they know each other; one process also while it starts.
    """
    updates = done + rng.randrange(4)
    if updates == done and kind.num_hosts == 1:
        return 0, rng.uniform(0.2, 8.0)
    last = chaos_runs.NUM_UPDATES - (kind.num_hosts > 1)
    return min(max(updates, done + 1), last), rng.uniform(0.0, 0.6)


def _complaints(
    kind: Kind, hosts: Sequence[chaos_runs.Host], codes: Sequence[int], end_s: float
) -> list[str]:
    """Names what is wrong with exit codes, times and messages of processes after a fault."""
    found = [f"exit code {code}" for code in codes if code not in kind.codes]
    if host_link.EXIT_CODE in kind.codes and end_s > ENDS_WITHIN_S:
        found.append(f"the other host ended after {end_s:.1f} s")
    for host, code in zip(hosts, codes, strict=True):
        if code < 0:
            continue
        text = host.output.read_text() + host.errors.read_text()
        found += [f"says {word!r}" for word in _UNWANTED if word in text]
        if kind.is_reported and not _last_line(host.errors).startswith("error: "):
            found.append(f"ends with {_last_line(host.errors)!r}")
    return found


def _show_errors(logs: Path) -> None:
    for file in sorted(logs.glob("*.err")):
        print(f"--- {file.name}\n{file.read_text()[-_MAX_ERRORS:]}", file=sys.stderr, flush=True)


def _last_line(file: Path) -> str:
    return (file.read_text().strip().splitlines() or [""])[-1]


def _table(outcomes: Sequence[Mapping[str, Any]]) -> str:
    by_kind = collections.defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome["kind"]].append(outcome)
    by_kind["all"] = list(outcomes)
    lines = [_HEAD, _RULE]
    for name, found in by_kind.items():
        codes = sorted({code for outcome in found for code in outcome["codes"]})
        cells = (
            name,
            len(found),
            sum(not outcome["problems"] for outcome in found),
            max((outcome["lost"] for outcome in found), default=0),
            ", ".join(map(str, codes)),
            f"{max((outcome['end_s'] for outcome in found), default=0.0):.1f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, ""])


def run() -> NoReturn:
    """The program."""
    command_line.run(main, flag_values=_flags)


if __name__ == "__main__":
    run()
